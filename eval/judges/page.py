"""The page of a judge: results, how far it can be trusted, and verdicts with their prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.page.layout import headline, render_page, section, table
from core.page.markup import Markup, count, decimal, join, percent, tag

Found = Mapping[str, Any]
STYLE = """
.range { color: var(--quiet); font-size: .85em; white-space: nowrap; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3em 0; }
details { border-top: 1px solid var(--rule); padding: .4em 0; } summary { cursor: pointer; }
"""
NONE = "–"


def render_judge(metrics: Found, rows: Sequence[Found], num_shown: int) -> str:
    """The page as HTML.

    Args:
        metrics: what `eval.judge.build` returns.
        rows: of `verdicts.jsonl`; the first `num_shown` are shown, those without a verdict first.
    """
    num_unparsed = sum(metrics["unparsed"].values())
    agreement = metrics["agreement"] or {}
    tiles = [("Verdicts", count(metrics["verdicts"]), f"form {metrics['form']}"),
             ("Unparsed", count(num_unparsed), _reasons(metrics["unparsed"]) or "none"),
             ("Agreement", _share(agreement.get("agreement")), "with the votes of people"),
             ("Cost", decimal(metrics["cost"], 2), _usage(metrics["usage"]))]
    parts = [section("Win rates", f"Against {metrics['baseline']}; ties count half, and pairs "
                     "without a verdict do not count. At equal lengths: by a regression on "
                     f"{' and '.join(metrics['length_terms'])}.",
                     _candidates(metrics["candidates"]))
             if metrics["candidates"] else None,
             section("Scores", "Means with their 95 % intervals.", _scores(metrics["scores"]))
             if metrics.get("scores") else None,
             section("Bias", "How the verdicts depend on what should not decide.",
                     table(["measure", "value", "to compare with"], list(_biases(metrics)),
                           "biases")),
             section("Experiments", "Answers of the baseline in another form, against "
                     "themselves.", _candidates(metrics["experiments"]))
             if metrics["experiments"] else None,
             section("Verdicts", "Literal prompts and replies.", *_verdicts(rows, num_shown))]
    return render_page(f"Judge · {metrics['judge']}", headline(
        "Judge", metrics["judge"], "Its verdicts, and how far they can be trusted.", tiles),
        *filter(None, parts), style=STYLE)


def _candidates(candidates: Mapping[str, Found]) -> Markup:
    head = ["answers", "win rate", "at equal lengths", "wins, ties, losses", "characters",
            "unparsed"]
    body = []
    for name, one in candidates.items():
        if not one["pairs"]:
            body.append([name, *[NONE] * 4, _reasons(one.get("unparsed", {}))])
            continue
        controlled = one["length_controlled"]
        body.append([name, _share(one["win_rate"]),
                     NONE if controlled is None else percent(controlled),
                     ", ".join(count(one[part]) for part in ("wins", "ties", "losses")),
                     " against ".join(map(count, one["lengths"])), _reasons(one["unparsed"])])
    return table(head, body, "candidates")


def _scores(scores: Mapping[str, Found]) -> Markup:
    head = ["answers", "mean", "by criterion", "correlation with length", "unparsed"]
    return table(head, [[name, _number(one["mean"]), ", ".join(
        f"{criterion} {decimal(mean, 2)}" for criterion, mean in one.get("criteria", {}).items()),
        NONE if one["length_correlation"] is None else decimal(one["length_correlation"], 2),
        _reasons(one["unparsed"])] for name, one in scores.items()], "scores")


def _biases(metrics: Found) -> Iterator[list[Any]]:
    """Rows of the table: what is measured, its value, and what it would be without a bias."""
    position, length, own = (metrics["bias"][name]
                             for name in ("position", "length", "self_preference"))
    if "first" in position:
        yield ["verdicts for the answer shown first", _share(position["first"]),
               f"{percent(0.5)} without a bias"]
        yield ["pairs judged alike in both orders", _share(position["consistent"]),
               f"{percent(1.0)} without a bias"]
    else:
        yield ["position", position["why"], NONE]
    people = length["people_longer"]
    yield ["pairs in which the longer answer wins", _share(length["longer"]),
           join(_share(people), " by people") if people else NONE]
    if length["excess"]:
        yield ["excess over people's preference for it", _number(length["excess"]),
               "0 without a bias"]
    if own["value"] is None:
        yield ["preference for its own answers", own["why"], NONE]
    else:
        yield ["preference for its own answers, beyond people's", _number(own),
               "0 without a bias"]
    agreement = metrics["agreement"]
    if agreement:
        yield ["agreement with people, ties left out", _share(agreement["decided"]), NONE]
        yield ["Cohen's kappa with people", _number(agreement["kappa"]), NONE]
        people = agreement["people_agreement"]
        yield ["agreement of people with each other",
               NONE if people is None else percent(people), NONE]


def _verdicts(rows: Sequence[Found], num_shown: int) -> Iterator[Markup]:
    for row in sorted(rows, key=lambda row: not row["reason"])[:num_shown]:
        who = " against ".join(row["models"]) if "models" in row else join(
            row["model"], f", {row['criterion']}" if row["criterion"] else "")
        yield tag("details", tag("summary", who, " · ", row["reason"] or _verdict(row)),
                  tag("pre", row["prompt"]), tag("pre", f"→ {row['text']}"))


def _verdict(row: Found) -> str:
    """A verdict in words; of a rating and of a probability the number."""
    if "models" not in row or row["value"] not in (0.0, 0.5, 1.0):
        return decimal(row["value"], 2)
    return "tie" if row["value"] == 0.5 else f"for {row['models'][row['value'] == 0.0]}"


def _share(found: Found | None) -> Markup | str:
    return _estimate(found, percent)


def _number(found: Found | None) -> Markup | str:
    return _estimate(found, lambda value: decimal(value, 2))


def _estimate(found: Found | None, write: Any) -> Markup | str:
    if not found or found["value"] is None:
        return NONE
    if found["low"] is None:
        return write(found["value"])
    return join(write(found["value"]), " ", tag(
        "span", f"{write(found['low'])} to {write(found['high'])}", class_="range"))


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{num} {reason}" for reason, num in counts.items())


def _usage(usage: Mapping[str, int]) -> str:
    return ", ".join(f"{count(num)} {name.replace('_', ' ')}" for name, num in usage.items() if num)
