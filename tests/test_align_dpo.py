"""The stage of preference losses: its rows, its kept reference, held-out pairs, resuming."""

import math
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

from align import dpo
from align.describe import Description
from align.losses.preference import read_settings
from align.preference_rows import (
    LabelledRows,
    PairRows,
    Renderer,
    check_batches,
    longer_is_chosen,
    write_rows,
)
from align.reference import find_reference
from configs.quickstart import get_config
from core.artifacts import make_lineage, read_json, write_json
from core.errors import UserError
from data.chat import Conversation, Message, ask
from data.layouts.faults import Faults
from data.preferences import Labelled, Preference, write_preferences
from data.tokenizers.bpe import BytePairTokenizer
from data.tokens.examples import Examples
from model.directory import save_model
from train.setup import make_setup
from train.watch.metrics import read_metrics

TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})
LETTERS = "abcdefghijklmnopqrstuvwx"
SHORT, LONG = ("yes", "no way"), ("it is so", "no")


def talk(*texts):
    """A conversation whose turns are the user's and the assistant's in turn."""
    return Conversation(tuple(Message(("user", "assistant")[n % 2], text)
                              for n, text in enumerate(texts)))


def render_all(tmp_path, items, *, row_length=32, overlong="drop", faulty="drop", labels=False,
               heldout_frac=0.0):
    """What `write_rows` gives, and the examples of training."""
    renderer = Renderer(TOKENIZER, row_length, overlong, Faults("dpo", faulty), "dpo")
    described = write_rows(tmp_path / "rows", lambda: items, renderer, heldout_frac=heldout_frac,
                           labels=labels)
    return described, Examples(tmp_path / "rows")


def scored(example):
    return TOKENIZER.decode([token for token, weight in zip(example.tokens, example.weights)
                             if weight])


def place(preference, where):
    return Preference(preference.prompt, preference.responses, preference.ranks,
                      meta={"place": where})


def test_only_the_last_answer_and_its_end_are_scored(tmp_path):
    """Earlier answers are part of the prompt."""
    items = [Preference(talk("a?", "first", "b?"), ("yes", "no way"), (1, 2)),
             Preference(ask("c?"), ("c", "d"), (2, 1))]
    described, examples = render_all(tmp_path, items, row_length=40)
    assert [[scored(row) for row in examples[i]] for i in range(2)] == [
        ["yes<|end|>", "no way<|end|>"], ["d<|end|>", "c<|end|>"]]
    batch = PairRows(examples, 40)[0]
    assert TOKENIZER.decode(batch.chosen.tokens_BL[:14]).startswith("<|bos|><|user|>a?<|end|>")
    assert batch.chosen.loss_weights_BL.sum() == 4
    statistics = described["statistics"]
    assert statistics["pairs"] == 2 and statistics["several_turns_frac"] == 0.5
    assert statistics["chosen_tokens_mean"] == 3.0 and statistics["rejected_tokens_median"] == 4.5
    assert statistics["first_chosen_frac"] == 0.5, "where order varies it is a position"


def test_a_ranking_gives_all_pairs_that_differ(tmp_path):
    ranking = Preference(ask("q"), ("b", "a", "c", "d"), (2, 1, 3, 3))
    _, examples = render_all(tmp_path, [ranking])
    assert [[scored(row)[0] for row in examples[i]] for i in range(len(examples))] == [
        ["a", "b"], ["a", "c"], ["a", "d"], ["b", "c"], ["b", "d"]]


def test_what_teaches_nothing_is_left_out_by_reason_with_its_place(tmp_path, capsys):
    items = [Preference(ask("q"), ("yes", "no"), (1, 2)),
             place(Preference(ask("q"), ("x", "x"), (1, 2)), "f.jsonl, line 2"),
             place(Preference(ask("q"), ("x", "y"), (1, 1)), "f.jsonl, line 3"),
             place(Preference(ask("q"), (" ", "y"), (1, 2)), "f.jsonl, line 4"),
             place(Preference(ask("q"), ("x", "y" * 40), (1, 2)), "f.jsonl, line 5"),
             Preference(ask("q"), ("x", "z" * 40), (1, 2)),
             Preference(ask("q"), ("x", ""), (1, 2), finishes=("stop", "length"))]
    described, examples = render_all(tmp_path, items)
    assert len(examples) == 1
    assert described["left_out"] == {"equal": 1, "tied": 1, "empty_chosen": 1, "too_long": 2,
                                     "empty_answer": 1}
    lines = capsys.readouterr().err
    for line in (2, 3, 4, 5):
        assert f"f.jsonl, line {line}: " in lines
    with pytest.raises(UserError, match=r"^f.jsonl, line 2: has a pair of equal answers: mend it, "
                                        r"or set dpo.faulty to drop"):
        render_all(tmp_path / "again", items, faulty="fail")


