"""Log-probabilities of continuations and the choices that are made by them."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from data.chat import ask, render
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.hub import make_tokenizer
from eval.measures.choices import (
    NORMALISATIONS,
    ChoiceScore,
    _follow,
    encode_pairs,
    score_choices,
)
from eval.measures.continuations import Continuation, score_continuations
from eval.measures.items import Asking, measure_task
from eval.respond.loaded import LoadedModel, keeping
from eval.tasks.task import Choice, Grade
from model.families.registry import forward, init
from model.heads.language import token_logps
from tests import hub_tokenizers as hub

# 93 ordinary tokens and 5 special ones: the 98 of the tiny model.
RANKS = {bytes([b]): i for i, b in enumerate([10, *range(32, 124)])}


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return BytePairTokenizer(RANKS)


@pytest.fixture(scope="module")
def model(params, config, execution, tokenizer) -> LoadedModel:
    return LoadedModel(params, config, execution, tokenizer, chat=False, context_tokens=64)


def _questions(rng, num, num_options):
    """Contexts that share a beginning, and options of several lengths."""
    shared = tuple(rng.integers(0, 93, 9))
    asked = []
    for _ in range(num):
        context = shared + tuple(rng.integers(0, 93, rng.integers(1, 8)))
        asked += [Continuation(context, tuple(rng.integers(0, 93, rng.integers(1, 5))))
                  for _ in range(num_options)]
    return asked


@partial(jax.jit, static_argnames=("config", "execution"))
def _logps_BL(params, tokens_BL, targets_BL, *, config, execution):
    positions_BL = jnp.arange(tokens_BL.shape[1])[None]
    how = {"config": config, "execution": execution}
    x_BLD = forward(params, tokens_BL, positions_BL, jnp.ones_like(tokens_BL), **how)
    return token_logps(params, x_BLD, targets_BL, **how)


def _alone(model, asked):
    """Log-probabilities by a plain forward pass over each text by itself, all of one shape."""
    found = []
    for context, tokens in asked:
        text, row = [*context, *tokens], np.zeros((1, 72), np.int32)
        row[0, :len(text)] = text
        logps_BL = _logps_BL(model.params, row[:, :-1], row[:, 1:], config=model.config,
                             execution=model.execution)
        found.append(float(np.sum(np.asarray(logps_BL)[0, len(context) - 1:len(text) - 1])))
    return found


@pytest.mark.parametrize("fields", [{}, {"embed_previous": True}, {"window": 5},
                                    {"positions": "learned", "max_positions": 80},
                                    {"positions": "relative", "relative_buckets": 8,
                                     "relative_distance": 32}], ids=str)
def test_scores_equal_those_of_each_text_alone(model, fields):
    """Whatever shares a row with it, in any order and any batch; models that cannot read trees
    score texts apart."""
    config = dataclasses.replace(model.config, **fields)
    model = dataclasses.replace(model, config=config, params=init(config, jax.random.key(0)))
    asked = _questions(np.random.default_rng(0), 12, 3)
    expected = _alone(model, asked)
    for batch_tokens in (1, 512):
        scored = score_continuations(model, asked, batch_tokens=batch_tokens)
        np.testing.assert_allclose([one.logp_nats for one in scored], expected, rtol=1e-5)
    back = score_continuations(model, asked[::-1] + asked[:3], batch_tokens=512)
    np.testing.assert_allclose([one.logp_nats for one in back], expected[::-1] + expected[:3],
                               rtol=1e-5)


def test_greedy_is_what_generation_would_say(model):
    context = (3, 1, 4)
    said = []
    for _ in range(3):
        scored = score_continuations(
            model, [Continuation(context, (*said, token)) for token in range(98)],
            batch_tokens=4096)
        said.append(int(np.argmax([one.logp_nats for one in scored])))
        assert [n for n, one in enumerate(scored) if one.is_greedy] == said[-1:]


def test_a_context_that_is_too_long_loses_its_beginning(model, capfd):
    asked = Continuation(tuple(range(90)), (1, 2))
    scored, = score_continuations(model, [asked], batch_tokens=512)
    kept = Continuation(asked.context[-63:], asked.tokens)
    np.testing.assert_allclose(scored.logp_nats, _alone(model, [kept])[0], rtol=1e-5)
    assert scored.is_cut
    assert "warning: 1 of 1 contexts are cut at their beginning" in capfd.readouterr().err
    with pytest.raises(UserError, match=r"^a continuation of 65 tokens: exceeds"):
        score_continuations(model, [Continuation((1,), (2,) * 65)], batch_tokens=512)


def test_numbers_that_are_not_finite_are_no_scores(model):
    broken = dataclasses.replace(model, params={**model.params, "final_norm_D":
                                                np.nan * model.params["final_norm_D"]})
    with pytest.raises(UserError, match="not finite in 1 of 1"):
        score_continuations(broken, [Continuation((1,), (2,))], batch_tokens=512)


def test_normalisations_are_those_of_their_definitions():
    """Options "no" and "maybe é", by hand; the second is longer in characters, bytes, tokens."""
    score = ChoiceScore(("",), (-2.0, -6.0), (1, 4), (2, 7), (2, 8), (False, False), (-1.0, -7.0),
                        (1,))
    expected = {"raw": False, "char": True, "byte": True, "token": True, "pmi": True}
    assert {name: score.is_right(name) for name in NORMALISATIONS} == expected
    np.testing.assert_allclose(score.compared("char"), [-1, -6 / 7])
    np.testing.assert_allclose(score.compared("byte"), [-1, -6 / 8])
    np.testing.assert_allclose(score.compared("token"), [-2, -1.5])
    np.testing.assert_allclose(score.compared("pmi"), [-1, 1])
    tie = dataclasses.replace(score, logps_nats=(-2.0, -2.0), answers=(1,))
    assert not tie.is_right("raw"), "of equal options the first is chosen"
    alone = ChoiceScore(("",), (-3.0,), (1,), (1,), (1,), (True,), (), (0,))
    assert alone.is_right("char") and alone.compared("pmi") is None


def test_options_follow_their_contexts_byte_for_byte(model, tokenizer):
    """Several contexts, one context, and a question that is asked as the model was taught."""
    several = Choice(ask("a"), (" cat sat", " cat sat"), 0, ("The big", "The small"))
    one = Choice(ask("b"), (" yes", " no"), 1, ("Question: is it?\nAnswer:",), "Answer:")
    taught = Choice(ask("Is it?"), ("yes", "no"), 1)
    scores = score_choices(model, [several, one, taught], batch_tokens=512)
    for number, context in enumerate(("The big", "The small")):
        asked = Continuation((tokenizer.bos, *tokenizer.encode(context)),
                             tuple(tokenizer.encode(" cat sat")))
        np.testing.assert_allclose(scores[0].logps_nats[number], _alone(model, [asked])[0],
                                   rtol=1e-5)
    baseline = [Continuation((tokenizer.bos, *tokenizer.encode("Answer:")),
                             tuple(tokenizer.encode(option))) for option in (" yes", " no")]
    np.testing.assert_allclose(scores[1].baseline_nats, _alone(model, baseline), rtol=1e-5)
    asked = [Continuation((tokenizer.bos, *tokenizer.encode("Question: Is it?\nAnswer:")),
                          tuple(tokenizer.encode(f" {option}"))) for option in ("yes", "no")]
    np.testing.assert_allclose(scores[2].logps_nats, _alone(model, asked), rtol=1e-5)
    assert scores[1].num_chars == (3, 2) and scores[1].num_bytes == (3, 2)


def test_a_question_with_an_option_beyond_the_context_is_left_out_and_counted(model, capfd):
    short, long = (Choice(ask("a"), (" yes", text), 0, ("Is it?",)) for text in (" no", " n" * 70))
    scores = score_choices(model, [long, short], batch_tokens=512)
    assert scores[0] is None and scores[1] == score_choices(model, [short], batch_tokens=512)[0]
    assert "1 of 2 questions are left out" in capfd.readouterr().err


def test_a_token_across_the_boundary_is_scored_once():
    """A tokenizer that joins ":" with what follows: the joint token belongs to the option."""
    ranks = {bytes([b]): b for b in range(256)} | {b": ": 256}
    joined = BytePairTokenizer(ranks, pattern=r"(?s).+")
    made, spaced, empty = encode_pairs(joined, [("a:", " b"), ("a: ", "b"), ("", "b")],
                                       [joined.bos])
    assert made == spaced == Continuation((joined.bos, ord("a")), (256, ord("b")))
    assert empty == Continuation((joined.bos,), (ord("b"),))
    with pytest.raises(UserError, match="adds no token"):
        encode_pairs(joined, [("a", "")], [joined.bos])


def test_a_measurement_goes_on_where_it_was_ended(model, tmp_path, capfd):
    """Each batch's scores are kept; what a kill left of a line is dropped; others are not asked."""
    asked = _questions(np.random.default_rng(3), 150, 3)
    plain = score_continuations(model, asked, batch_tokens=128)

    class Ended(Exception):
        """In the middle of a measurement."""

    calls = []

    def end_at_third():
        calls.append(1)
        if len(calls) == 3:
            raise Ended

    first = keeping(dataclasses.replace(model, between_batches=end_at_third), tmp_path)
    with pytest.raises(Ended):
        score_continuations(first, asked, batch_tokens=128)
    file, = tmp_path.rglob("scores.jsonl")
    num_kept = len(file.read_text().splitlines())
    assert 0 < num_kept < len(set(asked))
    with open(file, "a") as lines:
        lines.write('{"key": "half')
    assert score_continuations(keeping(model, tmp_path), asked, batch_tokens=128) == [
        pytest.approx(one, rel=1e-6) for one in plain]
    assert f"{num_kept} of {len(set(asked))} scores are known" in capfd.readouterr().err
    unused = dataclasses.replace(keeping(model, tmp_path), params=None)
    assert score_continuations(unused, asked, batch_tokens=64) == score_continuations(
        keeping(model, tmp_path), asked, batch_tokens=128)
    other = keeping(dataclasses.replace(model, context_tokens=32), tmp_path)
    score_continuations(other, asked[:1], batch_tokens=64)
    assert len(list(tmp_path.rglob("scores.jsonl"))) == 2, "another model's are apart"


