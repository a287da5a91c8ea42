"""The supervisor with real processes that crash, are killed, make progress or stop."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from core.artifacts import ROOT

# Takes one behaviour per start from its arguments; `number` counts the starts.
CHILD = '''
import os, pathlib, shutil, signal, sys, time
workdir = pathlib.Path(sys.argv[1].partition("=")[2])
starts = workdir / "starts"
number = len(starts.read_text()) if starts.exists() else 0
with open(starts, "a") as file:
    file.write(".")
behaviour = sys.argv[2:][min(number, len(sys.argv) - 3)]
name, _, value = behaviour.partition("=")
if name in ("step", "back"):
    if name == "back":
        shutil.rmtree(workdir / "base.partial" / "checkpoints")
    (workdir / "base.partial" / "checkpoints" / value).mkdir(parents=True)
    sys.exit(1)
if name == "exit":
    sys.exit(int(value))
if name == "kill":
    os.kill(os.getpid(), int(value))
if name == "stop":
    def stop(number, frame):
        (workdir / "stopped").write_text(str(number))
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    (workdir / "ready").touch()
    time.sleep(30)
'''


@pytest.fixture
def child(tmp_path):
    """Starts a supervisor of the child with these behaviours, one after another."""
    (tmp_path / "child.py").write_text(CHILD)

    def start(*behaviours, flags=()):
        return subprocess.Popen(
            [sys.executable, "-m", "scripts.launch.supervise", "--backoff_secs=0.01", *flags, "--",
             sys.executable, str(tmp_path / "child.py"), f"--workdir={tmp_path}", *behaviours],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"})
    return start


def _finish(process):
    stdout, stderr = process.communicate(timeout=60)
    assert "Traceback" not in stderr, stderr
    return process.returncode, json.loads(stdout.splitlines()[-1]), stderr


def test_crashes_and_kills_are_restarted_until_the_command_is_done(child):
    status, result, stderr = _finish(child("exit=1", "kill=9", "kill=6", "exit=75", "exit=0"))
    assert status == 0 and result["restarts"] == 4
    assert result["causes"] == ["exit 1", "SIGKILL", "SIGABRT", "exit 75"]
    assert [line for line in stderr.splitlines() if line.startswith("SIGKILL")] == [
        "SIGKILL at no checkpoint: restart 2 of 20 in 0s"]


def test_a_user_error_is_not_retried(child):
    status, result, _ = _finish(child("exit=2", "exit=0"))
    assert status == 2 and result["restarts"] == 0


@pytest.mark.parametrize("behaviours, status, restarts", [
    (["exit=1"], 1, 2),
    (["kill=9"], 137, 2),
    (["exit=1", "step=4", "exit=1", "step=8", "exit=1", "exit=1", "exit=0"], 1, 5),
    (["step=4", "exit=1", "back=3", "exit=0"], 1, 2),      # an older step is no progress
], ids=str)
def test_restarts_without_progress_are_limited(child, behaviours, status, restarts):
    code, result, stderr = _finish(child(*behaviours, flags=["--max_restarts=2"]))
    assert code == status and result["restarts"] == restarts, stderr
    assert "giving up after 2 restarts without progress" in stderr


def test_waits_double_and_progress_resets_them(child):
    _, _, stderr = _finish(child("exit=1", "exit=1", "exit=1", "step=1", "exit=0",
                                 flags=["--backoff_secs=0.26"]))
    waits = [line.rpartition(" in ")[2] for line in stderr.splitlines() if "restart" in line]
    assert waits == ["0s", "1s", "1s", "0s"]      # 0.26, 0.52, 1.04, and 0.26 again
    assert "exit 1 at step 1: restart 1 of 20" in stderr


def test_a_signal_is_forwarded_once_and_ends_the_supervisor(child, tmp_path):
    process = child("stop", "exit=0")
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    status, result, _ = _finish(process)
    assert status == 143 and result["stopped_by"] == "SIGTERM" and result["restarts"] == 0
    assert (tmp_path / "stopped").read_text() == "15"
    assert (tmp_path / "starts").read_text() == "."


def test_a_signal_between_two_restarts_ends_the_supervisor(child, tmp_path):
    process = child("exit=1", flags=["--backoff_secs=30"])
    line = process.stderr.readline()
    assert "restart 1" in line
    process.send_signal(signal.SIGINT)
    status, result, _ = _finish(process)
    assert status == 1 and result["stopped_by"] == "SIGINT" and result["secs"] < 25


@pytest.mark.parametrize("command, line", [
    ([], "error: --: no command follows it"),
    (["--", "/nowhere/python"], "error: /nowhere/python: cannot be started (no such file"),
], ids=["nothing", "no program"])
def test_what_cannot_run_is_one_line(command, line):
    done = subprocess.run([sys.executable, "-m", "scripts.launch.supervise", *command], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(line), done.stderr
