"""Speculative decoding: greedy tokens and sampled distributions are those of plain decoding."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from core.errors import UserError
from model.config import ModelConfig
from model.families.registry import forward, init
from model.generation.engine import Engine
from model.generation.generate import Ask, make_slots, prefill, start
from model.generation.requests import CANCELLED, LENGTH, STOP, Budget, Request
from model.generation.sampling import Sampling, adjust, stack_sampling
from model.generation.speculative import (
    DraftModel,
    PromptLookup,
    decode_drafted,
    look_up,
    make_draft_state,
    prefill_draft,
    start_draft,
)
from model.generation.weights import unstack
from model.heads.language import logits
from model.parallel.sharding import make_mesh, param_shardings

NUM_DRAFTED = 3
LONGEST = 2 * (1 + NUM_DRAFTED) + 1     # beyond two whole steps
GREEDY = Sampling(max_new_tokens=24, temperature=0)
DRAWN = Sampling(max_new_tokens=24, temperature=0.8, top_p=0.9)
KINDS = ("look-up", "itself", "random")


@pytest.fixture(scope="module")
def weights(params, execution):
    """The tiny model's weights for generation."""
    return unstack(params, execution)


@pytest.fixture(scope="module")
def kinds(weights, config, execution):
    """Speculation by name: look-up, and drafts of the model itself and of an unrelated one."""
    random = unstack(jax.jit(partial(init, config))(jax.random.key(1)), execution)
    return {"plain": None, "look-up": PromptLookup(NUM_DRAFTED, ngram=2),
            "itself": DraftModel(weights, config, NUM_DRAFTED),
            "random": DraftModel(random, config, NUM_DRAFTED)}


@pytest.fixture(scope="module")
def make_engine(weights, config, execution, kinds):
    """Makes an engine of one size with a kind of speculation."""
    def make(kind, **options):
        return Engine(weights, config, execution, num_slots=4, capacity=128, budget=Budget(8),
                      speculation=kinds[kind], **options)

    return make


@pytest.fixture(scope="module")
def prompts():
    """Prompts of different lengths, of few tokens so that n-grams recur."""
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(0, 6, length).tolist()) for length in (5, 1, 12, 33, 8, 3)]


@pytest.fixture(scope="module")
def plain(make_engine, prompts):
    """Greedy answers without speculation."""
    return make_engine("plain").run([Request(prompt, GREEDY) for prompt in prompts])


def check_draft_cache(engine, fresh, prompt, tokens, *, slot=0, window=128):
    """Asserts that a draft model holds of a slot's answer what it does in `fresh`, which reads the
    answer as a prompt."""
    fresh.run([Request((*prompt, *tokens[:-1]), Sampling(max_new_tokens=1))])
    ours, theirs = engine._state.draft.cache, fresh._state.draft.cache
    length = len(prompt) + len(tokens) - 1
    assert ours.length_B[slot] == theirs.length_B[0] == length
    held = np.arange(max(0, length - window + 1), length)
    for name, leaf in vars(ours).items():
        if name == "layers":
            for layer, other in zip(leaf, theirs.layers, strict=True):
                index = held % layer.k_BGMK.shape[2]
                for kind in ("k_BGMK", "v_BGMK"):
                    np.testing.assert_allclose(getattr(layer, kind)[slot][:, index],
                                               getattr(other, kind)[0][:, index], atol=1e-5)
        elif name != "states":
            np.testing.assert_allclose(leaf[slot], getattr(theirs, name)[0], atol=1e-5)


