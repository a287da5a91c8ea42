"""pass@k: the probability that at least one of k samples of a problem is right."""

from __future__ import annotations

import math
from collections.abc import Sequence

from core.errors import UserError


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) of one problem (arXiv 2107.03374, eq. 1).

    Args:
        num_samples: n, drawn of the problem.
        num_passed: c, of them.

    Raises:
        UserError: there are fewer than k samples, of which nothing can be said, or k is below 1.
        ValueError: not so many samples can have passed.
    """
    if not 1 <= k <= num_samples:
        raise UserError(f"pass@{k}", f"cannot be estimated from {num_samples} samples of a problem",
                        f"draw at least {max(k, 1)} of each, or choose k from 1 on")
    if not 0 <= num_passed <= num_samples:
        raise ValueError(f"{num_passed} of {num_samples} samples")
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """The mean of `pass_at_k` over problems, of each (samples, samples that passed).

    Raises:
        UserError: there is no problem, or one has fewer than k samples.
    """
    if not counts:
        raise UserError(f"pass@{k}", "has no problem to be estimated from", "score at least one")
    return math.fsum(pass_at_k(*count, k) for count in counts) / len(counts)
