"""What a model's own probabilities say of texts it may have been trained on; never a verdict alone.

    loss        mean log-probability of the tokens, in nats
    min_k       mean of the lowest share K of them (Min-K % Prob, arXiv 2310.16789, equation 1)
    min_k_pp    the same of (logp - mu) / sigma, where mu and sigma are the mean and the standard
                deviation of log-probabilities under the model's next-token distribution
                (Min-K %++, arXiv 2404.02936, equations 3 and 4)

A higher score is that of a text that looks familiar: common texts do as well. The published areas
under the ROC curve lie near 0.6 on short texts, so that a single score decides nothing; an area
tells whether a set of texts looks more familiar than another set of the same kind and time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from core.errors import UserError
from data.batch import Batch
from eval.measures.packed import Piece, score_pieces
from eval.respond.loaded import LoadedModel
from eval.statistics import Z_95
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import Params, forward
from model.heads.language import logits

K = 0.2                 # share of a text's tokens
CHUNK_TOKENS = 256      # whose logits are held at once
MIN_SIGMA = 1e-5        # in nats
MEASURES = ("loss", "min_k", "min_k_pp")


class TokenScores(NamedTuple):
    """Of each token of a text, in nats: [num_tokens] each."""

    logp: np.ndarray
    mean: np.ndarray
    sigma: np.ndarray


def min_k(values: np.ndarray, share: float = K) -> float | None:
    """Mean of the lowest ``int(share * n)`` of n values; None where that is no value, as of a short
    text."""
    count = int(len(values) * share)
    return float(np.sort(values)[:count].mean(dtype=np.float64)) if count else None


def score_tokens(model: LoadedModel, texts: Sequence[str], *, batch_size: int,
                 ) -> list[TokenScores]:
    """The model's figures for the tokens of texts, of each as many as its context holds.

    Without a token of beginning, where the tokenizer adds none, the first has no score.
    """
    bos = [model.tokenizer.bos] * model.tokenizer.adds_bos
    pieces, longest = [], model.context_tokens
    for text in texts:
        ids = [*bos, *model.tokenizer.encode(text)][:longest + 1]
        pieces.append(Piece(np.array(ids, np.int32), max(len(ids) - 1, 0)))
    full = [piece for piece in pieces if piece.num_scored]
    found = iter(score_pieces(model, full, longest=longest, batch_size=batch_size,
                              score=_moments) if full else ())
    return [TokenScores(*(next(found).T if piece.num_scored else np.zeros((3, 0))))
            for piece in pieces]


@partial(jax.jit, static_argnames=("config", "execution"))
def _moments(params: Params, batch: Batch, *, config: ModelConfig,
             execution: Execution) -> jax.Array:
    """Log-probability of each target, and mean and standard deviation of the log-probability of a
    token drawn from the model: [B, L, 3], in nats."""
    x_BLD = forward(params, *batch.inputs, config=config, execution=execution)

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        x_D, target = pair
        logp_V = jax.nn.log_softmax(logits(params, x_D[None, None], config=config,
                                           execution=execution)[0, 0, :config.V])
        p_V = jnp.exp(logp_V)
        mean = jnp.sum(p_V * logp_V, where=p_V > 0)
        variance = jnp.sum(p_V * jnp.square(logp_V - mean), where=p_V > 0)
        return jnp.stack([logp_V[target], mean, jnp.sqrt(variance)])

    rows = x_BLD.reshape(-1, x_BLD.shape[-1]), batch.targets_BL.reshape(-1)
    return jax.lax.map(one, rows, batch_size=CHUNK_TOKENS).reshape(*batch.targets_BL.shape, 3)


def membership_scores(tokens: TokenScores, share: float = K) -> dict[str, float | None]:
    """The scores of `MEASURES` of a text; None where it is too short for one."""
    # Of a uniform distribution the deviation is but rounding.
    sigma = np.where(tokens.sigma > MIN_SIGMA, tokens.sigma, 1)
    standard = (tokens.logp - tokens.mean) / sigma
    return {"loss": float(np.mean(tokens.logp, dtype=np.float64)) if len(tokens.logp) else None,
            "min_k": min_k(tokens.logp, share), "min_k_pp": min_k(standard, share)}


def compare_sets(members: Sequence[dict[str, float | None]],
                 nonmembers: Sequence[dict[str, float | None]]) -> dict[str, Any]:
    """The area under the ROC curve of each measure, and how many texts were too short for it."""
    found = {}
    for name in MEASURES:
        sides = [[row[name] for row in rows if row[name] is not None]
                 for rows in (members, nonmembers)]
        found[name] = auroc(*sides) | {
            "too_short": len(members) + len(nonmembers) - len(sides[0]) - len(sides[1])}
    return found


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> dict[str, Any]:
    """The probability that a positive has the higher score than a negative, ties counting half.

    Returns:
        `value` with its 95 % interval `low` to `high` by the variance of DeLong et al. (Biometrics
        44, 1988), None where a side has one value; `positives` and `negatives`, how many.

    Raises:
        UserError: a side has no value.
    """
    if not (len(positives) and len(negatives)):
        raise UserError("--members, --nonmembers", "one of them holds no text that is long enough",
                        "name texts of at least a few dozen words")
    m, n = len(positives), len(negatives)
    ranks = stats.rankdata([*positives, *negatives])
    above = (ranks[:m] - stats.rankdata(positives)) / n         # of the negatives, each positive
    below = 1 - (ranks[m:] - stats.rankdata(negatives)) / m
    value, low, high = float(above.mean()), None, None
    if m > 1 and n > 1:
        half = Z_95 * float(np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n))
        low, high = max(value - half, 0.0), min(value + half, 1.0)
    return {"value": value, "low": low, "high": high, "positives": m, "negatives": n}


def score_texts(model: LoadedModel, texts: Iterable[str], *,
                batch_size: int) -> list[dict[str, float | None]]:
    """`membership_scores` of each text."""
    return [membership_scores(tokens)
            for tokens in score_tokens(model, list(texts), batch_size=batch_size)]
