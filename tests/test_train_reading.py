"""What a run reads: rows are counted by domain, so that going on repeats none and misses none."""

import dataclasses
import json
from collections import Counter

import pytest
from small_tokens import write_artifacts

from configs.quickstart import get_config
from core.errors import UserError
from model.config import ModelConfig
from train.pretrain import make_batches, plan_phases, plan_reading
from train.reading import read_reading, write_reading
from train.start import Start

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's

MODEL = ModelConfig(V=300, D=32, N=2, H=2, G=1, K=16, F=64)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("road")
    write_artifacts(workdir)
    return workdir / "tokens"


def section_of(**changes):
    section = get_config("smoke").pretrain
    section.update(row_length=32, num_steps=12, batch_size=4, anneal_frac=0.25, max_epochs=0.0,
                   mixture=dict(pages=0.75, code=0.25),
                   anneal_mixture=dict(best=0.0, pages=0.7, code=0.3))
    section.update(changes)
    return section


def go_on(tokens, reading, index, **changes):
    """The reading of a run that goes on from batch `index` of another, and its batches."""
    section = section_of(**changes)
    start = Start(MODEL, first_step=index, tokens_before=reading.tokens_at(index),
                  drawn=reading.drawn_at(index))
    reading = plan_reading(section, tokens, start)
    return reading, make_batches(section, tokens, reading)


def rows_of(batches, first, last):
    return [row.tobytes() for i in range(first, last) for row in batches[i].tokens_BL]


@pytest.fixture(scope="module")
def whole(tokens):
    """A run of 12 steps: its reading and its batches."""
    section = section_of()
    reading = plan_reading(section, tokens, Start(MODEL))
    return reading, make_batches(section, tokens, reading)


def test_counts_by_domain_follow_the_phases(whole):
    reading, _ = whole
    assert reading.drawn_at(0) == {"mixture": {"code": {"order": 0, "rows": 0},
                                               "pages": {"order": 1, "rows": 0}},
                                   "anneal_mixture": {"code": {"order": 0, "rows": 0},
                                                      "pages": {"order": 1, "rows": 0}}}
    drawn = reading.drawn_at(10)
    assert {name: entry["rows"] for name, entry in drawn["mixture"].items()} == {
        "code": 9, "pages": 27}
    assert sum(entry["rows"] for entry in drawn["anneal_mixture"].values()) == 4
    assert reading.tokens_at(10) == 10 * 4 * 32


def test_the_same_config_reads_the_same_batches(tokens, whole):
    for index in (3, 9, 10):
        _, batches = go_on(tokens, whole[0], index)
        assert len(batches) == 12
        assert rows_of(batches, index, 12) == rows_of(whole[1], index, 12)
    reading, batches = go_on(tokens, whole[0], 3)
    _, again = go_on(tokens, reading, 7)    # from the run that went on
    assert rows_of(again, 7, 12) == rows_of(whole[1], 7, 12)


def test_a_longer_run_goes_on_in_the_mixture_where_it_was(tokens, whole):
    longer = section_of(num_steps=40)
    expected = make_batches(longer, tokens, plan_reading(longer, tokens, Start(MODEL)))
    _, batches = go_on(tokens, whole[0], 6, num_steps=40)
    assert rows_of(batches, 6, 40) == rows_of(expected, 6, 40)


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_another_batch_size_repeats_no_row_and_misses_none(tokens, whole, batch_size):
    longer = section_of(num_steps=60, anneal_frac=0.0)
    expected = make_batches(longer, tokens, plan_reading(longer, tokens, Start(MODEL)))
    _, batches = go_on(tokens, whole[0], 6, num_steps=30, batch_size=batch_size, anneal_frac=0.0)
    seen = rows_of(whole[1], 0, 6) + rows_of(batches, 6, 30)
    assert seen == rows_of(expected, 0, 60)[:len(seen)]
    assert len(seen) == 24 + 24 * batch_size


def test_other_shares_repeat_no_row_of_a_domain(tokens, whole):
    everything = section_of(num_steps=200, anneal_frac=0.0)
    pages = section_of(num_steps=200, anneal_frac=0.0, mixture=dict(pages=1.0, code=0.0))
    reading, batches = go_on(tokens, whole[0], 8, num_steps=20, anneal_frac=0.0,
                             mixture=dict(pages=0.25, code=0.75))
    counts = {name: entry["rows"] for name, entry in reading.drawn_at(20)["mixture"].items()}
    assert counts == {"code": 8 + 36, "pages": 24 + 12}
    seen = Counter(rows_of(whole[1], 0, 8) + rows_of(batches, 8, 20))
    whole_order = make_batches(everything, tokens, plan_reading(everything, tokens, Start(MODEL)))
    assert max(seen.values()) == 1 and seen.keys() <= set(rows_of(whole_order, 0, 200))
    # A domain that is left out keeps its place for the run after.
    left_out, _ = go_on(tokens, reading, 20, num_steps=24, anneal_frac=0.0,
                        mixture=pages.mixture)
    assert left_out.drawn_at(24)["mixture"]["code"] == {"order": 0, "rows": 44}
    assert left_out.drawn_at(24)["mixture"]["pages"] == {"order": 1, "rows": 36 + 16}


def test_epochs_count_from_the_first_run_on(tokens, whole):
    size = json.loads((tokens / "tokens.json").read_text())["domains"]["code"]["tokens"]
    used = whole[0].drawn_at(8)["mixture"]["code"]["rows"] * 32
    section = section_of(num_steps=400, anneal_frac=0.0, max_epochs=1.0,
                         mixture=dict(code=1.0, pages=1e-4))
    start = Start(MODEL, first_step=8, drawn=whole[0].drawn_at(8))
    with pytest.raises(UserError, match="within max_epochs"):
        plan_phases(section, tokens, start)
    section.num_steps = 8 + (size - used) // (4 * 32) + 1
    (phase,) = plan_phases(section, tokens, start)
    planned = phase.weights["code"] * phase.steps * 4 * 32
    assert used + planned == pytest.approx(size, abs=1)


def test_a_reading_is_restored_and_a_damaged_one_refused(tmp_path, whole):
    write_reading(tmp_path, whole[0])
    assert dataclasses.asdict(read_reading(tmp_path)) == dataclasses.asdict(whole[0])
    (tmp_path / "data.json").write_text('{"phases": []}')
    with pytest.raises(UserError, match=r"data\.json: is damaged"):
        read_reading(tmp_path)
