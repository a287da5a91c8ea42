"""Artifacts: what counts as the same code, and files that are whole or not there."""

import json

import pytest

from core import artifacts
from core.artifacts import code_digest, digest, read_json, write_json
from core.errors import UserError

STAGE = '''"""A stage."""
from model import layer
from core import progress

def build(x):
    """Builds."""
    return layer.scale(x) + 1  # one more
'''
LAYER = '''def scale(x):
    return 2 * x
'''


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A house of three rooms: a stage, what it imports, and the ground floor."""
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    for name, text in (("train/stage", STAGE), ("model/layer", LAYER), ("core/progress", "A = 1\n"),
                       ("model/other", "B = 1\n")):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize("file, old, new", [
    ("train/stage", "# one more", "# another remark"), ("train/stage", "A stage.", "The stage."),
    ("train/stage", '    """Builds."""\n', ""), ("train/stage", "return layer", "return  layer"),
    ("core/progress", "A = 1", "A = 2"), ("model/other", "B = 1", "B = 2")], ids=str)
def test_remarks_layout_and_other_modules_are_not_the_stages_code(house, file, old, new):
    before, after = _digests(house, file, old, new)
    assert before == after


def _digests(house, file, old, new):
    """The stage's digest before and after `old` becomes `new` in a file."""
    path = house / f"{file}.py"
    text = path.read_text()
    assert old in text
    before = code_digest(house / "train/stage.py")
    path.write_text(text.replace(old, new))
    return before, code_digest(house / "train/stage.py")


@pytest.mark.parametrize("file, old, new", [
    ("train/stage", "+ 1", "+ 2"), ("model/layer", "2 * x", "3 * x"),
    ("train/stage", "import layer", "import other as layer")], ids=str)
def test_code_here_and_in_what_is_imported_counts(house, file, old, new):
    before, after = _digests(house, file, old, new)
    assert before != after


def test_digests_do_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2}) != digest({"a": "2"})


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1})
    with pytest.raises(TypeError):
        write_json(path, {("no", "key"): 1})  # fails half-way
    assert read_json(path) == {"loss": 1}


def test_damaged_and_missing_json_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"loss": ')
    with pytest.raises(UserError, match="is not valid JSON"):
        read_json(tmp_path / "torn.json")


def test_lineage_tells_where_an_artifact_is_from(tmp_path):
    lineage = artifacts.make_lineage(stage="count", config={"upto": 3}, inputs={"tokens": "abc"},
                                     code="123")
    other = artifacts.make_lineage(stage="count", config={"upto": 3}, inputs={"tokens": "abd"},
                                   code="123")
    assert lineage["fingerprint"] != other["fingerprint"]
    assert {"command", "commit", "versions", "config", "inputs"} <= set(lineage)
    assert lineage["versions"]["jax"]
    json.dumps(lineage)
