"""The programs of generation: prefill in pieces and decode equal the full forward pass, and leave
idle slots as they are to the bit."""

import dataclasses
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marks import some_in_full

from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import forward, init
from model.generation.cache import layer_capacity
from model.generation.generate import copy as copy_slot
from model.generation.generate import decode, make_slots, prefill, resize, rewind, start
from model.generation.sampling import Sampling, stack_sampling
from model.generation.weights import unstack
from model.heads.language import logits, token_logps

BASE = ModelConfig(V=31, D=16, N=2, H=4, G=2, K=4, F=24)
CHANGES = {
    "dense": dict(embed_previous=True, tied=True),
    "experts": dict(E=4, shared_experts=1),
    "window": dict(window=3),
    "local and global": dict(window=3, global_every=2, rope_local_theta=100.0, sinks=True),
    "relative": dict(positions="relative", relative_buckets=8, relative_distance=12),
    "relative, window": dict(positions="relative", relative_buckets=8, relative_distance=12,
                             window=3, global_every=2),
    "learned": dict(positions="learned", max_positions=24),
    "lstm": dict(family="lstm", positions="none"),
}
EXECUTION = Execution()
SLOTS, CAPACITY, PIECE, STEPS = 4, 24, 4, 4     # with a window of 3 a layer holds 7 tokens
GREEDY = Sampling(temperature=0)
@cache
def make(name):
    """A config, random parameters as generation reads them, and the full forward pass."""
    config = dataclasses.replace(BASE, **CHANGES[name])
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32),
                          shapes)

    @jax.jit
    def full(tokens_BL, targets_BL):
        """Next-token logits_BLV, and the log-probabilities of targets as training has them."""
        positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1])[None], tokens_BL.shape)
        x_BLD = forward(params, tokens_BL, positions_BL, jnp.ones_like(tokens_BL), config=config,
                        execution=EXECUTION)
        return (logits(params, x_BLD, config=config, execution=EXECUTION),
                token_logps(params, x_BLD, targets_BL, config=config, execution=EXECUTION))

    bound = dict(config=config, execution=EXECUTION)
    weights = unstack(params, EXECUTION)
    return SimpleNamespace(config=config, full=full, empty=partial(
        make_slots, config, EXECUTION, SLOTS, CAPACITY, num_stops=2, piece=PIECE),
        prefill=partial(prefill, weights, **bound),
        decode=partial(decode, weights, num_steps=STEPS,
                       is_allowed_BV=np.ones((SLOTS, config.V), bool), most=STEPS, **bound))


def _rows(slots, rows):
    """All that some slots consist of, on the host."""
    return [np.array(leaf)[rows] for leaf in jax.tree.leaves(slots)]


def _assert_same(found, expected):
    for leaf, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(leaf, other)


def _ask(slots, rows, limits, sampling=GREEDY, stops=(-1, -1)):
    padded = np.full(SLOTS, SLOTS, np.int32)
    padded[:len(rows)] = rows
    left_B = np.zeros(SLOTS, np.int32)
    left_B[:len(rows)] = limits
    ask = slots.ask.replace(
        sampling=stack_sampling([sampling] * SLOTS), left_B=left_B,
        seed_B3=np.arange(3 * SLOTS, dtype=np.uint32).reshape(SLOTS, 3),
        stops_BS=np.tile(np.array(stops, np.int32), (SLOTS, 1)), drawn_B=np.zeros(SLOTS, np.int32))
    return start(slots, padded, ask)


def _read(own, slots, tokens_BL, lengths, until, rng):
    """Reads all slots' tokens up to `until` in pieces of random length, some slots at a time."""
    while (lengths < until).any():
        for rows in (np.arange(SLOTS), rng.permutation(SLOTS)[:1]):
            count_P = np.minimum(rng.integers(0, PIECE + 1, len(rows)), until[rows] - lengths[rows])
            places_PL = np.minimum(lengths[rows][:, None] + np.arange(PIECE), CAPACITY - 1)
            idle = np.setdiff1d(np.arange(SLOTS), rows[count_P > 0])
            before = _rows(slots, idle)
            slots = own.prefill(slots, rows.astype(np.int32), np.take_along_axis(
                tokens_BL[rows], places_PL, 1), count_P.astype(np.int32))
            lengths[rows] += count_P
            _assert_same(_rows(slots, idle), before)
    return slots


