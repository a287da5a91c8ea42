"""Answers that are rated one at a time: scores by candidate, and pairs decided by their scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.artifacts import digest
from data.chat import Conversation
from eval.judges.bias import Outcome, correlate_length
from eval.judges.candidates import Answers, Messages, Pair, reference_of
from eval.judges.judge import Judge, Rated
from eval.judges.prompts import Criterion
from eval.judges.verdicts import Verdict
from eval.statistics import estimate_mean


class Ratings:
    """The scores of answers: each the weighted mean over the criteria.

    An answer that has no rating by one of them has no score.

    Args:
        tied: see `eval.judges.judge.Judge`.
    """

    def __init__(self, tied: float):
        self._tied = tied
        self._verdicts: dict[str, list[tuple[Verdict, float]]] = {}

    def add(self, one: Rated, verdict: Verdict) -> None:
        """Adds a rating."""
        weight = 1.0 if one.criterion is None else one.criterion.weight
        mark = _mark((*one.prompt, *one.answer))
        self._verdicts.setdefault(mark, []).append((verdict, weight))

    def of(self, messages: Messages) -> Verdict:
        """The score of a conversation's last answer, or why it has none."""
        given = self._verdicts[_mark(messages)]
        for verdict, _ in given:
            if verdict.value is None:
                return verdict
        total = sum(weight for _, weight in given)
        return Verdict(sum(verdict.value * weight for verdict, weight in given) / total)

    def decide(self, pair: Pair) -> Outcome:
        """The pair's outcome by the two scores; the same for both orders."""
        scores = [self.of((*pair.prompt, *answer)) for answer in pair.answers]
        for verdict in scores:
            if verdict.value is None:
                return Outcome(pair, (verdict, verdict))
        first, second = (verdict.value for verdict in scores)
        is_tie = first == second or abs(first - second) < self._tied
        share = 0.5 if is_tie else float(first > second)
        return Outcome(pair, (Verdict(share), Verdict(1 - share)))


def rate_answers(candidates: Mapping[str, Answers], references: Answers, pairs: Sequence[Pair],
                 criteria: Sequence[Criterion | None],
                 judge: Judge) -> tuple[list[Outcome], list[dict[str, Any]], dict[str, Any]]:
    """Rates every answer by every criterion.

    Args:
        candidates: whose answers are rated; where there is none, those of the pairs are.
        criteria: of a rubric; one None rates the answer as a whole.

    Returns:
        The outcomes of the pairs; a row for each rating; and `scores`: of each candidate its mean
        with a 95 % interval, the means by criterion and by turn, which is the number of questions
        of a conversation, `answers` with a score, `unparsed` ones by the reason, and Spearman's
        correlation of score and length.
    """
    asked = _asked(candidates, references, pairs)
    todo = [(name, mark, one._replace(criterion=criterion))
            for name, mark, one in asked for criterion in criteria]
    verdicts = judge.rate([one for _, _, one in todo])
    ratings, rows = Ratings(judge.tied), []
    for (name, mark, one), verdict in zip(todo, verdicts, strict=True):
        ratings.add(one, verdict)
        criterion = "" if one.criterion is None else one.criterion.name
        rows.append({"question": mark, "model": name, "criterion": criterion,
                     "length": len(one.answer[-1].content), **verdict._asdict()})
    scores = {name: _summarise([one for own, _, one in asked if own == name],
                               [row for row in rows if row["model"] == name], ratings)
              for name in candidates}
    return [ratings.decide(pair) for pair in pairs], rows, {"scores": scores}


def _asked(candidates: Mapping[str, Answers], references: Answers,
           pairs: Sequence[Pair]) -> list[tuple[str, str, Rated]]:
    """Candidate, question and answer of all that is rated, each answer once."""
    if candidates:
        return [(name, mark, Rated(one.messages[:-1], one.messages[-1:],
                                   reference_of(references, mark)))
                for name, answers in candidates.items() for mark, one in answers.items()]
    found = {}
    for pair in pairs:
        for name, answer in zip(pair.names, pair.answers):
            one = Rated(pair.prompt, answer, pair.reference)
            found.setdefault(_mark((*pair.prompt, *answer)), (name, pair.question, one))
    return list(found.values())


def _summarise(rated: Sequence[Rated], rows: Sequence[Mapping[str, Any]],
               ratings: Ratings) -> dict[str, Any]:
    verdicts = [ratings.of((*one.prompt, *one.answer)) for one in rated]
    scored = [(verdict.value, one) for verdict, one in zip(verdicts, rated)
              if verdict.value is not None]
    found: dict[str, Any] = {
        "answers": len(scored), "mean": None, "length_correlation": None,
        "unparsed": dict(Counter(one.reason for one in verdicts if one.value is None))}
    if not scored:
        return found
    values = [value for value, _ in scored]
    estimate = estimate_mean(values)
    return found | {
        "mean": {"value": estimate.value, "low": estimate.low, "high": estimate.high,
                 "items": estimate.items},
        "length_correlation": correlate_length(
            values, [len(one.answer[-1].content) for _, one in scored]),
        "criteria": _means((row["criterion"], row["value"]) for row in rows
                           if row["value"] is not None and row["criterion"]),
        "turns": _means((str(sum(message.role == "user" for message in one.prompt)), value)
                        for value, one in scored)}


def _means(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Means by name."""
    found: dict[str, list[float]] = {}
    for name, value in values:
        found.setdefault(name, []).append(value)
    return {name: sum(given) / len(given) for name, given in found.items()}


def _mark(messages: Messages) -> str:
    return digest(Conversation(messages).to_dict()["messages"])
