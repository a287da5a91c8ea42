"""Rows cut from token files: each target once, each row found by its number alone."""

import json

import numpy as np
import pytest

from core.errors import UserError
from data.rows import TokenRows, batches, mixture

L = 16


def _write_domain(folder, name, first_token, sizes):
    tokens = np.arange(first_token, first_token + sum(sizes)).astype("<u2")
    (folder / f"{name}.tokens").write_bytes(tokens.tobytes())
    (folder / f"{name}.ends").write_bytes(np.cumsum(sizes).astype("<i8").tobytes())
    return {"tokens": int(sum(sizes))}


@pytest.fixture
def folder(tmp_path):
    """Two domains; all their tokens are different, so that a token tells where it is from."""
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
    expected = np.delete(rows.tokens, starts)  # a document's first token is nobody's target
    scored = np.concatenate([rows[i].targets_BL[rows[i].loss_weights_BL > 0]
                             for i in range(len(rows))])
    assert scored.tolist() == expected.tolist()


def test_overlap_gives_context(folder):
    row = TokenRows(folder, "pages", L, 5)[3]
    assert row.tokens_BL.tolist() == list(range(15, 31))
    assert not row.loss_weights_BL[:L - 5].any()


def test_documents_of_a_row_are_told_apart(folder):
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


def test_a_loader_goes_on_from_its_state(folder):
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
