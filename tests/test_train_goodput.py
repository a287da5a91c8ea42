"""Every second of a run has one cause, whatever was restarted, and however clocks behave."""

import json
import os
import random
import signal
import subprocess
import sys
import threading

import jax
import pytest

from core.artifacts import ROOT
from train.watch.goodput import CAUSES, Goodput


class Clocks:
    """A monotonic clock and a wall clock that tests move."""

    def __init__(self):
        self.now, self.offset = 100.0, 1.7e9

    def sleep(self, secs):
        self.now += secs

    def start(self, path, **settings):
        """A process's recorder."""
        return Goodput(path, clock=lambda: self.now, wall=lambda: self.now + self.offset,
                       **settings)


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "goodput.jsonl"


def _train(goodput, clocks, steps, secs=1.0):
    for step in steps:
        clocks.sleep(secs)
        goodput.step(step)


def _secs(found):
    return {cause: found[f"{cause}_secs"] for cause in (*CAUSES, "wasted", "down")
            if found[f"{cause}_secs"]}


def test_phases_and_steps_add_up(clocks, path):
    goodput = clocks.start(path, age_secs=4.0)
    clocks.sleep(2.0)
    with goodput.spend("restore"):
        clocks.sleep(3.0)
    goodput.resume(0)
    with goodput.spend("compile"):
        clocks.sleep(5.0)
    for step in range(1, 11):
        with goodput.spend("data_wait"):
            clocks.sleep(0.1)
        _train(goodput, clocks, [step], 1.9)
    clocks.sleep(0.5)
    found = goodput.summary()
    assert _secs(found) == pytest.approx({"startup": 6, "restore": 3, "compile": 5, "data_wait": 1,
                                          "step": 19, "other": 0.5})
    assert found["total_secs"] == pytest.approx(34.5)
    assert found["goodput_frac"] == found["step_frac"] == pytest.approx(19 / 34.5)
    assert goodput.line() == ("goodput 55.1 % of 34s (startup 17.4 %, compile 14.5 %, "
                              "restore 8.7 %, data_wait 2.9 %, other 1.4 %)")


def test_a_phase_within_a_phase_counts_once(clocks, path):
    goodput = clocks.start(path)
    goodput.resume(0)
    with goodput.spend("evaluate"):
        clocks.sleep(1.0)
        with goodput.spend("compile"):
            clocks.sleep(2.0)
        clocks.sleep(4.0)
    assert _secs(goodput.summary()) == pytest.approx({"evaluate": 5, "compile": 2})


def test_a_phase_that_fails_is_booked_and_closed(clocks, path):
    goodput = clocks.start(path)
    goodput.resume(0)
    with pytest.raises(OSError), goodput.spend("save"):
        clocks.sleep(1.0)
        raise OSError
    _train(goodput, clocks, [1])
    assert _secs(goodput.summary()) == pytest.approx({"save": 1, "step": 1})


def test_compilation_is_claimed_from_whatever_phase_it_happened_in(clocks, path):
    goodput = clocks.start(path)
    goodput.resume(0)
    clocks.sleep(3.0)
    goodput.claim("compile", 2.0)
    goodput.step(1)
    with goodput.spend("evaluate"):
        clocks.sleep(1.0)
        goodput.claim("compile", 5.0)   # more than there is
    thread = threading.Thread(target=goodput.claim, args=("compile", 1.0))
    clocks.sleep(1.0)
    thread.start()
    thread.join()
    goodput.step(2)
    assert _secs(goodput.summary()) == pytest.approx({"compile": 3, "step": 2})


def test_steps_done_again_and_the_time_between_processes(clocks, path):
    first = clocks.start(path)
    clocks.sleep(1.0)
    first.resume(0)
    _train(first, clocks, range(1, 11), 6.0)
    clocks.sleep(3.0)                       # killed in step 11; nobody knows of these seconds
    clocks.sleep(17.0)
    second = clocks.start(path)
    clocks.sleep(1.0)
    second.resume(8)
    _train(second, clocks, range(9, 13), 6.0)
    second.close()
    assert _secs(second.summary()) == pytest.approx(
        {"startup": 2, "step": 48 + 24, "wasted": 12, "down": 20})


def test_a_restart_far_back_wastes_steps_of_several_processes(clocks, path):
    for resumed, last, secs in ((0, 10, 1.0), (8, 14, 2.0), (6, 12, 4.0)):
        goodput = clocks.start(path)
        goodput.resume(resumed)
        _train(goodput, clocks, range(resumed + 1, last + 1), secs)
        goodput.close()
    # 10 + 12 + 24 seconds; again were done 9, 10 and 7, 8 of the first, all of the second.
    assert _secs(goodput.summary()) == pytest.approx({"step": 6 + 24, "wasted": 4 + 12})


