"""Scores: bits per byte, log-likelihoods, answers and their statistics."""

import dataclasses
import lzma
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.common import make_eval
from core.artifacts import write_json
from core.errors import UserError
from data.chat import Conversation, Message, ask
from data.documents import Document, write_documents
from data.tokenizers import bpe
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.recipe import Recipe
from data.tokens.checked import write_sums
from data.tokens.rows import check_tokenizer
from eval.measures.continuations import Continuation, score_continuations
from eval.measures.likelihood import bits_per_byte, unigram_bits_per_byte, xz_bits_per_byte
from eval.respond.loaded import LoadedModel
from eval.respond.local import complete, make_prompts, render_plain
from eval.run import _measure_bits, build
from eval.statistics import mean_and_stderr, win_rate
from eval.tasks.task import question_of
from model.directory import save_model
from model.families.registry import forward
from model.generation.sampling import Sampling
from model.heads.language import token_logps

# No merges: 256 bytes and the special tokens.
BYTES = BytePairTokenizer({bytes([i]): i for i in range(256)})

# 93 ordinary tokens and 5 special ones: the 98 of the tiny model.
RANKS = {bytes([b]): i for i, b in enumerate(range(32, 125))}


@partial(jax.jit, static_argnames=("config", "execution"))
def logps_BL(params, tokens_BL, targets_BL, *, config, execution):
    """Log-probabilities of one unpacked document per row."""
    positions_BL = jnp.arange(tokens_BL.shape[1])[None]
    how = {"config": config, "execution": execution}
    x_BLD = forward(params, tokens_BL, positions_BL, jnp.ones_like(tokens_BL), **how)
    return token_logps(params, x_BLD, targets_BL, **how)


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return BytePairTokenizer(RANKS)


@pytest.fixture(scope="module")
def model(params, config, execution, tokenizer) -> LoadedModel:
    return LoadedModel(params, config, execution, tokenizer, chat=True, context_tokens=64)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, tokenizer):
    """A token folder written by hand: three held-out documents, one of training."""
    folder = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(0)
    domains = {}
    for name, sizes in {"heldout": (50, 3, 120), "pages": (400,)}.items():
        ids, ends = [], []
        for size in sizes:
            ids += [tokenizer.bos, *rng.integers(0, 93, size), tokenizer.end]
            ends.append(len(ids))
        np.asarray(ids, "<u2").tofile(folder / f"{name}.tokens")
        np.asarray(ends, "<i8").tofile(folder / f"{name}.ends")
        for suffix in ("tokens", "ends"):
            write_sums(folder / f"{name}.{suffix}")
        domains[name] = {"tokens": len(ids)}
    tokenizer.save(folder / "tokenizer")
    write_json(folder / "tokens.json", {"dtype": "uint16", "vocab_size": 98, "domains": domains})
    return folder


def test_bits_per_byte_of_a_uniform_model_is_log2_of_the_vocabulary(model, tokens):
    uniform = dataclasses.replace(model, params=jax.tree.map(np.zeros_like, model.params))
    got = bits_per_byte(uniform, tokens, row_length=32, batch_size=4)
    assert got == pytest.approx(math.log2(98), rel=1e-6)  # every ordinary token is one byte


def test_bits_per_byte_scores_documents_independently(model, tokens):
    """Rows long enough for everything: the sum of each document's own log-probabilities."""
    ids = np.fromfile(tokens / "heldout.tokens", "<u2").astype(np.int32)
    ends = np.fromfile(tokens / "heldout.ends", "<i8")
    nats = num_bytes = 0
    for start, end in zip(np.r_[0, ends[:-1]], ends):
        document = ids[start:end]
        inputs, targets = document[None, :-1], document[None, 1:]
        logps = np.asarray(logps_BL(model.params, inputs, targets, config=model.config,
                                    execution=model.execution))[0]
        nats -= logps[:-1].sum()  # all but <|end|>
        num_bytes += len(document) - 2
    longer = dataclasses.replace(model, context_tokens=200)
    got = bits_per_byte(longer, tokens, row_length=200, batch_size=2)
    assert got == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_bits_per_byte_does_not_depend_on_the_batch(model, tokens):
    got = [bits_per_byte(model, tokens, row_length=32, batch_size=b) for b in (1, 3, 8)]
    np.testing.assert_allclose(got, got[0], rtol=1e-6)


