"""Layouts of answers in an order or with a label: pairs, scores, rankings, votes, labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from data.chat import Conversation, Message
from data.layouts.chats import COMPLETIONS, Row, instruction_of, system_of, turns_of
from data.layouts.turns import (
    Fault,
    check_prompt,
    is_transcript,
    read_answer,
    read_messages,
    read_prompt,
    read_transcript,
    with_system,
)
from data.preferences import Labelled, Preference
from data.readers import conversations

SIDES = (("chosen", "rejected"), ("chosen_response", "rejected_response"),
         ("text_correct", "text_incorrect"))    # the last: HHH's, of Constitutional AI
SIDE_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"),
               ("chosen_rating", "rejected_rating"), ("chosen-rating", "rejected-rating"),
               ("chosen_avg_rating", "rejected_avg_rating"))
RESPONSES = ("responses", "completions", "generations", "answers", "outputs")
ANSWER_FIELDS = ("response", "completion", "answer", "content", "text", "output")
SCORES, SCORE_FIELDS = ("scores", "ratings", "rewards"), ("score", "overall_score", "rating")
RANKS, RANK_FIELD = ("ranks", "ranking", "rank"), "rank"
LABELS = ("label", "kto_tag")
TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
VOTES = {"model_a": (1, 2), "model_b": (2, 1), "a": (1, 2), "b": (2, 1), "tie": (1, 1),
         "tie (bothbad)": (1, 1), "both_bad": (1, 1)}
ANNOTATORS = ("annotator", "judge")     # who ordered or labelled; the second is FastChat's
PROMPTS = ("prompt", "instruction", "question", "query", *conversations.FIELDS)


def has_transcripts(row: Row) -> bool:
    """Whether a row holds two transcripts, of which one was chosen."""
    sides = _sides_of(row)
    return sides is not None and all(is_transcript(row[side]) for side in sides)


def read_transcripts(row: Row) -> Preference:
    """The preference of two transcripts that differ in their last answer."""
    sides = _sides_of(row)
    if not all(isinstance(row[side], str) and is_transcript(row[side]) for side in sides):
        raise Fault("other_layout", f"`{sides[0]}` and `{sides[1]}` are no two transcripts")
    return _from_common(*(read_transcript(row[side]) for side in sides), sides, row)


def has_pair(row: Row) -> bool:
    """Whether a row holds a chosen and a rejected answer."""
    return _sides_of(row) is not None


def read_pair(row: Row) -> Preference:
    """The preference of two answers to an explicit prompt, or to the messages both begin with."""
    sides = _sides_of(row)
    for side in sides:
        if row[side] is None:
            raise Fault("no_answer", f"`{side}` is null")
    asked = row.get(_prompt_field(row))
    chosen, rejected = (read_answer(row[side], side, after=asked) for side in sides)
    prompt = _prompt_of(row)
    if len(chosen) == len(rejected) == 1:
        return _prefer(prompt, [chosen[0], rejected[0]], (1, 2), row, _side_scores(row))
    if prompt and prompt[-1].role == "user" and prompt[-1] not in chosen:
        raise Fault("other_prompt", "its prompt is none of the messages of its answers")
    return _from_common(chosen, rejected, sides, row)


def has_scores(row: Row) -> bool:
    """Whether a row holds responses to one prompt, each with a score."""
    responses = _responses_of(row)
    return responses is not None and (
        _first(row, SCORES) is not None or _holds(row[responses], SCORE_FIELDS))


def read_scores(row: Row) -> Preference:
    """The preference of responses with scores: the higher the better, equal ones are tied."""
    field = _responses_of(row)
    answers = _answers_of(row, field)
    name = _first(row, SCORES)
    given = _list_of(row, name) if name else [
        next((item[key] for key in SCORE_FIELDS if key in item), None)
        if isinstance(item, Mapping) else None for item in _list_of(row, field)]
    if len(given) != len(answers):
        raise Fault("broken_scores", f"`{name}` has not one score for each response")
    scores = [_number(score, "score") for score in given]
    levels = sorted(set(scores), reverse=True)
    ranks = [levels.index(score) + 1 for score in scores]
    return _prefer(_prompt_of(row), answers, ranks, row, scores)


def has_ranks(row: Row) -> bool:
    """Whether a row holds responses to one prompt, each with a rank."""
    responses = _responses_of(row)
    return responses is not None and (
        _first(row, RANKS) is not None or _holds(row[responses], (RANK_FIELD,)))


def read_ranks(row: Row) -> Preference:
    """The preference of responses with ranks, 1 for the best, in a list or in each response.

    `finishes`, `scores` and `source` are those of our own preferences (`data.preferences`).
    """
    field = _responses_of(row)
    answers = _answers_of(row, field)
    name = _first(row, RANKS)
    ranks = _list_of(row, name) if name else [
        item.get(RANK_FIELD) if isinstance(item, Mapping) else None
        for item in _list_of(row, field)]
    ranks = [int(rank) if isinstance(rank, float) and rank.is_integer() else rank
             for rank in ranks]
    if len(ranks) != len(answers) or any(type(rank) is not int or rank < 1 for rank in ranks):
        raise Fault("broken_ranks", "needs one rank from 1 on, for the best, for each response")
    scores = [_number(score, "scores") for score in _list_of(row, "scores")]
    finishes = _list_of(row, "finishes")
    if any(len(given) not in (0, len(answers)) for given in (scores, finishes)):
        raise Fault("broken_scores", "needs one of scores and of finishes for each response")
    return _prefer(_prompt_of(row), answers, ranks, row, scores, finishes)


def has_vote(row: Row) -> bool:
    """Whether a row holds two conversations with models, and who won."""
    return all(name in row for name in ("conversation_a", "conversation_b", "winner"))


def read_vote(row: Row) -> Preference:
    """The preference of a vote between two conversations that differ in their last answer."""
    if not isinstance(row["winner"], str) or row["winner"] not in VOTES:
        raise Fault("unknown_vote", f"its winner {row['winner']!r} is none of {', '.join(VOTES)}")
    sides = ("conversation_a", "conversation_b")
    both = [read_messages(row[side], side) for side in sides]
    return _from_common(*both, sides, row, VOTES[row["winner"]])


def has_corrects(row: Row) -> bool:
    """Whether a row holds a prompt, correct answers and incorrect ones."""
    return all(isinstance(row.get(name), list) for name in ("corrects", "incorrects"))


def read_corrects(row: Row) -> Preference:
    """The preference of all correct answers over all incorrect ones."""
    answers = [Message("assistant", text.strip()) if isinstance(text, str) else None
               for text in (*row["corrects"], *row["incorrects"])]
    if None in answers:
        raise Fault("no_text", "`corrects` or `incorrects` holds what is no text")
    ranks = [1] * len(row["corrects"]) + [2] * len(row["incorrects"])
    return _prefer(_prompt_of(row), answers, ranks, row)


def has_label(row: Row) -> bool:
    """Whether a row holds an answer and whether it is good."""
    label = next((row[name] for name in LABELS if name in row), "")
    is_label = label is None or isinstance(label, bool | int | float) or (
        isinstance(label, str) and label.strip().lower() in TRUTHS)
    return is_label and (turns_of(row) is not None or _labelled_pair(row) is not None)


def read_label(row: Row) -> Labelled:
    """The last answer of a conversation, or a completion, with its label."""
    label = row[_first(row, LABELS)]
    is_good = TRUTHS.get(str(label).strip().lower())
    if is_good is None:
        raise Fault("unknown_label", f"its label {label!r} is neither true nor false")
    if found := turns_of(row):
        messages = read_messages(found[1], found[0], system_of(row))
    else:
        asks, answers = _labelled_pair(row)
        messages = [*read_prompt(instruction_of(row, asks), asks, system_of(row)),
                    *read_answer(row[answers], answers, after=row[asks])]
    prompt, response = messages[:-1], messages[-1]
    if response.role != "assistant":
        raise Fault("no_answer", "does not end with an answer of the assistant")
    finish = row.get("finish")
    return Labelled(_check(prompt), _text_of(response), is_good, meta=_meta_of(row),
                    finish=finish if isinstance(finish, str) else "")


def label_responses(preference: Preference) -> list[Labelled]:
    """Labels from a preference: each best response is good, each other one is not.

    Raises:
        Fault: all responses are tied.
    """
    best = min(preference.ranks)
    if all(rank == best for rank in preference.ranks):
        raise Fault("all_tied", "prefers none of its responses")
    finishes = preference.finishes or [""] * len(preference.responses)
    return [Labelled(preference.prompt, response, rank == best, preference.source,
                     preference.meta, finish)
            for response, rank, finish in zip(preference.responses, preference.ranks, finishes)]


def _first(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _sides_of(row: Row) -> tuple[str, str] | None:
    return next((sides for sides in SIDES if sides[0] in row and sides[1] in row), None)


def _responses_of(row: Row) -> str | None:
    return next((name for name in RESPONSES if name in row
                 and conversations.list_turns(row[name]) is not None), None)


def _labelled_pair(row: Row) -> tuple[str, str] | None:
    return next((pair for pair in (*COMPLETIONS, *conversations.PAIRS)
                 if pair[0] in row and pair[1] in row), None)


def _holds(items: Any, names: Sequence[str]) -> bool:
    items = conversations.list_turns(items)
    return bool(items) and isinstance(items[0], Mapping) and any(name in items[0] for name in names)


def _list_of(row: Row, field: str) -> list[Any]:
    """The list in a field, or in its JSON; empty where there is none."""
    value = row.get(field)
    value = conversations.parse_text(value) if isinstance(value, str) else value
    if isinstance(value, Mapping):
        value = conversations.list_turns(value)
    return value if isinstance(value, list) else []


def _answers_of(row: Row, field: str) -> list[Message]:
    """The responses in a field: texts, messages, or objects that hold a text."""
    answers = []
    for place, item in enumerate(_list_of(row, field)):
        text = item
        if isinstance(item, Mapping):
            text = next((item[name] for name in ANSWER_FIELDS if name in item), None)
        found = read_answer(text, f"{field}[{place}]", after=row.get(_prompt_field(row)))
        if len(found) != 1 or found[0].role != "assistant":
            raise Fault("several_turns", f"`{field}[{place}]` is more than one answer")
        answers += found
    return answers


def _prompt_field(row: Row) -> str | None:
    return next((name for name in PROMPTS if row.get(name) is not None), None)


def _prompt_of(row: Row) -> list[Message]:
    """The explicit prompt of a row; empty where there is none."""
    field = _prompt_field(row)
    if field is None:
        return []
    return read_prompt(instruction_of(row, field), field, system_of(row))


def _side_scores(row: Row) -> list[float]:
    sides = next((sides for sides in SIDE_SCORES if all(row.get(side) is not None
                                                        for side in sides)), ())
    return [_number(row[side], side) for side in sides]


def _number(value: Any, field: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise Fault("not_finite_score", f"`{field}` holds {value!r}, which is no finite number")
    return number


def _from_common(first: list[Message], second: list[Message], fields: tuple[str, str], row: Row,
                 ranks: Sequence[int] = (1, 2)) -> Preference:
    """The preference between the messages that follow the common ones of two conversations."""
    if first == second:
        raise Fault("equal_pair", f"`{fields[0]}` and `{fields[1]}` are equal")
    num = next((place for place, (a, b) in enumerate(zip(first, second)) if a != b),
               min(len(first), len(second)))
    if len(first) != num + 1 or len(second) != num + 1:
        raise Fault("several_turns", f"`{fields[0]}` and `{fields[1]}` differ in more than their "
                    "last message")
    prompt = with_system(first[:num], system_of(row))
    return _prefer(prompt, [first[num], second[num]], ranks, row, _side_scores(row))


def _prefer(prompt: list[Message], answers: Sequence[Message], ranks: Sequence[int], row: Row,
            scores: Sequence[float] = (), finishes: Sequence[str] = ()) -> Preference:
    if len(answers) < 2:
        raise Fault("group_of_one", "holds no two responses to compare")
    asked = _check(prompt)
    # Of several answers an empty one is for a stage to leave out, which keeps the others.
    texts = tuple(_text_of(answer, may_be_empty=len(answers) > 2) for answer in answers)
    if len(set(texts)) == 1:
        raise Fault("equal_pair", "its responses are equal")
    source = row.get("source")
    return Preference(asked, texts, tuple(ranks), source if isinstance(source, str) else "",
                      _meta_of(row), tuple(finishes), tuple(scores))


def _check(prompt: list[Message]) -> Conversation:
    check_prompt(prompt)
    if prompt[-1].role == "assistant":
        raise Fault("no_question", "its prompt ends with an answer of the assistant")
    return Conversation(tuple(prompt))


def _text_of(answer: Message, *, may_be_empty: bool = False) -> str:
    if answer.role != "assistant":
        raise Fault("no_answer", f"its answer has the role {answer.role}")
    if answer.tool_calls:
        raise Fault("tool_answer", "its answer calls a tool, which preferences do not hold")
    if not answer.content.strip() and not may_be_empty:
        raise Fault("empty_answer", "one of its answers is empty")
    return answer.content


def _meta_of(row: Row) -> dict[str, Any]:
    meta = dict(row["meta"]) if isinstance(row.get("meta"), Mapping) else {}
    name = next((name for name in ANNOTATORS if row.get(name) is not None), None)
    return {"annotator": row[name], **meta} if name else meta
