"""Artifacts: folders that name their parents, appear whole or not at all, and are built once.

A stage builds into ``<name>.partial`` and renames it to ``<name>`` when every byte is on disk.
Its fingerprint covers what decides the result: the stage's config without its subsections `run`,
and its inputs. How the result is computed and watched (`run`, `mesh`, the code's version) is
recorded with the step from which it held, and may change at any restart.

- ``<name>`` with the same fingerprint: the stage skips itself. When its code has changed since,
  one line says so; ``--rebuild`` builds it anew.
- ``<name>`` with another one: it is set aside as ``<name>.<fingerprint>`` and built anew.
- ``<name>.partial`` with the same fingerprint: the stage goes on in it.
- A folder written by an earlier layout of artifacts is refused.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from core.errors import UserError
from core.json_text import format_json, parse_json, read_lines
from core.processes import ProcessLost
from core.progress import log

ROOT = Path(__file__).resolve().parent.parent
OUR_PACKAGES = ("configs", "core", "data", "model", "eval", "train", "align", "serve", "scripts")
LAYOUT = 2              # of lineage.json and model.json; others are refused
LOCK_SECS = 1.0         # of trying to lock: `is_locked` holds the lock for an instant
FOLLOW_SECS = 0.25      # between two looks at a shared disk
RECORDED_VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "daft",
                     "pyarrow", "resiliparse", "tiktoken", "rustbpe")


def digest(value: Any) -> str:
    """16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON so that `path` holds either the old or the new text, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        file.write(format_json(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """Reads JSON; raises `UserError` when the file is missing or damaged."""
    try:
        return parse_json(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(str(path), "no such file",
                        "build the artifact that should hold it") from None
    except ValueError as error:
        raise UserError(str(path), f"is not valid JSON ({error})",
                        "build its artifact anew") from None


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines."""
    path.write_text("".join(format_json(row) + "\n" for row in rows), "utf-8")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines; see `core.json_text.read_lines` for what is skipped and refused."""
    return [row for _, row in read_lines(path)]


def code_digest(module_file: str | Path) -> str:
    """Digest of a stage's code: its module and every module of ours that it imports, transitively.

    Comments, docstrings and layout do not count, and neither does `core`, which does not decide
    what is in an artifact.
    """
    seen: dict[str, str] = {}
    todo = [Path(module_file).resolve()]
    while todo:
        path = todo.pop()
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
        if name in seen:
            continue
        tree = ast.parse(path.read_text())
        todo += _imported_files(tree)
        seen[name] = hashlib.sha256(ast.dump(_without_docstrings(tree)).encode()).hexdigest()
    return digest(seen)


def _imported_files(tree: ast.AST) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] in OUR_PACKAGES and name.split(".")[0] != "core":
                path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
                if path.exists():
                    yield path


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = node.body[0] if node.body else None
            if (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                    and isinstance(first.value.value, str)):
                node.body = node.body[1:]
    return tree


def read_lineage(folder: Path) -> dict[str, Any]:
    """The lineage of an artifact, finished or not.

    Raises:
        UserError: there is none, it is damaged, or of an earlier layout.
    """
    lineage = read_json(folder / "lineage.json")
    check_layout(folder, lineage)
    return lineage


def check_layout(folder: Path, described: Mapping[str, Any]) -> None:
    """Raises `UserError` when a description read from `folder` has another layout than ours."""
    if described.get("layout") != LAYOUT:
        raise UserError(str(folder), f"was written with layout {described.get('layout', 1)} of "
                        f"artifacts, and this version reads layout {LAYOUT}",
                        "move it away and build it anew, or use the commit that wrote it")


def parent(workdir: Path, field: str, name: str) -> tuple[Path, str]:
    """Finds the artifact that `field` names: a folder under `workdir`, or a path of its own.

    Returns:
        The folder, and the mark of its build for the fingerprints of what is made from it.
    """
    folder = Path(name) if os.sep in name else workdir / name
    if not (folder / "lineage.json").exists():
        raise UserError(f"{field}={name!r}", f"no finished artifact at {folder}",
                        f"run the stage that builds it, or set --config.{field} to its folder")
    return folder, read_lineage(folder)["build"]


def make_lineage(*, stage: str, config: Mapping[str, Any], inputs: Mapping[str, Any], code: str,
                 mesh: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Describes an artifact's origin.

    `fingerprint` covers config and inputs. `build` covers the code as well: the fingerprint of
    what is made from this artifact contains it, so that an artifact rebuilt with other code makes
    its children obsolete. `runs` lists the processes that computed it, see `hold_from`.

    Args:
        config: sections by name; their subsections `run` decide nothing and are only recorded.
        mesh: sizes of the mesh's axes, recorded likewise.
    """
    deciding = {name: {field: value for field, value in section.items() if field != "run"}
                for name, section in config.items()}
    run = {name: section["run"] for name, section in config.items() if "run" in section}
    try:
        config_digest = digest(json.loads(json.dumps(deciding, default=str)))
    except TypeError as error:
        raise UserError(f"config of {stage}", f"is not plain data ({error})", "use plain values") \
            from None
    fingerprint = digest([stage, config_digest, inputs])
    process = {"step": None, "run": run, "mesh": mesh, "code_digest": code,
               "command": " ".join(["python", *_as_module(sys.argv)]),
               "commit": _git("rev-parse", "HEAD"),
               "uncommitted_changes": bool(_git("status", "--porcelain")),
               "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    return {
        "layout": LAYOUT,
        "stage": stage,
        "fingerprint": fingerprint,
        "build": digest([fingerprint, code]),
        "config_digest": config_digest,
        "inputs": dict(inputs),
        "config": deciding,
        **{name: process[name] for name in ("code_digest", "command", "commit",
                                            "uncommitted_changes", "started")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": _versions(),
        "runs": [process],
    }


def hold_from(partial: Path, step: int) -> None:
    """Records that the settings of this process hold from the step after `step` on.

    Entries of `runs` that no longer hold for any step are removed: those of processes that began
    at this step or a later one, or that ended before they began. A folder that no stage opened,
    as in a notebook, has no such record.
    """
    if not (partial / "lineage.json").exists():
        return
    lineage = read_lineage(partial)
    *earlier, own = lineage["runs"]
    kept = [run for run in earlier if run["step"] is not None and run["step"] < step]
    write_json(partial / "lineage.json", lineage | {"runs": [*kept, own | {"step": step}]})


def _as_module(argv: list[str]) -> list[str]:
    path = Path(argv[0]).resolve()
    if path.suffix == ".py" and path.is_relative_to(ROOT):
        return ["-m", ".".join(path.relative_to(ROOT).with_suffix("").parts), *argv[1:]]
    return argv


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True,
                              timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {}
    for name in RECORDED_VERSIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@contextlib.contextmanager
def locked(final: Path) -> Iterator[None]:
    """Holds an artifact for this process; a second builder, of whatever config, is refused.

    The lock lies beside the artifact, so that it stays when a folder is set aside.

    Raises:
        UserError: another process holds the artifact, or its workdir cannot be written.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        file = open(_lock(final), "w")  # noqa: SIM115 -- closed below
    except OSError as error:
        raise UserError(f"--workdir={final.parent}",
                        f"cannot be written ({error.strerror.lower()})",
                        "choose one that you may write to") from None
    with file:
        deadline = time.monotonic() + LOCK_SECS
        while not _try_lock(file, fcntl.LOCK_EX, final):
            if time.monotonic() >= deadline:
                raise UserError(str(final), "another process is building this artifact",
                                "wait for it, or choose another --workdir")
            time.sleep(0.05)
        yield


def is_locked(final: Path) -> bool:
    """Whether a process, on whatever host that shares the disk, is building this artifact."""
    try:
        with open(_lock(final)) as file:
            return not _try_lock(file, fcntl.LOCK_SH, final)
    except FileNotFoundError:
        return False


def mark_done(partial: Path, index: int) -> None:
    """Marks that this process has done its part and reads nothing more."""
    (partial / f".done-{index}").touch()


def clear_marks(partial: Path, count: int) -> None:
    """Removes the marks of all processes but the first."""
    for index in range(1, count):
        (partial / f".done-{index}").unlink(missing_ok=True)


def await_marks(partial: Path, count: int, wait_secs: float) -> None:
    """Waits, as the first process, until the others have done their parts.

    Raises:
        ProcessLost: they did not within `wait_secs`.
    """
    deadline = time.monotonic() + wait_secs
    while late := [i for i in range(1, count) if not (partial / f".done-{i}").exists()]:
        if time.monotonic() > deadline:
            raise ProcessLost(f"{partial}: process {late[0]} did not end within {wait_secs:g} s of "
                              "process 0: see its log; run the same command again to go on")
        time.sleep(FOLLOW_SECS / 10)


def _lock(final: Path) -> Path:
    return final.with_name(f".{final.name}.lock")


def _try_lock(file: IO[str], kind: int, final: Path) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(f"--workdir={final.parent}",
                        f"is on a disk that cannot lock files ({error.strerror.lower()})",
                        "choose one on another disk, or mount this one with flock") from None
    return True


def follow(final: Path, until: Callable[[], bool], *, start_secs: float,
           has_begun: bool = False) -> None:
    """Waits for a condition on what the first process builds, as long as that process runs.

    Args:
        until: looks at the shared disk.
        start_secs: how long the first process may take to begin.
        has_begun: whether it was seen at work already.

    Raises:
        ProcessLost: it did not begin, or it let go of the artifact before.
    """
    began = time.monotonic()
    while not until():
        held = is_locked(final)
        if not held and until():    # it may have ended between the two looks
            return
        if has_begun and not held:
            raise ProcessLost(f"{final}: process 0 stopped before it was finished: see its log; "
                              "run the same command again to go on")
        has_begun |= held
        if not has_begun and time.monotonic() - began > start_secs:
            raise ProcessLost(f"{final}: process 0 did not begin within {start_secs:g} s: see its "
                              "log, and whether all processes share --workdir")
        time.sleep(FOLLOW_SECS)


def is_finished(final: Path, lineage: Mapping[str, Any]) -> bool:
    """Whether `final` holds the artifact of this fingerprint."""
    return ((final / "lineage.json").exists()
            and read_lineage(final)["fingerprint"] == lineage["fingerprint"])


def find_finished(final: Path, lineage: Mapping[str, Any], *, rebuild: bool = False) -> bool:
    """Whether `final` holds the artifact of this fingerprint; any other is set aside.

    Args:
        rebuild: sets it aside in any case.
    """
    if not final.exists():
        return False
    if not (final / "lineage.json").exists():
        raise UserError(str(final), "exists and is not an artifact",
                        "move it away or choose another --workdir")
    old = read_lineage(final)
    changes = _changes(old, lineage)
    if not changes and not rebuild:
        if old["code_digest"] != lineage["code_digest"]:
            log(f"{final.name}: its code has changed since it was built, and it is kept: "
                "--rebuild builds it anew")
        return True
    reason = f"{changes} changed since it was built" if changes else "--rebuild"
    log(f"{final.name}: {reason}; the old one is kept as {_set_aside(final, old)}")
    return False


def is_same_work(partial: Path, lineage: Mapping[str, Any]) -> bool:
    """Whether `partial` was opened for the artifact of this fingerprint."""
    return is_finished(partial, lineage)


def open_partial(partial: Path, lineage: Mapping[str, Any]) -> None:
    """Makes `partial` ready to build in: new, or as an interrupted run of the same work left it."""
    earlier: Sequence[Mapping[str, Any]] = ()
    if (partial / "lineage.json").exists():
        old = read_lineage(partial)
        if old["fingerprint"] == lineage["fingerprint"]:
            changed = "" if old["code_digest"] == lineage["code_digest"] else \
                ", although the code has changed since it began"
            log(f"{partial.name}: going on where an earlier run stopped{changed}")
            earlier = old["runs"]
        elif {path.name for path in partial.iterdir()} - {"lineage.json", ".lock"}:
            log(f"{partial.name}: {_changes(old, lineage)} changed; the unfinished one is kept as "
                f"{_set_aside(partial, old)}")
    partial.mkdir(exist_ok=True)
    write_json(partial / "lineage.json", {**lineage, "runs": [*earlier, *lineage["runs"]]})


def finish(partial: Path, final: Path, metrics: Mapping[str, Any]) -> None:
    """Completes `partial` with its metrics, flushes it and renames it to `final`."""
    write_json(partial / "metrics.json", metrics)
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    os.rename(partial, final)


def free_name(path: Path) -> Path:
    """`path`, or the first of ``path.1``, ``path.2``, ... that does not exist."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(name for name in itertools.chain([path], numbered) if not name.exists())


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The parts of a fingerprint that differ, as the subject of a sentence; empty if none does."""
    parts = {"config_digest": "its config", "inputs": "its inputs"}
    changed = [text for part, text in parts.items() if old[part] != new[part]]
    if not changed and old["fingerprint"] != new["fingerprint"]:
        changed = ["its stage"]
    return " and ".join(changed)


def _set_aside(folder: Path, lineage: Mapping[str, Any]) -> str:
    target = free_name(folder.with_name(f"{folder.name}.{lineage['fingerprint'][:8]}"))
    os.rename(folder, target)
    return target.name
