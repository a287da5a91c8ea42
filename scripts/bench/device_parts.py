"""Speed of parts on the device at hand: attention, head, optimizer, generation.

Each measurement returns its figures as a row. Sizes are small on a CPU, where the figures only show
that the measurement runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from model.attention.backends import FASTEST_FIRST, attend_documents
from model.attention.kind import NO_EXTRAS, Kind
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import init, num_params
from model.generation.generate import Ask, decode, make_slots, prefill, start
from model.generation.sampling import Sampling, stack_sampling
from model.generation.weights import unstack
from model.heads.language import score_targets
from scripts.bench.train_step import OPTIMIZER, copy_bytes_per_sec
from scripts.bench.train_workload import VOCAB_SIZE, make_config
from train.optimizer.optimizers import make_optimizer

NUM_CALLS, NUM_ROUNDS = 10, 3
NO_STOP = -1    # a token that is never drawn

Row = dict[str, Any]


def call_secs(function: Callable, *args: Any) -> float:
    """Seconds of a call when several are queued, the fastest round; the first call compiles."""
    jax.block_until_ready(function(*args))
    rounds = []
    for _ in range(NUM_ROUNDS):
        began = time.perf_counter()
        for _ in range(NUM_CALLS):
            out = function(*args)
        jax.block_until_ready(out)
        rounds.append((time.perf_counter() - began) / NUM_CALLS)
    return min(rounds)


def _is_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _dtype() -> str:
    return "float32" if _is_cpu() else "bfloat16"


def _random(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def measure_attention(backend: str, head_size: int, num_documents: int) -> Row:
    """Causal attention, forward and backward; `library` is JAX's own cuDNN call, unpacked.

    FLOPs are those of all pairs below the diagonal, whatever the documents, with 2.5 times the
    forward pass for the backward pass, which repeats the scores.
    """
    rows, length, heads = (2, 256, 2) if _is_cpu() else (16, 2048, 1024 // head_size)
    q, k, v, dout = (_random(seed, (rows, length, heads, head_size), _dtype())
                     for seed in range(4))
    segments_BL = jnp.broadcast_to(1 + jnp.arange(length) * num_documents // length,
                                   (rows, length)).astype(jnp.int32)
    positions_BL = jnp.broadcast_to(jnp.arange(length) % -(-length // num_documents),
                                    (rows, length)).astype(jnp.int32)
    execution = Execution(compute_dtype=_dtype(),
                          attention="auto" if backend == "library" else backend)

    def attention(q, k, v):
        if backend == "library":
            return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
        return attend_documents(q, k, v, segments_BL, positions_BL, kind=Kind(head_size),
                                extras=NO_EXTRAS, execution=execution)

    forward = jax.jit(attention)
    both = jax.jit(lambda q, k, v, dout: jax.vjp(attention, q, k, v)[1](dout))
    flops = 2 * rows * heads * length**2 * head_size     # 4 B H L^2 K / 2
    forward_secs, both_secs = call_secs(forward, q, k, v), call_secs(both, q, k, v, dout)
    return {"shape": f"B={rows} L={length} H={heads} K={head_size}",
            "forward_tflops": flops / forward_secs / 1e12,
            "both_tflops": 3.5 * flops / both_secs / 1e12, "both_ms": both_secs * 1e3}


def measure_head(num_chunks: int) -> Row:
    """The head with its loss, forward and backward, at D=1024.

    FLOPs are the three products that are needed, without those of recomputation.
    """
    rows, width, vocab_size = (512, 64, 1024) if _is_cpu() else (32_768, 1024, VOCAB_SIZE)
    config = ModelConfig(V=vocab_size, D=width, N=1, H=1, G=1, K=2, F=1)
    execution = Execution(compute_dtype=_dtype(), loss_chunks=num_chunks)
    x_BLD = _random(0, (8, rows // 8, width), _dtype())
    weight_DV = _random(1, (width, vocab_size), "float32") / width**0.5
    targets_BL = jax.random.randint(jax.random.key(2), x_BLD.shape[:2], 0, vocab_size)

    def loss(x_BLD, weight_DV):
        return -jnp.mean(score_targets({"head_DV": weight_DV}, x_BLD, targets_BL, config=config,
                                       execution=execution).logp_BL)

    run = jax.jit(jax.grad(loss, argnums=(0, 1)))
    secs = call_secs(run, x_BLD, weight_DV)
    memory = run.lower(x_BLD, weight_DV).compile().memory_analysis()
    return {"shape": f"{rows} rows, D={width} V={vocab_size}", "ms": secs * 1e3,
            "tflops": 6 * rows * width * vocab_size / secs / 1e12,
            "temporaries_gb": memory.temp_size_in_bytes / 1e9}


def _config(size: str) -> ModelConfig:
    return make_config("tiny" if _is_cpu() else size)


def measure_optimizer(name: str) -> Row:
    """An optimizer's update of the parameters of 350M, as one compiled program.

    `gb_per_sec` counts what must be moved: parameters, gradient and first moment, and AdamW's
    second one, each read, and all but the gradient written.
    """
    optimizer = make_optimizer(ConfigDict(OPTIMIZER | {"name": name}), num_steps=10)
    config = _config("350M")
    params = jax.jit(partial(init, config))(jax.random.key(0))
    gradient = jax.tree.map(jnp.ones_like, params)
    opt_state = jax.jit(optimizer.init)(params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params, opt_state, gradient):
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return jax.tree.map(jnp.add, params, updates), opt_state

    secs = []
    for _ in range(1 + NUM_CALLS):
        began = time.perf_counter()
        params, opt_state = jax.block_until_ready(update(params, opt_state, gradient))
        secs.append(time.perf_counter() - began)
    num_moves = {"adamw": 7, "muon": 5}[name]   # p, m, v: read and written; g: read
    ms = 1e3 * min(secs[1:])
    return {"num_params": num_params(config), "ms": ms,
            "gb_per_sec": 4 * num_moves * num_params(config) / ms / 1e6}


def measure_generation(size: str, batch_size: int) -> Row:
    """Prefill of a prompt, and greedy decode steps after it, with weights in the compute dtype.

    `gb_per_sec` counts a decode step's necessary reads: every weight once but the embedding, and
    the keys and values of the positions that are filled; `copy_frac` is its share of what a copy
    reads and writes.
    """
    config, execution = _config(size), Execution(compute_dtype=_dtype())
    length, num_steps = (32, 8) if _is_cpu() else (1024, 128)
    params = jax.jit(lambda key: jax.tree.map(lambda leaf: leaf.astype(_dtype()),
                                              init(config, key)))(jax.random.key(0))
    params = unstack(params, execution)
    bound = {"config": config, "execution": execution}
    prompts_BL = jax.random.randint(jax.random.key(1), (batch_size, length), 0, config.V)
    rows_B, count_B = jnp.arange(batch_size), jnp.full(batch_size, length, jnp.int32)
    all_BV = jnp.ones((batch_size, config.V), bool)
    rounds = []
    for _ in range(1 + NUM_ROUNDS):     # the first one compiles
        slots = make_slots(config, execution, batch_size, length + num_steps, num_stops=1)
        began = time.perf_counter()
        slots = jax.block_until_ready(prefill(params, slots, rows_B, prompts_BL, count_B, **bound))
        read = time.perf_counter()
        slots = jax.block_until_ready(start(slots, rows_B, _ask_greedily(batch_size, num_steps)))
        started = time.perf_counter()
        jax.block_until_ready(decode(params, slots, batch_size, num_steps, all_BV,
                                     most=num_steps, **bound))
        rounds.append((read - began, (time.perf_counter() - started) / num_steps))
    prefill_secs, step_secs = map(min, zip(*rounds[1:]))
    item = jnp.dtype(_dtype()).itemsize
    num_read = num_params(config) - config.V * config.D
    num_cached = 2 * config.N * batch_size * (length + num_steps / 2) * config.G * config.K
    bytes_per_sec = item * (num_read + num_cached) / step_secs
    return {"shape": f"prompts of {length}", "batch_size": batch_size,
            "prefill_tokens_per_sec": batch_size * length / prefill_secs,
            "decode_tokens_per_sec": batch_size / step_secs, "step_ms": step_secs * 1e3,
            "gb_per_sec": bytes_per_sec / 1e9, "copy_frac": bytes_per_sec / copy_bytes_per_sec()}


def _ask_greedily(batch_size: int, num_tokens: int) -> Ask:
    sampling = stack_sampling([Sampling(num_tokens, temperature=0)] * batch_size)
    return Ask(sampling, np.zeros((batch_size, 3), np.uint32),
               np.full((batch_size, 1), NO_STOP, np.int32),
               np.full(batch_size, num_tokens, np.int32), np.zeros(batch_size, np.int32))


def list_parts() -> dict[str, dict[str, Callable[[], Row]]]:
    """The measurements, by the table that they belong to and by name."""
    backends = [*FASTEST_FIRST.get(jax.default_backend(), ("xla",))]
    if jax.default_backend() == "gpu":
        backends.insert(1, "library")
    attention = {f"{backend}, heads of {head_size}": partial(measure_attention, backend,
                                                             head_size, 1)
                 for head_size in (64, 128) for backend in backends}
    attention[f"{backends[0]}, heads of 128, 8 documents a row"] = partial(
        measure_attention, backends[0], 128, 8)
    return {
        "attention": attention,
        "head": {f"{count} chunks": partial(measure_head, count) for count in (1, 4, 16)},
        "optimizer": {name: partial(measure_optimizer, name) for name in ("adamw", "muon")},
        "generation": {f"{size}, batch {count}": partial(measure_generation, size, count)
                       for size in ("350M", "1.3B") for count in (1, 16)}}