def test_the_end_of_a_cut_answer_is_not_scored(tmp_path):
    cut = Preference(ask("q"), ("half an", "whole"), (2, 1), finishes=("length", "stop"))
    _, examples = render_all(tmp_path, [cut])
    assert [scored(row) for row in examples[0]] == ["whole<|end|>", "half an"]


@pytest.mark.parametrize("prompt, row_length, kept", [
    (talk("old " * 9, "older", "new?"), 30, "<|bos|><|user|>new?<|end|><|assistant|>"),
    (Conversation((Message("system", "Be."), *talk("old " * 9, "older", "new?").messages)), 34,
     "<|bos|><|system|>Be.<|end|><|user|>new?<|end|><|assistant|>"),
    (ask("0123456789" * 5), 30, "<|bos|>23456789<|end|><|assistant|>")])
def test_the_prompt_of_an_overlong_pair_loses_its_oldest_turns_or_tokens(
        tmp_path, prompt, row_length, kept):
    """Both answers stay whole, after the same prompt."""
    item = Preference(prompt, ("so it is, I know it", "no"), (1, 2))
    described, examples = render_all(tmp_path, [item], row_length=row_length, overlong="cut")
    assert described["statistics"]["shortened"] == 1
    assert [TOKENIZER.decode(row.tokens) for row in examples[0]] == [
        f"{kept}so it is, I know it<|end|>", f"{kept}no<|end|>"]
    assert [scored(row) for row in examples[0]] == ["so it is, I know it<|end|>", "no<|end|>"]


def test_answers_lose_their_ends_where_the_prompt_cannot_give_way_and_a_rule_may_fail(tmp_path):
    whole, long = (Preference(ask("q"), ("yes", tail), (1, 2)) for tail in ("no", "n" * 31))
    described, examples = render_all(tmp_path, [whole, long], row_length=30, overlong="cut")
    assert described["statistics"]["shortened"] == 1 and not described["left_out"]
    assert len(examples[1][1].tokens) == 31
    assert [scored(row) for row in examples[1]] == ["yes<|end|>", "n" * 26], "no end behind it"
    alike = Preference(ask("q" * 90), ("n" * 30, "n" * 31), (1, 2))
    described, _ = render_all(tmp_path / "c", [whole, alike], row_length=30, overlong="cut")
    assert described["left_out"] == {"equal": 1}
    with pytest.raises(UserError, match=r"line 7: is longer than a row of 30 tokens: raise"):
        render_all(tmp_path / "a", [place(long, "f, line 7")], row_length=30, overlong="fail")
    with pytest.raises(UserError, match=r"dpo.overlong='trim': is none of drop, cut, fail"):
        render_all(tmp_path / "b", [whole], overlong="trim")


def test_a_prompt_that_is_no_prefix_is_a_fault(tmp_path, monkeypatch):
    items = [Preference(ask(question), SHORT, (1, 2)) for question in ("good", "bad")]
    from align import preference_rows
    render_prompt = preference_rows.render_prompt
    monkeypatch.setattr(preference_rows, "render_prompt", lambda prompt, tokenizer: [
        *render_prompt(prompt, tokenizer), *[7] * (prompt.messages[0].content == "bad")])
    described, examples = render_all(tmp_path, items)
    assert len(examples) == 1 and described["left_out"] == {"prompt_is_no_prefix": 1}


def test_rows_with_one_prompt_are_held_out_together(tmp_path):
    items = [Preference(ask(f"{letter}?"), pair, (1, 2)) for letter in LETTERS
             for pair in (SHORT, LONG)]
    described, train = render_all(tmp_path, items, heldout_frac=0.3)
    heldout = Examples(tmp_path / "rows", "heldout")
    prompts = [{TOKENIZER.decode(examples[i][0].tokens)[:20] for i in range(len(examples))}
               for examples in (train, heldout)]
    assert not prompts[0] & prompts[1]
    assert len(train) == 2 * len(prompts[0]) and len(heldout) == 2 * len(prompts[1]) > 0
    assert longer_is_chosen(heldout) == 0.5, "of each prompt one longer and one shorter"
    assert described["statistics"]["longer_chosen_frac"] == 0.5


