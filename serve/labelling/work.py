"""Who labels what: hands items to annotators, takes their labels, and undoes them."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core.artifacts import digest
from core.page.markup import visible
from data.chat import Conversation, Message
from data.preferences import Preference
from serve.labelling.forms import Sent
from serve.labelling.items import PAIR, WRITE, Item
from serve.labelling.store import DEMONSTRATIONS, LABEL, PREFERENCES, SKIP, UNDO, Event, Store
from serve.web.errors import WebError, wrong

HOLD_SECS = 1800.0      # that an item which somebody is at is kept from others
SOURCE = "person"       # of the preferences


@dataclasses.dataclass
class Held:
    """The item that an annotator is at, and since when, in seconds since 1970."""

    item: str
    since: float


@dataclasses.dataclass(frozen=True)
class Settings:
    """How items are handed out.

    Attributes:
        labels_per_item: annotators who label an item.
        seed: of the order of answers.
        annotator: the only one; "" lets each say a name.
        clock: gives seconds since 1970.
    """

    labels_per_item: int = 1
    seed: int = 0
    annotator: str = ""
    clock: Callable[[], float] = time.time


class Work:
    """Items, their labels, and who is at which.

    All methods raise `WebError` for what an annotator may not do; it changes nothing.

    Attributes:
        version: counts changes of the labels.
    """

    def __init__(self, items: Mapping[str, Item], store: Store, settings: Settings):
        self.items, self.store, self.settings, self.version = items, store, settings, 0
        self._held: dict[str, Held] = {}
        self._done: set[tuple[str, str]] = set()    # annotators and items, skipped ones too
        self._num_labels: Counter[str] = Counter()  # of an item
        for event in store.live.values():
            self._count(event, 1)

    def show(self, annotator: str, undone: Event | None = None) -> dict[str, Any]:
        """What the page of an annotator shows: their item, if one is left, and how far they are.

        Args:
            undone: an event that they have just undone; what they said then is `given`.
        """
        wanted = self._wanted(annotator)
        item = self._hold(annotator, wanted)
        num_done = sum(name == annotator for name, _ in self._done)
        return {"annotator": annotator, "done": num_done, "left": len(wanted),
                "item": item and self._describe(item, annotator),
                "given": self._given(item, annotator, undone) if item and undone else None}

    def label(self, sent: Sent) -> None:
        """Stores a label."""
        item = self._find(sent)
        if item.kind == WRITE:
            file, row = DEMONSTRATIONS, self._demonstration(item, sent)
        else:
            file, row = PREFERENCES, self._preference(item, sent)
        self._add(LABEL, sent, file=file, row=row | {"meta": self._meta(item, sent, row["meta"])})

    def skip(self, sent: Sent) -> None:
        """Notes that an annotator will not label an item."""
        self._find(sent)
        self._add(SKIP, sent, reason=sent.reason)

    def undo(self, annotator: str) -> Event:
        """Undoes the last label, or the last skipping, of an annotator, who is at its item again.

        Returns:
            The event that is undone.
        """
        last = next((event for event in reversed(self.store.live.values())
                     if event["annotator"] == annotator), None)
        if last is None:
            raise WebError(409, "there is nothing to undo", "nothing_to_undo")
        self._add(UNDO, Sent(annotator, last["item"], ""), undoes=last["id"])
        self._count(last, -1)
        if last["item"] in self.items:
            self._held[annotator] = Held(last["item"], self.settings.clock())
        return last

    def num_done_items(self) -> int:
        """Items that have all their labels."""
        return sum(self._num_labels[mark] >= self.settings.labels_per_item for mark in self.items)

    def _add(self, kind: str, sent: Sent, **fields: Any) -> None:
        event: Event = {"event": kind, "id": secrets.token_hex(8), "annotator": sent.annotator,
                        "item": sent.item, "time": round(self.settings.clock(), 3), **fields}
        if kind == LABEL:   # so that a vote in the file can be found in the journal
            event["row"]["meta"]["id"] = event["id"]
        try:
            self.store.add(event)
        except OSError as error:
            raise WebError(507, f"it could not be stored ({error.strerror or error}): free space, "
                           "then send it again", "not_stored") from None
        self.version += 1
        if kind != UNDO:
            self._count(event, 1)
            self._held.pop(sent.annotator, None)

    def _count(self, event: Event, change: int) -> None:
        pair = (event["annotator"], event["item"])
        if change > 0:
            self._done.add(pair)
        else:
            self._done.discard(pair)
        if event["event"] == LABEL:
            self._num_labels[event["item"]] += change

    def _hold(self, annotator: str, wanted: Sequence[str]) -> Item | None:
        """The item that an annotator is at, or the first other one that wants their label."""
        held = self._held.pop(annotator, None)
        if not wanted:
            return None
        if held is None or held.item not in wanted:
            held = Held(wanted[0], self.settings.clock())
        self._held[annotator] = held
        return self.items[held.item]

    def _wanted(self, annotator: str) -> list[str]:
        """Items that want a label of an annotator, beside those of others who are at them now."""
        oldest = self.settings.clock() - HOLD_SECS
        num_at = Counter(held.item for name, held in self._held.items()
                         if name != annotator and held.since >= oldest)
        return [mark for mark in self.items if (annotator, mark) not in self._done
                and self._num_labels[mark] + num_at[mark] < self.settings.labels_per_item]

    def _find(self, sent: Sent) -> Item:
        """The item that is spoken of, if its sender may label it."""
        item = self.items.get(sent.item)
        if item is None:
            raise WebError(404, "there is no such item", "unknown_item")
        if sent.ticket != self._ticket(item, sent.annotator):
            raise WebError(409, "its answers are shown in another order now: load the page again",
                           "other_order")
        if (sent.annotator, sent.item) in self._done:
            raise WebError(409, "you have labelled or skipped this item already", "done_already")
        # Who was at it for so long that others were given it as well does not lose the label.
        held = self._held.get(sent.annotator)
        is_at_it = held is not None and held.item == sent.item
        if self._num_labels[sent.item] >= self.settings.labels_per_item and not is_at_it:
            raise WebError(409, "others have labelled this item meanwhile", "full")
        return item

    def _ticket(self, item: Item, annotator: str) -> str:
        return digest([item.id, annotator, item.order(self.settings.seed, annotator)])

    def _describe(self, item: Item, annotator: str) -> dict[str, Any]:
        """An item as a page shows it, without what would tell the answers apart."""
        messages = [{"role": message.role, "content": visible(message.content) + "".join(
            f"\n{visible(str(dict(call)))}" for call in message.tool_calls)}
            for message in item.prompt.messages]
        return {"id": item.id, "ticket": self._ticket(item, annotator), "kind": item.kind,
                "messages": messages, "answers": [
                    visible(item.answers[number])
                    for number in item.order(self.settings.seed, annotator)]}

    def _given(self, item: Item, annotator: str, event: Event) -> dict[str, Any] | None:
        """What a label said, as it was sent; None of others, and where the order has changed."""
        if event["event"] != LABEL or event["item"] != item.id:
            return None
        row = event["row"]
        meta, order = row["meta"], item.order(self.settings.seed, annotator)
        if meta.get("order", []) != order:
            return None
        said = {name: meta.get(name, empty)
                for name, empty in (("both_bad", False), ("reason", ""), ("flags", []))}
        if item.kind == WRITE:
            return said | {"text": row["messages"][-1]["content"]}
        return said | {"ranks": row["ranks"]}

    def _preference(self, item: Item, sent: Sent) -> dict[str, Any]:
        """The preference of a label: its answers are in the order in which they were shown."""
        num = len(item.answers)
        if sent.text:
            raise wrong("text", "is for prompts that are answered")
        if sent.ranks is None or len(sent.ranks) != num or not all(
                1 <= rank <= num for rank in sent.ranks):
            raise wrong("ranks", f"must be {num} numbers from 1 to {num}")
        if sent.is_both_bad and (item.kind != PAIR or len(set(sent.ranks)) > 1):
            raise wrong("both_bad", "is for two answers with equal ranks")
        if len(sent.flags) not in (0, num):
            raise wrong("flags", f"must be {num} lists, one for each answer")
        order, levels = item.order(self.settings.seed, sent.annotator), sorted(set(sent.ranks))
        meta: dict[str, Any] = {"order": order}     # of what is shown, its place in the input
        if item.models:
            meta["models"] = [item.models[number] for number in order]
        if sent.is_both_bad:
            meta["both_bad"] = True
        if any(sent.flags):
            meta["flags"] = [list(words) for words in sent.flags]
        return Preference(
            item.prompt, tuple(item.answers[number] for number in order),
            tuple(levels.index(rank) + 1 for rank in sent.ranks), SOURCE, meta,
            tuple(item.finishes[number] for number in order) if item.finishes else ()).to_dict()

    def _demonstration(self, item: Item, sent: Sent) -> dict[str, Any]:
        if sent.ranks is not None or sent.flags or sent.is_both_bad:
            raise wrong("ranks", "and flags are for answers that are compared")
        if not sent.text.strip():
            raise wrong("text", "is empty")
        answer = Message("assistant", sent.text.strip())
        return Conversation((*item.prompt.messages, answer)).to_dict()

    def _meta(self, item: Item, sent: Sent, own: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of a label: the input's fields, then those of `own`, then who and when."""
        now, held = self.settings.clock(), self._held.get(sent.annotator)
        meta = {**item.meta, **own, "annotator": sent.annotator, "item": sent.item,
                "time": round(now, 3)}
        if held is not None and held.item == sent.item:
            meta["secs"] = round(now - held.since, 3)
        return meta | ({"reason": sent.reason} if sent.reason else {})
