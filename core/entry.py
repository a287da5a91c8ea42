"""The one way into Heartwood: flags, config, one-line errors, a JSON object as the last line.

Every stage is ``python -m PACKAGE.MODULE --config=configs/NAME.py[:VARIANT] --workdir=DIR`` and any
field may be set beside it: ``--config.pretrain.num_steps=100``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import inspect
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from core import artifacts, locks
from core.bounds import check_numbers
from core.caches import cache_folders, find_cache
from core.errors import PassingError, UserError
from core.json_text import format_json
from core.overrides import define_config_flag
from core.processes import ProcessLost, find_processes
from core.progress import format_secs, log
from core.xla_flags import apply_xla_settings, check_xla_flags

EXIT_USER_ERROR = 2
EXIT_IO_ERROR = 74        # EX_IOERR of sysexits(3): the same command may succeed
EXIT_PROCESS_LOST = 75    # EX_TEMPFAIL of sysexits(3): the same command may succeed
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141    # as a shell reports SIGPIPE

LIBRARIES = ("absl", "array_record", "grain", "orbax")     # whose flags `--help` leaves out
START_SECS = 600.0    # that processes of one run may start apart

# When the running stage began, in seconds of this process.
_BEGAN: ContextVar[float] = ContextVar("began", default=0.0)

# `build(config, parents, folder) -> metrics`: reads the parents' folders, writes into `folder`.
Build = Callable[[ConfigDict, Mapping[str, Path], Path], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of the pipeline: reads artifacts, writes one, skips itself when it is there.

    Attributes:
        section: the stage's own config section; its field `out` names the artifact's folder.
        build: does the work inside a partial folder and returns its metrics. It must go on where
            an earlier, killed run left that folder.
        parents: fields of the section that name parent artifacts (folders under the workdir, or
            paths). An empty value means that there is no such parent.
        unfinished: those of them that may still be being built.
        foreign: for those of them that may be no artifacts, e.g. files of another program, a
            function of the path that marks its contents, or returns None where it will not do.
        sections: further config sections that decide the result.
        inputs: fingerprints of inputs that are not artifacts, e.g. raw files.
        assist: called with the artifact's folder and a test whether it is finished; returns
            whether this process only helped another one to build it, e.g. `data.engine.assist`.
        every_process: whether `build` is one computation of all processes, as training is: each
            calls it, in the same partial folder, where process 0 alone writes plain files.
            Otherwise the first builds by itself.
    """

    section: str
    build: Build
    parents: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    foreign: Mapping[str, Callable[[Path], str | None]] = dataclasses.field(default_factory=dict)
    sections: tuple[str, ...] = ()
    inputs: Callable[[ConfigDict], Mapping[str, str]] | None = None
    assist: Callable[[Path, Callable[[], bool]], bool] | None = None
    every_process: bool = False


