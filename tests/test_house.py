"""The house: who may import whom, what is nowhere used, and that every entry point opens."""

import ast
import fnmatch
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.artifacts import ROOT

MAY_IMPORT = {
    "configs": {"configs.common"},
    "core": set(),
    "data": {"core"},
    "model": {"core", "data.tokenizers"},
    "eval": {"core", "data", "model"},
    "train": {"core", "data", "model", "eval"},
    "align": {"core", "data", "model", "eval", "train"},
    "serve": {"core", "data", "model", "eval"},
    "scripts": {"core", "data", "model", "eval", "train", "align", "serve"},
}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imports(path: Path):
    """(statement, dotted name) of every import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno}: relative import"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def _is_allowed(package: str, imported: str) -> bool:
    own = set() if package == "configs" else {package}  # one experiment knows no other
    return any(f"{imported}.".startswith(f"{name}.") for name in MAY_IMPORT[package] | own)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_point_down(path):
    package = path.relative_to(ROOT).parts[0]
    for node, imported in _imports(path):
        where = f"{_name(path)}:{node.lineno}"
        top = imported.split(".")[0]
        if top in MAY_IMPORT:
            assert _is_allowed(package, imported), f"{where}: {package} may not import {imported}"
            assert isinstance(node, ast.ImportFrom), f"{where}: write `from {top} import x`"
        assert not (package in ("configs", "core") and top == "jax"), f"{where}: no jax here"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_nothing_is_pickled(path):
    tree = ast.parse(path.read_text())
    for node, imported in _imports(path):
        assert imported.split(".")[0] not in (
            "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"), \
            f"{_name(path)}:{node.lineno}: imports {imported}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "torch.save"), f"{_name(path)}:{node.lineno}"
            for keyword in node.keywords:
                assert keyword.arg != "allow_pickle" or ast.unparse(keyword.value) == "False", \
                    f"{_name(path)}:{node.lineno}: allow_pickle"


def test_every_package_lies_under_the_root():
    for package in MAY_IMPORT:
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), f"{_name(folder)} has no __init__.py"
        file = importlib.import_module(package).__file__
        assert file and Path(file).is_relative_to(ROOT), f"{package} is shadowed by {file}"


def test_the_installed_packages_are_those_of_the_table():
    setup = ast.parse((ROOT / "setup.py").read_text())
    listed = next(ast.literal_eval(node.value) for node in setup.body
                  if isinstance(node, ast.Assign) and node.targets[0].id == "PACKAGES")
    assert set(listed) == set(MAY_IMPORT)
    found = {module.name for module in pkgutil.iter_modules([str(ROOT)]) if module.ispkg}
    assert found - {"tests"} == set(MAY_IMPORT), "a package stands beside the table"


def test_an_installation_has_the_files_that_modules_read_from_their_folder():
    patterns = next(ast.literal_eval(node.value)[""] for node in
                    ast.walk(ast.parse((ROOT / "setup.py").read_text()))
                    if isinstance(node, ast.keyword) and node.arg == "package_data")
    for path in FILES:
        for name in re.findall(r'__file__\)\.with_name\("(.+?)"\)', path.read_text()):
            assert path.with_name(name).exists()
            assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), _name(path)


def test_every_entry_point_can_be_imported():
    entry_points = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES
                    if '__name__ == "__main__"' in path.read_text()]
    assert {"data.curate", "train.pretrain", "serve.chat"} <= set(entry_points)
    code = (f"import importlib, sys\nfor name in {entry_points}: importlib.import_module(name)\n"
            "from absl import flags\n"
            "ours = [f for f in flags.FLAGS\n"
            "        if f in ('config', 'workdir', 'model', 'seed', 'profile')]\n"
            "assert not ours, f'importing defines the flags {ours}'\n"
            "optional = {'matplotlib', 'torch', 'transformers', 'pytest', 'starlette', 'uvicorn',\n"
            "            'llguidance', 'openai', 'tensorboardX', 'wandb', 'tokenizers', 'jinja2',\n"
            "            'gguf', 'safetensors'}\n"
            "assert not optional & set(sys.modules), optional & set(sys.modules)\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


MAX_FUNCTION_LINES, MAX_FILE_LINES, MAX_PARAMETERS = 80, 500, 8
SIZED = [*FILES, *sorted((ROOT / "tests").glob("*.py")), ROOT / "setup.py"]


@pytest.mark.parametrize("path", SIZED, ids=_name)
def test_functions_and_files_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES, f"{_name(path)} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = f"{_name(path)}:{node.lineno} {node.name}"
            num_lines = node.end_lineno - node.lineno + 1
            assert num_lines <= MAX_FUNCTION_LINES, f"{where} has {num_lines} lines"
            given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            names = [argument.arg for argument in given if argument.arg not in ("self", "cls")]
            assert len(names) <= MAX_PARAMETERS, f"{where} has {len(names)} parameters"


def test_the_limits_of_size_can_be_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for name, text in {"long": "x = 1\n" * 501, "wide": "def f(a, b, c, d, e, f, g, h, i): ...\n",
                       "deep": "def f():\n" + "    x = 1\n" * 80}.items():
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        with pytest.raises(AssertionError, match=f"{name}.py"):
            test_functions_and_files_stay_small(path)
