"""The work of `scripts.bench.rl`: prompts of `scripts.bench.align_workload`, and their rewards.

Needs only numpy and the standard library, because the peer imports it in an environment where
Heartwood's packages need not be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

KL_COEF = 0.05
NUM_CHECKED = 2     # updates on the given answers: only the second one has a loss other than 0


def new_tokens(work: dict[str, Any]) -> int:
    """Tokens of every answer: half a row; a prompt is shorter than the other half."""
    return work["row_length"] // 2


def reward(tokens: Sequence[int]) -> float:
    """The share of an answer's tokens whose number is even."""
    return sum(token % 2 == 0 for token in tokens) / len(tokens)


def give_answers(work: dict[str, Any], num_prompts: int,
                 num_samples: int) -> list[tuple[list[int], list[int]]]:
    """The first prompts, each with answers that are the same on both sides: any pairs' ones.

    Returns:
        (prompt, answer), `num_samples` to each prompt, next to each other.
    """
    pairs = work["pairs"]
    answers = [pair[side] for pair in pairs for side in ("chosen", "rejected")]
    return [(pairs[prompt]["prompt"], answers[(2 * prompt + sample) % len(answers)])
            for prompt in range(num_prompts) for sample in range(num_samples)]
