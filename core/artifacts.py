"""Artifacts: folders that name their parents, appear whole or not at all, and are built once.

A stage builds into ``<name>.partial`` and renames it to ``<name>`` when every byte is on disk.
Its fingerprint covers what decides the result: the stage's config without its subsections `run`,
and its inputs. How the result is computed and watched (`run`, `mesh`, the code's version) is
recorded with the step from which it held, and may change at any restart.

- ``<name>`` with the same fingerprint: the stage skips itself. When its code has changed since,
  one line says so; ``--rebuild`` builds it anew.
- ``<name>`` with another one: it stays until the new one is finished, and is then set aside as
  ``<name>.<fingerprint>``. A command that fails moves nothing.
- ``<name>.<fingerprint>`` with the same one: it becomes ``<name>`` again, and nothing is built.
- ``<name>.partial`` with the same fingerprint: the stage goes on in it. One of another is set aside
  likewise, and found again.
- A folder written by an earlier layout of artifacts is refused.
"""

from __future__ import annotations

import ast
import contextlib
import glob
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core import file_sums
from core.errors import UserError
from core.json_text import format_json, parse_json, read_lines
from core.progress import log

ROOT = Path(__file__).resolve().parent.parent
OUR_PACKAGES = ("configs", "core", "data", "model", "eval", "train", "align", "serve", "scripts")
LAYOUT = 2              # of lineage.json; others are refused
RECORDED_VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "daft",
                     "pyarrow", "resiliparse", "tiktoken", "rustbpe", "tokenizers")


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
    """Digest of a stage's code: its module and all project modules that it imports, transitively.

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


def check_layout(folder: Path, described: Mapping[str, Any], *, layout: int = LAYOUT,
                 of: str = "artifacts") -> None:
    """Raises `UserError` when a description read from `folder` has another layout than ours."""
    if described.get("layout") != layout:
        raise UserError(str(folder), f"was written with layout {described.get('layout', 1)} of "
                        f"{of}, and this version reads layout {layout}",
                        "move it away and build it anew, or use the commit that wrote it")


def parent(workdir: Path, field: str, name: str, *, unfinished: bool = False,
           foreign: Callable[[Path], str | None] | None = None) -> tuple[Path, str]:
    """Finds the artifact that `field` names: a folder under `workdir`, or a path of its own.

    Args:
        unfinished: whether one that is still being built will do, where no finished one is there.
        foreign: the mark of what is no artifact, e.g. files of another program; None where it will
            not do.

    Returns:
        The folder, and the mark of its build for the fingerprints of what is made from it. With
        `unfinished` the mark is its fingerprint, which is the same before and after.
    """
    folder = Path(name) if os.sep in name else workdir / name
    if unfinished and not folder.exists():
        folder = folder.with_name(f"{folder.name}.partial")
    if not (folder / "lineage.json").exists():
        if foreign is not None and (mark := foreign(folder)) is not None:
            return folder, mark
        kind = "artifact" if unfinished else "finished artifact"
        raise UserError(f"{field}={name!r}", f"no {kind} at {folder}",
                        f"run the stage that builds it, or set --config.{field} to its folder")
    return folder, read_lineage(folder)["fingerprint" if unfinished else "build"]


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
    deciding = _deciding(config)
    run = {name: section["run"] for name, section in config.items() if "run" in section}
    fingerprint = make_fingerprint(stage=stage, config=config, inputs=inputs)
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
        "config_digest": _config_digest(stage, config),
        "inputs": dict(inputs),
        "config": deciding,
        **{name: process[name] for name in ("code_digest", "command", "commit",
                                            "uncommitted_changes", "started")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": _versions(),
        "runs": [process],
    }


def make_fingerprint(*, stage: str, config: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """The mark of what decides an artifact; arguments as of `make_lineage`."""
    return digest([stage, _config_digest(stage, config), inputs])


def _config_digest(stage: str, config: Mapping[str, Any]) -> str:
    try:
        return digest(json.loads(json.dumps(_deciding(config), default=str)))
    except TypeError as error:
        raise UserError(f"config of {stage}", f"is not plain data ({error})", "use plain values") \
            from None


def _deciding(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections without what decides nothing."""
    return {name: {field: value for field, value in section.items() if field != "run"}
            for name, section in config.items()}


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
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        return ["-m", module.removesuffix(".__main__"), *argv[1:]]
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


def is_finished(final: Path, lineage: Mapping[str, Any]) -> bool:
    """Whether `final` holds the artifact of this fingerprint."""
    return ((final / "lineage.json").exists()
            and read_lineage(final)["fingerprint"] == lineage["fingerprint"])


