"""Entry points: real processes of a toy stage."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from core.artifacts import ROOT

CONFIG = '''
from ml_collections import ConfigDict

def get_config(arg=None):
    return ConfigDict(dict(
        count=dict(out="counts", upto=3, label="a", rate=0.5, behave="", run=dict(pace=1)),
        double=dict(out="doubled", counts="counts", times=2)))
'''

COUNT = '''
import errno, os, time
from core.artifacts import write_json
from core.entry import Stage, run_stage
from core.errors import PassingError, UserError

def build(config, parents, folder):
    """Counts."""
    section, done = config.count, folder / "done"
    if section.behave == "refuse":
        raise UserError("count.behave", "is wrong", "correct it")
    with open(folder / "builders", "a") as file:
        file.write(os.environ.get("HEARTWOOD_PROCESS_ID", "0"))
    start = len(done.read_text()) if done.exists() else 0
    for number in range(start, section.upto):
        with open(done, "a") as file:
            file.write(".")
        if section.behave == "refuse late":
            raise UserError("count", "is wrong", "correct it")
        if section.behave == "interrupt" and number == 1:
            raise KeyboardInterrupt
        if section.behave == "full":
            raise OSError(errno.ENOSPC, "No space left on device", str(done))
        if section.behave == "unreadable":
            raise OSError(errno.EIO, "Input/output error", "shard")
        if section.behave == "unreachable":
            raise PassingError("http://shard", "cannot be read", "run again")
        if section.behave == "wait":
            time.sleep(60)
        if section.behave == "slow":
            time.sleep(0.5)
    return {"start": start, "numbers": section.upto}

if __name__ == "__main__":
    run_stage(Stage("count", build))
'''

TOGETHER = '''
import os, time
from core.entry import Stage, run_stage

def build(config, parents, folder):
    """Each process writes its own file, and waits for the other's."""
    mine, count = int(os.environ["HEARTWOOD_PROCESS_ID"]), config.count.upto
    (folder / f"part{mine}").touch()
    while len(list(folder.glob("part*"))) < count:
        time.sleep(0.02)
    if config.count.behave == "kill" and mine == 0:
        os.kill(os.getpid(), 9)
    if mine:    # the first is done, and must not rename the folder yet
        time.sleep(0.5)
        assert (folder / "part0").exists()
    return {"parts": count}

if __name__ == "__main__":
    run_stage(Stage("count", build, every_process=True))
'''

DOUBLE = '''
from core.artifacts import read_json
from core.entry import Stage, run_stage

def build(config, parents, folder):
    numbers = read_json(parents["counts"] / "metrics.json")["numbers"]
    return {"numbers": config.double.times * numbers}

if __name__ == "__main__":
    run_stage(Stage("double", build, parents=("counts",)))
