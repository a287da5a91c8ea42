"""Preferences: one format for pairs, votes and rankings, and what is refused of it."""

import json

import pytest

from core.errors import UserError
from data.chat import ask
from data.preferences import Preference, read_preferences, write_preferences

PAIR = Preference(ask("2+2?"), ("4", "5"), (1, 2), "verifiable", {"scores": [1.0, 0.0]})


def test_preferences_survive_the_disk(tmp_path):
    ranking = Preference(ask("Say hi"), ("hi", "yo", "ä\n"), (2, 1, 2), "a person",
                         finishes=("stop", "length", ""))
    write_preferences(tmp_path / "pairs.jsonl", [PAIR, ranking])
    assert read_preferences(tmp_path / "pairs.jsonl") == [PAIR, ranking]


def test_a_ranking_gives_every_pair_that_is_not_tied_the_better_first():
    assert PAIR.pairs() == [(0, 1)]
    ranking = Preference(ask("?"), ("c", "a", "b1", "b2"), (3, 1, 2, 2))
    assert ranking.pairs() == [(1, 2), (1, 3), (1, 0), (2, 0), (3, 0)]
    assert Preference(ask("?"), ("x", "y"), (1, 1)).pairs() == [], "a tie prefers nothing"


@pytest.mark.parametrize("change, message", [
    ({"ranks": [1]}, "needs one rank from 1 on for each response"),
    ({"ranks": [0, 1]}, "needs one rank from 1 on"),
    ({"ranks": [1.0, 2.0]}, "needs one rank from 1 on"),
    ({"ranks": None}, "has no list 'ranks'"),
    ({"finishes": ["stop"]}, "needs one of finishes for each response, or none"),
    ({"responses": ["4"]}, "needs at least two responses"),
    ({"responses": ["4", 5]}, "needs at least two responses, each a text"),
    ({"messages": "2+2?"}, "has no list 'messages'"),
    ({"messages": [{"role": "user"}]}, r"messages\[0\]: needs a role"),
], ids=str)
def test_a_malformed_preference_is_refused_by_its_line(tmp_path, change, message):
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps(PAIR.to_dict()) + "\n" + json.dumps(PAIR.to_dict() | change) + "\n")
    with pytest.raises(UserError, match=f"votes.jsonl, line 2: {message}"):
        read_preferences(path)


def test_a_line_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "votes.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match="line 1: is no JSON object"):
        read_preferences(tmp_path / "votes.jsonl")
