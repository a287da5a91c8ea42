"""The engine: a request's answer is its own, whatever else is answered; what is read is reused;
answers end where they should, and bad requests in one line."""

import dataclasses
import itertools
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from model.adapters.lora import Lora, abstract_lora, apply_lora, stack_adapters
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import forward, init
from model.generation import engine as engine_module
from model.generation import reading
from model.generation.engine import Engine
from model.generation.requests import (
    CANCELLED,
    LENGTH,
    NUM_STOPS,
    REFUSED,
    STOP,
    Budget,
    Request,
)
from model.generation.sampling import Sampling
from model.generation.weights import add_adapters, unstack
from model.heads.language import logits
from train.watch.compilation import Compilations

EXECUTION = Execution()
BASE = ModelConfig(V=31, D=16, N=2, H=4, G=2, K=4, F=24)
CHANGES = {"dense": dict(embed_previous=True),
           "window": dict(window=3, global_every=2),      # a layer holds 11 of 48 tokens
           "lstm": dict(family="lstm", positions="none")}
CAPACITY = 48
GREEDY, SAMPLED = Sampling(10, temperature=0), Sampling(10, temperature=1.5)
each_family = pytest.mark.parametrize("name", CHANGES)


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    """Pieces, shared beginnings and caches of the size of this file's prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECES", (4, 8))
        patch.setattr(reading, "MIN_SHARED_TOKENS", 4)
        patch.setattr(reading, "CALL_TOKENS", {"cpu": 8})
        patch.setattr(engine_module, "SMALLEST_SIZE", 16)
        yield


@cache
def make(name):
    """A model with random parameters: engines of it, and its full forward pass."""
    config = dataclasses.replace(BASE, **CHANGES.get(name, {}))
    execution = Execution(kv_cache="int8") if name == "int8" else EXECUTION
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32),
                          shapes)

    @jax.jit
    def full(tokens_BL):
        positions_BL = jnp.arange(tokens_BL.shape[1])[None]
        x_BLD = forward(params, tokens_BL, positions_BL, jnp.ones_like(tokens_BL), config=config,
                        execution=EXECUTION)
        return logits(params, x_BLD, config=config, execution=EXECUTION)[0]

    open_engine = partial(Engine, unstack(params, execution), config, execution,
                          capacity=CAPACITY)

    @cache
    def alone(request):
        """The answer of a new engine of one slot."""
        [completion] = open_engine(num_slots=1, budget=Budget(4)).run([request])
        return completion

    return SimpleNamespace(config=config, params=params, full=full, open=open_engine, alone=alone)


def _prompt(length, seed=0):
    return tuple(np.random.default_rng(seed).integers(0, BASE.V, length).tolist())


def _assert_same(found, expected):
    assert (found.tokens, found.finish) == (expected.tokens, expected.finish)
    np.testing.assert_allclose(found.logps, expected.logps, atol=1e-5)


@each_family
def test_greedy_answers_equal_a_loop_of_full_forward_passes(name):
    own = make(name)
    prompts = [_prompt(length, seed=length) for length in (1, 3, 9, 20, 38)]
    completions = own.open(num_slots=3).run([Request(prompt, GREEDY) for prompt in prompts])
    for prompt, completion in zip(prompts, completions):
        tokens = list(prompt)
        for token, logp in zip(completion.tokens, completion.logps, strict=True):
            padded_L = np.zeros((1, CAPACITY), int)
            padded_L[0, :len(tokens)] = tokens
            logits_V = np.asarray(own.full(padded_L))[len(tokens) - 1]
            assert token == logits_V.argmax()
            assert abs(logp - jax.nn.log_softmax(logits_V)[token]) < 1e-5
            tokens.append(token)
        assert len(completion.tokens) == 10 and completion.finish == LENGTH


def test_the_penalty_is_on_all_tokens_of_prompt_and_answer():
    own, penalty = make("dense"), 1.6
    engine = own.open(num_slots=2)
    shared = _prompt(14, seed=2)
    for prompt in (shared, (*shared, *_prompt(8, seed=3)), _prompt(3, seed=5)):
        [completion] = engine.run([Request(prompt, Sampling(
            10, temperature=0, repetition_penalty=penalty))])
        tokens = list(prompt)
        for token, logp in zip(completion.tokens, completion.logps, strict=True):
            padded_L = np.zeros((1, CAPACITY), int)
            padded_L[0, :len(tokens)] = tokens
            logits_V = np.array(own.full(padded_L)[len(tokens) - 1])
            assert abs(logp - jax.nn.log_softmax(logits_V)[token]) < 1e-5, "the model's own"
            seen = list(set(tokens))
            logits_V[seen] = np.where(logits_V[seen] > 0, logits_V[seen] / penalty,
                                      logits_V[seen] * penalty)
            assert token == logits_V.argmax()
            tokens.append(token)
    assert engine.counts["reused"] == 14


def test_seed_prompt_and_sample_each_give_other_draws():
    """Under a model without preferences, where an answer is nothing but its draws."""
    own = make("dense")
    flat = unstack(jax.tree.map(jnp.zeros_like, own.params), EXECUTION)
    engine = Engine(flat, own.config, EXECUTION, num_slots=2, capacity=CAPACITY)
    request = Request((1, 2, 3), Sampling(10))
    others = [request, *(dataclasses.replace(request, **change) for change in (
        dict(seed=1), dict(sample=1), dict(prompt=(1, 2, 4)), dict(prompt=(1, 2, 3, 3))))]
    answers = engine.run([*others, request])
    np.testing.assert_allclose(answers[0].logps, -np.log(BASE.V), atol=1e-5)
    assert answers[-1].tokens == answers[0].tokens
    for one, other in itertools.combinations(answers[:-1], 2):
        # Of ten independent draws out of 31, six are the same once in four million pairs.
        assert sum(a == b for a, b in zip(one.tokens, other.tokens)) < 6


def _random_request(rng):
    """Prompts share beginnings of any length; there are few settings, so that answers repeat."""
    base, shared = _prompt(24, seed=int(rng.integers(2))), int(rng.integers(0, 25))
    tail = _prompt(int(rng.integers(0 if shared else 1, 6)), seed=int(rng.integers(100)))
    kind = dict(temperature=float(rng.choice([0, 0, 0.8, 2.0])), top_k=int(rng.choice([0, 5])),
                top_p=float(rng.choice([1.0, 0.9])), min_p=float(rng.choice([0.0, 0.02])),
                repetition_penalty=float(rng.choice([1.0, 1.5])))
    return Request(base[:shared] + tail, Sampling(int(rng.integers(1, 12)), **kind),
                   stops=tuple(_prompt(int(rng.integers(0, 4)), seed=int(rng.integers(5)))),
                   seed=int(rng.integers(3)), sample=int(rng.integers(3)))


@pytest.mark.parametrize("name, num_slots, chunk_tokens, capacity, prefill_tokens", [
    ("dense", 2, 3, 48, 8), ("window", 3, 4, 48, None),
    *(pytest.param(*case, marks=pytest.mark.full) for case in (
        ("dense", 1, 4, 48, None), ("dense", 5, 7, 64, None), ("dense", 3, 1, 48, 16),
        ("int8", 3, 4, 48, None), ("lstm", 3, 2, 48, 4), ("window", 2, 4, 48, 8)))], ids=str)
def test_no_interleaving_changes_an_answer(name, num_slots, chunk_tokens, capacity,
                                           prefill_tokens):
    own, rng = make(name), np.random.default_rng(num_slots)
    engine = own.open(num_slots=num_slots, capacity=capacity,
                      budget=Budget(chunk_tokens, prefill_tokens))
    requests, finished, cancelled = {}, {}, set()
    for _ in range(80):
        action = rng.random()
        if action < 0.45 and len(requests) < 34:
            for _ in range(int(rng.integers(1, 4))):
                request = _random_request(rng)
                num_samples = int(rng.choice([1, 1, 3]))
                for sample in range(num_samples):
                    request = dataclasses.replace(request, sample=sample)
                    requests[engine.submit(request)] = request
        elif action < 0.55 and engine.is_running and len(cancelled) < len(requests) / 2:
            number = int(rng.choice(sorted(set(requests) - set(finished))))
            engine.cancel(number)
            cancelled.add(number)
        else:
            finished |= {number: completion for number, completion in engine.step().items()
                         if completion.finish}
    while engine.is_running:
        finished |= {number: completion for number, completion in engine.step().items()
                     if completion.finish}
    assert set(finished) == set(requests) and 1 < len(cancelled) < len(requests) * 2 / 3
    for number, request in requests.items():
        found, expected = finished[number], own.alone(request)
        length = len(found.tokens)
        if number in cancelled:
            assert found.finish == CANCELLED and length <= len(expected.tokens)
        else:
            assert (found.finish, length) == (expected.finish, len(expected.tokens)), request
            ends = [token in request.stops for token in found.tokens]
            assert not any(ends[:-1]) and ends[-1] == (found.finish == STOP), request
            assert ends[-1] or length == request.sampling.max_new_tokens, request
        assert found.tokens == expected.tokens[:length], request
        np.testing.assert_allclose(found.logps, expected.logps[:length], atol=1e-5)
    assert engine.counts["cancelled"] == len(cancelled)
    assert engine.counts["reused"] > 100 or name != "dense"
    assert {finished[number].finish for number in requests} == {STOP, LENGTH, CANCELLED}


@each_family
def test_a_longer_conversation_reads_only_what_is_new(name):
    own = make(name)
    engine = own.open(num_slots=2)
    first = Request(_prompt(12), Sampling(6, temperature=0))
    [answer] = engine.run([first])
    assert engine.counts == {"read": 12, "reused": 0, "drawn": 6}
    longer = Request((*first.prompt, *answer.tokens, 5, 6, 7), SAMPLED)
    _assert_same(*engine.run([longer]), own.alone(longer))
    # The answer's last token was drawn but not read.
    assert engine.counts["reused"] == 17 and engine.counts["read"] == 12 + 4
    other = Request((*first.prompt[:9], 1, 2, 3), SAMPLED)
    _assert_same(*engine.run([other]), own.alone(other))
    # A window or a state cannot go back to where the prompts part.
    can_rewind = name == "dense"
    shared = 9 + (first.prompt[9] == 1) if can_rewind else 0
    assert engine.counts["reused"] == 17 + shared
    _assert_same(*engine.run([other]), own.alone(other))
    assert engine.counts["reused"] == 17 + shared + (11 if can_rewind else 0)


def test_a_long_prompt_is_read_between_the_tokens_of_other_answers():
    own, long = make("dense"), Request(_prompt(38), GREEDY)
    engine = own.open(num_slots=2, budget=Budget(1, 8))
    first = engine.submit(Request(_prompt(4, seed=1), Sampling(12, temperature=0)))
    engine.step()
    second = engine.submit(long)
    lengths = []
    while engine.is_running:
        changed = engine.step()
        lengths.append(tuple(len(changed[number].tokens) if number in changed else 0
                             for number in (first, second)))
        if second in changed:
            found = changed[second]
    assert lengths[:5] == [(2, 0), (3, 0), (4, 0), (5, 0), (6, 1)], "8 tokens are read each time"
    _assert_same(found, own.alone(long))


def test_each_request_is_answered_with_its_adapter():
    own = make("dense")
    loras = [Lora(2, 4.0), Lora(3, 6.0, ("wq", "w_*"))]
    rng = np.random.default_rng(5)
    adapters = [jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32),
        abstract_lora(own.config, lora)) for lora in loras]
    adapted = [own.params, *(apply_lora(own.params, *pair) for pair in zip(adapters, loras))]
    requests = [Request(_prompt(9), SAMPLED, seed=seed, adapter=adapter)
                for seed, adapter in ((0, 1), (0, 0), (0, 2), (1, 1), (1, 0))]
    expected = [Engine(unstack(adapted[request.adapter], EXECUTION), own.config, EXECUTION,
                       num_slots=1, capacity=CAPACITY).run(
                           [dataclasses.replace(request, adapter=0)])[0] for request in requests]
    assert len({tuple(one.tokens) for one in expected}) == 5
    weights = add_adapters(unstack(own.params, EXECUTION),
                           stack_adapters([*zip(adapters, loras)]))
    engine = Engine(weights, own.config, EXECUTION, num_slots=3, capacity=CAPACITY)
    for found, one in zip(engine.run(requests), expected, strict=True):
        _assert_same(found, one)
    # Of the two that come later all but the last token, from those with their own adapter.
    assert engine.counts["reused"] == 16
    with pytest.raises(UserError, match=r"^adapter=3: the engine has 2"):
        engine.submit(dataclasses.replace(requests[0], adapter=3))
    with pytest.raises(UserError, match=r"^adapter=-1: must be"):
        Request((1,), SAMPLED, adapter=-1)


@each_family
def test_several_answers_to_one_prompt_read_it_once(name):
    own, engine = make(name), make(name).open(num_slots=4)
    requests = [Request(_prompt(20), SAMPLED, seed=3, sample=sample) for sample in range(4)]
    completions = engine.run([*requests])
    assert engine.counts["read"] == 20 and engine.counts["reused"] == 60
    for request, completion in zip(requests, completions):
        _assert_same(completion, own.alone(request))
    assert len({tuple(completion.tokens) for completion in completions}) == 4
    [other_seed] = engine.run([dataclasses.replace(requests[0], seed=4)])
    assert other_seed.tokens != completions[0].tokens


def test_answers_to_each_of_several_prompts_are_placed_together():
    engine = make("dense").open(num_slots=4)
    prompts = [_prompt(length, seed=length) for length in (3, 20, 7)]
    engine.run([Request(prompt, Sampling(6), seed=3, sample=sample)
                for prompt in prompts for sample in range(2)])
    assert engine.counts["read"] == engine.counts["reused"] == 3 + 20 + 7


def _letters(tokens):
    return "".join(chr(ord("a") + token) for token in tokens)


def _half_characters(tokens):
    """Even tokens begin a character of two bytes and odd ones end it."""
    return b"".join((b"\xc3", b"\xa9")[token % 2] for token in tokens).decode(errors="replace")


@pytest.mark.parametrize("chunk_tokens", [1, 4, 16])
def test_stop_texts_end_answers_wherever_they_come(chunk_tokens):
    own = make("dense")
    engine = own.open(num_slots=3, budget=Budget(chunk_tokens), to_text=_letters)
    whole = own.alone(Request(_prompt(6), SAMPLED)).tokens
    text = _letters(whole)
    assert len(set(text)) > 6, "the places below are the first of their kind"
    cases = {"never": ((text[0] * 11,), 10, text, LENGTH), "first": ((text[0],), 1, "", STOP),
             "spanning tokens": ((text[2:5],), 5, text[:2], STOP),
             "last": ((text[7:],), 10, text[:7], STOP),
             "several": (("~~", text[5:7], text[3:6]), 6, text[:3], STOP),
             "several at once": ((text[5], text[4:6]), 6, text[:4], STOP)}
    found = engine.run([Request(_prompt(6), SAMPLED, stop_texts=stops)
                        for stops, *_ in cases.values()])
    for completion, (_, count, kept, finish) in zip(found, cases.values()):
        assert completion.tokens == whole[:count] and len(completion.logps) == count
        assert (completion.text, completion.finish) == (kept, finish)
    # Its slot is free, and holds what the stop text cut off the answer too.
    assert engine.run([Request(_prompt(6), SAMPLED)])[0].text == text


def test_a_stop_text_of_several_bytes_and_a_stop_token_that_is_no_text():
    own = make("dense")
    request = Request(_prompt(6, seed=9), SAMPLED)
    whole = own.alone(request).tokens
    end = next(place for place in range(1, 10) if whole[place - 1] % 2 < whole[place] % 2)
    engine = own.open(num_slots=1, to_text=_half_characters)
    [found] = engine.run([dataclasses.replace(request, stop_texts=("é",))])
    assert found.tokens == whole[:end + 1] and found.finish == STOP
    assert found.text == _half_characters(whole[:end - 1])
    engine = own.open(num_slots=1, to_text=_letters)
    first = whole.index(whole[4])
    [found] = engine.run([dataclasses.replace(request, stops=(BASE.V - 1, whole[4]))])
    assert found.tokens == whole[:first + 1] and found.finish == STOP
    assert found.text == _letters(whole[:first])
    both = dataclasses.replace(request, stops=(whole[4],), stop_texts=(_letters(whole[:1]),))
    assert engine.run([both])[0].tokens == whole[:1], "whichever comes first"


def test_prompts_that_do_not_fit_are_refused_or_cut():
    own, prompt = make("dense"), _prompt(45)
    engine = own.open(num_slots=2, to_text=_letters)
    fits, refused, no_room = engine.run([
        Request(prompt, Sampling(3, temperature=0)), Request(prompt, Sampling(4)),
        Request(prompt[:1], Sampling(CAPACITY))])
    assert len(fits.tokens) == 3 and fits.finish == LENGTH
    for completion in (refused, no_room):
        assert completion.finish == REFUSED and completion.text == ""
        assert completion.tokens == completion.logps == []
    assert engine.counts["refused"] == 2 and engine.counts["read"] == 45
    engine, ask = own.open(num_slots=2), partial(Request, prompt, overlong="cut")
    whole, cut, no_room = engine.run([
        ask(Sampling(3)), ask(Sampling(9, temperature=0)), ask(Sampling(CAPACITY))])
    kept = Request(prompt[:1] + prompt[-38:], Sampling(9, temperature=0))
    assert cut.tokens == own.alone(kept).tokens and cut.num_cut == 6 and whole.num_cut == 0
    assert no_room.finish == REFUSED and engine.counts["cut"] == engine.counts["refused"] == 1


def test_a_cancelled_request_frees_its_slot_whenever_it_is_cancelled():
    own = make("dense")
    engine = own.open(num_slots=1, budget=Budget(2), to_text=_letters)
    drawn, waiting, last = (engine.submit(Request(_prompt(5, seed), SAMPLED))
                            for seed in range(3))
    whole = own.alone(Request(_prompt(5, 0), SAMPLED)).tokens
    assert engine.step()[drawn].tokens == whole[:2]
    engine.cancel(drawn)
    engine.cancel(waiting)
    engine.cancel(waiting)
    stepped = engine.step()
    assert stepped[drawn].finish == stepped[waiting].finish == CANCELLED
    assert stepped[drawn].tokens == whole[:2] and stepped[drawn].text == _letters(whole[:2])
    assert stepped[waiting].tokens == [] and len(stepped[last].tokens) == 2
    while engine.is_running:
        completion = engine.step()[last]
    assert completion.tokens == own.alone(Request(_prompt(5, 2), SAMPLED)).tokens
    engine.cancel(last)
    engine.cancel(10**6)
    assert engine.counts["cancelled"] == 2 and engine.step() == {} and not engine.is_running
    again = Request(_prompt(5, 0), SAMPLED)
    assert engine.run([again])[0].tokens == whole


@pytest.mark.parametrize("name", ["dense", "lstm"])
@pytest.mark.parametrize("ending", ["cancelled", "stop text"])
def test_a_slot_whose_answer_ended_early_holds_what_it_held_then(name, ending):
    """While another slot goes on, nothing more is drawn in it: its state can be continued."""
    own = make(name)
    engine = own.open(num_slots=2, budget=Budget(2), to_text=_letters)
    whole = own.alone(Request(_prompt(5), SAMPLED)).tokens
    text = (_letters(whole[:2]),) if ending == "stop text" else ()
    ended = engine.submit(Request(_prompt(5), SAMPLED, stop_texts=text))
    engine.submit(Request(_prompt(9, 7), Sampling(20, temperature=0)))
    assert engine.step()[ended].tokens == whole[:2]
    engine.cancel(ended)
    for _ in range(3):
        engine.step()
    longer = Request((*_prompt(5), *whole[:2], 3, 4), SAMPLED)
    number, reused = engine.submit(longer), engine.counts["reused"]
    completion = engine.step()[number]
    while not completion.finish:
        completion = engine.step().get(number, completion)
    _assert_same(completion, own.alone(longer))
    assert engine.counts["reused"] == reused + 7


@pytest.mark.parametrize("change, line", [
    (dict(prompt=()), "prompt: has no token: begin it with the tokenizer's bos"),
    (dict(stops=tuple(range(NUM_STOPS + 1))), "stops: 9 tokens: are more than 8: name fewer"),
    (dict(stop_texts=("a", "")), "a stop text: is empty, and would end every answer: leave it out"),
    (dict(overlong="crop"), "overlong='crop': is none of refuse, cut: choose one of them"),
    (dict(sample=-1), "sample=-1: must be a whole number from 0 to 2^32 - 1: number the samples "
                      "from 0 on"),
    (dict(sample=2**32), "sample=4294967296: must be a whole number from 0 to 2^32 - 1: number the "
                         "samples from 0 on"),
    (dict(seed=1.5), "seed=1.5: must be a whole number: choose another seed"),
    (dict(stops=(2, 2**31)), "stops=(2, 2147483648): must be whole numbers of 32 bits: name tokens "
                             "of the model"),
    (dict(prompt=(3, 1.5)), "prompt: has tokens that are no whole numbers: encode it with the "
                            "model's own tokenizer"),
    (dict(stop_texts=("a",)), "stop texts: need an engine that knows the text of tokens: make it "
                              "with to_text"),
    (dict(prompt=(3, 31)), "prompt: has tokens outside the vocabulary of 31: encode it with the "
                           "model's own tokenizer"),
    (dict(prompt=(3, -1)), "prompt: has tokens outside the vocabulary of 31: encode it with the "
                           "model's own tokenizer")], ids=str)
def test_a_bad_request_is_one_line_and_the_engine_goes_on(change, line):
    engine = make("dense").open(num_slots=1)
    with pytest.raises(UserError) as error:
        engine.submit(Request(**{"prompt": (1,), "sampling": GREEDY} | change))
    assert str(error.value) == line and not engine.is_running
    assert engine.run([Request((1,), GREEDY, stops=(-5, 99, *range(25, 31)))])[0].finish


@pytest.mark.parametrize("change", [{"num_slots": 0}, {"capacity": 1}, {"draw_tokens": 0},
                                    {"prefill_tokens": 0}], ids=str)
def test_an_impossible_engine_is_refused_in_one_line(change):
    [(name, value)] = change.items()
    if name in Budget._fields:
        change = {"budget": Budget(**change)}
    with pytest.raises(UserError, match=f"^{name}={value}: .*: choose another {name}$"):
        make("dense").open(**{"num_slots": 1} | change)


def test_other_settings_compile_nothing(monkeypatch):
    monkeypatch.setattr(engine_module, "SMALLEST_SIZE", 64)     # of the cache, a shape
    own = make("dense")
    engine = own.open(num_slots=2, capacity=40, budget=Budget(6), to_text=_letters)
    engine.run([Request(_prompt(7), GREEDY)])
    with Compilations() as compilations:
        engine.run([Request(_prompt(8, 1), Sampling(13, 0.7, 5, 0.9, 0.1), stops=(3, 4), seed=7)])
        engine.run([Request(_prompt(5, 2), Sampling(1, 1e-38))])
        engine.run([Request(_prompt(6, 3), Sampling(9, 2.0, top_p=0.3), sample=2)])
    assert not compilations.programs
    with Compilations() as compilations:    # besides small ones, of what is used the first time
        engine.run([Request(_prompt(8, 1), Sampling(13, 0.7, repetition_penalty=1.2),
                            stop_texts=("a", "b")) for _ in range(2)])
    assert set(compilations.programs) <= {"jit(mark_seen)", "jit(stop)", "jit(copy)"}


def _answer_all(engine, requests):
    """Completions of requests in their order, and the sizes that the cache had."""
    numbers, finished, sizes = [engine.submit(request) for request in requests], {}, []
    while engine.is_running:
        finished |= {number: completion for number, completion in engine.step().items()
                     if completion.finish}
        sizes.append(engine._size)
    return [finished[number] for number in numbers], sizes


@each_family
def test_the_cache_grows_and_shrinks_with_the_longest_answer_and_changes_none(name, monkeypatch):
    open_engine = partial(make(name).open, num_slots=2, budget=Budget(8), capacity=128)
    requests = [Request(_prompt(5), Sampling(40, 1.5, top_k=8)), Request(_prompt(7, 1), SAMPLED),
                Request(_prompt(60, 2), Sampling(12, temperature=0)),
                Request(_prompt(7, 1), Sampling(2))]
    engine = open_engine()
    one_by_one = [_answer_all(engine, [request]) for request in requests]
    assert [sizes[-1] for _, sizes in one_by_one] == [64, 32, 128, 16]
    assert one_by_one[0][1][0] == 16, "it grows as the answer does"
    # What an idle slot held beyond the smaller cache is read again.
    longer, counts = Request((*requests[2].prompt, 3), SAMPLED), engine.counts.copy()
    [found], _ = _answer_all(engine, [longer])
    assert (engine.counts - counts)["read"] == 61 and engine.counts["reused"] == counts["reused"]
    together, sizes = _answer_all(open_engine(), requests)
    assert set(sizes) > {16, 128}
    monkeypatch.setattr(engine_module, "SMALLEST_SIZE", 128)
    for request, ([alone], _), other in zip(requests, one_by_one, together):
        [expected], sizes = _answer_all(open_engine(), [request])
        assert set(sizes) == {128}
        _assert_same(alone, expected)
        _assert_same(other, expected)
    _assert_same(found, open_engine().run([longer])[0])