@pytest.mark.parametrize("name", some_in_full(CHANGES, "dense", "local and global", "lstm"))
def test_prefill_in_pieces_and_decode_equal_the_full_forward(name):
    own, rng = make(name), np.random.default_rng(2)
    tokens_BL = rng.integers(0, own.config.V, (SLOTS, CAPACITY))
    lengths, prompts = np.zeros(SLOTS, int), np.array([15, 2, 11, 14])
    slots = _read(own, own.empty(), tokens_BL, lengths, prompts, rng)
    everything = np.arange(SLOTS)

    def check(slots):
        full_BLV, logps_BL = own.full(tokens_BL, np.roll(tokens_BL, -1, axis=1))
        np.testing.assert_allclose(slots.logits_BV, np.asarray(full_BLV)[everything, lengths - 1],
                                   atol=1e-4, rtol=1e-5)
        np.testing.assert_array_equal(slots.cache.length_B, lengths)
        if own.config.family != "lstm":
            np.testing.assert_array_equal(slots.cache.last_B, tokens_BL[everything, lengths - 1])
        return np.asarray(full_BLV), np.asarray(logps_BL)

    check(slots)
    left = np.zeros(SLOTS, int)
    # Slot 0 draws 6 tokens in two calls, slot 2 two, and two more while slot 1 draws 4.
    for rows, limits, temperature in (([0, 2], [6, 2], 0.0), ([2, 1], [2, 4], 3.0)):
        slots = _ask(slots, rows, limits, Sampling(temperature=temperature, top_k=4))
        left[rows] = limits
        idle = np.flatnonzero(left == 0)
        before = _rows(slots, idle)
        slots, drawn = own.decode(slots, num_idle=SLOTS)
        _assert_same(_rows(slots, idle), before)
        first, count = lengths - 1, np.minimum(left, STEPS)
        left -= count
        np.testing.assert_array_equal(drawn.count_B, count)
        np.testing.assert_array_equal(drawn.left_B, left)
        for row in np.flatnonzero(count):
            tokens_BL[row, lengths[row]:lengths[row] + count[row]] = drawn.tokens_BT[
                row, :count[row]]
            lengths[row] += count[row] - (left[row] == 0)   # an answer's last token is not read
        full_BLV, logps_BL = check(slots)
        for row in np.flatnonzero(count):
            places, answer = np.arange(first[row], first[row] + count[row]), slice(0, count[row])
            np.testing.assert_allclose(drawn.logps_BT[row, answer], logps_BL[row, places],
                                       atol=1e-5)
            if row == 0 or not temperature:
                np.testing.assert_array_equal(drawn.tokens_BT[row, answer],
                                              full_BLV[row, places].argmax(-1))


@pytest.mark.parametrize("name", some_in_full(
    ("dense", "local and global", "relative, window"), "dense"))
def test_a_cache_of_another_size_gives_the_same(name):
    own, rng = make(name), np.random.default_rng(3)
    tokens_PL = rng.integers(0, own.config.V, (SLOTS, PIECE))
    results = []
    for sizes in ((CAPACITY, CAPACITY), (8, 16), (CAPACITY, 12)):
        slots, count_P = own.empty(), np.array([4, 1, 3, 4], np.int32)
        for size in sizes:
            slots = resize(slots, config=own.config, capacity=size, piece=PIECE)
            slots = own.prefill(slots, np.arange(SLOTS), tokens_PL, count_P)
        slots, drawn = own.decode(_ask(slots, range(SLOTS), [4, 3, 4, 2]), num_idle=SLOTS)
        results.append((drawn, slots.cache.length_B, slots.logits_BV))
    for other in results[1:]:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), results[0], other)
    assert [layer.k_BGMK.shape[2] for layer in slots.cache.layers] == [
        layer_capacity(own.config, n, 12, PIECE) for n in range(2)]


@pytest.mark.parametrize("name", ["dense", "window"])
def test_keys_and_values_of_int8_give_nearly_the_same(name):
    own, rng = make(name), np.random.default_rng(4)
    tokens_PL = rng.integers(0, own.config.V, (SLOTS, PIECE))
    found = []
    for kv_cache in ("compute", "int8"):
        execution = Execution(kv_cache=kv_cache)
        slots = make_slots(own.config, execution, SLOTS, CAPACITY, num_stops=2, piece=PIECE)
        for _ in range(3):
            slots = own.prefill(slots, np.arange(SLOTS), tokens_PL, np.full(SLOTS, PIECE))
        found.append(np.asarray(slots.logits_BV))
    assert {leaf.dtype for leaf in jax.tree.leaves(slots.cache.layers)} == {
        np.dtype("int8"), np.dtype("float32")}
    error = np.linalg.norm(found[1] - found[0], axis=-1) / np.linalg.norm(found[0], axis=-1)
    assert (error > 1e-5).all() and (error < 0.03).all(), error


