"""A model that a stage asks: a folder or an endpoint, and what its tokens cost."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from core.errors import UserError
from eval.respond.endpoint import EndpointResponder, Retries
from eval.respond.loaded import load_model
from eval.respond.local import LocalResponder
from eval.respond.responder import Reply, Responder
from model.execution import make_execution
from model.generation.sampling import Sampling

RUN_FIELDS = ("batch_size", "num_connections", "timeout_secs", "max_retries", "backoff_secs",
              "prompt_price", "answer_price")
PRICED_TOKENS = 1_000_000       # a price is that of so many


def check_model(section: ConfigDict, name: str, model: str = "model",
                endpoint: str = "endpoint") -> None:
    """Raises `UserError` unless exactly one of a folder and an endpoint is set.

    Args:
        name: of the section, for the message.
        model, endpoint: the fields that name them.
    """
    if bool(section[model]) == bool(section[endpoint]):
        raise UserError(f"{name}.{model}={section[model]!r}, {endpoint}={section[endpoint]!r}",
                        "exactly one of them must be set", "set the other to \"\"")


def sampling_of(section: ConfigDict) -> Sampling:
    """How the answers of a section, or of a subsection, are drawn."""
    return Sampling(section.max_new_tokens, temperature=section.temperature, top_p=section.top_p)


def make_responder(section: ConfigDict, parents: Mapping[str, Path]) -> Responder:
    """What answers the prompts of a section: the model of its folder, or its endpoint."""
    run = section.run
    if "model" in parents:
        model = load_model(parents["model"], make_execution(section, also=RUN_FIELDS),
                           weights=section.weights)
        return LocalResponder(model, sampling_of(section), run.batch_size)
    return open_endpoint(section, sampling_of(section))


def open_endpoint(section: ConfigDict, sampling: Sampling, *, party: str = "",
                  fails: bool = True) -> EndpointResponder:
    """The endpoint of a section.

    Args:
        party: what the names of its fields begin with, as ``critic_``.
        fails: see `eval.respond.endpoint.Retries`.
    """
    run = section.run
    return EndpointResponder(
        section[f"{party}endpoint"], section[f"{party}endpoint_model"], sampling,
        key_variable=section[f"{party}key_variable"], num_connections=run.num_connections,
        retries=Retries(run.timeout_secs, run.max_retries, run.backoff_secs, fails))


def count_usage(replies: Sequence[Reply]) -> Counter[str]:
    """Requests and tokens of replies, as `KeptReplies` counts them."""
    counted = [reply.num_tokens or (0, 0) for reply in replies]
    return Counter(requests=len(replies), prompt_tokens=sum(num for num, _ in counted),
                   answer_tokens=sum(num for _, num in counted),
                   uncounted=sum(reply.num_tokens is None for reply in replies))


def add_cost(usage: Mapping[str, int], section: ConfigDict) -> dict[str, Any]:
    """Requests and tokens, and what they cost of an endpoint; see `cost_of`."""
    cost = cost_of(usage, section.run) if section.endpoint else 0.0
    return {"usage": dict(sorted(usage.items())), "cost": cost}


class Budget(NamedTuple):
    """What may be spent on an endpoint.

    Attributes:
        max_requests: 0 sets no limit.
        max_cost: in the currency of the prices; 0 sets no limit. The requests that are sent at
            once may exceed it.
        run: the subsection with the prices.
    """

    max_requests: int
    max_cost: float
    run: ConfigDict

    def allows(self, usage: Mapping[str, int]) -> int:
        """How many more requests may be sent, after those that were counted."""
        if self.max_cost and cost_of(usage, self.run) >= self.max_cost:
            return 0
        return max(self.max_requests - usage["requests"], 0) if self.max_requests else sys.maxsize


def cost_of(usage: Mapping[str, int], run: ConfigDict) -> float:
    """What the tokens of an endpoint cost, in the currency of the prices.

    Args:
        usage: requests, prompt_tokens, answer_tokens, and uncounted: the requests whose tokens are
            unknown, for which the cost is too low.
        run: the subsection with the prices.
    """
    return (usage["prompt_tokens"] * run.prompt_price
            + usage["answer_tokens"] * run.answer_price) / PRICED_TOKENS
