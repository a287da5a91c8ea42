#!/usr/bin/env bash
set -uo pipefail
name=night-run
where=(--zone=us-east5-b --project=my-project)
on_hosts='cd '"'"'/opt/heart wood'"'"' || exit 2
export JAX_COMPILATION_CACHE_DIR=/shared/run/.cache/jax
export HEARTWOOD_REFUSED=/shared/run/.night-run-refused
metadata() {
  curl -sf -H '"'"'Metadata-Flavor: Google'"'"' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}
hosts=$(metadata worker-network-endpoints | tr '"'"','"'"' '"'"'\n'"'"' | cut -d: -f3)
[ -n "$hosts" ] || { echo "error: no metadata of the hosts" >&2; exit 1; }
export HEARTWOOD_PROCESS_ID=$(metadata agent-worker-number)
export HEARTWOOD_NUM_PROCESSES=$(wc -l <<<"$hosts")
export HEARTWOOD_COORDINATOR=$(head -n 1 <<<"$hosts"):12345
if [ "$HEARTWOOD_PROCESS_ID" = 0 ]; then rm -f "$HEARTWOOD_REFUSED"; fi
run_stage() {
  "$@" &
  child=$!
  while :; do
    wait "$child"
    status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  [ $status = 0 ] || exit $status
}
trap '"'"'kill -TERM "$child" 2>/dev/null'"'"' TERM
run_stage '"'"'/opt/heart wood/.venv/bin/python'"'"' -m data.pack --config=configs/quickstart.py:accelerator '"'"'--config.pretrain.tokens=it'"'"'"'"'"'"'"'"'s'"'"' --workdir=/shared/run
run_stage '"'"'/opt/heart wood/.venv/bin/python'"'"' -m train.pretrain --config=configs/quickstart.py:accelerator '"'"'--config.pretrain.tokens=it'"'"'"'"'"'"'"'"'s'"'"' --workdir=/shared/run'

run_on() {  # WORKERS COMMAND
  gcloud alpha compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}
state() {
  gcloud alpha compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null
}
delete() {
  gcloud alpha compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

for restart in $(seq 0 100); do
  case $(state) in
    ACTIVE) ;;
    "" | FAILED | SUSPEND*)
      [ -z "$(state)" ] || delete
      gcloud alpha compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" \
        --accelerator-type=v5litepod-64 --runtime-version=v2-alpha-tpuv5-lite --spot '--metadata-from-file=startup-script=mount disk.sh' || exit 1
      ;;
  esac
  while now=$(state); [ "$now" != ACTIVE ]; do
    case $now in FAILED | SUSPEND*) continue 2 ;; esac
    sleep 30
  done
  run_on all "$on_hosts"
  status=$?
  if [ $status = 0 ]; then delete; exit 0; fi
  if run_on 0 'test -e /shared/run/.night-run-refused'; then
    echo "a stage refused its input; $name is kept" >&2
    exit 2
  fi
  echo "status $status: restart $((restart + 1)) of 100" >&2
done
echo "giving up after 100 restarts; $name is kept" >&2
exit 1
