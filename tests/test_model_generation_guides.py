"""Answers that the host looks at: guides, the likeliest tokens, code that fails; and that warming
up compiles all that requests need."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.errors import UserError
from model.families.registry import forward
from model.generation import engine as engine_module
from model.generation import reading
from model.generation.engine import Engine
from model.generation.requests import FAILED, LENGTH, NUM_TOP, Budget, Request, RequestFailed
from model.generation.sampling import Sampling
from model.generation.speculative import PromptLookup
from model.generation.weights import unstack
from model.heads.language import logits
from train.watch.compilation import Compilations

CAPACITY = 24
SAMPLED, GREEDY = Sampling(9, temperature=1.3), Sampling(9, temperature=0)


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECES", (4, 8))
        patch.setattr(engine_module, "SMALLEST_SIZE", 16)
        yield


@pytest.fixture(scope="module")
def open_engine(params, config, execution):
    weights = unstack(params, execution)
    return lambda **how: Engine(weights, config, execution, **dict(
        num_slots=3, capacity=CAPACITY, budget=Budget(4)) | how)


@dataclasses.dataclass
class Alternating:
    """Allows even tokens and odd ones in turns, then fails where it is asked to."""

    num_tokens: int
    fails_at: int = -1
    taken: list = dataclasses.field(default_factory=list)

    def allowed(self):
        if len(self.taken) == self.fails_at:
            raise ValueError("planted")
        return np.arange(self.num_tokens) % 2 == len(self.taken) % 2

    def take(self, token):
        self.taken.append(token)


@pytest.fixture(scope="module")
def next_logits(params, config, execution):
    """logits_V of the token after some, from scratch and without a cache."""
    @jax.jit
    def run(tokens_BL):
        positions_BL = jnp.arange(tokens_BL.shape[1])[None]
        x_BLD = forward(params, tokens_BL, positions_BL, jnp.ones_like(tokens_BL), config=config,
                        execution=execution)
        return logits(params, x_BLD, config=config, execution=execution)[0]

    def find(tokens):
        padded_1L = np.zeros((1, 16), np.int32)
        padded_1L[0, :len(tokens)] = tokens
        return np.asarray(run(padded_1L))[len(tokens) - 1]

    return find


def test_a_guide_leaves_the_likeliest_of_what_it_allows(open_engine, next_logits, config):
    guide = Alternating(config.V)
    [found] = open_engine().run([Request((5, 6, 7), GREEDY, num_top=3, guide=guide)])
    tokens = [5, 6, 7]
    assert guide.taken == found.tokens and len(found.tops) == 9
    for place, (token, logp, top) in enumerate(zip(found.tokens, found.logps, found.tops)):
        logits_V = next_logits(tokens)
        logp_V = np.asarray(jax.nn.log_softmax(jnp.asarray(logits_V)))
        assert abs(logp - logp_V[token]) < 1e-5, "that of the model"
        likeliest = np.argsort(-logits_V)[:3]
        assert [one for one, _ in top] == likeliest.tolist()
        np.testing.assert_allclose([one for _, one in top], logp_V[likeliest], atol=1e-5)
        is_allowed_V = np.arange(config.V) % 2 == place % 2
        assert token == np.where(is_allowed_V, logits_V, -np.inf).argmax()
        tokens.append(token)


def test_guided_answers_change_no_other_ones(open_engine, config):
    """Nor does looking at each place change one, nor what else is answered a guided one."""
    plain = [Request((number, 1, 2), SAMPLED, seed=number) for number in range(4)]
    expected = [open_engine().run([request])[0] for request in plain]

    def guided():
        return Request((9, 1), SAMPLED, guide=Alternating(config.V))

    [alone] = open_engine().run([guided()])
    *found, beside = open_engine().run([*plain, guided()])
    looked = open_engine().run([dataclasses.replace(one, num_top=1) for one in plain])
    for one, other, third in zip(found, expected, looked):
        assert one.tokens == other.tokens == third.tokens and not one.tops
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-5)
    assert beside.tokens == alone.tokens
    assert [token % 2 for token in beside.tokens] == [0, 1] * 4 + [0]


def _run(engine, requests):
    """Completions of requests, and the exceptions of failed ones."""
    numbers, finished, faults = [engine.submit(request) for request in requests], {}, []
    while engine.is_running:
        try:
            changed = engine.step()
        except RequestFailed as error:
            faults.append(error.__cause__)
            continue
        finished |= {number: one for number, one in changed.items() if one.finish}
    return [finished[number] for number in numbers], faults


@pytest.mark.parametrize("where", ["at_the_end", "at_a_stop_text", "cancelled"])
def test_a_text_that_fails_ends_its_request_alone(open_engine, where):
    """The slot is free, and every other request is answered as before."""
    plain = [Request((number, 1, 2), SAMPLED, seed=number) for number in range(5)]
    expected = open_engine().run(plain)
    engine, bad = open_engine(), expected[1].tokens[0]

    def to_text(tokens):
        if [*tokens][:1] == [bad]:
            raise ValueError("planted")
        return "".join(chr(200 + token) for token in tokens)

    engine._to_text = to_text
    requests = [*plain]
    if where == "at_a_stop_text":
        requests[1] = dataclasses.replace(plain[1], stop_texts=("never",))
    if where == "cancelled":
        engine.submit(plain[1])
        engine.step()
        engine.cancel(0)
        with pytest.raises(RequestFailed):
            engine.step()
        [failed] = engine.step().values()
        assert failed.finish == FAILED and not engine.num_busy and not engine.is_running
        requests = [plain[0]]
    found, faults = _run(engine, requests)
    failed = [one for one in found if one.finish == FAILED]
    assert len(failed) == len(faults) == (where != "cancelled")
    for one, other in zip(found, expected):
        if one.finish != FAILED:
            assert one.tokens == other.tokens and one.finish == LENGTH
    assert engine.num_busy == 0
    again, _ = _run(engine, [plain[0]] * 3)
    assert [one.tokens for one in again] == [expected[0].tokens] * 3


@pytest.mark.parametrize("place", [0, 3])
def test_a_guide_that_fails_ends_its_request_alone(open_engine, config, place):
    plain = [Request((number, 1, 2), SAMPLED, seed=number) for number in range(4)]
    expected = open_engine().run(plain)
    engine = open_engine()
    bad = Request((9, 1), SAMPLED, guide=Alternating(config.V, fails_at=place))
    (failed, *found), faults = _run(engine, [bad, *plain])
    assert failed.finish == FAILED and [str(error) for error in faults] == ["planted"]
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    assert engine.num_busy == 0


@pytest.mark.parametrize("num_slots, capacity, pieces, lengths", [
    pytest.param(1, 64, (8,), (3, 50, 3, 20, 3, 3), marks=pytest.mark.full),    # three sizes
    (3, 24, (4, 8), (1, 3, 9, 15, 14, 5, 5))])
def test_warming_up_compiles_all_that_requests_need(open_engine, config, monkeypatch, num_slots,
                                                    capacity, pieces, lengths):
    monkeypatch.setattr(reading, "PIECES", pieces)
    how = dict(num_slots=num_slots, capacity=capacity)
    engine, rng = open_engine(**how), np.random.default_rng(0)
    engine.warm_up()
    requests = [Request(tuple(rng.integers(0, config.V, length).tolist()), sampling)
                for length in lengths for sampling in (GREEDY, Sampling(
                    7, 0.8, 5, 0.9, 0.1, repetition_penalty=1.2))]
    with Compilations() as compilations:
        found = engine.run(requests)
        engine.run([dataclasses.replace(requests[3], num_top=NUM_TOP), requests[5]])
        engine.run([Request((1, 2), GREEDY, guide=Alternating(config.V))])
        number = engine.submit(requests[0])
        engine.step()
        engine.cancel(number)
        engine.step()
    assert not compilations.programs
    cold = open_engine(**how).run(requests)
    assert [one.tokens for one in found] == [one.tokens for one in cold]


def test_what_drafting_does_not_know_is_refused(open_engine, config):
    engine = open_engine(speculation=PromptLookup(2))
    for change in (dict(num_top=1), dict(guide=Alternating(config.V))):
        with pytest.raises(UserError, match="where tokens are drafted"):
            engine.submit(Request((1,), GREEDY, **change))
    with pytest.raises(UserError, match="num_top=21"):
        Request((1,), GREEDY, num_top=NUM_TOP + 1)
