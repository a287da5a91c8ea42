"""Launchers: golden scripts, and one script run by a simulated scheduler."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_tokens import write_artifacts

from core.artifacts import ROOT
from core.entry import Stage
from core.stages import StageModule, config_arguments, read_stage
from scripts.launch import kubernetes, slurm, tpu
from scripts.launch.job import Job

GOLDEN = ROOT / "tests" / "golden" / "launch"
PACK, PRETRAIN = read_stage("data.pack"), read_stage("train.pretrain")
JOB = Job(name="night-run", stages=(PACK, PRETRAIN), workdir="/shared/run", root="/opt/heart wood",
          arguments=("--config=configs/quickstart.py:accelerator", "--config.pretrain.tokens=it's"),
          python="/opt/heart wood/.venv/bin/python")

RENDERED = {
    "slurm_nodes.sbatch": lambda: slurm.render(
        JOB, slurm.Allocation(nodes=4, gpus_per_node=8, cpus_per_task=64, minutes=600,
                              options=("--partition=h200",)), max_requeues=50),
    "slurm_gpus.sbatch": lambda: slurm.render(
        JOB, slurm.Allocation(nodes=2, gpus_per_node=8, tasks="gpu"), max_requeues=3),
    "tpu.sh": lambda: tpu.render(
        JOB, zone="us-east5-b", accelerator_type="v5litepod-64", project="my-project", spot=True,
        runtime_version="v2-alpha-tpuv5-lite", startup="mount disk.sh", max_restarts=100),
    "kubernetes.yaml": lambda: kubernetes.render(
        JOB, nodes=4, limits={"nvidia.com/gpu": 8}, selector={"pool": "h200"}, max_restarts=100,
        image="registry.example/heartwood:1", claim="shared", mount="/shared"),
}


@pytest.mark.parametrize("name", RENDERED)
def test_rendered_scripts_are_golden(name):
    """After an intended change: python -m pytest tests/test_scripts_launch.py, read the
    difference, and write the new text with HEARTWOOD_WRITE_GOLDEN=1."""
    text = RENDERED[name]()
    if os.environ.get("HEARTWOOD_WRITE_GOLDEN"):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()
    if not name.endswith(".yaml"):
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_the_manifest_has_the_fields_that_kubernetes_needs():
    manifest = yaml.safe_load(RENDERED["kubernetes.yaml"]())
    assert manifest["kind"] == "JobSet" and manifest["spec"]["network"]["enableDNSHostnames"]
    hosts, = manifest["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 4 and job["backoffLimit"] == 0
    fail, count = (rule["onExitCodes"]["values"] for rule in job["podFailurePolicy"]["rules"])
    assert fail == [2] and count == [74, 75, 130, 143]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "required by podFailurePolicy"
    container, = pod["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    # JobSet's host name of a pod is NAME-JOB-JOBINDEX-PODINDEX.SUBDOMAIN.
    assert given == {"HEARTWOOD_NUM_PROCESSES": "4",
                     "HEARTWOOD_COORDINATOR": "night-run-hosts-0-0.night-run:12345"}
    script, = container["args"]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


# A scheduler on this machine. `srun` starts its tasks with the variables that SLURM documents, and
# ends them all when one fails; `sbatch` runs a script until it no longer asks to be queued again.
SRUN = '''
import os, signal, subprocess, sys, time
options = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if word.startswith("--no")
               or word.startswith("--nt") or word.startswith("--kill"))
command = sys.argv[1 + len(options):]
count = int(options["ntasks"])
tasks = [subprocess.Popen(command, env=os.environ | {
    "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_STEP_NUM_TASKS": str(count),
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "127.0.0.1"}) for i in range(count)]
with open(os.environ["FAKE_SLURM"] + "/tasks", "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks))
status = 0
while tasks:
    for task in [task for task in tasks if task.poll() is not None]:
        tasks.remove(task)
        status = max(status, task.returncode if task.returncode >= 0 else 128 - task.returncode)
        if task.returncode and options.get("kill-on-bad-exit") == "1":
            for other in tasks:
                other.kill()
    time.sleep(0.02)
sys.exit(status)
'''
SBATCH = '''
import os, subprocess, sys
folder, restarts = os.environ["FAKE_SLURM"], 0
while True:
    mark = folder + "/requeued"
    if os.path.exists(mark):
        os.remove(mark)
    with open(folder + "/log", "a") as log:
        status = subprocess.call(["bash", sys.argv[-1]], stdout=log, stderr=log, env=os.environ | {
            "SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": str(restarts)})
    if not os.path.exists(mark):
        break
    restarts += 1
with open(folder + "/ended", "w") as file:
    file.write(f"{status} {restarts}")
print("4711;cluster")
'''
SCONTROL = '''
import os, sys
assert sys.argv[1:] == ["requeue", "4711"], sys.argv
open(os.environ["FAKE_SLURM"] + "/requeued", "w").close()
'''


@pytest.fixture
def cluster(tmp_path):
    """Environment in which `sbatch`, `srun` and `scontrol` are the ones above."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("sbatch", SBATCH), ("scontrol", SCONTROL)):
        (programs / name).write_text(f"#!{sys.executable}\n{text}")
        (programs / name).chmod(0o755)
    return os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "FAKE_SLURM": str(tmp_path),
                         "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}


