"""The sandbox: hostile programs get their verdicts and leave nothing; harmless ones pass."""

import os
import platform
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hostile_programs import ATTACKS, FORKING, HARMLESS, RIGHT, complete

from core.errors import UserError
from eval.sandbox import seccomp
from eval.sandbox.confine import (
    LANDLOCK,
    LAYERS,
    LIMITS,
    NAMESPACES,
    SECCOMP,
    TREE,
    Limits,
    counts_tasks,
)
from eval.sandbox.frames import Opaque, decode, encode
from eval.sandbox.run import (
    Program,
    close_servers,
    find_layers,
    run_program,
    run_programs,
)

CHECK = "assert submitted('f')(3) == 9"
MARK = f"of test {os.getpid()}"     # no layer, but an argument that every process here shares
ALL = (*LAYERS, MARK)
SHORT = Limits(wall_secs=0.7, cpu_secs=1, memory_bytes=256 << 20, output_bytes=100_000)
PATIENT = Limits(wall_secs=20.0, cpu_secs=2, memory_bytes=256 << 20, output_bytes=100_000)
WAITING = ("sleep", "endless", "endless_deaf", "endless_result", "deep_recursion", "stack")


def processes() -> list[int]:
    """Processes of this test's sandboxes, whoever their parent is now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if MARK.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


def end_within(secs: float, is_done) -> bool:
    """Whether something comes true; a case that has answered takes a moment to end itself."""
    deadline = time.monotonic() + secs
    while not is_done() and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_done()


def left_behind() -> dict[str, object]:
    """What a program could have left."""
    shared = {path: Path(path).read_text().count("\n")
              for path in ("/proc/sysvipc/shm", "/proc/sysvipc/sem", "/proc/sysvipc/msg")
              if Path(path).exists()}
    names = {path.name for folder in ("/tmp", "/dev/shm", tempfile.gettempdir())
             for path in Path(folder).glob("*")
             if path.name == "left_behind" or path.name.startswith("sandbox-")}
    return {"shared": shared, "names": names}


def run_all(codes: dict, limits_of, layers=ALL) -> dict:
    programs = [Program(complete(code), CHECK) for _, code in codes.values()]
    outcomes = {}
    for limits in (SHORT, PATIENT):
        chosen = [index for index, name in enumerate(codes) if limits_of(name) is limits]
        done = run_programs([programs[index] for index in chosen], limits, num_workers=4,
                            layers=layers)
        outcomes |= {list(codes)[index]: outcome for index, outcome in zip(chosen, done)}
    return outcomes


def limits_of(name: str) -> Limits:
    return SHORT if name in WAITING else PATIENT


@pytest.fixture(scope="module")
def attacks():
    """Outcomes of all attacks, with all layers, and what was there before."""
    if set(LAYERS) - set(find_layers(ALL)):
        pytest.skip("this machine does not have every layer")
    before = left_behind()
    outcomes = run_all(ATTACKS, limits_of)
    assert left_behind() == before
    assert end_within(2.0, lambda: len(processes()) <= 4), "more than the idle servers"
    return outcomes


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_get_their_verdict(attacks, name):
    expected, _ = ATTACKS[name]
    assert attacks[name].verdict in ([expected] if isinstance(expected, str) else expected), \
        attacks[name]


def test_there_are_attacks_enough():
    assert len(ATTACKS) + len(FORKING) >= 40


@pytest.mark.parametrize("name", FORKING)
def test_processes_end_with_the_program_that_started_them(name):
    expected, code = FORKING[name]
    if not counts_tasks(find_layers(ALL)):
        pytest.skip("this machine does not count processes")
    before = set(processes())
    outcome = run_programs([Program(complete(code), CHECK)],
                           Limits(wall_secs=3.0, may_fork=True, num_tasks=32), layers=ALL)[0]
    assert outcome.verdict in ([expected] if isinstance(expected, str) else expected), outcome
    assert end_within(2.0, lambda: set(processes()) <= before)


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_programs_pass(name):
    code = complete(HARMLESS[name])
    plain, checked = run_programs([code, Program(code, CHECK)], layers=ALL)
    assert plain.passed and checked.passed, (plain, checked)


@pytest.mark.parametrize("layers", [
    (LIMITS, LANDLOCK, SECCOMP), (NAMESPACES, LIMITS, LANDLOCK, SECCOMP),
    (NAMESPACES, TREE, LIMITS),
    (LANDLOCK, SECCOMP)], ids="+".join)
def test_without_some_layers_the_others_hold(layers):
    wanted = (*layers, MARK)
    if set(layers) - set(find_layers(wanted)):
        pytest.skip("this machine does not have them")
    codes = {name: ATTACKS[name] for name in (
        "connect", "passwords", "home", "repository", "write_outside", "symbolic_link",
        "equal_to_all", "leave", "close_everything", "frames", "read_the_parent", "output",
        "ptrace", "mount", "shared_memory")}
    before = left_behind()
    outcomes = run_all(codes, limits_of, wanted)
    assert {name: outcome.verdict for name, outcome in outcomes.items()
            if outcome.passed} == {}
    harmless = [complete(code) for code in HARMLESS.values()]
    assert [outcome.detail for outcome in run_programs(harmless, layers=wanted)
            if not outcome.passed] == []
    assert left_behind() == before


def test_processes_end_without_a_namespace_as_well():
    """A process whose parent ended is adopted by the case, and killed."""
    wanted = (LIMITS, LANDLOCK, MARK)
    if set(wanted[:2]) - set(find_layers(wanted)):
        pytest.skip("this machine does not have them")
    before = set(processes())
    for name in ("daemon", "deaf_daemon"):
        code = complete(FORKING[name][1])
        assert run_programs([Program(code, CHECK)], Limits(allow_unconfined=True),
                            layers=wanted)[0].passed
    assert end_within(2.0, lambda: set(processes()) <= before)


def test_without_any_layer_untrusted_code_is_refused():
    with pytest.raises(UserError, match="from files, the network, processes without number"):
        run_programs(["1"], layers=(LIMITS, MARK))
    with pytest.raises(UserError, match="from files"):
        run_programs(["1"], layers=(SECCOMP, MARK))
    with pytest.raises(UserError, match="from processes without number"):
        run_programs(["1"], layers=(NAMESPACES, LIMITS, LANDLOCK, MARK))
    for layers in ((LIMITS, LANDLOCK, SECCOMP, MARK), (NAMESPACES, LIMITS, LANDLOCK, MARK)):
        with pytest.raises(UserError, match=r"may fork|without number"):
            run_programs(["1"], Limits(may_fork=True), layers=layers)
        with pytest.raises(UserError, match="may fork"):
            run_programs(["1"], Limits(may_fork=True, allow_unconfined=True), layers=layers)
    assert run_programs(["1"], Limits(allow_unconfined=True), layers=(LIMITS, MARK))[0].passed


def test_the_log_names_the_layers(capsys):
    find_layers((LIMITS, "named by the log", MARK))
    said = capsys.readouterr().err
    assert "sandbox: limits of resources; without own user" in said
    assert "Landlock" in said.partition("without")[2]


def test_outcomes_tell_what_happened():
    wrong = run_program(Program("def f(x):\n    print('hm', end='')\n    return x\n", CHECK))
    assert (wrong.verdict, wrong.output) == ("failed", "hm")
    assert wrong.detail == f"AssertionError at: {CHECK}"
    error = run_program("x = 1\n1 / 0")
    assert error.detail == "ZeroDivisionError: division by zero (line 2)"
    assert run_program("import os; os._exit(3)").detail == "ended by itself, with status 3"
    assert run_program("import ctypes; ctypes.string_at(0)").detail == "ended by SIGSEGV"
    assert "sort" in run_program(Program("", "submitted('sort')()")).detail
    assert "(line 1)" in run_program("open('/nowhere')").detail


def test_checks_see_errors_and_state():
    code = ("n = 0\ndef count():\n    global n\n    n += 1\n    return n\n"
            "def fail(kind):\n    raise {'v': ValueError, 'k': KeyError}[kind]('no')\n"
            "def named(*a, **k):\n    return a, k\n")
    check = ("assert [submitted('count')() for _ in range(3)] == [1, 2, 3]\n"
             "for kind, error in (('v', ValueError), ('k', KeyError)):\n"
             "    try: submitted('fail')(kind)\n    except error: pass\n"
             "    else: raise AssertionError\n"
             "assert submitted('named')(1, [2], b={3: {4}}) == ((1, [2]), {'b': {3: {4}}})")
    assert run_program(Program(code, check)).passed
    assert not run_program(Program(code, check + "\nassert False")).passed


def test_order_of_sets_is_the_same_in_every_server():
    code = "print({'a', 'b', 'c', 'd', 'e', 'f', 'g'})"
    first = run_program(code)
    close_servers()
    assert run_program(code).output == first.output


def test_a_server_that_was_killed_is_replaced():
    find_layers(ALL)
    for pid in processes():
        os.kill(pid, 9)
    assert run_programs([Program(RIGHT, CHECK)] * 3, layers=ALL)[-1].passed


def test_programs_run_side_by_side_from_threads():
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.extend(run_programs(["1", "1/0"])))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.verdict for outcome in outcomes) == ["failed"] * 4 + ["passed"] * 4


@pytest.mark.parametrize("value", [
    None, True, 0, -1, 1 << 300, 0.1, float("inf"), "", "Привет \ud800", b"\0", bytearray(b"x"),
    [], [1, [2]], (), (1, (2,)), {}, {(1, 2): [3], None: {4}}, set(), {1, "a"}, frozenset({1}),
    range(1, 9, 2), 1j], ids=lambda value: type(value).__name__)   # the order of sets varies
def test_literals_travel_with_their_types(value):
    came = decode(encode(value))
    assert came == value and type(came) is type(value)


def test_what_is_no_literal_equals_nothing():
    came = decode(encode(object()))
    assert isinstance(came, Opaque) and came and came != object()
    assert list(decode(encode(iter([1, 2])))) == [1, 2]

    class Liar(list):
        def __iter__(self):
            return iter([9])

    assert decode(encode(Liar([1]))) == [1]
    for broken in ({}, {"no": 1}, {"tuple": 1}, {"set": [[1]]}, {"int": "x"}, {"decimal": "x"}):
        with pytest.raises(ValueError):
            decode(broken)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86_64")
def test_system_calls_by_other_numbers_kill():
    code = ("import ctypes\nctypes.CDLL(None).syscall(0x40000000 | 39)\n" + RIGHT)
    if SECCOMP not in find_layers(ALL):
        pytest.skip("this machine has no filters")
    assert run_program(Program(code, CHECK)).verdict == "forbidden"


@pytest.mark.parametrize("column,machine", list(enumerate(seccomp.ARCHITECTURES)))
def test_the_filter_names_each_call_once(column, machine, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    tables = (seccomp.REFUSED, seccomp.SIGNALS, seccomp.PROCESSES)
    numbers = [pair[column] for table in tables for pair in table.values()
               if pair[column] is not None]
    assert len(numbers) == len(set(numbers)) and max(numbers) < seccomp.FIRST_UNIFIED
    assert len(seccomp.make_filter(1, may_fork=False, may_kill=False)) % 8 == 0
