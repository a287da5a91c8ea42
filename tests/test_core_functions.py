"""Functions of the user's own: found by module, refused in one line."""

from __future__ import annotations

import pytest

from core.errors import UserError
from core.functions import defining_file, load_function
from data.documents import Document
from data.filters import own

DOCUMENT = Document("12ab", "some text", "https://a.example/", "web")


def test_a_function_of_a_file_in_the_path_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "mine_for_tests.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    double = load_function("curate.filters", "mine_for_tests.double")
    assert double(21) == 42
    assert defining_file(double) == tmp_path / "mine_for_tests.py"


@pytest.mark.parametrize("path", ["double", "no_such_module.double", "json.no_such", ".x", ""])
def test_what_cannot_be_imported_is_named(path):
    with pytest.raises(UserError, match=rf"curate\.filters='{path}': cannot be imported"):
        load_function("curate.filters", path)


def test_a_broken_module_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_for_tests.py").write_text("def double(x)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"cannot be imported .expected ':'"):
        load_function("curate.filters", "broken_for_tests.double")


@pytest.mark.parametrize("judge, score", [
    (lambda document: None, None), (lambda document: 0, 0.0), (lambda document: 2.5, 2.5)])
def test_a_filter_returns_none_or_a_score(judge, score):
    assert own.apply("m.f", judge, DOCUMENT) == score


@pytest.mark.parametrize("judge, message", [
    (lambda document: True, "returns True on document 12ab of https://a.example/"),
    (lambda document: "bad", "returns 'bad'"),
    (lambda document: document.text[99], "raises IndexError.* on document 12ab"),
])
def test_a_filter_that_fails_is_one_line(judge, message):
    with pytest.raises(UserError, match=rf"curate.filters='m.f': {message}"):
        own.apply("m.f", judge, DOCUMENT)