def mismatches(examples):
    return [(TOKENIZER.decode(own.tokens), TOKENIZER.decode(other.tokens))
            for own, other in (examples[i] for i in range(len(examples)))]


def test_labelled_answers_come_with_the_answer_to_the_prompt_before(tmp_path):
    """A rotation: the first prompt has the last answer."""
    items = [Labelled(ask(question), answer, answer != "no") for question, answer in (
        ("1", "one"), ("2", "no"), ("3", "three"))]
    _, examples = render_all(tmp_path, items, labels=True)
    begin = "<|bos|><|user|>{}<|end|><|assistant|>{}<|end|>"
    assert sorted(mismatches(examples)) == [
        (begin.format(1, "one"), begin.format(1, "three")),
        (begin.format(2, "no"), begin.format(2, "one")),
        (begin.format(3, "three"), begin.format(3, "no"))]
    labels = {scored(examples[i][0]): float(LabelledRows(examples, 32)[i].is_good_B)
              for i in range(3)}
    assert labels == {"one<|end|>": 1, "no<|end|>": 0, "three<|end|>": 1}


def test_both_answers_of_a_pair_become_labelled_ones_and_never_each_others_mismatch(tmp_path):
    items = [Preference(ask(letter), (f"good {letter}", f"bad {letter}"), (1, 2))
             for letter in "abc"]
    _, examples = render_all(tmp_path, items, labels=True)
    assert len(examples) == 6
    for own, other in mismatches(examples):
        assert own[:25] == other[:25] and own[-8] != other[-8], (own, other)


def test_answers_to_a_single_prompt_are_refused(tmp_path):
    items = [Labelled(ask("q"), answer, True) for answer in "abc"]
    with pytest.raises(UserError, match=r"dpo.loss='kto': all answers of train are to one prompt"):
        render_all(tmp_path, items, labels=True)


def make_section(**changes) -> ConfigDict:
    section = get_config("smoke").dpo
    section.update(changes)
    return section


def test_what_a_loss_cannot_have_is_refused():
    with pytest.raises(UserError, match=r"dpo.loss='ppo': there is no such loss: choose one of dp"):
        read_settings(make_section(loss="ppo"))
    with pytest.raises(UserError, match=r"dpo.label_smoothing=0.1: has no effect on loss='dpo'"):
        read_settings(make_section(label_smoothing=0.1))
    with pytest.raises(UserError, match=r"dpo.batch_size=1: is too small for loss='kto'"):
        check_batches(make_section(batch_size=1), labels=True)
    section = make_section()
    section.run.num_microbatches = 2
    with pytest.raises(UserError, match=r"run.num_microbatches=2: cannot be had with loss='kto'"):
        check_batches(section, labels=True)


def test_score_margins_are_described():
    description, (_, rows) = Description(), (None, None)
    for scores in ((3.0, 1.0), (1.0, 1.0)):
        item = Preference(ask("q"), ("a", "b"), (1, 2), scores=scores)
        rows = [type("Row", (), {"weights": [0.0, 1.0]}) for _ in range(2)]
        description.add_pair(item, 0, 1, rows)
    found = description.summary()
    assert found["score_margin_mean"] == 1.0 and found["score_margin_not_positive_frac"] == 0.5
    assert found["same_length_frac"] == 1.0 and "first_chosen_frac" not in found


@pytest.fixture(scope="module")
def parents(tmp_path_factory, params, config):
    """The tiny model as a model directory, and pairs."""
    root = tmp_path_factory.mktemp("parents")
    (root / "tokenizer").mkdir()
    TOKENIZER.save(root / "tokenizer")
    save_model(root / "base", params, config, root / "tokenizer", chat=True, context_tokens=64)
    write_lineage(root / "base")
    (root / "pairs").mkdir()
    write_preferences(root / "pairs" / "pairs.jsonl", [
        Preference(ask(f"what is {letter}?"), pair, (1, 2)) for letter in LETTERS
        for pair in (SHORT, LONG)])
    return root


def write_lineage(folder):
    write_json(folder / "lineage.json",
               make_lineage(stage=folder.name, config={}, inputs={}, code=""))


