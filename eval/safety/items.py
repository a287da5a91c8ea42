"""What probes share: the choice of items, and which replies are no answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

from eval.respond.responder import Reply

TRUNCATED = "truncated"         # a fault of a reply whose text counts
EMPTY = "empty"


class Grouped(Protocol):
    """What has a group, as the items of a probe do."""

    group: str


Item = TypeVar("Item", bound=Grouped)


def spread(items: Sequence[Item], num: int, seed: int) -> list[Item]:
    """Up to `num` items, as equally many of each group as there are; 0 takes all.

    The order stays. A larger `num` adds items and keeps those of a smaller one.
    """
    if num <= 0 or num >= len(items):
        return list(items)
    by_group: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        by_group.setdefault(item.group, []).append(place)
    for group, places in by_group.items():
        random.Random(f"{seed} {group}").shuffle(places)
    ranked = sorted((rank, order, place) for order, places in enumerate(by_group.values())
                    for rank, place in enumerate(places))
    return [items[place] for place in sorted(place for _, _, place in ranked[:num])]


def failure_of(reply: Reply) -> str:
    """Why a reply is no answer: its fault, or `EMPTY`; "" for an answer, complete or truncated."""
    if reply.fault and reply.fault != TRUNCATED:
        return reply.fault
    return "" if reply.text.strip() else EMPTY
