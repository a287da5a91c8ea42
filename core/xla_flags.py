"""Checks XLA flags in a separate process, since an unknown flag aborts the process that parses it.

The process parses `XLA_FLAGS` as jax does, and the result is cached by flags and version of jaxlib.
`LIBTPU_INIT_ARGS` is parsed only by libtpu, which would occupy the chips; of these flags only the
form is checked.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Mapping

from core.artifacts import ROOT, digest, read_json, write_json
from core.errors import UserError

PROBE_SECS = 30
PARSE = "from jaxlib import xla_client; xla_client.CompileOptions()"

# Flags by name, for launchers; the default is none. `multi_gpu` overlaps collectives with compute,
# after MaxText's A3 scripts and JAX-Toolbox; it has no benefit on one GPU.
PRESETS = {
    "none": "",
    "multi_gpu": " ".join((
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "--xla_gpu_enable_pipelined_all_gather=true",
        "--xla_gpu_enable_pipelined_reduce_scatter=true",
        "--xla_gpu_enable_pipelined_all_reduce=true",
        "--xla_gpu_enable_while_loop_double_buffering=true",
        "--xla_gpu_all_reduce_combine_threshold_bytes=134217728",
        "--xla_gpu_all_gather_combine_threshold_bytes=134217728",
        "--xla_gpu_reduce_scatter_combine_threshold_bytes=67108864")),
}


def check_xla_flags(environment: Mapping[str, str] | None = None) -> None:
    """Raises an error for flags that would abort the process; does nothing without flags.

    Raises:
        UserError: a flag is unknown to the installed jaxlib, or its value cannot be read.
    """
    variables = os.environ if environment is None else environment
    for argument in variables.get("LIBTPU_INIT_ARGS", "").split():
        if not argument.startswith("--"):
            raise UserError(f"LIBTPU_INIT_ARGS={argument!r}", "does not begin with --",
                            "write flags as --xla_tpu_name=value")
    given = variables.get("XLA_FLAGS", "").strip()
    if given and (fault := _known_fault(given)):
        remedy = "correct or remove it"
        if "--xla_tpu" in fault:
            remedy = "put flags of TPUs into LIBTPU_INIT_ARGS"
        raise UserError(f"XLA_FLAGS={given!r}", fault, remedy)


def _known_fault(given: str) -> str:
    """The fault of these flags, from the cache or a new check."""
    if not given.startswith("--"):      # the name of a file, whose content may change
        return _fault(given)
    version = importlib.metadata.version("jaxlib")
    path = ROOT / ".cache" / "xla_flags" / f"{digest([given, version])}.json"
    if path.exists():
        return read_json(path)["fault"]
    fault = _fault(given)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"flags": given, "jaxlib": version, "fault": fault})
    except OSError:     # a read-only checkout: no cache
        pass
    return fault


def _fault(given: str) -> str:
    """Error of the parser of the installed jaxlib for these flags; empty if none."""
    done = subprocess.run([sys.executable, "-c", PARSE], env=os.environ | {"XLA_FLAGS": given},
                          capture_output=True, text=True, timeout=PROBE_SECS, errors="replace")
    if done.returncode == 0:
        return ""
    patterns = (r"Unknown flags? in XLA_FLAGS: (.*)", r"(Couldn't interpret value .*?)\.?$",
                r"(Could not open file \".*?\")")
    for pattern, text in zip(patterns, ("unknown flag: {}", "{}", "{}")):
        if match := re.search(pattern, done.stderr, re.MULTILINE):
            return text.format(match[1].strip())
    if done.returncode > 0:     # this jaxlib cannot be checked
        return ""
    return f"the parser died of signal {-done.returncode}"
