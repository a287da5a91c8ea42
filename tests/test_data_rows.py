"""Rows of token files: each target once, each row determined by its number."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from data.batch import make_row
from data.tokens.best_fit import best_fit
from data.tokens.checked import BLOCK_BYTES, CheckedArray, write_sums
from data.tokens.mixture import mixture
from data.tokens.rows import BestFitRows, TokenRows, batches, show

L = 16


def _write_domain(folder, name, first_token, sizes):
    tokens = np.arange(first_token, first_token + sum(sizes)).astype("<u2")
    (folder / f"{name}.tokens").write_bytes(tokens.tobytes())
    (folder / f"{name}.ends").write_bytes(np.cumsum(sizes).astype("<i8").tobytes())
    for suffix in ("tokens", "ends"):
        write_sums(folder / f"{name}.{suffix}")
    return {"tokens": int(sum(sizes))}


@pytest.fixture
def folder(tmp_path):
    """Two domains of distinct tokens, so that a token identifies its position."""
    rng = np.random.default_rng(0)
    domains = {"pages": _write_domain(tmp_path, "pages", 0, rng.integers(2, 40, 60).tolist()),
               "code": _write_domain(tmp_path, "code", 10_000, rng.integers(2, 90, 30).tolist()),
               "short": _write_domain(tmp_path, "short", 50_000, [5])}
    (tmp_path / "tokens.json").write_text(json.dumps({"dtype": "uint16", "domains": domains}))
    return tmp_path


@pytest.mark.parametrize("domain", ["pages", "code", "short"])
@pytest.mark.parametrize("stride", [None, 8, 5, 1])
def test_rows_score_every_target_exactly_once(folder, domain, stride):
    rows = TokenRows(folder, domain, L, stride)
    starts = np.r_[0, np.fromfile(folder / f"{domain}.ends", "<i8")[:-1]]
    expected = np.delete(rows.tokens[:], starts)  # the first token of a document is not a target
    scored = np.concatenate([rows[i].targets_BL[rows[i].loss_weights_BL > 0]
                             for i in range(len(rows))])
    assert scored.tolist() == expected.tolist()


def test_overlap_gives_context(folder):
    row = TokenRows(folder, "pages", L, 5)[3]
    assert row.tokens_BL.tolist() == list(range(15, 31))
    assert not row.loss_weights_BL[:L - 5].any()


def test_documents_of_a_row_have_separate_segments(folder):
    rows = TokenRows(folder, "pages", L)
    ends = np.fromfile(folder / "pages.ends", "<i8")
    for i in range(len(rows)):
        row = rows[i]
        real = row.segment_ids_BL > 0
        document = np.searchsorted(ends, row.tokens_BL[real], side="right")
        assert (np.diff(document) == np.diff(row.segment_ids_BL[real])).all()
        crossing = np.diff(document) > 0
        assert not row.loss_weights_BL[real][:-1][crossing].any()
        starts = np.r_[0, ends][document]
        cut_off = np.maximum(starts, i * L)  # a document that began in an earlier row
        assert (row.positions_BL[real] == row.tokens_BL[real] - cut_off).all()


@pytest.mark.parametrize("make", [TokenRows, BestFitRows])
def test_rows_are_laid_out_as_make_row_does(folder, make):
    """`make_row` takes a segment per token, `lay_out` the starts of documents."""
    ends = np.fromfile(folder / "pages.ends", "<i8")
    rows = make(folder, "pages", L)
    for i in range(len(rows)):
        row, real = rows[i], rows[i].segment_ids_BL > 0
        assert real.tolist() == sorted(real.tolist(), reverse=True), "padding comes last"
        for segment in range(1, row.segment_ids_BL.max() + 1):
            here = row.segment_ids_BL == segment
            tokens = np.r_[row.tokens_BL[here], row.targets_BL[here][-1]]
            document = np.searchsorted(ends, tokens, side="right")
            same = make_row(tokens, np.ones(len(tokens)), document + 1)
            assert row.targets_BL[here].tolist() == same.targets_BL.tolist()
            assert row.positions_BL[here].tolist() == same.positions_BL.tolist()
            assert row.loss_weights_BL[here].tolist() == same.loss_weights_BL.tolist()
        assert not row.loss_weights_BL[~real].any() and not row.tokens_BL[~real].any()


@pytest.mark.parametrize("domain", ["pages", "code", "short"])
def test_best_fit_cuts_no_document_that_fits_and_scores_every_target_once(folder, domain):
    ends = np.fromfile(folder / f"{domain}.ends", "<i8")
    starts = np.r_[0, ends[:-1]]
    rows, pieces = BestFitRows(folder, domain, L), []
    for i in range(len(rows)):
        for segment in range(1, rows[i].segment_ids_BL.max() + 1):
            here = rows[i].segment_ids_BL == segment
            pieces.append([*rows[i].tokens_BL[here], rows[i].targets_BL[here][-1]])
    first = rows.tokens[:1]
    documents = [rows.tokens[a:b].tolist() for a, b in zip(starts, ends)]
    assert all(document in pieces for document in documents if len(document) <= L + 1)
    targets = sorted(token for piece in pieces for token in piece[1:])
    assert targets == np.delete(rows.tokens[:], starts).tolist()
    for piece in pieces:  # a long document is cut only where a row is full
        assert len(piece) == L + 1 or piece[-1] - first + 1 in ends


def _best_fit_one_by_one(lengths, capacity):
    """The textbook algorithm: a list of free inputs, searched for every piece."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - length)
    return sorted(rooms)


