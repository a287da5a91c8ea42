"""The one way into Heartwood: flags, config, one-line errors, a JSON object as the last line.

Every stage is ``python -m package.module --config=configs/x.py[:variant] --workdir=DIR`` and any
field may be set beside it: ``--config.pretrain.num_steps=100``.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from core import artifacts
from core.errors import UserError
from core.progress import format_secs, log

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141    # as a shell reports SIGPIPE

# `build(config, parents, folder) -> metrics`: reads the parents' folders, writes into `folder`.
Build = Callable[[ConfigDict, Mapping[str, Path], Path], Mapping[str, Any]]


def run(main: Callable[[], Mapping[str, Any]]) -> None:
    """Runs a command: parses flags, prints its result as one JSON line, exits with its status.

    Args:
        main: called without arguments after the flags are parsed; returns plain data.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(artifacts.ROOT / ".cache" / "jax"))
    os.environ.setdefault("DO_NOT_TRACK", "1")
    logging.set_verbosity(logging.FATAL)  # what Orbax logs as an error, it raises as well
    try:
        _parse_flags()
        result = main()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:     # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)
    except OSError as error:
        _fail_os(error)
    except KeyboardInterrupt:
        log("interrupted; run the same command again to go on")
        sys.exit(EXIT_INTERRUPTED)
    print(json.dumps(result, default=_plain), flush=True)


def run_stage(section: str, build: Build, *, parents: Sequence[str] = (),
              sections: Sequence[str] = (),
              inputs: Callable[[ConfigDict], Mapping[str, str]] | None = None,
              assist: Callable[[Path, Callable[[], bool]], bool] | None = None) -> None:
    """Runs a stage: reads artifacts, writes one, skips itself when it is already there.

    Args:
        section: the stage's own config section; its field `out` names the artifact's folder.
        build: does the work inside a partial folder and returns its metrics. It must go on where
            an earlier, killed run left that folder.
        parents: fields of the section that name parent artifacts (folders under the workdir, or
            paths). An empty value means that there is no such parent.
        sections: further config sections that decide the result.
        inputs: fingerprints of inputs that are not artifacts, e.g. raw files.
        assist: called with the artifact's folder and a test whether it is finished; returns
            whether this process only helped another one to build it, e.g. `data.engine.assist`.
    """
    define_config_flags()
    module_file = sys.modules["__main__"].__file__
    run(lambda: _run_stage(section, build, parents, sections, inputs, assist, module_file))


def define_config_flags() -> None:
    """Declares ``--config`` and ``--workdir``, the flags that every stage shares."""
    config_flags.DEFINE_config_file("config", None, "Experiment: configs/NAME.py[:variant].")
    flags.DEFINE_string("workdir", None, "Folder that holds the experiment's artifacts.")


def config_and_workdir() -> tuple[ConfigDict, Path]:
    """The parsed config and the workdir; raises `UserError` when a flag is missing."""
    if flags.FLAGS.config is None:
        raise UserError("--config", "is missing", "try --config=configs/quickstart.py")
    if not flags.FLAGS.workdir:
        raise UserError("--workdir", "is missing", "try --workdir=runs/quickstart")
    return flags.FLAGS.config, Path(flags.FLAGS.workdir)


def _run_stage(section, build, parents, sections, inputs, assist, module_file) -> dict[str, Any]:
    config, workdir = config_and_workdir()
    for name in (section, *sections):
        if name not in config:
            raise UserError(f"config.{name}", "this config has no such section",
                            "use a config that describes this stage")
    own = config[section]
    found = {field: artifacts.parent(workdir, f"{section}.{field}", own[field])
             for field in parents if own[field]}
    lineage = artifacts.make_lineage(
        stage=section,
        config={name: config[name].to_dict() for name in (section, *sections)},
        inputs={field: mark for field, (_, mark) in found.items()}
        | dict(inputs(config) if inputs else {}),
        code=artifacts.code_digest(module_file))
    final = workdir / own.out
    partial = final.with_name(f"{final.name}.partial")
    result = {"stage": section, "path": str(final)}
    if assist is not None and assist(final, lambda: artifacts.is_finished(final, lineage)):
        return result | {"assisted": True} | artifacts.read_json(final / "metrics.json")
    with artifacts.locked(final):
        if artifacts.find_finished(final, lineage):
            log(f"{section}: {final} is up to date")
            return result | {"skipped": True} | artifacts.read_json(final / "metrics.json")
        artifacts.open_partial(partial, lineage)
        metrics = dict(build(config, {field: path for field, (path, _) in found.items()}, partial))
        secs = _process_secs()
        metrics |= {"secs": round(secs, 1), "peak_memory_bytes": _peak_memory_bytes()}
        artifacts.finish(partial, final, lineage, metrics)
    log(f"{section}: wrote {final} in {format_secs(secs)}")
    return result | {"skipped": False} | metrics


def _parse_flags() -> None:
    try:
        rest = flags.FLAGS(sys.argv)[1:]
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.keys()  # a config that failed to load says so at its first use
    except KeyError as error:  # its text is quoted; ml_collections adds "Did you mean ...?"
        _fail("--config: no such field: " + " ".join(str(error.args[0]).split()))
    except (flags.Error, AttributeError, TypeError, ValueError) as error:
        # Of a ValueError in get_config the flag quotes the whole traceback; its last line is ours.
        line = str(error).rpartition("\nValueError: ")[2]
        _fail(" ".join(line.split()))
    except OSError as error:
        _fail(f"--config: {str(error).splitlines()[-1].strip()}: choose one of configs/*.py")
    if rest:
        _fail(f"{rest[0]!r}: unexpected argument: flags look like --config.section.field=value")


def _fail(line: str) -> None:
    log(f"error: {line}")
    sys.exit(EXIT_USER_ERROR)


def _fail_os(error: OSError) -> None:
    remedies = {
        errno.ENOSPC: "free space or choose another --workdir; run again to go on",
        errno.EDQUOT: "free space or choose another --workdir; run again to go on",
        errno.EACCES: "choose a --workdir that you may write to",
        errno.EPERM: "choose a --workdir that you may write to",
        errno.EROFS: "choose a --workdir on a writable disk",
    }
    if error.errno not in remedies:
        raise error
    _fail(f"{error.filename or 'disk'}: {error.strerror.lower()}: {remedies[error.errno]}")


def _process_secs() -> float:
    """Seconds since this process started, imports included (Linux: field 22 of proc(5) stat)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _peak_memory_bytes() -> int:
    """Peak resident memory of this process or, if larger, of its largest child, in bytes."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(w).ru_maxrss for w in who) * 1024


def _plain(value: Any) -> Any:
    """Numpy scalars and paths as JSON."""
    return value.item() if hasattr(value, "item") else str(value)
