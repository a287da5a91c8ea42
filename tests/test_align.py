"""Pairs of sampled answers, and what supervised fine-tuning trains on."""


import numpy as np
import pytest
from ml_collections import ConfigDict

from align.finetune import make_batches
from align.pairs import describe_pairs, make_pairs
from align.sft import make_conversations, make_rows
from core.errors import UserError
from data.batch import Batch, stack
from data.chat import ask
from data.preferences import Preference
from data.tokenizers.bpe import BytePairTokenizer

TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})


def scored(question, *answers):
    return [{"task": "t", "family": "f", "question": question, "completion": completion,
             "score": score, "finish": "".join(finish) or "stop"}
            for completion, score, *finish in answers]


def test_a_cut_answer_is_preferred_only_where_none_is_whole():
    rows = (scored("q1", ("whole", 0.5), ("cut", 0.9, "length"), ("bad", 0.1, "length"))
            + scored("q2", ("cut", 0.9, "length"), ("none", 0.0, "refused"), ("a", 0.1, "length"))
            + scored("q3", ("whole", 0.5), ("none", 0.0, "refused"), ("other", 0.2))
            + scored("q4", *[("none", 0.0, "refused")] * 3))
    pairs, left_out = make_pairs(rows, num_samples=3, min_margin=0.1)
    assert [(pair.responses, pair.finishes) for pair in pairs] == [
        (("whole", "bad"), ("stop", "length")), (("cut", "a"), ("length", "length")),
        (("whole", "other"), ("stop", "stop"))]
    assert left_out == {"equal": 1, "too_close": 0}
    described = describe_pairs(pairs, TOKENIZER)
    assert (described["cut_chosen"], described["cut_rejected"]) == (1, 2)


def test_pairs_are_best_against_worst_and_close_ones_are_left_out():
    rows = scored("q1", ("mid", 0.5), ("bad", 0.1), ("good", 0.9)) + scored(
        "q2", ("x", 0.4), ("y", 0.4), ("z", 0.45)) + scored("q3", ("a", 0), ("a", 0), ("b", 0))
    pairs, left_out = make_pairs(rows, num_samples=3, min_margin=0.1)
    assert pairs == [Preference(
        ask("q1"), ("good", "bad"), (1, 2), "t", {"family": "f"}, ("stop", "stop"), (0.9, 0.1))]
    assert left_out == {"equal": 1, "too_close": 1}
    pairs, left_out = make_pairs(rows, num_samples=3, min_margin=0.0)
    assert len(pairs) == 2, "a tie has no order"
    assert left_out == {"equal": 1, "too_close": 0}


def test_pairs_are_described_by_scores_lengths_and_empty_answers():
    pairs, _ = make_pairs(scored("a", ("good one", 1.0), ("bad", 0.0))
                          + scored("b", ("ok", 0.5), (" ", 0.25)), num_samples=2, min_margin=0)
    assert describe_pairs(pairs, TOKENIZER) == {
        "chosen_score": 0.75, "rejected_score": 0.125, "chosen_tokens_mean": 5.0,
        "rejected_tokens_mean": 2.0, "empty_chosen": 0, "empty_rejected": 1,
        "cut_chosen": 0, "cut_rejected": 0,
        "longer_chosen_frac": 1.0}


def make_section(**changes) -> ConfigDict:
    return ConfigDict(dict(out="sft", row_length=64, batch_size=1, num_epochs=1, seed=0,
                           tasks={}, inputs="") | changes)


def test_sft_loss_is_over_assistant_tokens_only():
    conversations = [ask("what is it?", "a thing"), ask("and this?", "another")]
    rows, _ = make_rows(conversations, TOKENIZER, make_section())
    batch: Batch = stack(rows)
    scored = batch.targets_BL[batch.loss_weights_BL > 0]
    assert TOKENIZER.decode(scored) == "a thing<|end|>another<|end|>"
    assert set(np.unique(batch.loss_weights_BL)) == {0.0, 1.0}


def test_sft_trains_on_a_users_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "1?", "answer": "one"}\n'
                    '{"messages": [{"role": "user", "content": "2?"}, '
                    '{"role": "assistant", "content": "two"}]}\n')
    section = make_section(tasks={"verifiable": 3, "documentation": 0}, inputs=str(path))
    conversations = make_conversations(section, corpus=None)
    assert len(conversations) == 5
    answers = {c.messages[0].content: c.messages[1].content for c in conversations}
    assert answers["1?"] == "one" and answers["2?"] == "two"
    assert conversations == make_conversations(section, corpus=None)


def test_sft_refuses_an_empty_training_set():
    with pytest.raises(UserError, match="tasks, inputs: give no conversation"):
        make_conversations(make_section(tasks={"verifiable": 0}), corpus=None)


def test_conversations_that_teach_nothing_are_left_out_and_counted(capsys):
    rows, left_out = make_rows([ask("q", "a"), ask("q", " \n"), ask("q"), ask("q", "a" * 70)],
                               TOKENIZER, make_section())
    assert len(rows) == 1 and left_out == {"too_long": 1, "empty_answers": 2}
    assert capsys.readouterr().err.splitlines() == [
        "sft: left out 1 of 4 conversations that are longer than 64 tokens",
        "sft: left out 2 of 4 conversations that are without a text to learn from"]


@pytest.mark.parametrize("num_rows, batch_size, num_epochs", [(7, 3, 1), (7, 3, 2), (6, 3, 2)])
def test_every_row_is_trained_on_in_every_epoch(num_rows, batch_size, num_epochs, capsys):
    section = make_section(batch_size=batch_size, num_epochs=num_epochs)
    given = [np.array(number) for number in range(num_rows)]
    batches = make_batches(given, section)
    seen = np.concatenate([batches[i] for i in range(len(batches))])
    missing = -num_rows * num_epochs % batch_size
    assert len(seen) == num_rows * num_epochs + missing
    counts = np.bincount(seen, minlength=num_rows)
    assert counts.min() == num_epochs and counts.max() == num_epochs + bool(missing)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ([f"sft: {missing} of {num_rows} rows are repeated to fill the last batch of "
                      f"{batch_size}"] if missing else [])


def test_less_than_one_batch_is_refused():
    section = make_section(batch_size=5)
    rows, _ = make_rows([ask("q", "a")], TOKENIZER, section)
    with pytest.raises(UserError, match="do not fill one batch of 5"):
        make_batches(rows, section)
