"""TPU VMs: prints a script that requests a slice and runs stages on all its hosts.

    python -m scripts.launch.tpu --config=configs/quickstart.py:accelerator \\
        --workdir=/mnt/shared/run --root=/mnt/shared/heartwood --stages=train.pretrain \\
        --zone=us-east5-b --accelerator_type=v5litepod-64 --runtime_version=v2-alpha-tpuv5-lite

The script needs `gcloud`. It queues a request for the slice (optionally --spot), waits for it, runs
the stages on every host, and deletes the slice when they are done. A preempted slice is requested
again, and the stages resume from their checkpoints. `workdir` and `root` are on a disk that every
host has mounted, such as Filestore: --startup=FILE mounts it.
"""

from __future__ import annotations

import shlex
from typing import Any

from absl import flags

from core import entry
from core.errors import require_file
from core.processes import COORDINATOR_PORT
from scripts.launch.job import RUN_STAGE, Job, define_job_flags, deliver, out_path, read_job

# Each host's metadata lists all hosts as `id:port:address`, separated by commas.
_FIND_PROCESSES = f"""\
metadata() {{
  curl -sf -H 'Metadata-Flavor: Google' \\
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}}
hosts=$(metadata worker-network-endpoints | tr ',' '\\n' | cut -d: -f3)
[ -n "$hosts" ] || {{ echo "error: no metadata of the hosts" >&2; exit 1; }}
export HEARTWOOD_PROCESS_ID=$(metadata agent-worker-number)
export HEARTWOOD_NUM_PROCESSES=$(wc -l <<<"$hosts")
export HEARTWOOD_COORDINATOR=$(head -n 1 <<<"$hosts"):{COORDINATOR_PORT}"""

_SCRIPT = """\
#!/usr/bin/env bash
set -uo pipefail
name={name}
where=(--zone={zone}{project})
on_hosts={on_hosts}

run_on() {{  # WORKERS COMMAND
  gcloud alpha compute tpus tpu-vm ssh "$name" "${{where[@]}}" --worker="$1" --command="$2"
}}
state() {{
  gcloud alpha compute tpus queued-resources describe "$name" "${{where[@]}}" \\
    --format='value(state.state)' 2>/dev/null
}}
delete() {{
  gcloud alpha compute tpus queued-resources delete "$name" "${{where[@]}}" --force --quiet
}}

for restart in $(seq 0 {max_restarts}); do
  case $(state) in
    ACTIVE) ;;
    "" | FAILED | SUSPEND*)
      [ -z "$(state)" ] || delete
      gcloud alpha compute tpus queued-resources create "$name" "${{where[@]}}" --node-id="$name" \\
        --accelerator-type={accelerator_type} --runtime-version={runtime_version}{options} || exit 1
      ;;
  esac
  while now=$(state); [ "$now" != ACTIVE ]; do
    case $now in FAILED | SUSPEND*) continue 2 ;; esac
    sleep 30
  done
  run_on all "$on_hosts"
  status=$?
  if [ $status = 0 ]; then delete; exit 0; fi
  if run_on 0 {is_refused}; then
    echo "a stage refused its input; $name is kept" >&2
    exit 2
  fi
  echo "status $status: restart $((restart + 1)) of {max_restarts}" >&2
done
echo "giving up after {max_restarts} restarts; $name is kept" >&2
exit 1
"""


def render(job: Job, *, zone: str, accelerator_type: str, runtime_version: str, project: str,
           spot: bool, startup: str, max_restarts: int) -> str:
    """The script; `startup` is the path of a script that each host runs when it boots."""
    on_hosts = "\n".join([
        f"cd {shlex.quote(job.root)} || exit 2", *job.exports(),
        f"export HEARTWOOD_REFUSED={shlex.quote(job.refused)}", _FIND_PROCESSES,
        'if [ "$HEARTWOOD_PROCESS_ID" = 0 ]; then rm -f "$HEARTWOOD_REFUSED"; fi', RUN_STAGE,
        *(f"run_stage {job.command(stage)}" for stage in job.stages)])
    options = " --spot" if spot else ""
    if startup:
        options += " " + shlex.quote(f"--metadata-from-file=startup-script={startup}")
    return _SCRIPT.format(
        name=job.name, zone=shlex.quote(zone), on_hosts=shlex.quote(on_hosts), options=options,
        project=f" --project={shlex.quote(project)}" if project else "",
        accelerator_type=shlex.quote(accelerator_type),
        runtime_version=shlex.quote(runtime_version), max_restarts=max_restarts,
        is_refused=shlex.quote(f"test -e {shlex.quote(job.refused)}"))


def main() -> dict[str, Any]:
    """Prints or writes the script."""
    given, job = flags.FLAGS, read_job()
    if given.startup:
        require_file("--startup", given.startup, "name a shell script, or leave it out")
    text = render(job, zone=given.zone, accelerator_type=given.accelerator_type,
                  runtime_version=given.runtime_version, project=given.project, spot=given.spot,
                  startup=given.startup, max_restarts=given.max_restarts)
    return {"launcher": "tpu", "accelerator_type": given.accelerator_type,
            **deliver(text, out_path())}


if __name__ == "__main__":
    define_job_flags()
    flags.DEFINE_string("zone", None, "Zone of the slice.", required=True)
    flags.DEFINE_string("accelerator_type", None, "E.g. v5litepod-64.", required=True)
    flags.DEFINE_string("runtime_version", None, "E.g. v2-alpha-tpuv5-lite.", required=True)
    flags.DEFINE_string("project", "", "Cloud project; gcloud's own by default.")
    flags.DEFINE_bool("spot", False, "Use preemptible capacity.")
    flags.DEFINE_string("startup", "", "Script that each host runs when it boots.")
    flags.DEFINE_integer("max_restarts", 100, "Restarts of the stages.",
                         lower_bound=0)
    entry.run(main)