def run(main: Callable[[], Mapping[str, Any]],
        status: Callable[[Mapping[str, Any]], int] = lambda result: 0) -> None:
    """Runs a command: parses flags, prints its result as one JSON line, exits with its status.

    With `--help` it prints the module's docstring and the flags instead.

    Args:
        main: called without arguments after the flags are parsed; returns plain data.
        status: the exit status that a result means, where it may mean something else than 0.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(describe_command(sys.modules["__main__"].__doc__ or "", flags.FLAGS))
        sys.exit()
    os.environ.setdefault("DO_NOT_TRACK", "1")
    logging.set_verbosity(logging.FATAL)  # what Orbax logs as an error, it raises as well
    if fault := flag_fault(flags.FLAGS, sys.argv):
        _fail(fault)
    try:
        processes = find_processes()
        is_first = processes.index == 0
        _set_compile_cache()
        check_xla_flags()
        apply_xla_settings(os.environ, processes.count)
        result = main()
    except PassingError as error:
        _fail(str(error), EXIT_IO_ERROR)
    except UserError as error:
        _fail(str(error))
    except ProcessLost as error:
        _fail(str(error), EXIT_PROCESS_LOST)
    except BrokenPipeError:     # the reader, `head` for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)
    except OSError as error:
        _fail_os(error)
    except KeyboardInterrupt:
        log("interrupted; run the same command again to go on")
        sys.exit(EXIT_INTERRUPTED)
    if is_first:
        print(format_json(result), flush=True)
    if code := status(result):
        sys.exit(code)


def run_stage(stage: Stage) -> None:
    """Runs a stage as a command.

    Where a launcher started several processes that share the workdir's disk, the first owns the
    artifact; the others return when it is finished.
    """
    define_config_flags()
    run(partial(_run_stage, stage))


def define_config_flags(values: flags.FlagValues = flags.FLAGS,
                        argv: list[str] | None = None) -> None:
    """Declares ``--config``, ``--workdir`` and ``--rebuild``, the flags that every stage shares.

    Args:
        values: where they are declared.
        argv: the command line they are for; None for this process's own.
    """
    define_config_flag(values, argv)
    flags.DEFINE_string("workdir", None, "Folder that holds the experiment's artifacts.",
                        flag_values=values)
    flags.DEFINE_bool("rebuild", False, "Builds a finished artifact anew; the old one is kept "
                      "beside it.", flag_values=values)


def config_and_workdir() -> tuple[ConfigDict, Path]:
    """The parsed config and the workdir; raises `UserError` when a flag is missing."""
    if flags.FLAGS.config is None:
        raise UserError("--config", "is missing", "try --config=configs/quickstart.py")
    if not flags.FLAGS.workdir:
        raise UserError("--workdir", "is missing", "try --workdir=runs/quickstart")
    return flags.FLAGS.config, Path(flags.FLAGS.workdir)


def _run_stage(stage: Stage) -> dict[str, Any]:
    return _run_in(stage, *config_and_workdir(), flags.FLAGS.rebuild)


def run_next(stage: Stage, config: ConfigDict, workdir: Path, *, rebuild: bool) -> dict[str, Any]:
    """Builds an artifact as `run_stage` does, for a command that runs several stages in turn.

    Its time is counted from this call on; the peak of memory is that of the process so far.
    """
    _BEGAN.set(_process_secs())
    return _run_in(stage, config, workdir, rebuild)


def _run_in(stage: Stage, config: ConfigDict, workdir: Path, rebuild: bool) -> dict[str, Any]:
    """Builds the artifact, or finds it finished: its name and path, and its metrics."""
    parents, lineage = _resolve(stage, config, workdir, rebuild)
    final = workdir / config[stage.section].out
    unfinished = final.with_name(f"{final.name}.partial")
    result = {"stage": stage.section, "path": str(final)}
    if stage.assist is not None and stage.assist(
            final, lambda: artifacts.is_finished(final, lineage)):
        return result | {"assisted": True} | artifacts.read_json(final / "metrics.json")
    build = partial(stage.build, config, parents, unfinished)
    if find_processes().index:
        _follow(final, unfinished, lineage, build if stage.every_process else None)
        return result
    with locks.locked(final):
        if artifacts.find_finished(final, lineage, rebuild=rebuild):
            log(f"{stage.section}: {final} is up to date")
            return result | {"skipped": True} | artifacts.read_json(final / "metrics.json")
        num_builders = find_processes().count if stage.every_process else 1
        locks.clear_marks(unfinished, num_builders)
        with artifacts.opened(unfinished, lineage):
            metrics = dict(build())
        locks.await_marks(unfinished, num_builders, START_SECS)
        locks.clear_marks(unfinished, num_builders)
        secs = stage_secs()
        metrics |= {"secs": round(secs, 1), "peak_memory_bytes": _peak_memory_bytes()}
        artifacts.finish(unfinished, final, metrics)
    log(f"{stage.section}: wrote {final} in {format_secs(secs)}")
    return result | {"skipped": False} | metrics


def _resolve(stage: Stage, config: ConfigDict, workdir: Path,
             rebuild: bool) -> tuple[dict[str, Path], dict[str, Any]]:
    """The parents' folders, and the lineage of what is to be built."""
    if rebuild and find_processes().count > 1:
        raise UserError("--rebuild", "does not work with several processes",
                        "move the finished artifact away instead")
    parents = _find_parents(stage, config, workdir)
    lineage = artifacts.make_lineage(
        **_deciding(stage, config, parents),
        code=artifacts.code_digest(inspect.getfile(stage.build)),
        mesh=config.mesh.to_dict() if stage.every_process and "mesh" in config else None)
    return {field: path for field, (path, _) in parents.items()}, lineage