'''


@pytest.fixture
def toy(tmp_path):
    """A folder with a config and two stages, and how to run them there."""
    for name, text in (("config", CONFIG), ("count", COUNT), ("double", DOUBLE),
                       ("together", TOGETHER)):
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def _start(toy, stage, *flags, workdir="work", **variables):
    command = [sys.executable, str(toy / f"{stage}.py"), f"--config={toy / 'config.py'}",
               f"--workdir={toy / workdir}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | variables)


def _run(toy, stage, *flags, workdir="work", expect=0):
    """The JSON of the last line on stdout, if there is one, and stderr."""
    process = _start(toy, stage, *flags, workdir=workdir)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == expect, stderr
    return json.loads(stdout.splitlines()[-1]) if stdout else None, stderr


def _refuse(toy, stage, *flags, workdir="work"):
    """The one line with which a command fails."""
    process = _start(toy, stage, *flags, workdir=workdir)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2 and not stdout and "Traceback" not in stderr, stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    return errors[0]


def test_a_stage_is_built_once_and_rebuilt_when_its_config_changes(toy):
    first, _ = _run(toy, "count")
    assert first["skipped"] is False and first["numbers"] == 3 and first["stage"] == "count"
    again, stderr = _run(toy, "count", "--config.double.times=5")  # a field of another stage
    assert again["skipped"] is True and again["numbers"] == 3 and "is up to date" in stderr
    changed, stderr = _run(toy, "count", "--config.count.upto=4")
    assert changed["skipped"] is False and changed["numbers"] == 4
    kept = sorted(path.name for path in (toy / "work").glob("[!.]*"))
    assert len(kept) == 2 and kept[0] == "counts" and kept[1].startswith("counts.")
    assert "counts: its config changed since it was built; it stays until the new" in stderr
    assert f"counts: the old one is kept as {kept[1]}" in stderr
    assert json.loads((toy / "work" / kept[1] / "metrics.json").read_text())["numbers"] == 3


def test_help_shows_what_a_command_does_and_its_flags(toy):
    (toy / "count.py").write_text('"""Counts to a number."""\n' + COUNT)
    process = _start(toy, "count", "--help")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and not stderr and not (toy / "work").exists()
    assert stdout.startswith("Counts to a number.\n\nFlags:\n  --config: Experiment: configs/")
    assert "\n  --workdir: Folder" in stdout and "logtostderr" not in stdout


def test_run_settings_do_not_rebuild_and_are_recorded(toy):
    _run(toy, "count")
    again, _ = _run(toy, "count", "--config.count.run.pace=7")
    assert again["skipped"] is True
    lineage = json.loads((toy / "work" / "counts" / "lineage.json").read_text())
    assert "run" not in lineage["config"]["count"]
    assert [run["run"] for run in lineage["runs"]] == [{"count": {"pace": 1}}]


def test_an_unfinished_stage_resumes_with_other_run_settings(toy):
    _start(toy, "count", "--config.count.behave=interrupt").communicate(timeout=60)
    (toy / "count.py").write_text(COUNT.replace("raise KeyboardInterrupt", "pass"))
    result, _ = _run(toy, "count", "--config.count.behave=interrupt", "--config.count.run.pace=7")
    assert result["start"] == 2
    runs = json.loads((toy / "work" / "counts" / "lineage.json").read_text())["runs"]
    assert [run["run"]["count"]["pace"] for run in runs] == [1, 7]
    assert all(run["commit"] and run["command"].startswith("python ") for run in runs)


def test_new_code_keeps_a_finished_artifact_and_logs_how_to_rebuild(toy):
    _run(toy, "count")
    assert _run(toy, "double")[0]["numbers"] == 6
    (toy / "double.py").write_text(DOUBLE.replace("config.double.times *", "3 *"))
    result, stderr = _run(toy, "double")
    assert result["numbers"] == 6 and result["skipped"] is True
    assert stderr.splitlines()[0] == ("doubled: its code has changed since it was built, and it is "
                                      "kept: --rebuild builds it anew")
    result, stderr = _run(toy, "double", "--rebuild")
    assert result["numbers"] == 9 and "doubled: --rebuild; it stays until the new" in stderr
    assert "doubled: the old one is kept as doubled." in stderr
    assert len(list((toy / "work").glob("doubled*"))) == 2
    (toy / "double.py").write_text("# a comment\n" + (toy / "double.py").read_text())
    result, stderr = _run(toy, "double")
    assert result["skipped"] is True and "its code has changed" not in stderr


def test_changed_parents_rebuild_a_stage(toy):
    _run(toy, "count")
    _run(toy, "double")
    _run(toy, "count", "--rebuild")     # the same code gives the same artifact
    assert _run(toy, "double")[0]["skipped"] is True
    (toy / "count.py").write_text(COUNT.replace('"numbers": section.upto', '"numbers": 5'))
    assert _run(toy, "count")[0]["numbers"] == 3
    assert _run(toy, "double")[0]["skipped"] is True, "its parent is unchanged"
    _run(toy, "count", "--rebuild")
    result, stderr = _run(toy, "double")
    assert result["numbers"] == 10 and "its inputs changed" in stderr
    _run(toy, "count", "--config.count.upto=4", "--config.count.label=b")
    assert "its inputs changed" in _run(toy, "double")[1]


def test_an_interrupted_rebuild_resumes(toy):
    _run(toy, "count", "--config.count.behave=interrupt", expect=130)
    (toy / "count.py").write_text(COUNT.replace("raise KeyboardInterrupt", "pass"))
    _run(toy, "count", "--config.count.behave=interrupt")
    (toy / "count.py").write_text(COUNT)
    _run(toy, "count", "--config.count.behave=interrupt", "--rebuild", expect=130)
    assert (toy / "work" / "counts" / "metrics.json").exists(), "the old one is there meanwhile"
    (toy / "count.py").write_text(COUNT.replace("raise KeyboardInterrupt", "pass"))
    assert _run(toy, "count", "--config.count.behave=interrupt", "--rebuild")[0]["start"] == 2


@pytest.mark.parametrize("folder", ["counts", "counts.partial"])
def test_an_artifact_of_the_earlier_layout_is_refused_in_one_line(toy, folder):
    (toy / "work" / folder).mkdir(parents=True)
    (toy / "work" / folder / "lineage.json").write_text('{"fingerprint": "0123456789abcdef"}')
    line = _refuse(toy, "count")
    assert f"{folder}: was written with layout 1 of artifacts" in line and "layout 2" in line
    assert (toy / "work" / folder / "lineage.json").exists()
    if folder == "counts":
        assert "layout 1 of artifacts" in _refuse(toy, "double")


@pytest.mark.parametrize(("behave", "line"), [
    ("unreadable", "shard: input/output error: run again to go on; check the disk if it happens "
                   "again"),
    ("unreachable", "http://shard: cannot be read: run again")])
def test_a_read_error_is_one_line_with_a_retriable_status(toy, behave, line):
    process = _start(toy, "count", f"--config.count.behave={behave}")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 74
    assert stderr.splitlines()[-1] == f"error: {line}"


def test_an_interrupted_stage_resumes_where_it_stopped(toy):
    process = _start(toy, "count", "--config.count.behave=interrupt")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in stderr
    assert not (toy / "work" / "counts").exists()
    (toy / "count.py").write_text(COUNT.replace("raise KeyboardInterrupt", "pass"))
    result, stderr = _run(toy, "count", "--config.count.behave=interrupt")
    assert result["start"] == 2
    assert "going on where an earlier run stopped, although the code has changed" in stderr
    assert not (toy / "work" / "counts.partial").exists()


def _listing(toy):
    """What lies in the workdir, with the time of each file's last change."""
    return {str(path.relative_to(toy)): path.stat().st_mtime_ns
            for path in (toy / "work").rglob("*") if path.name != ".counts.lock" and path.is_file()}


def test_a_refused_command_moves_neither_a_finished_nor_an_unfinished_artifact(toy):
    _run(toy, "count")
    _run(toy, "count", "--config.count.behave=interrupt", expect=130)
    before = _listing(toy)
    assert {"work/counts/metrics.json", "work/counts.partial/done"} <= before.keys()
    assert "count.behave: is wrong" in _refuse(toy, "count", "--config.count.behave=refuse")
    assert _listing(toy) == before
    assert "count: is wrong" in _refuse(toy, "count", "--config.count.behave=refuse late")
    assert before.keys() & _listing(toy).keys() >= {"work/counts/metrics.json"}
    result, stderr = _run(toy, "count")
    assert result["skipped"] is True and "is up to date" in stderr


def test_an_artifact_that_was_set_aside_is_found_again(toy):
    _run(toy, "count")
    _run(toy, "count", "--config.count.upto=4")
    (aside,) = (toy / "work").glob("counts.*")
    result, stderr = _run(toy, "count")
    assert result["skipped"] is True and result["numbers"] == 3
    assert f"counts: {aside.name} was built for this before and takes its place; the other is " \
        "kept as counts." in stderr
    assert not aside.exists() and len(list((toy / "work").glob("counts*"))) == 2
    assert _run(toy, "count", "--config.count.upto=4")[0]["skipped"] is True
    shutil.rmtree(toy / "work" / "counts")      # lost: the other one is still there
    result, stderr = _run(toy, "count")
    assert result["skipped"] is True and "takes its place\n" in stderr


def test_of_several_that_were_set_aside_the_one_of_this_code_is_found(toy):
    (toy / "count.py").write_text(COUNT.replace('"numbers": section.upto', '"numbers": 5'))
    _run(toy, "count")
    (toy / "count.py").write_text(COUNT)
    _run(toy, "count", "--rebuild")
    _run(toy, "count", "--config.count.upto=4")
    assert len(list((toy / "work").glob("counts.*"))) == 2
    assert _run(toy, "count")[0]["numbers"] == 3


def test_unfinished_work_that_was_set_aside_is_gone_on_with(toy):
    _run(toy, "count", "--config.count.behave=interrupt", expect=130)
    _run(toy, "count", "--config.count.behave=interrupt", "--config.count.upto=4", expect=130)
    (toy / "count.py").write_text(COUNT.replace("raise KeyboardInterrupt", "pass"))
    result, stderr = _run(toy, "count", "--config.count.behave=interrupt")
    assert result["start"] == 2 and "was begun for this before and takes its place" in stderr
    assert len(list((toy / "work").glob("counts.partial.*"))) == 1
    assert _run(toy, "count", "--config.count.behave=interrupt",
                "--config.count.upto=4")[0]["start"] == 2
    assert not list((toy / "work").glob("counts.partial*"))


def test_an_artifact_is_not_its_own_parent(toy):
    _run(toy, "count")
    for flag in ("counts=doubled", f"counts={toy}/work/doubled", "counts=doubled.partial"):
        folder = toy / "work" / flag.rpartition("=")[2].rpartition("/")[2]
        shutil.copytree(toy / "work" / "counts", folder, dirs_exist_ok=True)
        line = _refuse(toy, "double", f"--config.double.{flag}")
        assert "is the very artifact that this command builds" in line
        assert "--config.double.out=NAME" in line


def test_an_unfinished_stage_of_another_config_is_set_aside(toy):
    _start(toy, "count", "--config.count.behave=interrupt").communicate(timeout=60)
    result, stderr = _run(toy, "count")
    assert result["start"] == 0 and "its config changed; the unfinished one is kept" in stderr


def test_a_second_builder_is_refused_and_a_killed_one_leaves_no_lock(toy):
    first = _start(toy, "count", "--config.count.behave=wait")
    done = toy / "work" / "counts.partial" / "done"
    deadline = time.monotonic() + 30
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        for behave in ("wait", "interrupt"):  # the same work, and other work of the same name
            line = _refuse(toy, "count", f"--config.count.behave={behave}")
            assert "another process is building this artifact" in line
        assert done.read_text() == "."
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)
    (toy / "count.py").write_text(COUNT.replace("time.sleep(60)", "pass"))
    assert _run(toy, "count", "--config.count.behave=wait")[0]["start"] == 1


@pytest.mark.parametrize("flags, parts", [
    (["--config.count.uptoo=3"], ["uptoo", "Did you mean", "upto"]),
    (["--config.count.upto=many"], ["upto", "many"]),
    (["--config.count.rate=fast"], ["rate", "fast"]),
    (["--wrkdir=x"], ["wrkdir", "Did you mean", "workdir"]),
    (["surplus"], ["surplus", "unexpected argument"]),
    (["--config=nowhere.py"], ["nowhere.py", "No such file", "/configs/*.py"]),
    (["--config=nowhere.py", "--config.count.upto=3"], ["nowhere.py", "No such file"]),
    (["--config=configs/quickstart.py:bogus"], ["error: config variant 'bogus': is none of"]),
    (["--config=configs/quickstart.py"], ["config.count: this config has no such section"]),
    (["--workdir="], ["--workdir"]),
    (["--config.count.run={'a.b': 1}"], ["the key 'a.b': holds a dot: write %2E"]),
], ids=lambda value: value[0])
def test_wrong_flags_are_one_line(toy, flags, parts):
    line = _refuse(toy, "count", *flags)
    assert all(part in line for part in parts), line
    assert not (toy / "work").exists()


def test_a_missing_parent_is_one_line(toy):
    line = _refuse(toy, "double")
    assert "double.counts='counts': no finished artifact at" in line and "--config.double" in line
    (toy / "work" / "counts.partial").mkdir(parents=True)
    assert "no finished artifact" in _refuse(toy, "double"), "a partial one is none"


def test_a_folder_that_is_no_artifact_is_left_alone(toy):
    (toy / "work" / "counts").mkdir(parents=True)
    (toy / "work" / "counts" / "thesis.txt").write_text("precious")
    assert "exists and is not an artifact" in _refuse(toy, "count")
    assert (toy / "work" / "counts" / "thesis.txt").read_text() == "precious"


def test_a_full_disk_is_one_line_and_leaves_no_artifact(toy):
    line = _refuse(toy, "count", "--config.count.behave=full")
    assert "no space left on device" in line and "free space" in line and "done" in line
    assert not (toy / "work" / "counts").exists()


def test_a_workdir_that_cannot_be_written_is_one_line(toy):
    (toy / "file").write_text("not a folder")
    assert f"--workdir={toy / 'file'}: cannot be written" in _refuse(toy, "count", workdir="file")
    assert "--workdir=/proc/nowhere: cannot be written" in _refuse(
        toy, "count", workdir="/proc/nowhere")
    if os.geteuid() > 0:  # permissions do not apply to root
        (toy / "locked").mkdir(mode=0o500)
        assert os.strerror(errno.EACCES).lower() in _refuse(toy, "count", workdir="locked")


def _start_process(toy, stage, index, *flags, **variables):
    """Starts one of two processes of the stage."""
    return _start(toy, stage, *flags, HEARTWOOD_PROCESS_ID=str(index), HEARTWOOD_NUM_PROCESSES="2",
                  HEARTWOOD_COORDINATOR="127.0.0.1:1", **variables)


@pytest.mark.parametrize("stage, order", [("count", (1, 0)), ("together", (1, 0)),
                                          ("together", (0, 1))])
def test_two_processes_build_one_artifact_and_print_one_result(toy, stage, order):
    for skipped in (False, True):
        started = {index: _start_process(toy, stage, index, "--config.count.upto=2",
                                         "--config.count.behave=slow") for index in order}
        outputs = {index: process.communicate(timeout=60) for index, process in started.items()}
        assert all(process.returncode == 0 for process in started.values()), outputs
        assert outputs[1] == ("", "")
        assert json.loads(outputs[0][0])["skipped"] is skipped
    folder = toy / "work" / "counts"
    if stage == "count":
        assert (folder / "done").read_text() == ".." and (folder / "builders").read_text() == "0"
    else:
        assert (folder / "part0").exists() and (folder / "part1").exists()


def test_a_process_ends_when_the_first_is_killed(toy):
    flags = ("--config.count.upto=2", "--config.count.behave=kill")
    second, first = (_start_process(toy, "together", index, *flags) for index in (1, 0))
    assert first.wait(timeout=60) == -signal.SIGKILL
    stdout, stderr = second.communicate(timeout=60)
    assert second.returncode == 75 and not stdout, "the status of a retriable failure"
    assert "process 0 stopped before it was finished" in stderr and "(process 1)" in stderr
    first.communicate()


def test_a_refusal_writes_the_launchers_marker_file(toy):
    mark = toy / "refused"
    process = _start_process(toy, "double", 1, HEARTWOOD_REFUSED=str(mark))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2 and mark.exists()
    assert stderr.endswith("to its folder (process 1)\n")


def test_flags_that_would_abort_xla_are_one_line(toy):
    process = _start(toy, "count", XLA_FLAGS="--xla_no_such_flag=1")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2 and not (toy / "work").exists()
    assert stderr == ("error: XLA_FLAGS='--xla_no_such_flag=1': unknown flag: --xla_no_such_flag=1"
                      ": correct or remove it\n")


def test_the_last_line_is_json_whatever_the_result():
    code = ("import numpy as np\nfrom core import entry\n"
            "entry.run(lambda: {'a': float('nan'), 'b': [np.inf, np.float32(0.5)]})")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == '{"a": null, "b": [null, 0.5]}\n', done.stderr


def test_a_relative_config_is_named_by_its_path_in_the_checkout(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "data.pack", "--config=configs/quickstart.py:smoke", "--workdir=w"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"it is --config={ROOT}/configs/quickstart.py:smoke\n" in done.stderr


@pytest.mark.parametrize("code, inside, outside", [
    (errno.EROFS, "choose a --workdir on a writable disk", "mount its disk writable"),
    (errno.EACCES, "choose a --workdir that you may write to", "change its permissions")])
def test_another_workdir_is_the_remedy_only_for_what_lies_in_it(toy, code, inside, outside):
    for path, remedy in ((toy / "work" / "counts", inside), (toy / "tokens", outside)):
        program = ("import errno, sys\nfrom core import entry\nentry.define_config_flags()\n"
                   f"def fail(): raise OSError({code}, 'Not so', {str(path)!r})\nentry.run(fail)")
        done = subprocess.run([sys.executable, "-c", program, f"--workdir={toy / 'work'}"],
                              cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr == f"error: {path}: not so: {remedy}\n"
