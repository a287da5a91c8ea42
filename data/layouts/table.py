"""The layouts by name. A new one is a function that recognises a row, one that reads it, a line.

What a row holds, where `messages` are turns with role and content, or with from and value:

    vote        conversation_a, conversation_b, winner (model_a, model_b, tie)
    hh          chosen, rejected: transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ..."
    pair        chosen, rejected: texts or messages; prompt, question, instruction or messages, or
                none where both sides begin with the same messages; score_chosen, score_rejected
    ranking     prompt or messages; responses, with ranks (1 the best) beside or inside them; also
                our own preferences
    scores      prompt or messages; responses or completions, with scores beside or inside them
    corrects    prompt; corrects, incorrects: lists of texts
    label       messages, or prompt and completion; label: true, false, 1 or 0
    answered    messages that end with a question, and its completion: the answers of `eval.run`
    messages    messages, conversations or conversation: turns with role and content; system, tools
    sharegpt    the same with from (human, gpt, function_call, observation) and value
    alpaca      instruction, output; input, history, system
    completion  prompt, completion or response: texts or messages; system
    question    question or query, answer or response; system
    transcript  text: a transcript as of hh, or after "### Human:" and "### Assistant:"

Lists and messages may be JSON in a text, as CSV has them. A transcript may also be a prompt. Who
ordered or labelled the answers may be named by `annotator`, or by `judge`, beside `meta` or in it.
"""

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
    "answered": Layout(CONVERSATIONS, chats.has_answered, chats.read_answered),
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