def _deciding(stage: Stage, config: ConfigDict,
              parents: Mapping[str, tuple[Path, str]]) -> dict[str, Any]:
    """What decides the artifact: arguments of `artifacts.make_fingerprint`."""
    return dict(
        stage=stage.section,
        config={name: config[name].to_dict() for name in (stage.section, *stage.sections)},
        inputs={field: mark for field, (_, mark) in parents.items()}
        | dict(stage.inputs(config) if stage.inputs else {}))


def is_built(stage: Stage, config: ConfigDict, workdir: Path) -> bool:
    """Whether the artifact is finished, so that the stage would skip itself.

    Raises:
        UserError: as `find_parents`.
    """
    fingerprint = artifacts.make_fingerprint(
        **_deciding(stage, config, _find_parents(stage, config, workdir)))
    return artifacts.is_finished(workdir / config[stage.section].out, {"fingerprint": fingerprint})


def find_parents(stage: Stage, config: ConfigDict, workdir: Path) -> dict[str, Path]:
    """The folders of a stage's parents, by their fields; nothing is built.

    Raises:
        UserError: the config lacks a section, or a parent is missing or unfinished.
    """
    return {field: path for field, (path, _) in _find_parents(stage, config, workdir).items()}


def _find_parents(stage: Stage, config: ConfigDict,
                  workdir: Path) -> dict[str, tuple[Path, str]]:
    """Folder and fingerprint of each parent."""
    for name in (stage.section, *stage.sections):
        if name not in config:
            raise UserError(f"config.{name}", "this config has no such section",
                            "use a config that describes this stage")
    own = config[stage.section]
    parents = {field: artifacts.parent(workdir, f"{stage.section}.{field}", own[field],
                                       unfinished=field in stage.unfinished,
                                       foreign=stage.foreign.get(field))
               for field in stage.parents if own[field]}
    final = (workdir / own.out).resolve()
    for field, (folder, _) in parents.items():
        if folder.resolve() in (final, final.with_name(f"{final.name}.partial")):
            raise UserError(f"{stage.section}.{field}={own[field]!r}",
                            "is the very artifact that this command builds",
                            f"name the new one with --config.{stage.section}.out=NAME")
    return parents


def _follow(final: Path, unfinished: Path, lineage: Mapping[str, Any],
            build: Callable[[], Any] | None) -> None:
    """Runs a process other than the first: builds with it where it must, and waits for its end."""
    def is_finished() -> bool:
        return artifacts.is_finished(final, lineage)

    def has_opened() -> bool:
        return is_finished() or (artifacts.is_same_work(unfinished, lineage)
                                 and locks.is_locked(final))

    if build is not None:
        locks.follow(final, has_opened, start_secs=START_SECS)
        if not is_finished():
            build()
            locks.mark_done(unfinished, find_processes().index)
    locks.follow(final, is_finished, start_secs=START_SECS, has_begun=build is not None)


def _set_compile_cache() -> None:
    """Turns JAX's persistent compile cache on, in a folder of its own unless the user names one."""
    name = "JAX_COMPILATION_CACHE_DIR"
    if name not in os.environ:
        folder = find_cache("jax")
        if folder is None:
            log(f"programs are compiled anew in every process: none of "
                f"{[str(place) for place in cache_folders()]} can be written; {name} names another")
            return
        os.environ[name] = str(folder)
    if "jax" in sys.modules:    # imported already, by the stage, and past reading the variable
        sys.modules["jax"].config.update("jax_compilation_cache_dir", os.environ[name])


def describe_command(docstring: str, values: flags.FlagValues) -> str:
    """The text of `--help`: what the command does, and its flags with their defaults."""
    lines = [inspect.cleandoc(docstring), "", "Flags:"]
    own = [flag for module, defined in values.flags_by_module_dict().items() for flag in defined
           if module.partition(".")[0] not in LIBRARIES]
    for flag in sorted(own, key=lambda flag: flag.name):
        default = f" [{flag.default}]" if flag.default not in (None, False, "", []) else ""
        lines.append(f"  --{flag.name}: {' '.join(flag.help.split())}{default}")
    if "config" in values:
        lines += ["", "Fields of the config are flags too: --config.SECTION.FIELD=VALUE"]
    return "\n".join(lines)


