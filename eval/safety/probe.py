"""What a safety report is made of: probes, which ask a model and judge what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from eval.respond.loaded import LoadedModel
from eval.respond.responder import Reply
from eval.statistics import Estimate


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model that is probed.

    Attributes:
        name: for the report.
        respond: answers conversations: `respond(conversations, max_new_tokens, seed=0,
            temperature=0.0, top_p=1.0)` returns a `Reply` of each, in their order. A reply that was
            cut has the fault `truncated`, and its text counts; any other fault is a failure, never
            an answer.
        model: a loaded model, whose likelihoods can be read; None behind an endpoint.
        chat: whether it follows conversations.
    """

    name: str
    respond: Callable[..., list[Reply]]
    model: LoadedModel | None
    chat: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    """How every probe asks.

    Attributes:
        num: items of a probe, spread over its groups; 0 asks all.
        seed: of the choice of items, of sampled answers and of bootstraps.
        max_new_tokens: of an answer.
        batch_tokens: of likelihoods that are computed at once; changes no score.
        num_samples: of a bootstrap.
        files: paths by the name of their flag, those that were given.
    """

    num: int = 0
    seed: int = 0
    max_new_tokens: int = 128
    batch_tokens: int = 2048
    num_samples: int = 1000
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Section:
    """What a probe found.

    Attributes:
        name, title: e.g. "over_refusal", "Refusal of safe prompts".
        about: one or two sentences: what was asked, how it was judged, the source, its limits.
        estimates: by label, in the order of display ("full refusal, safe prompts").
        rows: a JSON object per item: id, group, prompt (text), reply, fault, verdict, and what else
            was measured.
        counts: items that are no part of the estimates, by the reason (never silently dropped).
    """

    name: str
    title: str
    about: str
    estimates: Mapping[str, Estimate]
    rows: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int]


class Probe(Protocol):
    """A function that asks a model and judges what it answers."""

    def __call__(self, subject: Subject, settings: Settings) -> Section:
        """Asks and judges.

        Raises:
            UserError: a file is damaged.
        """