def test_going_back_within_a_process_wastes_steps_as_well(clocks, path):
    goodput = clocks.start(path)
    goodput.resume(0)
    _train(goodput, clocks, range(1, 11))
    with goodput.spend("restore"):
        clocks.sleep(2.0)
    goodput.resume(4)
    _train(goodput, clocks, range(5, 8))
    goodput.close()
    expected = {"step": 4 + 3, "wasted": 6, "restore": 2}
    assert _secs(goodput.summary()) == pytest.approx(expected)
    assert len(path.read_text().splitlines()) == 2
    later = clocks.start(path)
    assert _secs(later.summary()) == pytest.approx(expected)


@pytest.mark.parametrize("jump_secs", [-86_400.0, -5.0])
def test_a_wall_clock_set_back_makes_no_time_negative(clocks, path, jump_secs):
    first = clocks.start(path)
    first.resume(0)
    _train(first, clocks, range(1, 3))
    clocks.offset += jump_secs              # within a process: nobody looks
    _train(first, clocks, range(3, 5))
    first.close()
    clocks.offset += jump_secs
    second = clocks.start(path)
    second.resume(4)
    _train(second, clocks, [5])
    found = second.summary()
    assert _secs(found) == pytest.approx({"step": 5})
    assert found["goodput_frac"] == pytest.approx(1.0)


def test_all_causes_add_up_to_the_time_that_passed_in_any_history(clocks, path):
    rng = random.Random(0)
    began, step = clocks.now, 0
    for _ in range(20):
        goodput = clocks.start(path, flush_secs=rng.choice([0.0, 3.0]))
        resumed = max(step - rng.randrange(8), 0)
        goodput.resume(resumed)
        for step in range(resumed + 1, resumed + rng.randrange(2, 12)):
            with goodput.spend(rng.choice(CAUSES)):
                clocks.sleep(rng.random())
                with goodput.spend(rng.choice(CAUSES)):
                    clocks.sleep(rng.random())
            clocks.sleep(rng.random())
            goodput.step(step)
        goodput.close()
        clocks.sleep(rng.random())
    found = clocks.start(path).summary()
    total = clocks.now - began
    assert found["total_secs"] == pytest.approx(total, abs=0.05)   # the file rounds to ms
    assert sum(_secs(found).values()) == pytest.approx(found["total_secs"])
    assert all(secs >= 0 for secs in _secs(found).values())
    assert sum(found[f"{cause}_frac"] for cause in (*CAUSES, "wasted", "down")) == pytest.approx(1)


def test_the_file_is_written_every_few_seconds_and_has_a_line_per_process(clocks, path):
    goodput = clocks.start(path, flush_secs=5.0)
    goodput.resume(0)
    versions = set()
    for step in range(1, 101):
        _train(goodput, clocks, [step])
        versions.add(path.read_bytes())
    assert 15 <= len(versions) <= 21
    last, = map(json.loads, path.read_text().splitlines())
    assert last["last"] >= 95 and last["secs"]["step"] >= 95


@pytest.mark.parametrize("tail", [b'{"began": 1, "res', b"\0\0\0\0", b'{"began": 1}', 999 * b"x"])
def test_a_torn_line_is_cut_off(clocks, path, tail):
    first = clocks.start(path)
    first.resume(0)
    _train(first, clocks, [1, 2])
    first.close()
    with open(path, "ab") as file:
        file.write(tail)
    second = clocks.start(path)
    second.resume(2)
    _train(second, clocks, [3])
    second.close()
    assert [json.loads(line)["last"] for line in path.read_text().splitlines()] == [2, 3]


def test_only_process_0_writes(clocks, path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    goodput = clocks.start(path)
    goodput.resume(0)
    _train(goodput, clocks, [1])
    goodput.close()
    assert not path.exists() and goodput.summary()["step_secs"] == 1


def test_an_unknown_cause_is_a_mistake(clocks, path):
    with pytest.raises(ValueError, match="'coffee' is none of"), \
            clocks.start(path).spend("coffee"):
        pass


CODE = """
import sys, time
from pathlib import Path
from train.watch.goodput import Goodput
goodput = Goodput(Path(sys.argv[1]), flush_secs=0.0)
goodput.resume(0)
for step in range(1, 10**6):
    time.sleep(0.001)
    goodput.step(step)
    print(step, flush=True)
"""


def test_a_killed_process_leaves_what_it_last_wrote(path):
    process = subprocess.Popen([sys.executable, "-c", CODE, str(path)], stdout=subprocess.PIPE,
                               text=True, cwd=ROOT, env=os.environ)
    reported = 0
    while reported < 20:
        reported = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    goodput = Goodput(path)
    goodput.resume(0)
    assert goodput.summary()["wasted_secs"] > 20 * 0.001, "nothing was saved: all was in vain"
    line = json.loads(path.read_text().splitlines()[0])
    assert line["last"] >= reported
