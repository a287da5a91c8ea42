"""What an arena draws and shows: pairs and sides, and two texts in step."""

import random
from collections import Counter

import pytest

from serve.arena.pairs import Pairs, pair_shares
from serve.arena.steps import MAX_CHARS, Steps


def _release_all(steps):
    shown = []
    while not steps.is_over:
        if change := steps.release():
            shown.append(change)
    return shown


def test_the_slower_side_sets_the_pace_and_a_longer_answer_goes_on_at_it():
    steps, lengths = Steps(), [0, 0]
    steps.push(0, "f" * 1000, "stop")
    assert steps.release() is None, "the other has said nothing yet"
    for _ in range(40):
        steps.push(1, "slow")
        if change := steps.release():
            lengths = [num + len(text) for num, text in zip(lengths, change.texts)]
            assert lengths[0] == lengths[1] and change.finishes == ("", "")
    assert lengths == [160, 160]
    steps.push(1, "", "length")
    rest = [change.texts[0] for change in _release_all(steps)]
    assert "".join(rest) == "f" * 840 and max(map(len, rest)) <= 16, "not at once"
    mean_pace, num = 160 / 40, 0
    again = Steps()
    again.push(0, "f" * 400, "stop")
    for _ in range(41):
        again.push(1, "slow")
        again.release()
    again.push(1, "", "stop")
    while not again.is_over:
        again.release()
        num += 1
    assert num >= 0.8 * (400 - 164) / mean_pace
    assert steps.texts == ("f" * 1000, "slow" * 40) and steps.finishes == ("stop", "length")


def test_an_empty_answer_ends_at_once_and_the_other_is_shown_whole():
    steps = Steps()
    steps.push(0, "", "stop")
    steps.push(1, "x" * 3 * MAX_CHARS, "stop")
    changes = _release_all(steps)
    assert changes[0].finishes == ("stop", "") and changes[-1].finishes == ("stop", "stop")
    assert "".join(change.texts[1] for change in changes) == "x" * 3 * MAX_CHARS


def test_ends_without_a_text_are_given_out():
    steps = Steps()
    steps.push(0, "x" * 16)
    steps.push(1, "y" * 16)
    assert steps.release().finishes == ("", "") and steps.release() is None
    steps.push(0, "", "stop")
    steps.push(1, "", "length")
    assert not steps.is_over
    change = steps.release()
    assert change.texts == ("", "") and change.finishes == ("stop", "length") and steps.is_over


def test_pairs_of_few_votes_are_drawn_more_and_sides_are_even():
    outcomes = [("x", "y", 1.0), ("y", "x", 1.0)] * 20 + [("x", "gone", 1.0)]
    shares = pair_shares(["x", "y", "z"], outcomes)
    assert shares[0, 1] < 0.05 < shares[0, 2] and shares.sum() == pytest.approx(1)
    pairs = Pairs(["x", "y", "z"], random.Random(0))
    drawn = Counter(pairs.draw(outcomes) for _ in range(400))
    assert all(80 < drawn["x", "z"] + drawn["z", "x"] < 320 for _ in "x")
    assert abs(drawn["x", "z"] - drawn["z", "x"]) < 60
    assert pair_shares(["x", "y", "z"], [])[0, 1] == pytest.approx(1 / 3)
