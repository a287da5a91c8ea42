"""A profiler window, from the flag to the table, on programs that really run."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from core.errors import UserError
from train.watch.profile import Profiler, Window, define_flag, format_table, read_profile

NUM_STEPS = 8


def _event(name, start_us, end_us, **stats):
    return SimpleNamespace(name=name, start_ns=1000 * start_us,
                           duration_ns=1000 * (end_us - start_us), stats=list(stats.items()))


def _read(monkeypatch, planes):
    """What is made of planes given as {plane: {line: events}}."""
    data = SimpleNamespace(planes=[
        SimpleNamespace(name=plane, lines=[SimpleNamespace(name=line, events=events)
                                           for line, events in lines.items()])
        for plane, lines in planes.items()])
    monkeypatch.setattr(jax.profiler, "ProfileData", SimpleNamespace(from_file=lambda path: data))
    return read_profile("trace")


@pytest.mark.parametrize("text", ["5", "9:3", "a:b", "0:4", "-1:4", "1:2:3", ":", "1:", "1.5:2"])
def test_a_wrong_window_is_one_line(text):
    expected = f"^--profile={re.escape(text)}: is not START:STOP, [^\n]*: try --profile=10:12$"
    with pytest.raises(UserError, match=expected):
        Window.parse(text)


def test_the_flag_is_parsed_and_refused_with_the_others(monkeypatch):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    monkeypatch.setattr(flags, "DEFINE",
                        lambda *args, define=flags.DEFINE: define(*args, flag_values=values))
    define_flag()
    values(["trainer", "--profile=3:5"])
    assert values.profile == Window(3, 5)
    with pytest.raises(UserError, match="--profile=5: is not START:STOP"):
        values(["trainer", "--profile=5"])
    assert Window.parse("") is None and Window.parse(None) is None


@pytest.fixture
def steps(tmp_path):
    """A function that runs toy steps around a profiler; compiled already."""
    @jax.jit
    def step(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, length=4)[0]

    def run(profiler, first, last):
        x = jnp.ones((64, 64))
        for number in range(first, last + 1):
            profiler.before(number, x)
            x = step(x)
            profiler.after(number, x)
        profiler.close(x)

    run(Profiler(None, tmp_path), 1, 1)     # compiles
    return run


def test_a_window_becomes_a_table_of_real_operations(tmp_path, capsys, steps):
    steps(Profiler(Window(3, 5), tmp_path), 1, NUM_STEPS)
    trace, = (tmp_path / "profile").rglob("*.xplane.pb")
    device, = read_profile(trace)
    assert device.device == "/host:CPU:0"
    assert 0 <= device.idle_frac < 1 and device.window_ms > 0
    assert sum(op.frac for op in device.ops) == pytest.approx(1)
    assert all(op.total_ms >= 0 for op in device.ops)
    # Three steps of four turns of the loop; a matrix product is called by its kernel library.
    product, = (op for op in device.ops if re.match("dot|ynn|gemm|xnn", op.name))
    tanh, = (op for op in device.ops if "tanh" in op.name)
    loop, = (op for op in device.ops if "while" in op.name)
    assert product.count == tanh.count == 12 and loop.count == 3
    assert loop.frac < 0.5, "a loop must not be charged with its body"
    printed = capsys.readouterr().err
    assert product.name in printed and f"idle {100 * device.idle_frac:.1f} %" in printed
    assert (tmp_path / "profile" / "ops.txt").read_text().startswith(format_table(device))


def test_a_window_may_begin_late_and_end_early(tmp_path, capsys, steps):
    steps(Profiler(Window(2, 99), tmp_path), 7, NUM_STEPS)  # resumed at 6, and over at 8
    trace, = (tmp_path / "profile").rglob("*.xplane.pb")
    loop, = (op for op in read_profile(trace)[0].ops if "while" in op.name)
    assert loop.count == 2


def test_a_window_that_never_comes_is_said(tmp_path, capsys, steps):
    steps(Profiler(Window(3, 5), tmp_path), 6, NUM_STEPS)
    assert capsys.readouterr().err == (
        "profile: steps 3 to 5 were not run by this process: nothing was traced\n")
    assert not (tmp_path / "profile").exists()


def test_the_device_is_idle_when_the_trace_begins(tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(jax, "block_until_ready", lambda arrays: notes.append(arrays))
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: notes.append("start"))
    profiler = Profiler(Window(2, 3), tmp_path)
    for number in (1, 2, 3):
        profiler.before(number, f"arrays before {number}")
    assert notes == ["arrays before 2", "start"]


def test_only_process_0_traces(tmp_path, steps, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    steps(Profiler(Window(3, 5), tmp_path), 1, NUM_STEPS)
    assert not (tmp_path / "profile").exists()


def test_streams_of_a_gpu_count_together_and_its_host_does_not(monkeypatch):
    """A gap is idle only where no stream has work; launches on the host are none."""
    gpu, other = _read(monkeypatch, {
        "/device:GPU:0": {
            "Stream #1(Compute)": [_event("nvjet_gemm", 0, 40, hlo_op="cublas-gemm.1"),
                                   _event("nvjet_gemm", 60, 80, hlo_op="cublas-gemm.1")],
            "Stream #2(MemcpyD2D)": [_event("ncclDevKernel_AllGather", 30, 70)],
            "XLA Modules": [_event("jit_train_step", 0, 100)]},
        "/device:GPU:1": {"Stream #1(Compute)": [_event("fusion", 0, 25, hlo_op="fusion.7"),
                                                 _event("fusion", 75, 100, hlo_op="fusion.7")]},
        "/host:CPU": {"python": [_event("launch", 0, 500, hlo_op="cublas-gemm.1")]}})
    assert gpu.device == "/device:GPU:0" and gpu.idle_frac == pytest.approx(0)
    assert [(op.name, op.count, op.total_ms, op.frac) for op in gpu.ops] == [
        ("cublas-gemm.1", 2, pytest.approx(0.06), pytest.approx(0.6)),
        ("ncclDevKernel_AllGather", 1, pytest.approx(0.04), pytest.approx(0.4))]
    assert other.idle_frac == pytest.approx(0.5) and other.window_ms == pytest.approx(0.1)


def test_a_tpu_has_one_line_of_operations_with_their_categories(monkeypatch):
    tpu, = _read(monkeypatch, {"/device:TPU:0": {
        "Steps": [_event("5", 0, 200)],
        "XLA Ops": [_event("while.2", 0, 100, hlo_category="while"),
                    _event("fusion.3", 0, 70, hlo_category="convolution fusion"),
                    _event("copy.4", 80, 100, hlo_category="copy")]}})
    assert [(op.name, op.category, round(op.total_ms, 6)) for op in tpu.ops] == [
        ("fusion.3", "convolution fusion", 0.07), ("copy.4", "copy", 0.02),
        ("while.2", "while", 0.01)]
    lines = format_table(tpu, num_ops=2).splitlines()
    assert lines[0] == "profile: /device:TPU:0: idle 0.0 % of 0.1 ms"
    assert lines[2:] == ["  70.0 %       0.070        1  fusion.3  (convolution fusion)",
                         "  20.0 %       0.020        1  copy.4  (copy)",
                         "  10.0 %       0.010        1  1 others"]


def test_a_trace_without_operations_is_an_empty_table(monkeypatch):
    assert _read(monkeypatch, {"/host:CPU": {"python": [_event("train", 0, 10)]}}) == []
