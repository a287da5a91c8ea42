"""What a stage measures while it trains: means over held-out examples, and sampled answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from core.progress import log
from data.batch import Batch, stack
from data.chat import Conversation
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.examples import PackedRows
from eval.respond.loaded import LoadedModel
from eval.respond.local import complete, make_prompts
from model.families.registry import Params
from model.generation.sampling import Sampling
from train.loss import Metrics
from train.setup import Setup
from train.signals import leave_if_stopping
from train.step import place_batch

# `evaluate(params) -> {name: value}` on a whole model's parameters.
Evaluate = Callable[[Params], dict[str, Any]]
SAMPLE_TOKENS = 64


def heldout_means(loss_fn: Callable[..., tuple[jax.Array, Metrics]],
                  batches: Callable[[], Iterable[Any]], setup: Setup,
                  names: Sequence[str] = ()) -> Evaluate:
    """An evaluation: the means of a loss's metrics over fixed batches, as `heldout_NAME`.

    Args:
        loss_fn: see `train.loss`.
        batches: gives the batches anew at each call, all of one shape; what fills the last one has
            weight 0.
        names: of the metrics; none takes all.
    """
    @jax.jit
    def sums_of(params: Params, batch: Any) -> Metrics:
        return loss_fn(params, batch, config=setup.config, execution=setup.execution,
                       key=jax.random.key(0))[1]

    def evaluate(params: Params) -> dict[str, float]:
        found: list[Metrics] = []
        with jax.set_mesh(setup.mesh):
            for batch in batches():
                leave_if_stopping()
                found.append(sums_of(params, place_batch(batch, setup.mesh)))
        totals = jax.tree.map(lambda *sums: np.sum(sums, dtype=np.float64), *jax.device_get(found))
        return {f"heldout_{name}": float(total / max(weight, 1e-9))
                for name, (total, weight) in totals.items() if not names or name in names}

    return evaluate


def padded_batches(rows: PackedRows, batch_size: int) -> Iterable[Batch]:
    """All rows in batches of one size; the last is filled with rows of weight 0."""
    for first in range(0, len(rows), batch_size):
        picked = [rows[i] for i in range(first, min(first + batch_size, len(rows)))]
        empty = picked[0].replace(loss_weights_BL=np.zeros_like(picked[0].loss_weights_BL))
        yield stack(picked + [empty] * (batch_size - len(picked)))


def sampled_answers(prompts: Sequence[Conversation], tokenizer: Tokenizer, setup: Setup,
                    context_tokens: int) -> Evaluate:
    """An evaluation: greedy answers to fixed prompts, as `sample/1` and so on; logged as well."""
    def evaluate(params: Params) -> dict[str, str]:
        model = LoadedModel(params, setup.config, setup.execution, tokenizer, True, context_tokens,
                            between_batches=leave_if_stopping)
        completions = complete(model, make_prompts(model, prompts),
                               Sampling(SAMPLE_TOKENS, temperature=0.0), seed=0,
                               batch_size=len(prompts))
        texts = {f"sample/{n}": completion.text or ""
                 for n, completion in enumerate(completions, start=1)}
        for prompt, text in zip(prompts, texts.values()):
            log(f"sample: {prompt.messages[-1].content[:60]!r} -> {text[:120]!r}")
        return texts

    return evaluate


def joined(evaluations: Sequence[Evaluate]) -> Evaluate | None:
    """All evaluations as one; None of none."""
    def evaluate(params: Params) -> dict[str, Any]:
        return {name: value for one in evaluations for name, value in one(params).items()}

    return evaluate if evaluations else None
