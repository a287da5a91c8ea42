"""Messages and docstrings: the commands, fields, flags and files that they name exist."""

import ast
import dataclasses
import importlib
import re
from functools import cache
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh

from core.artifacts import OUR_PACKAGES, ROOT
from core.bounds import find_bounds
from core.errors import UserError
from model.parallel.sharding import MESH_AXES, check_mesh

FILES = [path for package in OUR_PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
PRINTERS = {"UserError", "ProcessLost", "log", "_fail"}     # calls whose arguments a user sees
HOLE = "\0"     # of a text that is put together when it is printed
WORD = f"[\\w{HOLE}]+"
VARIANTS = {"quickstart": ("cpu", "accelerator", "portable", "smoke"), "curate": ("local", "warc"),
            "constitution": ("rule", "endpoint", "self"),
            "rounds": ("task", "reward", "judge", "rule", "votes", "ppo", "rl"),
            "classifier": ("reference", "scores", "labels", "toxicity"), "pretrain": ("4", "4,cpu")}
# Flags of other programs, and names of results, rules and optimizers.
FOREIGN_FLAGS = {"--partition", "--array", "--output"}
FOREIGN_NAMES = {"schedule_free", "near_duplicate", "heldout_bpb", "tie_word_embeddings"}


def _text(node: ast.expr) -> str:
    """A literal's text; `HOLE` stands for what is not literal."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else HOLE
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return HOLE


def _texts(path: Path, printed_only: bool) -> list[tuple[int, str]]:
    """(line, text) of every literal of a file, or of those in what is printed."""
    found = []

    def visit(node, is_printed):
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) and is_printed:
            found.append((node.lineno, _text(node)))
        elif isinstance(node, ast.Subscript):   # a key is no text
            visit(node.value, is_printed)
        else:
            is_printed |= (isinstance(node, ast.Call)
                           and ast.unparse(node.func).rpartition(".")[2] in PRINTERS)
            for child in ast.iter_child_nodes(node):
                visit(child, is_printed)

    visit(ast.parse(path.read_text()), not printed_only)
    return found


@cache
def _fields() -> dict[str, list[dict]]:
    """Of each section of each config, its fields as plain dictionaries."""
    fields = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem in ("__init__", "common"):
            continue
        make = importlib.import_module(f"configs.{path.stem}").get_config
        for variant in VARIANTS.get(path.stem, (None,)):
            for name, section in make(variant).items():
                fields.setdefault(name, []).append(section.to_dict())
    return fields


def _is_field(dotted: str) -> bool:
    """Whether some config has a field, or takes it as a name of the user's own (`core.overrides`);
    a `HOLE` and words in capitals stand for any name."""
    def holds(value, names) -> bool:
        if not names:
            return True
        if not isinstance(value, dict):
            return False
        if not _is_placeholder(names[0]):
            return names[0] in value and holds(value[names[0]], names[1:])
        return len(names) == 1 or any(holds(part, names[1:]) for part in value.values())

    section, *names = dotted.split(".")
    key, _ = find_bounds((section, *names)) or ("", None)
    if names and (num_own := key.count("*")):
        names = names[:-num_own]
    sections = _fields()
    chosen = sections if _is_placeholder(section) else [section]
    return any(holds(value, names) for name in chosen for value in sections.get(name, ()))


def _is_placeholder(name: str) -> bool:
    return HOLE in name or (name.isupper() and len(name) > 1)   # a letter is a size of the model


@cache
def _names() -> dict[str, bool]:
    """Names of all fields within sections, and whether each is a subsection: `run`, `guard`."""
    names = {}

    def visit(fields):
        for name, value in fields.items():
            names[name] = names.get(name, False) or isinstance(value, dict)
            if isinstance(value, dict):
                visit(value)

    for section in _fields().values():
        for fields in section:
            visit(fields)
    return names


@cache
def _functions() -> set[str]:
    return {node.name for path in FILES for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef)}


@cache
def _flags() -> set[str]:
    """All flags that our commands define."""
    defined = {"--help", "--config"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("flags.DEFINE"):
                defined.add(f"--{_text(node.args[0])}")
    return defined


def _faults(text: str) -> list[str]:
    """Names in a text that do not exist."""
    faults = []
    for module in re.findall(rf"python -m ({WORD}(?:\.{WORD})+)", text):
        place = ROOT.joinpath(*module.rstrip(".").split("."))
        files = [place.with_suffix(".py"), place / "__main__.py"]
        runs = any(file.exists() and "__main__" in file.read_text() for file in files)
        if not (_is_placeholder(module) or runs):
            faults.append(f"python -m {module}")
    paths = re.findall(r"\b((?:configs|scripts|docs|notebooks)/[\w./]+\.\w+)", text)
    faults += [path for path in paths if not (ROOT / path).exists() and "NAME" not in path]
    fields = re.findall(rf"--config\.({WORD}(?:\.{WORD})*)", text)
    fields += re.findall(rf"(?<![\w-])config\.({WORD}(?:\.{WORD})+)", text)
    fields = [f for f in fields if f.split(".")[0] in _fields() or f"--config.{f}" in text]
    return faults + [f"field {field}" for field in fields if not _is_field(field)]


def _message_faults(text: str) -> list[str]:
    """As `_faults`, and flags and shortened fields as well, which prose may name otherwise."""
    faults = _faults(text)
    flags = {"--" + name for name in re.findall(r"(?<![\w-])--([a-z]\w*)\b", text)}
    faults += sorted(flags - _flags() - FOREIGN_FLAGS - {f for f in flags if f.startswith("--xla")})
    for section, field in re.findall(rf"(?<![\w.])(\w+)\.({WORD})\b", text):
        if _names().get(section) and not any(
                _is_field(f"{outer}{section}.{field}") for outer in
                ("", *(f"{name}." for name in _fields()))):
            faults.append(f"field {section}.{field}")
    # Words with an underscore that stand alone are names of fields, flags or functions.
    alone = set(re.findall(r"(?<![\w./%=-])[a-z]+(?:_[a-z0-9]+)+\b(?![\w./=-])", text))
    flags = {flag.removeprefix("--") for flag in _flags()}
    return faults + sorted(alone - _names().keys() - flags - _functions() - FOREIGN_NAMES)


def _check(path: Path, find_faults, printed_only: bool) -> None:
    faults = [f"{path.relative_to(ROOT)}:{line}: {fault}"
              for line, text in _texts(path, printed_only) for fault in find_faults(text)]
    assert not faults, "named, and does not exist: " + "; ".join(faults)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_fields_and_files_in_texts_exist(path):
    _check(path, _faults, printed_only=False)
    _check(path, _message_faults, printed_only=True)


@pytest.mark.parametrize("path", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"],
                         ids=lambda path: path.name)
def test_commands_fields_and_files_in_the_guides_exist(path):
    faults = _faults(path.read_text())
    assert not faults, f"{path.name} names what does not exist: {faults}"


@pytest.mark.parametrize("text, fault", [
    ("run `python -m data.pak` again", "python -m data.pak"),
    ("see `python -m core.errors`", "python -m core.errors"),
    ("set --config.pretrain.batchsize=8", "field pretrain.batchsize"),
    ("change --config.model.V", "field model.V"),
    ("loosen config.curate.ruless", "field curate.ruless"),
    ("try --config=configs/quick.py", "configs/quick.py"),
    ("run bash scripts/quick.sh", "scripts/quick.sh"),
    ("lower --max_tokens", "--max_tokens"),
    ("set run.rematt", "field run.rematt"), ("raise max_epoch", "max_epoch")])
def test_a_name_that_does_not_exist_is_a_fault(text, fault):
    assert _message_faults(text) == [fault]


@pytest.mark.parametrize("text", [
    "run `python -m data.pack`", "set --config.pretrain.run.remat=full", "set run.remat",
    "change --config.mesh.\0", "set --config.\0", "write --config.SECTION.FIELD=VALUE",
    "python -m \0", "lower --max_new_tokens or --workdir", "see docs/training.md"])
def test_names_that_exist_are_none(text):
    assert _message_faults(text) == []


@pytest.mark.parametrize("letter", "VDNHGKF")
def test_the_remedy_of_an_impossible_size_is_a_field(letter, config):
    with pytest.raises(UserError, match="at least 1") as error:
        dataclasses.replace(config, **{letter: 0})
    assert _message_faults(str(error.value)) == []


@pytest.mark.parametrize("axis", MESH_AXES)
def test_the_remedy_of_an_impossible_mesh_is_a_field(axis, config, execution):
    """Five devices along any axis divide nothing of the tiny model."""
    mesh = AbstractMesh(tuple(5 if name == axis else 1 for name in MESH_AXES), MESH_AXES)
    with pytest.raises(UserError) as error:
        check_mesh(config, execution, mesh, batch_size=8, row_length=24)
    assert _message_faults(str(error.value)) == []
