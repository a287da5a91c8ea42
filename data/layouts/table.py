"""The layouts by name. A new one is a function that recognises a row, one that reads it, a line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from data.chat import Conversation
from data.layouts import chats, orders
from data.layouts.chats import Row
from data.preferences import Labelled, Preference


@dataclasses.dataclass(frozen=True)
class Layout:
    """How rows are written.

    Attributes:
        kinds: what they give: conversations, preferences, labels.
        recognise: whether a row is written so.
        read: the item of a row; raises `data.layouts.turns.Fault` where there is none.
    """

    kinds: tuple[str, ...]
    recognise: Callable[[Row], bool]
    read: Callable[[Row], Conversation | Preference | Labelled]


CONVERSATIONS, PREFERENCES, LABELS = ("conversations",), ("preferences", "labels"), ("labels",)

# A row is written in the first layout that recognises it: special ones stand before general ones.
LAYOUTS = {
    "vote": Layout(PREFERENCES, orders.has_vote, orders.read_vote),
    "hh": Layout(PREFERENCES, orders.has_transcripts, orders.read_transcripts),
    "pair": Layout(PREFERENCES, orders.has_pair, orders.read_pair),
    "ranking": Layout(PREFERENCES, orders.has_ranks, orders.read_ranks),
    "scores": Layout(PREFERENCES, orders.has_scores, orders.read_scores),
    "corrects": Layout(PREFERENCES, orders.has_corrects, orders.read_corrects),
    "label": Layout(LABELS, orders.has_label, orders.read_label),
    "messages": Layout(CONVERSATIONS, chats.has_messages, chats.read_turns),
    "sharegpt": Layout(CONVERSATIONS, chats.has_sharegpt, chats.read_turns),
    "alpaca": Layout(CONVERSATIONS, chats.has_alpaca, chats.read_alpaca),
    "completion": Layout(CONVERSATIONS, chats.has_completion, chats.read_completion),
    "question": Layout(CONVERSATIONS, chats.has_answer, chats.read_question),
    "transcript": Layout(CONVERSATIONS, chats.has_transcript, chats.read_text),
}


def find_layout(row: Row) -> str | None:
    """The name of the layout in which a row is written; None if it is none of them."""
    return next((name for name, layout in LAYOUTS.items() if layout.recognise(row)), None)