def run_stage(parents, folder, **changes):
    """Builds the stage in `folder`, or goes on there: its JSON, and the loss of each step."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lineage(folder)
    config = get_config("smoke")
    config.dpo.update(row_length=40, batch_size=8, num_epochs=1, nll_coef=0.0, heldout_frac=0.3)
    config.dpo.run.update(checkpoint_every=1, keep_checkpoints=9, log_every=1)
    config.dpo.optimizer.update(name="adamw", learning_rate=0.01)
    config.dpo.update(changes)
    found = dpo.build(config, {"model": parents / "base", "pairs": parents / "pairs"}, folder)
    return found, [row["loss"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]


@pytest.fixture(scope="module")
def trained(parents, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, *run_stage(parents, workdir / "dpo.partial", num_epochs=2)


def test_the_stage_starts_at_ln_2_and_reports_held_out_pairs(trained):
    _, found, losses = trained
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 0.01
    assert found["pairs"] == 48 and found["left_out"] == {}
    assert 0 < found["heldout_pairs"] < 48 and found["heldout_longer_accuracy"] == 0.5
    assert found["untouched_heldout_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["untouched_heldout_margin"] == pytest.approx(0, abs=1e-5)
    assert found["heldout_loss"] < math.log(2) and found["heldout_accuracy"] > 0.5


def test_a_run_that_was_killed_ends_bit_for_bit_the_same_with_the_reference_kept(
        trained, parents, tmp_path, capsys):
    workdir, _, losses = trained
    shutil.copytree(workdir / "dpo.partial", tmp_path / "dpo.partial")
    shutil.copytree(workdir / "reference", tmp_path / "reference")
    steps = sorted(int(path.name) for path in (tmp_path / "dpo.partial" / "checkpoints").iterdir()
                   if path.name.isdigit())
    for step in steps[2:]:
        shutil.rmtree(tmp_path / "dpo.partial" / "checkpoints" / str(step))
    capsys.readouterr()
    _, again = run_stage(parents, tmp_path / "dpo.partial", num_epochs=2)
    assert capsys.readouterr().err.count("read from") == 2
    assert again == losses
    first, second = (read_json(folder / "dpo.partial" / "model.json")["arrays"]
                     for folder in (workdir, tmp_path))
    assert first == second, "digests of all arrays"


def test_the_reference_is_of_its_rows_and_temperature_and_never_of_the_loss(
        trained, parents, config, capsys):
    workdir, _, _ = trained
    folders = sorted((workdir / "reference").iterdir())
    assert len(folders) == 2, "of the rows to train on and of the held-out ones"
    rendered = workdir / "dpo.partial" / "rows"
    rows = {part: PairRows(Examples(rendered, part), 40) for part in ("train", "heldout")}

    def find(**changes):
        section = make_section(row_length=40, **changes)
        setup = make_setup(config, section, get_config("smoke").mesh)
        capsys.readouterr()
        found = find_reference(workdir, parents / "base", rendered, rows, setup=setup,
                               section=section)
        return found, capsys.readouterr().err

    first, lines = find(loss="ipo", beta=3.0, batch_size=4)
    assert lines.count("read from") == 2
    assert first["train"].shape == (len(rows["train"]), 2, 2)
    for folder in folders:      # damaged numbers are not believed
        with open(folder / "logps", "r+b") as file:
            file.write(b"\x00\x00\x80\x3f")
    again, lines = find()
    assert lines.count("the reference is computed anew") == lines.count("kept in") == 2
    np.testing.assert_array_equal(again["train"], first["train"])
    cool, lines = find(temperature=0.5)
    assert len([*(workdir / "reference").iterdir()]) == 4
    assert np.all(cool["heldout"] != first["heldout"])


@pytest.mark.parametrize("loss", ["kto", "orpo", "simpo"])
@pytest.mark.full
def test_losses_of_another_kind_run_through_the_stage(parents, tmp_path, loss):
    found, losses = run_stage(parents, tmp_path / "dpo.partial", loss=loss, num_epochs=3)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert found["heldout_loss"] < found["untouched_heldout_loss"]
    assert (tmp_path / "reference").exists() == (loss == "kto")


def test_a_stage_without_data_says_what_was_left_out(parents, tmp_path):
    with pytest.raises(UserError, match=r"dpo: pairs, inputs: give nothing for train: left out "
                                        r"\{'too_long': 48\}"):
        run_stage(parents, tmp_path / "dpo.partial", row_length=8)
