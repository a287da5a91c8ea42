"""Log-probabilities of continuations, each after its context; what contexts share is read once.

The tokens of all contexts and continuations form trees (`data.tokens.trees`): options of one
question share it, and questions behind the same solved examples share these. Rows have few lengths,
each of which is compiled once, and no score depends on what else is in its row or its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from core.errors import UserError
from core.progress import Progress, log
from data.tokens.trees import Trees, pack_trees
from eval.respond.kept import key_of
from eval.respond.loaded import LoadedModel
from model.config import ModelConfig
from model.execution import Execution
from model.families.decoder import without_capacity
from model.families.registry import Params, can_read_trees, forward, forward_tree
from model.flops import forward_flops_per_token
from model.heads.language import score_targets

# Attention over trees runs in plain XLA, which writes the scores of all pairs several times, and so
# takes as long as this many times its FLOPs (two cores of a CPU, 135M parameters, rows of 256 to
# 1,024 tokens).
ATTENTION_COST = 4.0
ROW_LENGTHS = (128, 256, 512, 1024, 2048, 4096)     # what is compiled, beside longer ones


class Continuation(NamedTuple):
    """Tokens whose log-probability is asked for, and those before them, at least one."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


class Scored(NamedTuple):
    """A model's score of a continuation.

    Attributes:
        logp_nats: sum of the log-probabilities of its tokens.
        is_greedy: whether each of them is the likeliest one at its place.
        is_cut: whether the context lost its beginning, because both exceed the model's context.
    """

    logp_nats: float
    is_greedy: bool
    is_cut: bool = False


class TreeBatch(NamedTuple):
    """Rows of trees, and S targets.

    Attributes:
        tokens_BL, positions_BL, ends_BL: see `data.tokens.trees.Trees`.
        place_S: index among B L of the token that predicts each target.
        target_S: ids of the targets.
        num_targets: how many of them count, from the first on.
    """

    tokens_BL: np.ndarray
    positions_BL: np.ndarray
    ends_BL: np.ndarray
    place_S: np.ndarray
    target_S: np.ndarray
    num_targets: int


def score_continuations(model: LoadedModel, asked: Sequence[Continuation], *,
                        batch_tokens: int) -> list[Scored]:
    """Scores continuations, in their order.

    Args:
        batch_tokens: that are computed at once; changes no score.

    Raises:
        UserError: a continuation by itself exceeds the model's context.
    """
    kept = model.scores
    keys = {one: key_of(*one) for one in dict.fromkeys(asked)}
    found = {one: Scored(**kept[key]) for one, key in keys.items()
             if kept is not None and key in kept}
    if found:
        kept.note_found(len(found), len(keys), "scores")
    for batch in _score_batches(model, [one for one in keys if one not in found], batch_tokens):
        if kept is not None:
            kept.add({keys[one]: scored._asdict() for one, scored in batch.items()})
        found |= batch
    num_faulty = sum(not np.isfinite(score.logp_nats) for score in found.values())
    if num_faulty:
        raise UserError(model.name or "the model", "gives log-probabilities that are not finite in "
                        f"{num_faulty} of {len(found)} continuations",
                        "look for the step at which its loss left the finite numbers")
    if num_cut := sum(score.is_cut for score in found.values()):
        log(f"warning: {num_cut} of {len(found)} contexts are cut at their beginning: with their "
            f"continuations they exceed the context of {model.name or 'the model'}, "
            f"{model.context_tokens} tokens")
    return [found[one] for one in asked]


def _fit(asked: Continuation, context_tokens: int) -> list[int]:
    """Context and continuation, without the oldest tokens that do not fit: the last token is only
    predicted, so one more than the context fits."""
    if not asked.context or not asked.tokens:
        raise UserError("a continuation", "has no token, or none before it", "leave its item out")
    if len(asked.tokens) > context_tokens:
        raise UserError(f"a continuation of {len(asked.tokens)} tokens",
                        f"exceeds the model's context of {context_tokens}", "leave its item out")
    return [*asked.context, *asked.tokens][-context_tokens - 1:]