@given(st.data(), st.integers(1, 40))
def test_best_fit_is_best_fit_decreasing(data, capacity):
    lengths = np.asarray(data.draw(st.lists(st.integers(1, capacity), max_size=60)), np.int64)
    rows = best_fit(lengths, capacity)
    rooms = capacity - np.bincount(rows, lengths)
    assert sorted(rooms.tolist()) == _best_fit_one_by_one(lengths.tolist(), capacity)


def test_best_fit_rows_have_the_same_tokens_for_all_windows(folder, monkeypatch):
    whole = BestFitRows(folder, "pages", L)
    monkeypatch.setattr("data.tokens.best_fit.WINDOW_DOCUMENTS", 7)
    windows = BestFitRows(folder, "pages", L)
    assert len(windows) > len(whole)
    scored = [np.concatenate([rows[i].targets_BL[rows[i].loss_weights_BL > 0]
                              for i in range(len(rows))]) for rows in (whole, windows)]
    assert np.array_equal(*map(np.sort, scored))


def test_best_fit_writes_nothing_beside_the_tokens(folder, tmp_path_factory, monkeypatch):
    monkeypatch.setattr("data.tokens.best_fit.WINDOW_DOCUMENTS", 7)
    derived = tmp_path_factory.mktemp("run") / "rows"
    before = sorted(folder.iterdir())
    held, stored = (BestFitRows(folder, "pages", L, place) for place in (None, derived))
    assert sorted(folder.iterdir()) == before
    assert sorted(path.name for path in derived.iterdir()) == [
        f"pages.best_fit-{L}.pieces", f"pages.best_fit-{L}.rows"]
    monkeypatch.setattr("data.tokens.best_fit.best_fit", None)      # the index is packed once
    again = BestFitRows(folder, "pages", L, derived)
    for rows in (stored, again):
        assert len(rows) == len(held)
        assert all(np.array_equal(rows[i].targets_BL, held[i].targets_BL) for i in range(len(held)))


def test_show_formats_targets_and_weights(folder):
    class Letters:
        @staticmethod
        def decode(ids):
            return " ".join(map(str, ids))

    ends = np.fromfile(folder / "code.ends", "<i8")
    lines = show(TokenRows(folder, "code", 400)[0], Letters).splitlines()
    num_inputs = ends[0] - 1
    assert lines[0].split()[:5] == [f"0-{num_inputs - 1}", "document", "1", "weight", "1"]
    assert lines[1].split() == [f"{num_inputs}-{num_inputs}", "document", "1", "weight", "0",
                                f"'{10_000 + ends[0]}'"], "<|end|> does not predict <|bos|>"
    assert lines[2].split()[:3] == [f"{ends[0]}-{ends[1] - 2}", "document", "2"]
    assert show(TokenRows(folder, "short", L)[0], Letters).splitlines() == [
        "     0-3      document 1   weight 1    '50001 50002 50003 50004'",
        "     4-15     document 0   weight 0    (padding)"]


