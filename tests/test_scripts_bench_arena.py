"""The benchmark of the arena: planted votes of any number are rated, and their ratings found."""

import pytest

from core.errors import UserError
from scripts.bench import arena as bench


def test_planted_ratings_are_found(capsys):
    found = bench.measure(2000, 4, 1, seed=0)
    assert (found["votes"], found["models"]) == (2000, 4) and found["secs"] > 0
    assert found["inside_frac"] >= 0.75 and "round 1: " in capsys.readouterr().out


def test_a_command_that_fails_is_named(tmp_path):
    with pytest.raises(UserError, match=r"eval.arena: failed with .*no such file"):
        bench.time_command(tmp_path / "none.jsonl", tmp_path)
