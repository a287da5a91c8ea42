"""The page of iterated alignment: what changes from round to round, in charts and in answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.page.charts import Line, Panel, draw_panel
from core.page.layout import headline, render_page, section, table
from core.page.markup import Markup, count, decimal, join, percent, tag

Row = Mapping[str, Any]
# A measure of a round: field, title, unit, decimals.
MEASURES = (("reward", "Reward", "mean of an answer to held-out prompts", 3),
            ("kl", "KL from the first model", "nats an answer, estimated from samples (k1)", 3),
            ("answer_tokens", "Length", "tokens of an answer, its end included", 1),
            ("win_rate", "Win rate", "against the first model, ties counting half", 3))
STYLE = """
td pre { min-width: 11em; } .answers td { min-width: 12em; } .answers small { display: block; }
"""


def render_rounds(rows: Sequence[Row], answers: Sequence[Sequence[Row]]) -> str:
    """The page as HTML.

    Args:
        rows: of the rounds, from 0 on.
        answers: of each round, to the same prompts: rows of `align.rounds.measure`.
    """
    first, last = rows[0], rows[-1]
    tiles = [("Rounds", count(len(rows) - 1), "after the first model"),
             ("Reward", decimal(last["reward"]), f"{decimal(first['reward'])} of the first model"),
             ("KL", decimal(last["kl"]), "nats an answer from the first model"),
             ("Win rate", percent(last["win_rate"]) if "win_rate" in last else "–",
              f"against the first model by the {last['win_rate_by']}"
              if "win_rate_by" in last else "no round has finished")]
    return render_page(
        "Heartwood: rounds", headline(
            "Iterated alignment", "Rounds", "In each round the model is trained on labels of its "
            "own new answers, and measured on held-out prompts, the same ones each time.", tiles),
        section("By round", "Means with their 95 % intervals; round 0 is the first model.",
                tag("div", [_draw(rows, *names) for names in MEASURES], class_="panels"),
                _table(rows)),
        section("Answers", f"To the first {count(len(answers[0]))} held-out prompts, each with its "
                "reward.", _answers(rows, answers)), style=STYLE)


def _draw(rows: Sequence[Row], name: str, title: str, unit: str, digits: int) -> Markup:
    def line(field: str, label: str, style: str) -> Line:
        return Line(label, [(row["round"], row[field]) for row in rows
                            if row.get(field) is not None], style)

    return draw_panel(Panel(
        title, unit, [line(f"{name}_high", "upper end", "quiet dashed"),
                      line(name, "mean", "wood"), line(f"{name}_low", "lower end", "quiet dashed")],
        levels=[("even", 0.5)] if name == "win_rate" else (), digits=digits, x_name="round"))


def _table(rows: Sequence[Row]) -> Markup:
    head = ["round", "pairs", *(title for _, title, _, _ in MEASURES), "ended", "model"]
    body = [[count(row["round"]), count(row["pairs"]) if "pairs" in row else "–",
             *(_interval(row, name, digits) for name, _, _, digits in MEASURES),
             percent(row["ended_frac"]), tag("code", row["model"])] for row in rows]
    return table(head, body, "rounds")


def _interval(row: Row, name: str, digits: int) -> Markup | str:
    if row.get(name) is None:
        return "–"
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if low is None:
        return decimal(value, digits)
    return join(decimal(value, digits), " ", tag("small", f"{decimal(low, digits)} to "
                                                 f"{decimal(high, digits)}"))


def _answers(rows: Sequence[Row], answers: Sequence[Sequence[Row]]) -> Markup:
    """A row for each prompt, a column for each round."""
    head = ["prompt", *(f"round {row['round']}" for row in rows)]
    body = [[tag("pre", "\n".join(message["content"] for message in own[0]["prompt"])),
             *(join(tag("pre", one["answer"]), tag("small", _note(one))) for one in own)]
            for own in zip(*answers, strict=True)]
    return table(head, body, "answers")


def _note(one: Row) -> str:
    kl = one["logp_nats"] - one["first_logp_nats"]
    cut = "" if one["finish"] == "stop" else f", {one['finish']}"
    return f"reward {decimal(one['reward'])}, log ratio {decimal(kl, 2)}{cut}"