# A stage of two processes without jax: each start appends a line to its process's file.
STAGE = '''
import os, signal, sys, time
from pathlib import Path
from core.processes import find_processes
me, folder = find_processes(), Path(sys.argv[-1].partition("=")[2])
path = folder / f"starts{me.index}"
with open(path, "a") as file:
    file.write(f"{me.count} {me.coordinator} {os.environ.get('JAX_LOCAL_DEVICE_IDS')}\\n")
start = len(path.read_text().splitlines())
others = [folder / f"starts{i}" for i in range(me.count)]
while not all(other.exists() and other.read_text().count("\\n") >= start for other in others):
    time.sleep(0.01)
behaviour = sys.argv[1].split(",")[min(start, len(sys.argv[1].split(","))) - 1]
if behaviour == "refuse" and me.index == 0:
    Path(os.environ["HEARTWOOD_REFUSED"]).touch()
    sys.exit(2)
if behaviour == "crash" and me.index == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if behaviour != "end":
    (folder / f"ready{me.index}").touch()
    time.sleep(30)
'''


def _submit(cluster, tmp_path, behaviours, **allocation):
    """Submits the stage's rendered script to the scheduler."""
    (tmp_path / "toy.py").write_text(STAGE)
    toy = StageModule("toy", Stage("toy", build=print, every_process=True))
    job = Job("toy", (toy,), (behaviours,), str(tmp_path), str(tmp_path), sys.executable)
    script = tmp_path / "toy.sbatch"
    script.write_text(slurm.render(job, slurm.Allocation(nodes=2, **allocation), max_requeues=2))
    return subprocess.Popen(["sbatch", str(script)], env=cluster, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("behaviours, ended", [
    ("end", "0 0"),
    ("crash,end", "0 1"),                   # a lost process costs a restart
    ("crash,crash,crash,end", "137 2"),     # up to max_requeues
    ("refuse", "2 0"),                      # although srun reports 137 for the other
    ("crash,refuse,end", "2 1"),
])
def test_slurm_requeues_after_failures_but_not_refusals(cluster, tmp_path, behaviours, ended):
    submitted = _submit(cluster, tmp_path, behaviours)
    submitted.communicate(timeout=60)
    assert (tmp_path / "ended").read_text() == ended, (tmp_path / "log").read_text()
    first, second = ((tmp_path / f"starts{i}").read_text().splitlines() for i in range(2))
    assert len(first) == len(second) == int(ended.split()[1]) + 1
    assert set(first + second) == {"2 127.0.0.1:17111 None"}


def test_slurm_with_a_task_for_each_gpu(cluster, tmp_path):
    _submit(cluster, tmp_path, "end", gpus_per_node=2, tasks="gpu").communicate(timeout=60)
    assert {(tmp_path / f"starts{i}").read_text() for i in range(4)} == {
        f"4 127.0.0.1:17111 {i}\n" for i in range(4)}


def test_a_preempted_slurm_job_resumes(cluster, tmp_path):
    submitted = _submit(cluster, tmp_path, "wait,end")
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("ready*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    for number in (tmp_path / "tasks").read_text().split():     # --signal=TERM@120: to the tasks
        os.kill(int(number), signal.SIGTERM)
    submitted.communicate(timeout=60)
    assert (tmp_path / "ended").read_text() == "0 1"
    assert "status 143: requeued" in (tmp_path / "log").read_text()


def test_bash_forwards_a_signal_and_returns_the_status(tmp_path):
    """As in a pod, where bash is the first process."""
    child = "import signal, sys, time, pathlib\n" \
            "signal.signal(15, lambda *_: (time.sleep(0.3), sys.exit(7)))\n" \
            f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(30)"
    script = f"{kubernetes.RUN_STAGE}\nrun_stage true\nrun_stage \"$@\"\nrun_stage false\n"
    process = subprocess.Popen(["bash", "-c", script, "bash", sys.executable, "-c", child])
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 7, "not the 143 of the interrupted `wait`"


def _launch(launcher, *arguments, env=None):
    return subprocess.run(
        [sys.executable, "-m", f"scripts.launch.{launcher}", *arguments], cwd=ROOT, text=True,
        capture_output=True, env=env or os.environ | {"JAX_NUM_CPU_DEVICES": "1"})


BASE = ("--config=configs/quickstart.py:smoke", "--workdir=/shared/run", "--stages=data.pack")


@pytest.mark.parametrize("arguments, line", [
    (BASE[:2], "--stages: is missing"),
    ((*BASE[:2], "--stages=train.nothing"), "--stages=train.nothing: there is no train/nothing.py"),
    ((*BASE[:2], "--stages=train.loop"), "--stages=train.loop: is no stage"),
    ((*BASE[:2], "--stages=align.synthesize"), "the config has no section 'synthesize'"),
    ((BASE[0], "--workdir=runs/mine", BASE[2]), "--workdir=runs/mine: must be an absolute path"),
    ((BASE[0], "--workdir=/shared/my run", BASE[2]), "--workdir=/shared/my run: must be an abs"),
    ((BASE[0], "--workdir=gs://bucket/run", BASE[2]), "--workdir=gs://bucket/run: must be an abs"),
    ((*BASE, "--config.pretrain.num_step=3"), "--config: no such field: 'num_step' Did you mean"),
    ((*BASE, "--name=Night Run"), "--name='Night Run': must be lower-case letters"),
    ((*BASE, "--sbatch=partition=a"), "--sbatch='partition=a': must be one line that begins with"),
    ((*BASE, "--nodes=0"), "flag --nodes=0"),
])
def test_what_cannot_be_launched_is_one_line(arguments, line):
    done = _launch("slurm", *arguments)
    assert done.returncode == 2 and not done.stdout, done.stderr
    assert line in done.stderr and done.stderr.count("\n") == 1


def test_a_script_is_printed_or_written_or_submitted(tmp_path, cluster):
    printed = _launch("slurm", *BASE)
    *lines, last = printed.stdout.splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and json.loads(last)["launcher"] == "slurm"
    assert "export JAX_COMPILATION_CACHE_DIR=/shared/run/.cache/jax" in lines
    path = tmp_path / "job.yaml"
    written = _launch("kubernetes", *BASE, "--image=i", "--claim=c", f"--out={path}")
    assert json.loads(written.stdout) == {"launcher": "kubernetes", "nodes": 1, "file": str(path)}
    assert yaml.safe_load(path.read_text())["metadata"]["name"] == "heartwood"
    Path(cluster["FAKE_SLURM"], "bin", "srun").write_text("#!/bin/sh\nexit 0\n")
    submitted = _launch("slurm", BASE[0], f"--workdir={tmp_path}", BASE[2], "--submit", env=cluster)
    assert json.loads(submitted.stdout)["job"] == "4711", submitted.stderr
    assert (tmp_path / "ended").read_text() == "0 0"


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's
def test_two_processes_train_under_the_scheduler(tmp_path, cluster):
    write_artifacts(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        cluster["HEARTWOOD_COORDINATOR"] = f"127.0.0.1:{probe.getsockname()[1]}"
    done = _launch(
        "slurm", BASE[0], f"--workdir={tmp_path}", "--stages=train.pretrain", "--submit",
        "--nodes=2", f"--python={sys.executable}", "--config.mesh.fsdp=2",
        "--config.pretrain.num_steps=4",
        "--config.pretrain.row_length=32", "--config.pretrain.run.tasks.documentation=0",
        "--config.pretrain.optimizer.warmup_steps=0", env=cluster)
    assert json.loads(done.stdout)["job"] == "4711"
    output = (tmp_path / "log").read_text()
    assert (tmp_path / "ended").read_text() == "0 0" and "2 x cpu" in output, output
    assert json.loads((tmp_path / "base/metrics.json").read_text())["steps"] == 4


def test_no_scheduler_is_one_line(tmp_path):
    done = _launch("slurm", BASE[0], f"--workdir={tmp_path}", BASE[2], "--submit",
                   env=os.environ | {"PATH": "/nowhere", "JAX_NUM_CPU_DEVICES": "1"})
    assert done.returncode == 2 and "--submit: there is no sbatch here" in done.stderr


def test_stages_declare_their_parents_and_whether_every_process_joins():
    module, stage = read_stage("train.pretrain")
    assert (module, stage.section) == ("train.pretrain", "pretrain")
    assert "tokens" in stage.parents
    assert stage.every_process and not read_stage("data.pack").stage.every_process


def test_the_configs_arguments_are_passed_on():
    argv = ["--config=a.py:b", "--workdir=w", "--config.pretrain.seed=1", "--configure=x", "-v"]
    assert config_arguments(argv) == ["--config=a.py:b", "--config.pretrain.seed=1"]