class LiteralTask:
    name, stops, max_new_tokens = "other_form", ("\n",), 3

    def conversations(self, split, num, seed):
        return [ask("a", "b", task="form", family="f", prompt="Say b:")] * num

    def score(self, conversation, completion):
        return self.grade(conversation, completion).score

    def grade(self, conversation, completion):
        return Grade(0.5, completion, {"strict": 1.0})


def test_a_task_under_another_name_answers_all_its_questions(model):
    """As a benchmark in a form of its own is: the conversations keep the benchmark's name."""
    records, metrics = measure_task(model, LiteralTask(), 2, Asking())
    assert [record["score"] for record in records] == [0.5, 0.5]
    assert records[0]["prompt"] == "<|bos|>Say b:" and records[0]["task"] == "other_form"
    assert (metrics["acc"], metrics["strict"], metrics["items"]) == (0.5, 1.0, 2)
    assert all("\n" not in record["completion"] for record in records)


def test_literal_prompts_in_turns_are_asked_as_the_chat_model_was_taught(model):
    chat = dataclasses.replace(model, chat=True)
    alone = [score_choices(chat, [Choice(ask(text), ("c", "de"), 0)], batch_tokens=64)[0]
             for text in ("a b", "a x")]
    literal = Choice(ask("?"), (" c", " de"), 0, ("a b ",))
    [one] = score_choices(chat, [literal], batch_tokens=64, in_turns=True)
    assert one.logps_nats == pytest.approx(alone[0].logps_nats, rel=1e-5)
    assert one.contexts == alone[0].contexts != literal.contexts
    several = dataclasses.replace(literal, contexts=("a b", "a x"))
    [each] = score_choices(chat, [several], batch_tokens=64, in_turns=True)
    assert each.logps_nats == pytest.approx(
        [alone[0].logps_nats[0], alone[1].logps_nats[1]], rel=1e-5)
    assert each.contexts == (alone[0].contexts[0], alone[1].contexts[0])
    [as_text] = score_choices(chat, [literal], batch_tokens=64)
    assert abs(as_text.logps_nats[0] - one.logps_nats[0]) > 1e-3, "the template makes a difference"