def flag_fault(values: flags.FlagValues, argv: Sequence[str]) -> str:
    """Parses a command line into `values`; what is wrong with it in one line, or nothing."""
    try:
        rest = values(argv)[1:]
        if "config" in values and values.config is not None:
            check_numbers(values.config)    # raises where a config failed to load
    except UserError as error:      # from a flag's own parser
        return str(error)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        inner = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
        if isinstance(inner, KeyError):     # ml_collections adds "Did you mean ...?"
            return "--config: no such field: " + " ".join(str(inner.args[0]).split())
        # Of a ValueError in get_config the flag quotes the whole traceback; its last line is ours.
        line = " ".join(str(error).rpartition("\nValueError: ")[2].split())
        if dotted := re.search("does not accept dots in .* but the key (.*) contains one", line):
            line = f"--config: the key {dotted[1]!r}: holds a dot: write %2E instead of each"
        return line
    except OSError as error:
        return f"--config: {str(error).splitlines()[-1].strip()}: {_config_remedy(argv)}"
    if rest:
        return f"{rest[0]!r}: unexpected argument: flags look like --config.SECTION.FIELD=VALUE"
    return ""


def _config_remedy(argv: Sequence[str]) -> str:
    """What to do about a config file that cannot be opened, e.g. from another folder."""
    given = next((word.partition("=")[2] for word in argv if word.startswith("--config=")), "")
    path = Path(given.partition(":")[0])
    if path.suffix == ".py" and not path.is_absolute() and (artifacts.ROOT / path).exists():
        return f"from this folder it is --config={artifacts.ROOT / given}"
    return f"choose one of {artifacts.ROOT / 'configs'}/*.py"


def _fail(line: str, status: int = EXIT_USER_ERROR) -> None:
    with contextlib.suppress(UserError):    # of the very variables that tell the process
        if index := find_processes().index:
            line = f"{line} (process {index})"
    print(f"error: {line}", file=sys.stderr, flush=True)
    mark = os.environ.get("HEARTWOOD_REFUSED")
    if mark and status == EXIT_USER_ERROR:  # schedulers merge the statuses of many processes
        with contextlib.suppress(OSError):
            Path(mark).touch()
    sys.exit(status)


def _fail_os(error: OSError) -> None:
    remedies = {
        errno.ENOSPC: "free space or choose another --workdir; run again to go on",
        errno.EDQUOT: "free space or choose another --workdir; run again to go on",
        errno.EACCES: "choose a --workdir that you may write to",
        errno.EPERM: "choose a --workdir that you may write to",
        errno.EFBIG: "raise the limit on the size of files (ulimit -f); run again to go on",
        errno.EROFS: "choose a --workdir on a writable disk",
    }
    if not _lies_in_workdir(error.filename):    # another --workdir would not help
        remedies |= dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions") | {
            errno.EROFS: "mount its disk writable"}
    status = EXIT_USER_ERROR
    if error.errno == errno.EIO:
        remedy, status = "run again to go on; check the disk if it happens again", EXIT_IO_ERROR
    elif error.errno in remedies:
        remedy = remedies[error.errno]
    else:
        raise error
    _fail(f"{error.filename or 'disk'}: {error.strerror.lower()}: {remedy}", status)


def _lies_in_workdir(path: object) -> bool:
    """Whether a path lies in `--workdir`; also where the one or the other is unknown."""
    workdir = flags.FLAGS["workdir"].value if "workdir" in flags.FLAGS else None
    if not workdir or not isinstance(path, str):
        return True
    return Path(path).absolute().is_relative_to(Path(workdir).absolute())


def stage_secs() -> float:
    """Seconds since this process started, imports included, or since its latest `run_next`."""
    return _process_secs() - _BEGAN.get()


def _process_secs() -> float:
    """Seconds since this process started (Linux: field 22 of proc(5) stat)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _peak_memory_bytes() -> int:
    """Peak resident memory of this process or, if larger, of its largest child, in bytes."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(w).ru_maxrss for w in who) * 1024
