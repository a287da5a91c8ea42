"""XLA's settings of each platform, and a check of the flags that a user sets.

`apply_xla_settings` adds the platform's settings to the environment before a device is used. What
the user has set stays: a flag in `XLA_FLAGS` replaces the setting of the same name.

Flags are checked in a separate process, since an unknown one aborts the process that parses it. It
parses `XLA_FLAGS` as jax does, and the result is cached by flags and version of jaxlib.
`LIBTPU_INIT_ARGS` is parsed only by libtpu, which would occupy the chips; of these flags only the
form is checked.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Mapping, MutableMapping

from core.artifacts import digest, read_json, write_json
from core.caches import find_cache
from core.errors import UserError
from core.progress import log

PROBE_SECS = 30
PARSE = "from jaxlib import xla_client; xla_client.CompileOptions()"

# On NVIDIA GPUs. Figures are tokens/s on an H200 with jax 0.11.2 (docs/benchmarks.md).
GPU_FLAGS = (
    # cuBLAS for every product instead of Triton for some: 350M +2.4 %, 1.3B +0.9 %. MaxText's
    # scripts for H100 and H200 set it too.
    "--xla_gpu_enable_triton_gemm=false",
    # Records loops and conditionals in CUDA graphs too. Each layer's attention has a conditional
    # (`model.attention.packed`), at which XLA otherwise waits for the host: 124M +4.2 %, 350M
    # +1.9 %.
    "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL",
)
# On several: collectives run beside products, and small ones are joined. From MaxText's scripts for
# A3 machines and from JAX-Toolbox; not measured here. On one GPU they change nothing.
SEVERAL_GPUS_FLAGS = (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_enable_pipelined_all_gather=true",
    "--xla_gpu_enable_pipelined_reduce_scatter=true",
    "--xla_gpu_enable_pipelined_all_reduce=true",
    "--xla_gpu_enable_while_loop_double_buffering=true",
    "--xla_gpu_all_reduce_combine_threshold_bytes=134217728",
    "--xla_gpu_all_gather_combine_threshold_bytes=134217728",
    "--xla_gpu_reduce_scatter_combine_threshold_bytes=67108864",
)
# Share of a GPU's memory that JAX takes at the start; its default of 0.75 leaves a quarter unused.
GPU_MEMORY = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
# A CPU's one setting must precede the process: GLIBC_TUNABLES in scripts/environment.sh. For TPUs
# nothing has been measured, and XLA's defaults hold.


def apply_xla_settings(environment: MutableMapping[str, str], num_processes: int = 1) -> None:
    """Sets what this machine's platform needs, and logs it; to be called before a device is used.

    Args:
        environment: is changed.
        num_processes: of the run, each with GPUs of its own.
    """
    num_gpus, given = count_gpus(environment), environment.get("XLA_FLAGS", "").strip()
    if not num_gpus or (given and not given.startswith("--")):   # a file has all flags
        return
    names = {flag.partition("=")[0] for flag in given.split()}
    wanted = GPU_FLAGS + (SEVERAL_GPUS_FLAGS if num_gpus * num_processes > 1 else ())
    added = [flag for flag in wanted if flag.partition("=")[0] not in names]
    if added and (fault := _known_fault(" ".join(added))):
        log(f"XLA's settings for GPUs are left out: {fault}")
        added = []
    environment["XLA_FLAGS"] = " ".join([given, *added]).strip()
    environment.setdefault(*GPU_MEMORY)
    log(f"GPU: XLA_FLAGS={environment['XLA_FLAGS']!r} "
        f"{GPU_MEMORY[0]}={environment[GPU_MEMORY[0]]}")


def count_gpus(environment: Mapping[str, str]) -> int:
    """NVIDIA GPUs that JAX will use, found without a driver's help."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return 0
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(glob.glob("/dev/nvidia[0-9]*"))


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
    name, cache = f"{digest([given, version])}.json", find_cache("xla_flags")
    if cache is not None and (cache / name).exists():
        return read_json(cache / name)["fault"]
    fault = _fault(given)
    if cache is not None:
        with contextlib.suppress(OSError):      # a full disk
            write_json(cache / name, {"flags": given, "jaxlib": version, "fault": fault})
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
