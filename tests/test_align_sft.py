"""SFT: what is learned from a conversation, what is left out, and how it is measured."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_tokens import write_artifacts

from align.finetune import make_batches
from align.heldout import heldout_means, padded_batches
from align.neftune import NoisyTable, segment_lengths, with_noise
from align.sft import mix_pretraining, render_example, write_rows
from align.sources import is_heldout, parse_inputs
from configs.common import make_sft, make_training_run
from core.errors import UserError
from data.batch import stack
from data.chat import Conversation, Message, ask
from data.layouts.faults import Faults
from data.tokenizers.bpe import BytePairTokenizer
from data.tokens.examples import HELDOUT, TRAIN, Examples, PackedRows, lay_out_examples
from model.execution import Execution
from model.parallel.sharding import make_mesh
from train.loss import next_token_loss
from train.setup import Setup

TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})
loss = jax.jit(partial(next_token_loss, execution=Execution(), key=jax.random.key(0)),
               static_argnames="config")


def make_section(**changes) -> ConfigDict:
    return ConfigDict(dict(out="sft", row_length=64, batch_size=1, num_epochs=1, seed=0, tasks={},
                           run=make_training_run(samples=2)) | make_sft() | changes)


def write_chats(path, pairs):
    path.write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}) + "\n"
        for question, answer in pairs))
    return str(path)


def write(tmp_path, pairs, **changes):
    """The section, and what `write_rows` gives of a file of single turns."""
    section = make_section(inputs=write_chats(tmp_path / "chats.jsonl", pairs), **changes)
    return section, write_rows(section, None, TOKENIZER, tmp_path / "rows")


def test_the_loss_is_over_assistant_tokens_only(tmp_path):
    section, described = write(tmp_path, [("what is it?", "a thing"), ("and this?", "another")])
    assert described["parts"] == {TRAIN: {"tokens": 44, "examples": 2, "groups": 2}}
    batch = stack([*PackedRows(Examples(tmp_path / "rows"), section.row_length)])
    scored = batch.targets_BL[batch.loss_weights_BL > 0]
    assert TOKENIZER.decode(scored) == "a thing<|end|>another<|end|>"
    assert set(np.unique(batch.loss_weights_BL)) == {0.0, 1.0}


def test_packed_conversations_have_the_loss_of_each_alone(tmp_path, params, config):
    pairs = [(f"question {'x' * n}?", "answer" * (n % 3 + 1)) for n in range(7)]
    section, _ = write(tmp_path, pairs)
    examples = Examples(tmp_path / "rows")
    packed = stack([*PackedRows(examples, section.row_length)])
    alone = stack([lay_out_examples(examples[n], section.row_length) for n in range(len(examples))])
    assert len(packed.tokens_BL) < len(alone.tokens_BL)
    (sum_packed, metrics), (sum_alone, others) = (
        loss(params, batch, config=config) for batch in (packed, alone))
    np.testing.assert_allclose(sum_packed, sum_alone, rtol=1e-5)
    assert metrics["loss"][1] == others["loss"][1]


def test_conversations_weigh_the_same_where_they_are_to(tmp_path):
    write(tmp_path, [("q", "a"), ("q?", "a much longer answer")], weighting="conversations")
    examples = Examples(tmp_path / "rows")
    for n in range(2):
        [example] = examples[n]
        assert np.sum(example.weights) == pytest.approx(1)


def test_what_teaches_nothing_is_counted_with_its_line(tmp_path, capsys):
    section, described = write(tmp_path, [("q", "a"), ("q", " "), ("q", "a" * 70), ("p", "")])
    assert described["left_out"]["too_long"] == 1
    assert sum(described["left_out"].values()) == 3
    path = f"{tmp_path}/chats.jsonl"
    assert (f"sft: left out 1 (too_long), the first: {path}, line 3: is longer than 64 tokens"
            in capsys.readouterr().err)
    # What is rendered once is not rendered again.
    (tmp_path / "chats.jsonl").write_text("{")
    assert write_rows(section, None, TOKENIZER, tmp_path / "rows") == described


def test_an_overlong_conversation_is_cut_or_ends_the_run_by_its_rule(tmp_path):
    long = ask("q", "a" * 70, place="chats, line 1")
    cut = render_example(long, TOKENIZER, make_section(overlong="cut"), Faults("sft"))
    assert len(cut.tokens) == 65 and cut.weights[-1] == 1
    assert TOKENIZER.decode(cut.tokens[-3:]) == "aaa", "no end behind a cut answer"
    with pytest.raises(UserError, match=r"chats, line 1: has 76 tokens, more than "
                                        r"sft.row_length=64: set sft.overlong to drop or cut"):
        render_example(long, TOKENIZER, make_section(overlong="fail"), Faults("sft"))
    faults = Faults("sft")
    prompt = ask("q" * 70, "a")
    assert render_example(prompt, TOKENIZER, make_section(overlong="cut"), faults) is None
    assert faults.counts == {"no_scored_token": 1}
    with pytest.raises(UserError, match=r"has no text to learn from: mend it, or set sft.faulty"):
        render_example(ask("q", ""), TOKENIZER, make_section(), Faults("sft", "fail"))


@pytest.mark.parametrize("change, line", [
    (dict(overlong="crop"), "sft.overlong='crop': is none of drop, cut, fail: choose one of them"),
    (dict(weighting="rows"), "sft.weighting='rows': is none of tokens, conversations: choose one "
                             "of them"),
    (dict(faulty="skip"), "sft.faulty='skip': is none of drop, fail: choose one of them"),
    (dict(inputs="no.jsonl"), "sft.inputs='no.jsonl': there is no such file or folder: correct the "
                              "path"),
    (dict(), "sft: tasks, inputs: give no conversation to train on: raise a count in tasks, or "
             "name files in inputs")], ids=str)
def test_bad_settings_are_one_line(tmp_path, change, line):
    with pytest.raises(UserError) as error:
        write_rows(make_section(**change), None, TOKENIZER, tmp_path / "rows")
    assert str(error.value) == line


def test_held_out_prompts_are_never_trained_on(tmp_path):
    pairs = [(f"question {n // 2}?", f"answer {n}") for n in range(200)]
    section, described = write(tmp_path, pairs, heldout_frac=0.2)
    parts = described["parts"]
    assert parts[TRAIN]["groups"] + parts[HELDOUT]["groups"] == 200
    assert 20 < parts[HELDOUT]["groups"] < 60
    texts = {part: {TOKENIZER.decode(example.tokens).split("<|assistant|>")[0]
                    for n in range(parts[part]["groups"])
                    for example in Examples(tmp_path / "rows", part)[n]}
             for part in (TRAIN, HELDOUT)}
    assert not texts[TRAIN] & texts[HELDOUT]
    assert len(described["prompts"]) == section.run.samples
    assert is_heldout(ask("question 3?", "x"), 0.2) == is_heldout(ask("question 3?", "y"), 0.2)


def test_held_out_means_do_not_depend_on_the_batch_size(tmp_path, params, config):
    section, _ = write(tmp_path, [("q" * n, "a" * n) for n in range(1, 20)])
    rows = PackedRows(Examples(tmp_path / "rows"), section.row_length)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    setup = Setup(config, Execution(), mesh)
    found = [heldout_means(next_token_loss, partial(padded_batches, rows, size), setup,
                           names=("loss",))(params) for size in (2, 5)]
    assert found[0].keys() == {"heldout_loss"}
    assert found[0]["heldout_loss"] == pytest.approx(found[1]["heldout_loss"], rel=1e-6)
    sums = [loss(params, stack([row]), config=config)[1]["loss"] for row in rows]
    total, weight = np.sum(sums, axis=0)
    assert found[0]["heldout_loss"] == pytest.approx(total / weight, rel=1e-5)


def test_amounts_of_a_file(tmp_path):
    path = write_chats(tmp_path / "a@b.jsonl", [(str(n), "a") for n in range(40)])
    assert [(s.path.name, s.count, s.share) for s in parse_inputs(
        f"{path}@10, {path}@0.5,{path}", "sft")] == [
            ("a@b.jsonl", 10, 1.0), ("a@b.jsonl", None, 0.5), ("a@b.jsonl", None, 1.0)]

    def count(amount):
        shutil.rmtree(tmp_path / "rows", ignore_errors=True)
        section = make_section(inputs=f"{path}{amount}")
        return write_rows(section, None, TOKENIZER, tmp_path / "rows")["parts"][TRAIN]["groups"]

    assert [count(amount) for amount in ("", "@10", "@2.0")] == [40, 10, 80]
    assert 10 < count("@0.5") < 30 and 50 < count("@1.5") < 70
    for amount in ("@0", "@-3", "@0.0"):
        with pytest.raises(UserError, match="takes no row: write PATH@1000"):
            parse_inputs(f"{path}{amount}", "sft")
    with pytest.raises(UserError, match="@41: holds 40 rows: take fewer"):
        count("@41")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's
def test_pretraining_rows_are_evenly_spread(tmp_path):
    write_artifacts(tmp_path)
    section, _ = write(tmp_path, [("q" * n, "a" * 40) for n in range(1, 9)], batch_size=4,
                       pretrain_frac=0.5)
    rows = PackedRows(Examples(tmp_path / "rows"), section.row_length)
    batches = mix_pretraining(rows, section, tmp_path / "tokens")
    kinds = np.concatenate([(batches[n].loss_weights_BL.mean(1) > 0.95) for n in
                            range(len(batches))])
    assert len(kinds) == 2 * len(rows) and kinds.sum() == len(rows)
    assert set(np.convolve(kinds, np.ones(2, int), "valid")) == {1}


def test_noise_is_on_the_inputs_alone_and_of_the_papers_size(params, config):
    tokens = np.arange(24, dtype=np.int32)[None] % config.V
    segments = np.array([[1] * 16 + [2] * 4 + [0] * 4], np.int32)
    np.testing.assert_array_equal(segment_lengths(segments)[0], [16] * 16 + [4] * 4 + [4] * 4)
    batch = lay_out_examples([], 24).replace(
        tokens_BL=tokens[0], targets_BL=tokens[0], segment_ids_BL=segments[0],
        loss_weights_BL=np.ones(24, np.float32))
    batch = jax.tree.map(lambda leaf: leaf[None], batch)
    seen = {}

    def look(params, batch, *, key):
        seen["table"] = params["embed_VD"]
        return 0.0, {}

    with_noise(look, 5.0)(params, batch, key=jax.random.key(0))
    table = seen["table"]
    assert isinstance(table, NoisyTable)
    np.testing.assert_array_equal(table.astype(jnp.float32), params["embed_VD"])
    noise = np.abs(np.asarray(table[tokens] - params["embed_VD"][tokens]))[0]
    for first, last, length in ((0, 16, 16), (16, 20, 4)):
        bound = 5.0 / (length * config.D) ** 0.5
        assert 0.9 * bound < noise[first:last].max() <= bound + 1e-6
    assert with_noise(look, 0.0) is look
    plain = loss(params, batch, config=config)[0]
    noisy = with_noise(partial(next_token_loss, config=config, execution=Execution()), 5.0)
    values = [float(noisy(params, batch, key=jax.random.key(n))[0]) for n in (0, 0, 1)]
    assert values[0] == values[1] != values[2] and values[0] != float(plain)


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
    with pytest.raises(UserError, match="1 rows: do not fill one batch of 5"):
        make_batches([np.array(0)], make_section(batch_size=5))


def test_a_conversation_of_several_turns_is_scored_in_all_its_answers():
    turns = Conversation((Message("system", "s"), *ask("q", "one").messages,
                          *ask("r", "two").messages))
    example = render_example(turns, TOKENIZER, make_section(), Faults("sft"))
    scored = [token for token, weight in zip(example.tokens, example.weights) if weight]
    assert TOKENIZER.decode(scored) == "one<|end|>two<|end|>"