@pytest.mark.parametrize("measure", [
    lambda model, tokens: bits_per_byte(model, tokens, row_length=32, batch_size=1),
    lambda model, _: score_continuations(model, [Continuation((n,), (n,) * 60) for n in range(8)],
                                         batch_tokens=1),
    lambda model, _: complete(model, [[1, 2, 3]] * 3, Sampling(2), seed=0, batch_size=1),
], ids=["bits per byte", "choices", "answers"])
def test_a_measurement_can_be_left_before_each_batch(model, tokens, measure):
    class Left(Exception):
        """The measurement was to end."""

    calls = []

    def leave_at_third():
        calls.append(1)
        if len(calls) == 3:
            raise Left

    with pytest.raises(Left):
        measure(dataclasses.replace(model, between_batches=leave_at_third), tokens)
    assert len(calls) == 3


def test_unigram_and_xz_by_an_independent_count(tokens, tmp_path):
    train = np.fromfile(tokens / "pages.tokens", "<u2")
    heldout = np.fromfile(tokens / "heldout.tokens", "<u2")
    counts = {t: 1 + int(np.sum(train == t)) for t in range(93)}
    text = [int(t) for t in heldout if t < 93]
    bits = -sum(math.log2(counts[t] / sum(counts.values())) for t in text)
    assert unigram_bits_per_byte(tokens) == pytest.approx(bits / len(text))

    texts = ["a page about xz " * 40, "another page é"]
    write_documents(tmp_path / "heldout" / "part-0.parquet",
                    [Document(str(i), text, "s", "pages") for i, text in enumerate(texts)])
    packed = lzma.compress("".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME)
    assert xz_bits_per_byte(tmp_path) == 8 * len(packed) / len("".join(texts).encode())


def test_without_held_out_pages_there_are_no_bits_per_byte(model, tmp_path, capfd):
    write_json(tmp_path / "tokens.json", {"domains": {"pages": {"tokens": 9}}})
    got = _measure_bits(model, make_eval(), {"tokens": tmp_path})
    assert got == {"bpb": None, "unigram_bpb": None, "xz_bpb": None}
    assert "eval: the corpus holds no page out" in capfd.readouterr().err


def test_no_row_is_longer_than_those_of_training(model, tokens, capsys):
    short = dataclasses.replace(model, context_tokens=16, name="sft@1")
    want = bits_per_byte(model, tokens, row_length=16, batch_size=4)
    assert bits_per_byte(model, tokens, row_length=32, batch_size=4) != want
    assert not capsys.readouterr().err
    assert bits_per_byte(short, tokens, row_length=32, batch_size=4) == want
    assert capsys.readouterr().err.splitlines()[0] == (
        "bits per byte: rows of 16 tokens instead of 32, as sft@1 was trained on no longer ones")


@pytest.mark.parametrize("chat", [True, False])
def test_a_prompt_that_exceeds_the_context_is_refused_or_cut(model, capsys, chat):
    prompts = [[1, *range(2, 13)], [1] * 8, [1] * 9]
    short = dataclasses.replace(model, context_tokens=16, name="sft@1", chat=chat)
    found = complete(short, prompts, Sampling(8, temperature=0), seed=0, batch_size=4)
    rule = "refused" if chat else "cut"
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"warning: 2 of 3 prompts are {rule}: with answers of 8 tokens they exceed the context of "
        "sft@1, 16 tokens")
    assert [c.finish == "refused" for c in found] == [chat, False, chat]
    kept = complete(model, [[1, *range(6, 13)]], Sampling(8, temperature=0), seed=0, batch_size=4)
    assert (found[0].tokens == kept[0].tokens) == (not chat), "the first token and the newest"
    assert (found[0].text, found[0].num_cut) == (("", 0) if chat else (kept[0].text, 4))