def _drawn(folder, **changes):
    how = dict(weights={"pages": 0.75, "code": 0.25}, num_rows=200, seed=0) | changes
    rows = mixture(folder, how["weights"], L, num_rows=how["num_rows"], seed=how["seed"])
    return [rows[i].tokens_BL.tolist() for i in range(len(rows))]


def test_mixture_is_deterministic_and_keeps_its_shares(folder):
    drawn = _drawn(folder)
    assert drawn == _drawn(folder)
    assert drawn != _drawn(folder, seed=1)
    assert sum(row[0] < 10_000 for row in drawn) == 150
    assert drawn[:50] == _drawn(folder, num_rows=50), "row i depends on i, not on the length"


def test_mixture_repeats_a_domain_in_another_order(folder):
    num_rows = len(TokenRows(folder, "pages", L))
    drawn = _drawn(folder, weights={"pages": 1.0, "code": 0.0}, num_rows=2 * num_rows)
    first, second = drawn[:num_rows], drawn[num_rows:]
    assert sorted(first) == sorted(second) and first != second


def test_a_loader_resumes_from_its_state(folder):
    rows = batches(mixture(folder, {"pages": 0.5, "code": 0.5}, L, num_rows=40, seed=0), 4)
    assert len(rows) == 10 and rows[3].tokens_BL.shape == (4, L)
    iterator = iter(rows.to_iter_dataset())
    for _ in range(6):
        next(iterator)
    state = iterator.get_state()
    expected = [batch.tokens_BL.tolist() for batch in iterator]
    resumed = iter(rows.to_iter_dataset())
    resumed.set_state(state)
    assert [batch.tokens_BL.tolist() for batch in resumed] == expected
    assert expected[0] == rows[6].tokens_BL.tolist()


def test_wrong_mixtures_and_damaged_files_are_refused(folder):
    with pytest.raises(UserError, match=r"domain 'poems'.*\['code', 'pages', 'short'\]"):
        mixture(folder, {"poems": 1.0}, L, num_rows=1, seed=0)
    with pytest.raises(UserError, match="no domain a positive weight"):
        mixture(folder, {"pages": 0.0}, L, num_rows=1, seed=0)
    with open(folder / "code.tokens", "ab") as file:
        file.write(b"\0\0")
    with pytest.raises(UserError, match=r"code\.tokens: does not hold"):
        TokenRows(folder, "code", L)
    (folder / "pages.ends").write_bytes(b"123")
    with pytest.raises(UserError, match=r"pages\.ends: or its checksums are missing or cut"):
        BestFitRows(folder, "pages", L)
    described = json.loads((folder / "tokens.json").read_text())
    described["domains"]["short"]["tokens"] = 0
    (folder / "tokens.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"short\.tokens: holds no tokens"):
        TokenRows(folder, "short", L)


@pytest.mark.parametrize("offset", [0, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 7])
def test_a_damaged_block_is_detected_when_it_is_read(tmp_path, offset):
    path = tmp_path / "pages.tokens"
    np.arange(3 * BLOCK_BYTES // 2 + 100, dtype="<u2").tofile(path)
    write_sums(path)
    flipped = bytearray(path.read_bytes())
    flipped[offset] ^= 0x10
    path.write_bytes(flipped)
    array, block = CheckedArray(path, "<u2"), offset // BLOCK_BYTES
    items = BLOCK_BYTES // 2
    for intact in {0, 1, 2, 3} - {block}:
        part = array[intact * items:(intact + 1) * items]
        assert part[0] == intact * items % 2**16
    with pytest.raises(UserError, match=rf"pages\.tokens: is damaged in block {block} of 65536"):
        array[max(block * items - 1, 0):block * items + 1]