def test_an_answer_to_a_literal_prompt_in_turns(model):
    chat = dataclasses.replace(model, chat=True)
    [record], _ = measure_task(chat, LiteralTask(), 1, Asking(in_turns=True))
    assert record["prompt"] == "<|bos|><|user|>Say b:<|end|><|assistant|>"
    with pytest.raises(UserError, match="is a base model, which no template was taught"):
        measure_task(model, LiteralTask(), 1, Asking(in_turns=True))


TURNS = "{% for message in messages %}{{ message.content + eos_token }}{% endfor %}"


@pytest.mark.parametrize("chat", [False, True])
def test_options_are_encoded_as_in_the_whole_text(chat):
    """A tokenizer of SentencePiece puts a space before a text, but not in its middle."""
    pytest.importorskip("tokenizers")
    tokenizer = make_tokenizer(hub.sentence_piece(), {"bos_token": "<s>", "eos_token": "</s>"},
                               template=TURNS if chat else "")
    question = Choice(ask("What is the cat?"), ("cat", "in the cat", "a 1"), 0)
    model = SimpleNamespace(tokenizer=tokenizer, chat=chat)
    for option, text in zip(_follow(model, question, []), question.choices):
        whole = (render(ask("What is the cat?", text), tokenizer)[0] if chat else
                 [tokenizer.bos, *tokenizer.encode(f"Question: What is the cat?\nAnswer: {text}")])
        ids = [*option.context, *option.tokens]
        assert whole[:len(ids)] == ids
        assert tokenizer.decode(option.tokens).strip() == text