def _pack(texts: Sequence[Sequence[int]], config: ModelConfig, shares: bool) -> Trees:
    """Rows of the length with which the least time is needed."""
    longest = max(map(len, texts))
    most = config.max_positions if config.positions == "learned" else max(longest, ROW_LENGTHS[-1])
    lengths = [length for length in ROW_LENGTHS if longest <= length <= most] or [most]

    def cost(trees: Trees) -> float:
        num_rows, row_length = trees.tokens_RL.shape
        alone, together = (forward_flops_per_token(config, length, "full")
                           for length in (1, row_length))
        return num_rows * row_length * (alone + ATTENTION_COST * (together - alone))

    return min((pack_trees(texts, length, shares=shares) for length in lengths), key=cost)


def _score_batches(model: LoadedModel, asked: Sequence[Continuation],
                   batch_tokens: int) -> Iterator[dict[Continuation, Scored]]:
    """Scores continuations, a batch of rows at a time."""
    if not asked:
        return
    texts = [_fit(one, model.context_tokens) for one in asked]
    shares = can_read_trees(model.config)
    trees = _pack([text[:-1] for text in texts], model.config, shares)
    num_rows, row_length = trees.tokens_RL.shape
    # Batches of one size, so that one program computes them, and as equal as their number allows.
    batch_size = -(-num_rows // -(-num_rows // max(1, batch_tokens // row_length)))
    config = without_capacity(model.config) if model.config.E else model.config
    order = np.argsort(trees.row_of, kind="stable")
    edges = np.searchsorted(trees.row_of[order], np.arange(num_rows + batch_size))
    with Progress("scores", len(asked), "continuations") as progress:
        for first in range(0, num_rows, batch_size):
            model.between_batches()
            picked = order[edges[first]:edges[first + batch_size]]
            batch = _lay_out(trees, [asked[n].tokens for n in picked], picked, first, batch_size)
            logp_S, greedy_S = jax.device_get(_score_rows(
                model.params, batch, config=config, execution=model.execution, shares=shares))
            scores, begin = {}, 0
            for n in picked:
                one, end = asked[n], begin + len(asked[n].tokens)
                scores[one] = Scored(float(np.sum(logp_S[begin:end], dtype=np.float64)),
                                     bool(np.all(greedy_S[begin:end])),
                                     len(texts[n]) < len(one.context) + len(one.tokens))
                begin = end
            yield scores
            progress.update(int(edges[first + batch_size]))


def _lay_out(trees: Trees, targets: Sequence[Sequence[int]], numbers: Sequence[int], first: int,
             batch_size: int) -> TreeBatch:
    """The batch of rows from `first` on, the last ones empty.

    Args:
        targets: of the texts of these numbers, which are all of the batch's rows.
    """
    row_length = trees.tokens_RL.shape[1]
    # A target is predicted by the token before it on its path, and the path lacks the last one.
    places = [(trees.row_of[n] - first) * row_length + trees.paths[n][-len(tokens):]
              for n, tokens in zip(numbers, targets)]
    place_S, target_S = np.concatenate(places), np.concatenate([*targets])
    size = batch_size * row_length
    size *= -(-len(place_S) // size)    # of more targets than tokens
    rows = [rows_RL[first:first + batch_size]
            for rows_RL in (trees.tokens_RL, trees.positions_RL, trees.ends_RL)]
    missing = batch_size - len(rows[0])
    return TreeBatch(*(np.pad(rows_BL, ((0, missing), (0, 0))) for rows_BL in rows),
                     *(np.pad(values, (0, size - len(place_S))) for values in (place_S, target_S)),
                     len(place_S))


@partial(jax.jit, static_argnames=("config", "execution", "shares"))
def _score_rows(params: Params, batch: TreeBatch, *, config: ModelConfig, execution: Execution,
                shares: bool) -> tuple[jax.Array, jax.Array]:
    """logp_S in nats of a batch's targets, and whether they are the likeliest tokens."""
    read = forward_tree if shares else forward
    x_BLD = read(params, batch.tokens_BL, batch.positions_BL, batch.ends_BL, config=config,
                 execution=execution)
    x_SD = x_BLD.reshape(-1, x_BLD.shape[-1])[batch.place_S]
    scored_S = jnp.arange(len(batch.place_S)) < batch.num_targets
    scores = score_targets(params, x_SD[None], batch.target_S[None], config=config,
                           execution=execution, scored_BL=scored_S[None])
    # The same subtraction as that of `logp_BL`, so that equal logits give equal numbers.
    return scores.logp_BL[0], (scores.logp_BL >= scores.top_logit_BL - scores.log_z_BL)[0]
