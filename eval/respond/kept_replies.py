"""Replies that are kept in a file as they come, so that no prompt is sent twice."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.progress import Progress
from eval.respond.endpoint import UNREACHABLE
from eval.respond.kept import Kept, key_of
from eval.respond.responder import Prompt, Reply, Responder, as_conversation
from model.generation.sampling import Sampling

OVER_BUDGET = "over_budget"     # fault of a reply that was not asked for


class KeptReplies:
    """A `Responder` that keeps the replies of another one.

    Equal prompts with the same seed are one request. What was unreachable or beyond the budget is
    not kept: it is asked again the next time.

    Args:
        responder: which answers what is not known yet.
        sampling: its settings, on which replies depend.
        folder: of the files.
        label: names the replies in the log and their file.
        chunk_prompts: sent at once; where all of a chunk are rejected, the run ends.
        allows: how many more prompts may be sent after what was used; None sends all. The others
            have the fault ``over_budget``.

    Attributes:
        usage: requests, prompt_tokens and answer_tokens of all that was asked, now or before, and
            uncounted, the requests whose tokens are unknown.
    """

    def __init__(self, responder: Responder, sampling: Sampling, folder: Path, label: str,
                 chunk_prompts: int, allows: Callable[[Mapping[str, int]], int] | None = None):
        self._responder, self._label, self._chunk_prompts = responder, label, chunk_prompts
        self._allows = allows
        self.name = responder.name
        self._kept = Kept(folder, {"name": self.name, "sampling": dataclasses.asdict(sampling)},
                          label)
        self._counted: set[str] = set()
        self.usage: Counter[str] = Counter()

    def respond(self, prompts: Sequence[Prompt], seed: int,
                keep: Callable[[int, Reply], None] | None = None) -> list[Reply]:
        """Sends the prompts without a kept reply; see `Responder`.

        Raises:
            UserError: every prompt of a chunk was rejected, or a request failed for good.
        """
        keys = [key_of(str(seed), json.dumps(as_conversation(prompt).to_dict()["messages"]))
                for prompt in prompts]
        unknown = {key: prompt for key, prompt in zip(keys, prompts) if key not in self._kept}
        num_known = len(set(keys)) - len(unknown)
        self._kept.note_found(num_known, len(set(keys)), f"{self._label} replies")
        for key in set(keys) - set(unknown):
            self._count(key, _read(self._kept[key]))
        lost = self._send(unknown, seed)
        replies = [lost[key] if key in lost else _read(self._kept[key]) for key in keys]
        for number, reply in enumerate(replies if keep is not None else ()):
            keep(number, reply)
        return replies

    def _send(self, prompts: Mapping[str, Prompt], seed: int) -> dict[str, Reply]:
        """Sends prompts by their keys, and keeps the replies; returns those that are not kept."""
        keys, lost, first = list(prompts), {}, 0
        with Progress(self._label, len(keys), "replies") as progress:
            while first < len(keys):
                num = self._chunk_prompts if self._allows is None else min(
                    self._chunk_prompts, self._allows(self.usage))
                if num < 1:
                    return lost | dict.fromkeys(keys[first:], Reply("", OVER_BUDGET))
                lost |= self._send_chunk({key: prompts[key] for key in keys[first:first + num]},
                                         seed)
                first += num
                progress.update(min(first, len(keys)))
        return lost

    def _send_chunk(self, prompts: Mapping[str, Prompt], seed: int) -> dict[str, Reply]:
        keys, lost = list(prompts), {}

        def keep(number: int, reply: Reply) -> None:
            self._count(keys[number], reply)
            if reply.fault == UNREACHABLE:
                lost[keys[number]] = reply
            else:
                self._kept.add({keys[number]: reply._asdict()})

        replies = self._responder.respond(list(prompts.values()), seed, keep)
        faults = Counter(reply.fault for reply in replies)
        if all(fault.startswith("rejected_") for fault in faults):
            raise UserError(self.name, f"rejects every prompt ({', '.join(faults)})",
                            "check the endpoint, its model, and max_new_tokens against "
                            "the model's context")
        return lost

    def _count(self, key: str, reply: Reply) -> None:
        if key in self._counted:
            return
        self._counted.add(key)
        prompt_tokens, answer_tokens = reply.num_tokens or (0, 0)
        self.usage.update(requests=1, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens,
                          uncounted=int(reply.num_tokens is None))


def _read(row: Mapping[str, Any]) -> Reply:
    num_tokens = row["num_tokens"]
    return Reply(row["text"], row["fault"], tuple(num_tokens) if num_tokens else None)