def check_same(completions, expected):
    """Asserts that answers end alike, with the same tokens and log-probabilities."""
    for ours, theirs in zip(completions, expected, strict=True):
        assert (ours.tokens, ours.finish) == (theirs.tokens, theirs.finish)
        np.testing.assert_allclose(ours.logps, theirs.logps, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_plain_decoding(kind, make_engine, prompts, plain):
    engine = make_engine(kind)
    check_same(engine.run([Request(prompt, GREEDY) for prompt in prompts]), plain)
    counts = engine.counts
    assert counts["drawn"] == sum(len(completion.tokens) for completion in plain)
    assert counts["drafted"] > 0
    if kind == "itself":
        assert counts["accepted"] == counts["drafted"]
    if kind == "look-up":
        assert counts["accepted"] > counts["drafted"] / 2   # greedy answers of this model repeat
    if kind == "random":
        assert counts["accepted"] < counts["drafted"] / 20


@pytest.mark.parametrize("kind", KINDS)
def test_answers_end_at_every_offset_inside_a_draft(kind, make_engine, prompts, plain):
    requests = [Request(prompts[n], dataclasses.replace(GREEDY, max_new_tokens=limit))
                for n in (2, 3) for limit in range(1, LONGEST + 1)]
    requests += [Request(prompts[n], GREEDY, stops=(97, plain[n].tokens[place]))
                 for n in (2, 3) for place in range(LONGEST)]
    expected = make_engine("plain").run(requests)
    assert {completion.finish for completion in expected} == {LENGTH, STOP}
    engine = make_engine(kind)
    check_same(engine.run(requests), expected)
    # What the slots hold afterwards is what they held of each answer, which further ones build on.
    longer = [Request((*prompts[3], *completion.tokens, 4, 5), GREEDY)
              for completion in expected[LONGEST:2 * LONGEST]]
    check_same(engine.run(longer), make_engine("plain").run(longer))
    assert engine.counts["reused"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_end_with_the_capacity(kind, make_engine, prompts):
    requests = [Request(prompts[3], dataclasses.replace(GREEDY, max_new_tokens=128 - 33)),
                Request(prompts[1], dataclasses.replace(GREEDY, max_new_tokens=128 - 1))]
    check_same(make_engine(kind).run(requests), make_engine("plain").run(requests))


@pytest.mark.parametrize("kind", ["look-up", "itself"])
def test_what_drafts_are_made_from_grows_and_shrinks_with_the_cache(kind, make_engine, prompts,
                                                                    monkeypatch):
    requests = [Request(prompts[n], dataclasses.replace(GREEDY, max_new_tokens=limit))
                for n, limit in ((2, 8), (3, 60), (2, 8), (3, 60))]
    fixed = make_engine(kind)
    expected = [fixed.run([request])[0] for request in requests]
    monkeypatch.setattr("model.generation.engine.SMALLEST_SIZE", 32)
    engine = make_engine(kind)
    check_same([engine.run([request])[0] for request in requests], expected)
    for name in ("drafted", "accepted"):
        assert engine.counts[name] == fixed.counts[name]


@pytest.mark.parametrize("kind", ["itself", "random"])
def test_a_draft_model_has_read_what_the_answer_keeps(kind, make_engine, prompts, plain):
    engine, fresh = make_engine(kind), make_engine(kind)
    answer = plain[3].tokens
    engine.run([Request(prompts[3], GREEDY)] * 2)   # the second slot's prompt is a copy
    assert engine.counts["reused"] == len(prompts[3])
    for slot in range(2):
        check_draft_cache(engine, make_engine(kind), prompts[3], answer, slot=slot)
    longer = (*prompts[3], *answer[:9], 1)          # of which a slot has read all but the last
    engine.run([Request(longer, GREEDY)])
    assert engine.counts["reused"] == len(prompts[3]) + len(longer) - 1
    answer = fresh.run([Request(longer, GREEDY)])[0].tokens
    check_draft_cache(engine, make_engine(kind), longer, answer)


@pytest.mark.parametrize("kind", ["look-up", "itself"])
def test_stop_texts_and_cancelled_requests_end_inside_a_draft(kind, make_engine, prompts, plain):
    def to_text(tokens):
        return "".join(f"{token}," for token in tokens)

    stop_text = to_text(plain[3].tokens[4:7])
    engines = [make_engine(name, to_text=to_text) for name in ("plain", kind)]
    for engine in engines:
        first = engine.submit(Request(prompts[0], GREEDY))
        cancelled = engine.submit(Request(prompts[2], GREEDY))
        finished = engine.step()
        engine.cancel(cancelled)
        while engine.is_running:
            finished |= engine.step()
        assert finished[first].tokens == plain[0].tokens
        assert finished[cancelled].finish == CANCELLED
        num_drawn = len(finished[cancelled].tokens)
        assert finished[cancelled].tokens == plain[2].tokens[:num_drawn]
    requests = [Request(prompts[3], GREEDY, stop_texts=(stop_text,)), Request(prompts[2], GREEDY)]
    expected, answers = (engine.run(requests) for engine in engines)
    check_same(answers, expected)
    assert answers[0].finish == STOP and answers[0].text == expected[0].text


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_drawn_inside_a_draft_are_penalised(kind, make_engine, prompts):
    requests = [Request(prompt, dataclasses.replace(GREEDY, repetition_penalty=penalty))
                for prompt, penalty in zip(prompts, (1.3, 1.05, 1, 1.1, 2, 1.02), strict=True)]
    check_same(make_engine(kind).run(requests), make_engine("plain").run(requests))


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_answers_do_not_depend_on_other_requests(kind, make_engine, prompts):
    requests = [Request(prompt, dataclasses.replace(DRAWN, temperature=temperature), seed=3,
                        sample=sample)
                for prompt, temperature in zip(prompts, (0.5, 0.8, 0, 1.0, 0.3, 0.7), strict=True)
                for sample in range(2)]
    expected = [completion.tokens for completion in make_engine(kind).run(requests)]
    order = np.random.default_rng(1).permutation(len(requests))
    mixed = make_engine(kind).run([requests[n] for n in order])
    assert [completion.tokens for completion in mixed] == [expected[n] for n in order]
    for n in (1, 6):
        assert make_engine(kind).run([requests[n]])[0].tokens == expected[n]


def test_a_sharded_mesh_draws_the_same(make_engine, prompts, params, config, execution):
    requests = [Request(prompt, settings) for prompt in prompts[2:5]
                for settings in (GREEDY, DRAWN)]
    whole = make_engine("itself")
    expected = whole.run(requests)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        weights = unstack(jax.device_put(params, param_shardings(params, mesh)), execution)
        engine = Engine(weights, config, execution, num_slots=4, capacity=128, budget=Budget(8),
                        speculation=DraftModel(weights, config, NUM_DRAFTED))
        check_same(engine.run(requests), expected)
    assert engine.counts == whole.counts


# A vocabulary whose distributions are counted in full. The prompt holds all its tokens, so that
# look-up always finds a draft.
SMALL = ModelConfig(V=8, D=16, N=1, H=2, G=1, K=8, F=32, embed_previous=True)
SMALL_PROMPT = (3, 1, 4, 7, 5, 2, 6, 0, 2, 3, 1, 0, 7, 7, 4, 6, 5, 0)
SETTINGS = (Sampling(temperature=1.0), Sampling(temperature=0.7, top_p=0.8),
            Sampling(temperature=1.5, top_k=5, repetition_penalty=1.5))
NUM_SAMPLES, NUM_TOKENS = 4096, 3


@pytest.fixture(scope="module")
def small(execution):
    """Parameters of two models whose distributions are neither flat nor alike."""
    def make(seed):
        params = jax.jit(partial(init, SMALL))(jax.random.key(seed))
        return {**params, "head_DV": 12 * params["head_DV"]}

    return [make(seed) for seed in range(2)]


@pytest.fixture(scope="module")
def exact(small, execution):
    """p_SXYZ of the first three tokens under each of `SETTINGS`, from the training forward."""
    beginnings = [beginning for length in range(NUM_TOKENS)
                  for beginning in np.ndindex((SMALL.V,) * length)]
    length = len(SMALL_PROMPT) + NUM_TOKENS
    tokens_BL = np.zeros((len(beginnings), length), np.int32)
    segment_ids_BL = np.ones_like(tokens_BL)
    for row, beginning in enumerate(beginnings):
        tokens = (*SMALL_PROMPT, *beginning)
        tokens_BL[row, :len(tokens)] = tokens
    positions_BL = np.tile(np.arange(length, dtype=np.int32), (len(beginnings), 1))
    x_BLD = jax.jit(partial(forward, config=SMALL, execution=execution))(
        small[0], tokens_BL, positions_BL, segment_ids_BL)
    last_B = np.array([len(SMALL_PROMPT) + len(beginning) - 1 for beginning in beginnings])
    logits_BV = logits(small[0], x_BLD, config=SMALL, execution=execution)[
        np.arange(len(beginnings)), last_B]
    seen_BV = jnp.ones(logits_BV.shape, bool)   # the prompt has all tokens
    tables = []
    for sampling in SETTINGS:
        rows = stack_sampling([sampling] * len(beginnings))
        p_BV = np.asarray(jax.nn.softmax(adjust(logits_BV, rows, seen_BV)), np.float64)
        first, second, third = np.split(p_BV, [1, 1 + SMALL.V])
        tables.append(first.reshape(-1, 1, 1) * second.reshape(SMALL.V, -1, 1)
                      * third.reshape(SMALL.V, SMALL.V, -1))
    return np.stack(tables)


def draw_small(speculation, small, execution):
    """The first three tokens of many samples under each of `SETTINGS`, and the counts."""
    weights, num_rows = unstack(small[0], execution), NUM_SAMPLES * len(SETTINGS)
    slots = make_slots(SMALL, execution, num_rows, 32, num_stops=1)
    slots = slots.replace(draft=make_draft_state(speculation, SMALL, execution, num_rows, 32),
                          seen_BV=jnp.ones((num_rows, SMALL.V), bool))
    rows_P = np.arange(num_rows)
    prompts_PM = np.tile(np.array(SMALL_PROMPT + (0,) * (32 - len(SMALL_PROMPT)), np.int32),
                         (num_rows, 1))
    read = prompts_PM[:, :len(SMALL_PROMPT)], np.full(num_rows, len(SMALL_PROMPT), np.int32)
    slots = prefill(weights, slots, rows_P, *read, config=SMALL, execution=execution)
    if isinstance(speculation, DraftModel):
        slots = prefill_draft(speculation, slots, rows_P, *read, execution=execution)
    seed_B3 = np.stack([rows_P % NUM_SAMPLES, 0 * rows_P, rows_P // NUM_SAMPLES], 1)
    sampling = stack_sampling([one for one in SETTINGS for _ in range(NUM_SAMPLES)])
    slots = start(slots, rows_P, Ask(
        sampling, seed_B3.astype(np.uint32), np.full((num_rows, 1), -1, np.int32),
        np.full(num_rows, NUM_TOKENS, np.int32), np.zeros(num_rows, np.int32)))
    slots = start_draft(slots, rows_P, prompts_PM)
    _, drawn, counts = decode_drafted(weights, speculation, slots, num_rows, config=SMALL,
                                      execution=execution, num_steps=NUM_TOKENS)
    assert (drawn.count_B == NUM_TOKENS).all()
    tokens_BT = np.asarray(drawn.tokens_BT)[:, :NUM_TOKENS]
    return tokens_BT.reshape(len(SETTINGS), NUM_SAMPLES, NUM_TOKENS), counts


@pytest.mark.parametrize("kind", ["look-up", "draft model"])
def test_sampled_tokens_have_the_distribution_of_plain_decoding(kind, small, exact, execution):
    speculation = PromptLookup(2, ngram=1) if kind == "look-up" else DraftModel(
        unstack(small[1], execution), SMALL, 2)
    tokens_SBT, counts = draw_small(speculation, small, execution)
    assert 0.1 < counts["accepted"] / counts["drafted"] < 0.9
    for tokens_BT, p_XYZ in zip(tokens_SBT, exact, strict=True):
        seen_XYZ = np.zeros_like(p_XYZ)
        np.add.at(seen_XYZ, tuple(tokens_BT.T), 1)
        assert not seen_XYZ[p_XYZ == 0].any()   # a token that the settings leave out
        # Of the first, of the second and third jointly, and of all three jointly.
        for left_out in ((1, 2), (0,), ()):
            expected = NUM_SAMPLES * p_XYZ.sum(left_out).ravel()
            seen = seen_XYZ.sum(left_out).ravel()
            is_rare = expected < 5      # too few for the approximation: one bin
            bins = [np.append(x[~is_rare], x[is_rare].sum()) for x in (seen, expected)]
            bins = [x[bins[1] > 0] for x in bins]
            bins[1] *= bins[0].sum() / bins[1].sum()    # float32
            assert stats.chisquare(*bins).pvalue > 1e-3


@pytest.mark.parametrize("tokens, ngram, num_tokens, expected", [
    ([1, 2, 3, 4, 1, 2], 2, 2, [3, 4]),
    ([1, 2, 3, 1, 2, 4, 1, 2], 2, 1, [4]),              # the newest of two
    ([1, 2, 3, 1, 2, 4, 1, 2], 2, 3, [4, 1, 2]),
    ([1, 2, 1], 1, 4, [2, 1, 2, 1]),                    # beyond the end it repeats itself
    ([5, 5, 5], 2, 4, [5, 5, 5, 5]),
    ([1, 2, 3, 9, 2, 3], 3, 2, None),                   # only a shorter one occurred
    ([1, 2, 3], 3, 2, None),                            # itself does not count
    ([7], 1, 2, None), ([7], 3, 2, None), ([1, 2], 3, 2, None),
])
def test_look_up_drafts_what_followed(tokens, ngram, num_tokens, expected):
    # What lies behind the tokens would match, and wrap around to the first ones.
    tokens_M = np.array([*tokens, *tokens, *tokens, 1, 2, 3], np.int32)
    drafted_J, is_found = look_up(tokens_M, len(tokens), num_tokens=num_tokens, ngram=ngram)
    assert is_found == (expected is not None)
    if is_found:
        assert drafted_J.tolist() == expected


def test_a_slot_begins_anew_and_leaves_others_as_they_are(execution):
    slots = make_slots(SMALL, execution, 3, 4, num_stops=1)
    state = make_draft_state(PromptLookup(), SMALL, execution, 3, 4)
    state = state.replace(refused_BV=state.refused_BV + 0.5)    # as a cancelled request leaves it
    prompts_PM = np.array([[1, 2, 3, 4], [5, 6, 7, 0], [5, 6, 7, 0]], np.int32)
    state = start_draft(slots.replace(draft=state), np.array([2, 3, 3]), prompts_PM).draft
    assert state.tokens_BM.tolist() == [[0] * 4, [0] * 4, [1, 2, 3, 4]]
    assert state.refused_BV.max(1).tolist() == [0.5, 0.5, 0]


# A window forgets tokens that a refused draft overwrote; an LSTM has only the newest state.
WINDOWED = ModelConfig(V=12, D=16, N=1, H=2, G=1, K=8, F=32, window=4)
LSTM = ModelConfig(V=12, D=16, N=1, H=1, G=1, K=8, F=16, family="lstm", positions="none")


@pytest.mark.parametrize("config, draft_config", [(WINDOWED, LSTM), (LSTM, WINDOWED)],
                         ids=["windowed", "lstm"])
def test_windows_and_recurrent_states_forget_refused_tokens(config, draft_config, execution,
                                                            prompts, monkeypatch):
    monkeypatch.setattr("model.generation.reading.PIECES", (8,))     # rings that wrap around
    weights, draft = (unstack(jax.jit(partial(init, one))(jax.random.key(2)), execution)
                      for one in (config, draft_config))
    speculation = DraftModel(draft, draft_config, NUM_DRAFTED)
    plain, looks_up, engine, fresh = (
        Engine(weights, config, execution, num_slots=1, capacity=64, budget=Budget(8),
               speculation=one)
        for one in (None, PromptLookup(NUM_DRAFTED, ngram=2), speculation, speculation))
    requests = [Request(prompt, GREEDY) for prompt in prompts[2:4]]
    expected = plain.run(requests)
    check_same(looks_up.run(requests), expected)
    check_same(engine.run(requests), expected)
    assert engine.counts["accepted"] < engine.counts["drafted"]
    check_draft_cache(engine, fresh, prompts[3], expected[1].tokens, window=WINDOWED.window)


@pytest.mark.parametrize("make, message", [
    (lambda: PromptLookup(num_tokens=0), "num_tokens=0"),
    (lambda: PromptLookup(num_tokens=65), "num_tokens=65"),
    (lambda: PromptLookup(ngram=0), "ngram=0"),
    (lambda: DraftModel({}, SMALL, num_tokens=0), "num_tokens=0"),
    (lambda: DraftModel({}, dataclasses.replace(SMALL, family="encoder", embed_previous=False)),
     "draft model: is an encoder"),
])
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_draft_model_of_another_vocabulary_is_refused(weights, config, execution):
    with pytest.raises(UserError, match="draft model: 8 tokens") as caught:
        Engine(weights, config, execution, num_slots=1, capacity=32,
               speculation=DraftModel({}, SMALL))
    assert "\n" not in str(caught.value)
