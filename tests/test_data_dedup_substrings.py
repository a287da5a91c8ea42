"""Long repeated passages against a dictionary of all windows."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.dedup import substrings
from data.dedup.groups import first_occurrences
from data.dedup.substrings import anchor_keys, cut, repeated_spans, window_keys


def find_repeats(units, min_tokens, folder, memory_bytes=1 << 24):
    """Spans by unit and row, computed by all steps over files."""
    def match(name, arrays):
        paths = [folder / f"{name}{part}.npy" for part in range(len(arrays))]
        outputs = [folder / f"{name}{part}.match.npy" for part in range(len(arrays))]
        for path, array in zip(paths, arrays):
            np.save(path, array)
        first_occurrences(paths, outputs, memory_bytes=memory_bytes)
        return [np.load(output) for output in outputs]

    anchors = match("anchors", [anchor_keys(texts, min_tokens) for texts in units])
    windows = [window_keys(texts, matches["position"], min_tokens)
               for texts, matches in zip(units, anchors)]
    matches = match("windows", [keys for keys, _ in windows])
    return [repeated_spans(texts, part, matches[part], lambda at: windows[at][1],
                           lambda at, row: units[at][row], min_tokens)
            for part, texts in enumerate(units)]


def _oracle(units, min_tokens):
    """Per document, the tokens in a window that occurred before."""
    first, repeated = {}, {}
    for part, texts in enumerate(units):
        for row, text in enumerate(texts):
            tokens = text.split()
            covered = repeated[part, row] = np.zeros(len(tokens), bool)
            for at in range(len(tokens) - min_tokens + 1):
                place = first.setdefault(tuple(tokens[at:at + min_tokens]), (part, row, at))
                if place[:2] != (part, row) or place[2] + min_tokens <= at:
                    covered[at:at + min_tokens] = True
    return repeated


@settings(max_examples=60)
@given(st.lists(st.lists(st.lists(st.sampled_from(["a", "b", "é", "don't"]), max_size=40),
                         max_size=3), min_size=1, max_size=3), st.integers(2, 9))
def test_repeats_are_exactly_those_of_all_windows(tmp_path_factory, units, min_tokens):
    units = [[" \n".join(tokens) + " " for tokens in texts] for texts in units]
    repeats = find_repeats(units, min_tokens, tmp_path_factory.mktemp("repeats"))
    for (part, row), covered in _oracle(units, min_tokens).items():
        spans = repeats[part].get(row, [])
        text = units[part][row]
        inside = [any(span.start <= token.start() and token.end() <= span.stop for span in spans)
                  for token in re.finditer(r"\S+", text)]
        assert inside == covered.tolist()
        left = [token for token, gone in zip(text.split(), covered) if not gone]
        assert cut(text, [(span.start, span.stop) for span in spans]).split() == left


def _words(seed, count):
    return [f"w{number}" for number in np.random.default_rng(seed).integers(0, 10**6, count)]


def test_the_second_occurrence_is_cut_and_refers_to_the_first(tmp_path):
    passage = " ".join(_words(1, 60))
    units = [[" ".join(_words(2, 90)), f"{' '.join(_words(3, 80))} {passage} end"],
             [f"Ünter {passage.replace(' ', chr(10), 7)} {' '.join(_words(4, 99))}"]]
    repeats = find_repeats(units, 50, tmp_path)
    assert repeats[0] == {} and list(repeats[1]) == [0]
    (span,) = repeats[1][0]
    assert units[1][0][span.start:span.stop].split() == passage.split()
    assert (span.first_part, span.first_row) == (0, 1)


def test_scripts_without_spaces_have_tokens(tmp_path):
    passage = "".join(chr(0x4E00 + int(n)) for n in np.random.default_rng(0).integers(0, 9000, 60))
    repeats = find_repeats([["前" + passage, passage + "後"]], 50, tmp_path)
    assert [(span.start, span.stop) for span in repeats[0][1]] == [(0, 60)]


def test_matches_are_verified_on_the_text(tmp_path, monkeypatch):
    texts = [[" ".join(_words(1, 60)), " ".join(_words(2, 60))]]
    monkeypatch.setattr(substrings, "_BYTE_VALUES", np.ones(256, np.uint64))   # all words alike
    monkeypatch.setattr(substrings, "hash_spans", lambda values, starts, stops:
                        np.zeros(len(starts), np.uint64))
    assert find_repeats(texts, 50, tmp_path) == [{}]


@pytest.mark.parametrize("memory_bytes", (1 << 12, 1 << 24))
def test_the_result_does_not_depend_on_memory(tmp_path, memory_bytes):
    passages = [" ".join(_words(seed, 55)) for seed in range(20)]
    key = np.random.default_rng(0)
    units = [[" mid ".join(passages[at] for at in key.integers(0, 20, 3)) for _ in range(8)]
             for _ in range(3)]
    repeats = find_repeats(units, 50, tmp_path, memory_bytes)
    lengths = [span.stop - span.start for unit in repeats for spans in unit.values()
               for span in spans]
    assert sum(lengths) + sum(map(len, passages)) == pytest.approx(
        sum(len(text) for texts in units for text in texts), rel=0.02)
