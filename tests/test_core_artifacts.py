"""Artifacts: code digests, fingerprints, and atomic writes."""

import json
import math

import numpy as np
import pytest

from core import artifacts
from core.artifacts import code_digest, digest, read_json, read_jsonl, write_json, write_jsonl
from core.errors import UserError
from core.json_text import read_lines

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
def package(tmp_path, monkeypatch):
    """A package of a stage, a module that it imports, one of core, and another."""
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    for name, text in (("train/stage", STAGE), ("model/layer", LAYER), ("core/progress", "A = 1\n"),
                       ("model/other", "B = 1\n")):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize("file, old, new", [
    ("train/stage", "# one more", "# another comment"), ("train/stage", "A stage.", "The stage."),
    ("train/stage", '    """Builds."""\n', ""), ("train/stage", "return layer", "return  layer"),
    ("core/progress", "A = 1", "A = 2"), ("model/other", "B = 1", "B = 2")], ids=str)
def test_comments_layout_and_other_modules_do_not_change_a_stages_digest(package, file, old, new):
    before, after = _digests(package, file, old, new)
    assert before == after


def _digests(package, file, old, new):
    """The stage's digest before and after `old` becomes `new` in a file."""
    path = package / f"{file}.py"
    text = path.read_text()
    assert old in text
    before = code_digest(package / "train/stage.py")
    path.write_text(text.replace(old, new))
    return before, code_digest(package / "train/stage.py")


@pytest.mark.parametrize("file, old, new", [
    ("train/stage", "+ 1", "+ 2"), ("model/layer", "2 * x", "3 * x"),
    ("train/stage", "import layer", "import other as layer")], ids=str)
def test_code_of_the_stage_and_its_imports_changes_its_digest(package, file, old, new):
    before, after = _digests(package, file, old, new)
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


def test_numbers_that_are_not_finite_are_null(tmp_path):
    value = {"loss": math.nan, "gap": [math.inf, -np.inf], "row": np.float32("nan"),
             "n": np.int64(3), "array": np.array([[1.5, np.nan]]), "path": tmp_path,
             "pair": (1, None), "on": np.True_}
    expected = {"loss": None, "gap": [None, None], "row": None, "n": 3, "array": [[1.5, None]],
                "path": str(tmp_path), "pair": [1, None], "on": True}
    write_json(tmp_path / "metrics.json", value)
    write_jsonl(tmp_path / "rows.jsonl", [value, {}])
    assert "NaN" not in (tmp_path / "metrics.json").read_text()
    assert read_json(tmp_path / "metrics.json") == expected
    assert read_jsonl(tmp_path / "rows.jsonl") == [expected, {}]
    (tmp_path / "theirs.json").write_text('{"a": NaN, "b": -Infinity, "c": [Infinity, "NaN"]}')
    assert read_json(tmp_path / "theirs.json") == {"a": None, "b": None, "c": [None, "NaN"]}


def test_lines_end_at_a_newline_alone(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "ä\n"}, {"text": "a\u2028b\u0085c\x0bd\x1ce"}, {"text": ""}]
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    for text in ("\n".join(texts), "\n".join(texts) + "\n", "\ufeff" + "\r\n".join(texts) + "\r\n"):
        path.write_bytes(text.encode())
        assert list(read_lines(path)) == [
            (f"{path}, line {number}", row) for number, row in enumerate(rows, start=1)]
    assert not capsys.readouterr().err
    path.write_text("\n" + texts[0] + "\n \t\n\n" + texts[2] + "\n\n")
    assert [place.rpartition(" ")[2] for place, _ in read_lines(path)] == ["2", "5"]
    assert capsys.readouterr().err == f"{path}, line 1: skipped as blank, and so are 3 more\n"


def test_damaged_lines_are_named(tmp_path):
    path = tmp_path / "torn.jsonl"
    for text, line in ((b'{"a": 1}\n{"a": ', "line 2: is not valid JSON"),
                       (b'{"a": 1}\n\n{"a": 1} x\n', "line 3: is not valid JSON"),
                       (b'{"a": 1}\n{"a": "\xe4"}', "line 2: is not UTF-8 text"),
                       (b"\xff\xfe{\x00}\x00", "line 1: is not UTF-8 text"),
                       (b"{}\n" + b"[" * 100_000, "line 2: is not valid JSON")):
        path.write_bytes(text)
        with pytest.raises(UserError, match=line) as error:
            read_jsonl(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        read_jsonl(tmp_path / "none.jsonl")


def _lineage(**changes):
    given = {"stage": "count", "config": {"count": {"upto": 3, "run": {"pace": 1}}},
             "inputs": {"tokens": "abc"}, "code": "123"}
    return artifacts.make_lineage(**given | changes)


def test_a_fingerprint_depends_on_config_and_inputs_only():
    mark = _lineage()["fingerprint"]
    for change in ({"inputs": {"tokens": "abd"}}, {"config": {"count": {"upto": 4}}},
                   {"stage": "recount"}):
        assert _lineage(**change)["fingerprint"] != mark
    for change in ({"code": "124"}, {"mesh": {"data": 8}},
                   {"config": {"count": {"upto": 3, "run": {"pace": 2}}}}):
        assert _lineage(**change)["fingerprint"] == mark
    assert _lineage(code="124")["build"] != _lineage()["build"]


def test_a_lineage_names_origin_versions_and_command():
    lineage = _lineage()
    assert {"command", "commit", "versions", "config", "inputs"} <= set(lineage)
    assert lineage["versions"]["jax"]
    json.dumps(lineage)


def test_settings_hold_from_the_step_at_which_a_process_began(tmp_path):
    def begin(pace, step=None):
        config = {"count": {"upto": 3, "run": {"pace": pace}}}
        artifacts.open_partial(tmp_path / "x", _lineage(config=config))
        if step is not None:
            artifacts.hold_from(tmp_path / "x", step)
        runs = artifacts.read_lineage(tmp_path / "x")["runs"]
        return [(run["step"], run["run"]["count"]["pace"]) for run in runs]

    assert begin(1, step=0) == [(0, 1)]
    assert begin(2, step=40) == [(0, 1), (40, 2)]
    assert begin(3) == [(0, 1), (40, 2), (None, 3)], "it was killed before it began"
    assert begin(4, step=40) == [(0, 1), (40, 4)], "nothing of 2 and 3 is kept"
    assert begin(5, step=20) == [(0, 1), (20, 5)]


def test_a_free_name_is_the_first_that_does_not_exist(tmp_path):
    assert artifacts.free_name(tmp_path / "a") == tmp_path / "a"
    for name in ("a", "a.1"):
        (tmp_path / name).touch()
    assert artifacts.free_name(tmp_path / "a") == tmp_path / "a.2"