@pytest.mark.parametrize("name", ["dense", "window", "lstm"])
def test_a_copied_slot_goes_on_as_its_source_and_a_shorter_one_as_its_beginning(name):
    own, rng = make(name), np.random.default_rng(5)
    tokens_PL = rng.integers(0, own.config.V, (SLOTS, PIECE))
    slots = own.empty()
    for _ in range(3):      # twelve tokens
        slots = own.prefill(slots, np.arange(SLOTS), tokens_PL, np.full(SLOTS, PIECE))
    slots = copy_slot(slots, np.array([2, 1, 1]), np.array([0, 3, 2]), 1)     # the first alone
    slots, drawn = own.decode(_ask(slots, [0, 2], 4), num_idle=SLOTS)
    np.testing.assert_array_equal(drawn.tokens_BT[0], drawn.tokens_BT[2])
    np.testing.assert_array_equal(*_each(_rows((slots.cache, slots.logits_BV), [0, 2])))
    # Back to the first piece of slot 1; a window or a state that forgot it begins anew.
    at = PIECE if name == "dense" else 0
    slots = rewind(slots, np.array([1, SLOTS, SLOTS, SLOTS], np.int32),
                   np.full(SLOTS, at, np.int32), np.full(SLOTS, tokens_PL[1, -1] if at else -1),
                   np.zeros(SLOTS, np.int32))
    again = own.prefill(slots, np.array([1], np.int32), tokens_PL[1:2], np.array([PIECE]))
    np.testing.assert_array_equal(again.cache.length_B[1], at + PIECE)
    repeated_BL = np.tile(tokens_PL, (1, 6))[:, :CAPACITY]
    full_BLV, _ = own.full(repeated_BL, repeated_BL)
    np.testing.assert_allclose(again.logits_BV[1], full_BLV[1, at + PIECE - 1], atol=1e-4)


def _each(leaves):
    """The state of two slots, each as one vector."""
    return [np.concatenate([leaf[row].astype(float).ravel() for leaf in leaves])
            for row in (0, 1)]


def test_a_row_of_experts_with_a_capacity_does_not_depend_on_other_rows():
    """Experts drop choices when they are trained with a capacity, but none that is generated."""
    config = dataclasses.replace(make("experts").config, expert_capacity=0.5)
    own = make("experts")
    tokens_PL = np.random.default_rng(6).integers(0, config.V, (SLOTS, PIECE))
    tokens_PL[1:] = tokens_PL[:1]       # all choose the same experts
    count_P = np.full(SLOTS, PIECE, np.int32)
    limited = partial(own.prefill, config=config)
    slots = limited(own.empty(), np.arange(SLOTS), tokens_PL, count_P)
    free = own.prefill(own.empty(), np.arange(SLOTS), tokens_PL, count_P)
    np.testing.assert_allclose(slots.logits_BV, free.logits_BV, atol=1e-5)


@pytest.mark.parametrize("stop_at", [0, 2])
def test_a_stop_token_ends_an_answer_and_is_counted(stop_at):
    own = make("dense")
    tokens_PL = np.random.default_rng(7).integers(0, own.config.V, (SLOTS, PIECE))
    slots = own.prefill(own.empty(), np.arange(SLOTS), tokens_PL, np.full(SLOTS, PIECE))
    before = jax.device_get(slots)
    _, whole = own.decode(_ask(slots, [0, 3], 4), num_idle=SLOTS)
    stop = int(whole.tokens_BT[3, stop_at])
    expected = 1 + whole.tokens_BT[3].tolist().index(stop)
    slots, drawn = own.decode(_ask(jax.tree.map(jnp.asarray, before), [0, 3], 4,
                                   stops=(-1, stop)), num_idle=SLOTS)
    assert drawn.count_B[3] == expected and drawn.left_B[3] == 0
    np.testing.assert_array_equal(drawn.tokens_BT[3, :expected], whole.tokens_BT[3, :expected])
    assert slots.cache.length_B[3] == PIECE + expected - 1
    if stop not in whole.tokens_BT[0]:
        np.testing.assert_array_equal(drawn.tokens_BT[0], whole.tokens_BT[0])


@pytest.mark.parametrize("num_idle, counts", [(1, [1, 1, 1, 1]), (2, [1, 2, 2, 2]),
                                              (SLOTS, [1, 2, 4, 4])], ids=str)
def test_decoding_ends_once_so_many_slots_are_idle_and_goes_on_later(num_idle, counts):
    own = make("dense")
    tokens_PL = np.random.default_rng(8).integers(0, own.config.V, (SLOTS, PIECE))
    slots = own.prefill(own.empty(), np.arange(SLOTS), tokens_PL, np.full(SLOTS, PIECE))
    slots, drawn = own.decode(_ask(slots, range(SLOTS), [1, 2, 4, 5]), num_idle=num_idle)
    np.testing.assert_array_equal(drawn.count_B, counts)
    found = [drawn.tokens_BT[row, :count].tolist() for row, count in enumerate(counts)]
    while drawn.left_B.any():
        slots, drawn = own.decode(slots, num_idle=SLOTS)
        for row, count in enumerate(drawn.count_B):
            found[row] += drawn.tokens_BT[row, :count].tolist()
    assert list(map(len, found)) == [1, 2, 4, 5]
    for row, answer in enumerate(found):    # that of a full forward pass
        whole_BL = np.zeros((SLOTS, CAPACITY), int)
        whole_BL[0, :PIECE] = tokens_PL[row]
        whole_BL[0, PIECE:PIECE + len(answer)] = answer
        full_BLV, _ = own.full(whole_BL, whole_BL)
        assert answer == np.asarray(full_BLV)[0, PIECE - 1:].argmax(-1)[:len(answer)].tolist()
