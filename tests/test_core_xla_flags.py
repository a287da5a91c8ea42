"""XLA's flags: what a GPU gets, and flags that jaxlib would abort on are refused, checked once."""

import subprocess

import pytest

from core import xla_flags
from core.errors import UserError
from core.xla_flags import (
    GPU_FLAGS,
    SEVERAL_GPUS_FLAGS,
    apply_xla_settings,
    check_xla_flags,
    count_gpus,
)


@pytest.fixture
def probes(tmp_path, monkeypatch):
    """The flags that a process was started for, with an empty cache."""
    started, run = [], subprocess.run
    monkeypatch.setattr(xla_flags, "find_cache", lambda name: tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: (
        started.append(kwargs["env"]["XLA_FLAGS"]), run(*args, **kwargs))[1])
    return started


def test_every_setting_is_known_to_the_installed_jaxlib():
    check_xla_flags({"XLA_FLAGS": " ".join(GPU_FLAGS + SEVERAL_GPUS_FLAGS)})


def settings(num_processes=1, **environment):
    """XLA's flags and the share of memory, as a machine with this environment gets them."""
    apply_xla_settings(environment, num_processes)
    return environment.get("XLA_FLAGS"), environment.get("XLA_PYTHON_CLIENT_MEM_FRACTION")


def test_gpus_get_their_settings_and_what_the_user_sets_stays(capfd):
    assert settings(CUDA_VISIBLE_DEVICES="0") == (" ".join(GPU_FLAGS), "0.92")
    assert capfd.readouterr().err.startswith("GPU: XLA_FLAGS='--xla_gpu")
    every = " ".join(GPU_FLAGS + SEVERAL_GPUS_FLAGS)
    assert settings(CUDA_VISIBLE_DEVICES="0,1") == (every, "0.92")
    assert settings(2, CUDA_VISIBLE_DEVICES="3", JAX_PLATFORMS="cuda,cpu") == (every, "0.92")
    own = "--xla_gpu_enable_triton_gemm=true --xla_gpu_autotune_level=2"
    assert settings(CUDA_VISIBLE_DEVICES="0", XLA_FLAGS=own,
                    XLA_PYTHON_CLIENT_MEM_FRACTION="0.5") == (f"{own} {GPU_FLAGS[1]}", "0.5")


def test_other_platforms_and_flags_of_a_file_are_left_as_they_are(capfd):
    assert settings(JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="0") == (None, None)
    assert settings(CUDA_VISIBLE_DEVICES="") == settings(CUDA_VISIBLE_DEVICES="-1") == (None, None)
    assert settings(CUDA_VISIBLE_DEVICES="0", XLA_FLAGS="flags.txt") == ("flags.txt", None)
    assert not capfd.readouterr().err


def test_settings_that_this_jaxlib_does_not_know_are_left_out_with_a_line(monkeypatch, capfd):
    monkeypatch.setattr(xla_flags, "GPU_FLAGS", ("--xla_gpu_gone=1",))
    assert settings(CUDA_VISIBLE_DEVICES="0", XLA_FLAGS="--xla_gpu_autotune_level=2") == (
        "--xla_gpu_autotune_level=2", "0.92")
    assert "settings for GPUs are left out: unknown flag: --xla_gpu_gone=1" in (
        capfd.readouterr().err)


def test_devices_of_the_driver_are_counted(monkeypatch):
    monkeypatch.setattr(xla_flags.glob, "glob", lambda pattern: ["/dev/nvidia0", "/dev/nvidia1"])
    assert count_gpus({}) == 2 and count_gpus({"JAX_PLATFORMS": "tpu"}) == 0


@pytest.mark.parametrize("given, line", [
    ("--xla_gpu_graph_level=3", "unknown flag: --xla_gpu_graph_level=3: correct or remove it"),
    ("--xla_gpu_autotune_level=2 --xla_a=1 --xla_b", "unknown flag: --xla_a=1 --xla_b: correct"),
    ("--xla_gpu_enable_latency_hiding_scheduler=maybe", "Couldn't interpret value maybe for flag"),
    ("--xla_tpu_anything=true", "unknown flag: --xla_tpu_anything=true: put flags of TPUs into "),
    ("xla_gpu_autotune_level=2", 'Could not open file "xla_gpu_autotune_level=2"'),
])
def test_invalid_flags_are_refused_by_name(probes, given, line):
    with pytest.raises(UserError) as error:
        check_xla_flags({"XLA_FLAGS": given})
    assert str(error.value).startswith(f"XLA_FLAGS={given!r}: {line}")


def test_results_are_cached_by_flags(probes):
    good, bad = "--xla_gpu_autotune_level=2", "--xla_no=1"
    for _ in range(2):
        check_xla_flags({"XLA_FLAGS": good})
        with pytest.raises(UserError, match="unknown flag"):
            check_xla_flags({"XLA_FLAGS": bad})
    assert probes == [good, bad]


def test_flags_are_checked_without_a_cache(probes, monkeypatch):
    monkeypatch.setattr(xla_flags, "find_cache", lambda name: None)
    for _ in range(2):
        check_xla_flags({"XLA_FLAGS": "--xla_gpu_autotune_level=2"})
    assert len(probes) == 2


def test_nothing_is_started_where_no_flags_are_set(probes):
    check_xla_flags({})
    check_xla_flags({"XLA_FLAGS": " ", "LIBTPU_INIT_ARGS": "--xla_tpu_anything=true"})
    assert not probes


def test_flags_of_tpus_are_checked_for_their_form():
    with pytest.raises(UserError, match=r"LIBTPU_INIT_ARGS='xla_tpu_x=1': does not begin with --"):
        check_xla_flags({"LIBTPU_INIT_ARGS": "--xla_tpu_y=1 xla_tpu_x=1"})