def find_finished(final: Path, lineage: Mapping[str, Any], *, rebuild: bool = False) -> bool:
    """Whether `final` holds the artifact of this fingerprint; one that was set aside is put back.

    An artifact of another fingerprint stays where it is, until `finish` replaces it.

    Args:
        rebuild: whether to build it anew in any case.

    Raises:
        UserError: `final` is no artifact, or is of an earlier layout.
    """
    if final.exists() and not (final / "lineage.json").exists():
        raise UserError(str(final), "exists and is not an artifact",
                        "move it away or choose another --workdir")
    old = read_lineage(final) if final.exists() else None
    changes = "" if old is None else _changes(old, lineage)
    reason = "--rebuild" if rebuild else changes and f"{changes} changed since it was built"
    aside = _find_aside(final, lineage) if not rebuild and (old is None or changes) else None
    if aside is not None:
        kept = f"; the other is kept as {_set_aside(final, old).name}" if old else ""
        os.rename(aside, final)
        log(f"{final.name}: {aside.name} was built for this before and takes its place{kept}")
        old, reason = read_lineage(final), ""
    if old is None or reason:
        if old is not None:
            log(f"{final.name}: {reason}; it stays until the new one is finished")
        return False
    if old["code_digest"] != lineage["code_digest"]:
        log(f"{final.name}: its code has changed since it was built, and it is kept: "
            "--rebuild builds it anew")
    return True


def is_same_work(partial: Path, lineage: Mapping[str, Any]) -> bool:
    """Whether `partial` was opened for the artifact of this fingerprint."""
    return is_finished(partial, lineage)


@contextlib.contextmanager
def opened(partial: Path, lineage: Mapping[str, Any]) -> Iterator[None]:
    """Holds `partial` open to build in. Work that is refused before it wrote leaves no trace."""
    moved = open_partial(partial, lineage)
    try:
        yield
    except UserError:
        if not _has_work(partial):
            shutil.rmtree(partial)
            if moved is not None:
                os.rename(moved, partial)
                log(f"{partial.name}: the unfinished one is back in its place")
        raise


def open_partial(partial: Path, lineage: Mapping[str, Any]) -> Path | None:
    """Makes `partial` ready to build in: new, or as an interrupted run of the same work left it.

    Returns:
        The new name of unfinished work of another fingerprint, if there was any.
    """
    earlier: Sequence[Mapping[str, Any]] = ()
    old = read_lineage(partial) if (partial / "lineage.json").exists() else None
    moved = None
    if old is None or old["fingerprint"] != lineage["fingerprint"]:
        aside = _find_aside(partial, lineage)
        if old is not None and _has_work(partial):
            moved = _set_aside(partial, old)
            log(f"{partial.name}: {_changes(old, lineage)} changed; the unfinished one is kept as "
                f"{moved.name}")
        elif aside is not None and partial.exists():
            shutil.rmtree(partial)
        if aside is not None:
            os.rename(aside, partial)
            log(f"{partial.name}: {aside.name} was begun for this before and takes its place")
        old = read_lineage(partial) if aside is not None else None
    if old is not None:
        changed = "" if old["code_digest"] == lineage["code_digest"] else \
            ", although the code has changed since it began"
        log(f"{partial.name}: going on where an earlier run stopped{changed}")
        earlier = old["runs"]
    partial.mkdir(exist_ok=True)
    write_json(partial / "lineage.json", {**lineage, "runs": [*earlier, *lineage["runs"]]})
    return moved


def finish(partial: Path, final: Path, metrics: Mapping[str, Any]) -> None:
    """Completes `partial` with its metrics, flushes it and renames it to `final`.

    An artifact that stands there is set aside.
    """
    write_json(partial / "metrics.json", metrics)
    if (partial / file_sums.NAME).exists():     # of a model directory, by `model.directory`
        file_sums.write_sums(partial, partial.iterdir(), keep=True)
    for path in sorted(partial.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    if final.exists():
        log(f"{final.name}: the old one is kept as {_set_aside(final, read_lineage(final)).name}")
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


def _set_aside(folder: Path, lineage: Mapping[str, Any]) -> Path:
    target = free_name(folder.with_name(f"{folder.name}.{lineage['fingerprint'][:8]}"))
    os.rename(folder, target)
    return target


def is_set_aside(folder: Path, lineage: Mapping[str, Any]) -> bool:
    """Whether an artifact, with its lineage, has made room for another one of its name."""
    return f".{lineage['fingerprint'][:8]}" in folder.name


def _find_aside(folder: Path, lineage: Mapping[str, Any]) -> Path | None:
    """What was set aside with this fingerprint: of several the one of this code, or the latest."""
    found = {}
    for path in folder.parent.glob(f"{glob.escape(folder.name)}.{lineage['fingerprint'][:8]}*"):
        with contextlib.suppress(UserError):    # of an earlier layout, or damaged
            old = read_lineage(path)
            if old["fingerprint"] == lineage["fingerprint"]:
                found[path] = (old["code_digest"] == lineage["code_digest"], old["started"])
    return max(found, key=found.get, default=None)


def _has_work(partial: Path) -> bool:
    return bool({path.name for path in partial.iterdir()} - {"lineage.json", ".lock"})
