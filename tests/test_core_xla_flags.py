"""XLA flags: flags that the installed jaxlib would abort on are refused, and checked once."""

import subprocess

import pytest

from core import xla_flags
from core.errors import UserError
from core.xla_flags import PRESETS, check_xla_flags


@pytest.fixture
def probes(tmp_path, monkeypatch):
    """The flags that a process was started for, with an empty cache."""
    started, run = [], subprocess.run
    monkeypatch.setattr(xla_flags, "ROOT", tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: (
        started.append(kwargs["env"]["XLA_FLAGS"]), run(*args, **kwargs))[1])
    return started


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_known_to_the_installed_jaxlib(name):
    check_xla_flags({"XLA_FLAGS": PRESETS[name]})


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


def test_nothing_is_started_where_no_flags_are_set(probes):
    check_xla_flags({})
    check_xla_flags({"XLA_FLAGS": " ", "LIBTPU_INIT_ARGS": "--xla_tpu_anything=true"})
    assert not probes


def test_flags_of_tpus_are_checked_for_their_form():
    with pytest.raises(UserError, match=r"LIBTPU_INIT_ARGS='xla_tpu_x=1': does not begin with --"):
        check_xla_flags({"LIBTPU_INIT_ARGS": "--xla_tpu_y=1 xla_tpu_x=1"})
