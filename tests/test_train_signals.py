"""The first signal asks, the second ends, and what was before is there again afterwards."""

import os
import signal
import subprocess
import sys
import time

import pytest

from core.artifacts import ROOT
from train.signals import StopRequest


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_asks_to_stop_and_the_exit_code_names_it(signum, code, capsys):
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signum)
        wait_for(lambda: stop.requested)
        with pytest.raises(SystemExit) as exit_:
            stop.leave(7)
    assert exit_.value.code == code
    said = capsys.readouterr().err
    assert f"{signal.Signals(signum).name}: saving and stopping after this step" in said
    assert "stopped at step 7; run the same command again to go on" in said


def test_a_process_that_only_heard_of_the_signal_exits_as_by_sigterm():
    with pytest.raises(SystemExit) as exit_:
        StopRequest().leave(3)
    assert exit_.value.code == 143


def test_other_signals_and_handlers_are_left_alone():
    calls = []
    before = [signal.signal(signum, lambda *_: calls.append(1)) for signum in
              (signal.SIGUSR1, signal.SIGTERM)]
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_for(lambda: calls)
        assert not stop.requested   # its thread has read all there was
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: len(calls) == 2)
    finally:
        for signum, handler in zip((signal.SIGUSR1, signal.SIGTERM), before):
            signal.signal(signum, handler)
    assert signal.set_wakeup_fd(-1) == -1


# The main thread sits in one long call of C, as in a compilation: no handler of Python's can run.
BUSY = """
import hashlib
from train.signals import StopRequest
with StopRequest():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"word", b"salt", 10**9)
"""


@pytest.mark.parametrize(("second", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_a_process_that_cannot_listen(second, code):
    process = subprocess.Popen([sys.executable, "-c", BUSY], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert "SIGTERM: saving and stopping" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(timeout=20) == code
        assert "again: ending at once" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
