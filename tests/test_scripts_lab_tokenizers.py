"""The experiment on tokenizers: what a budget buys, its table and figure, and what is refused."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.tokenizer import VOCABULARIES
from core.artifacts import write_json
from core.errors import UserError
from scripts.lab import tokenizers
from scripts.lab.tokenizers import Line

PLAN = tokenizers.Plan(Path("corpus"), flops=1e12, seeds=2, vocab_sizes=(512, 2048),
                       kinds=("byte", "bpe"))
ROW = {"kind": "bpe", "vocab_size": 2048, "bytes_per_token": 2.5, "params": 1234, "megabytes": 3.25,
       "restored": 100.0, "losses": [1.9, 2.1]}


def test_bpe_comes_in_every_size_and_the_others_in_their_own():
    assert tokenizers.list_lines(PLAN) == [Line("bpe", 512), Line("bpe", 2048),
                                           Line("byte", VOCABULARIES["byte"])]
    arguments = tokenizers.make_tokens(Line("bpe", 512), PLAN, Path("out")).arguments
    assert {"--config.tokenizer.kind=bpe", "--config.tokenizer.vocab_size=512",
            "--config.pack.corpus=corpus"} <= {*arguments}


def test_a_larger_vocabulary_has_fewer_steps_of_the_same_compute(tmp_path):
    steps = {}
    for vocab_size in (512, 32768):
        write_json(tmp_path / "tokens.json", {"vocab_size": vocab_size})
        arguments = tokenizers.make_training(PLAN, tmp_path, 0, tmp_path).arguments
        settings = dict(word.removeprefix("--config.pretrain.").split("=")
                        for word in arguments if "pretrain." in word)
        steps[vocab_size] = int(settings["num_steps"])
        assert int(settings["optimizer.warmup_steps"]) == min(40, steps[vocab_size] // 10)
    # Products of a token: 4 D^2 + 3 D F in 4 layers, 2 D with half of 256 keys, and the head.
    D, F = 64, 256
    layers = 4 * (4 * D**2 + 3 * D * F + 2 * D * 256 / 2)
    expected = (layers + D * 32768) / (layers + D * 512)
    assert steps[512] / steps[32768] == pytest.approx(expected, rel=0.02)


def test_a_line_of_the_table_has_an_interval_and_says_what_is_kept():
    table = tokenizers.format_table([ROW, ROW | {"restored": 0.0, "losses": [1.5]}]).splitlines()
    assert table[2] == "| bpe | 2,048 | 2.50 | 1,234 | 3.2 | 100 | 2.000 ± 1.271 |"
    assert table[3].endswith("| 0 | 1.500 of what is kept |")


def test_the_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    tokenizers.draw(tmp_path / "figure.png", [ROW, ROW | {"kind": "word", "restored": 0.0}])
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("given, expected", [
    ({"parents": ""}, "--parents: is missing"), ({"out": ""}, "--out: is missing"),
    ({"parents": "none"}, "has no folder `corpus`"), ({"kinds": ["bp"]}, "names 'bp', which is"),
    ({"vocab_sizes": ["2k"]}, "names '2k', which is no number")])
def test_a_missing_or_wrong_flag_is_refused(tmp_path, given, expected):
    (tmp_path / "corpus").mkdir()
    values = {"parents": str(tmp_path), "out": "o", "flops": 1e9, "seeds": 1, "kinds": ["bpe"],
              "vocab_sizes": ["512"]} | given
    with pytest.raises(UserError, match=expected):
        tokenizers.read_plan(SimpleNamespace(**values))