def test_tokens_of_another_tokenizer_are_refused(model, tokens, tokenizer, tmp_path):
    check_tokenizer(tokens, tokenizer.fingerprint, "eval.tokens")
    ranks = {bytes([b]): i for i, b in enumerate(range(33, 126))}   # as many
    other = BytePairTokenizer(ranks)
    other.save(tmp_path / "tokenizer")
    save_model(tmp_path / "model", model.params, model.config, tmp_path / "tokenizer", chat=False,
               context_tokens=16)
    with pytest.raises(UserError, match=rf"eval.tokens=.*was made by tokenizer "
                       rf"{tokenizer.fingerprint}.*with {other.fingerprint}") as error:
        build(ConfigDict(dict(eval=make_eval())),
              {"model": tmp_path / "model", "tokens": tokens}, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_completions_do_not_depend_on_batching(model, temperature):
    questions = [ask(text) for text in ("ab", "a longer question", "c", "what is it?", "xyz")]
    prompts = make_prompts(model, questions)
    sampling = Sampling(max_new_tokens=8, temperature=temperature)
    together, in_twos = (complete(model, prompts, sampling, seed=0, batch_size=size)
                         for size in (4, 2))
    alone = [complete(model, [prompt], sampling, seed=0, batch_size=4)[0] for prompt in prompts]
    for found in (in_twos, alone):
        assert [c.tokens for c in found] == [c.tokens for c in together]
    assert len({c.text for c in together}) > 1


def test_the_same_prompt_twice_gets_two_samples(model):
    prompts = make_prompts(model, [ask("what is it?")] * 4)
    sampling = Sampling(max_new_tokens=8, temperature=1.0)
    drawn = [[c.text for c in complete(model, prompts, sampling, seed=seed, batch_size=4)]
             for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) > 1


def test_a_base_models_prompt_is_plain_text_with_solved_examples(model):
    tokenizer = bpe.train(["Question: Answer: One Two Three Yes No " * 20], Recipe(270))
    base = dataclasses.replace(model, tokenizer=tokenizer, chat=False)
    prompt, = make_prompts(base, [ask("Three?")], [ask("One?", "Yes."), ask("Two?", "No.")])
    assert tokenizer.decode(prompt) == (
        "<|bos|>Question: One?\nAnswer: Yes.\n\nQuestion: Two?\nAnswer: No.\n\n"
        "Question: Three?\nAnswer:")


def test_statistics():
    mean, stderr = mean_and_stderr([1, 0, 1, 1])
    assert mean == 0.75
    assert stderr == pytest.approx(0.5 / 2)
    rate, (low, high) = win_rate([1, 1, 0, 0.5], [0, 0, 0, 1])
    assert rate == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert low < rate < high
    assert 1 - win_rate([0, 0, 0, 1], [1, 1, 0, 0.5])[0] == pytest.approx(rate), "antisymmetric"


def test_a_base_model_is_asked_the_last_question_with_what_came_before():
    turns = Conversation((Message("system", "Be brief."), *ask("1 + 1?", "2").messages,
                          *ask("2 + 2?", "4").messages))
    prompt = render_plain([turns], question_of(turns), BYTES)
    before = "Be brief.\n\nQuestion: 1 + 1?\nAnswer: 2\n\nQuestion: 2 + 2?\nAnswer:"
    assert BYTES.decode(prompt) == f"<|bos|>{before} 4\n\n{before}"


def test_a_question_may_bring_its_own_prompt():
    question = ask("Which gas?", prompt="Q: Which gas?\nA:")
    assert BYTES.decode(render_plain([ask("a", "b")], question, BYTES)) == (
        "<|bos|>Q: Which gas?\nA:")
