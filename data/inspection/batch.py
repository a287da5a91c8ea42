"""Rows as training sees them: every token with the weight of its loss.

A stage shows its rows by a function of its module, `show_rows(config, parents, num)`, which returns
the first `num` examples of the run as a dict of rows by their names, without the B axis, and the
tokenizer that made them. Answers to one prompt follow each other.
"""

from __future__ import annotations

import codecs
import importlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.entry import config_and_workdir, find_parents
from core.errors import UserError
from core.page.layout import headline, render_page
from core.page.markup import Markup, count, join, tag, visible
from data.batch import Batch
from data.tokenizers.tokenizer import Tokenizer

#: Modules of the stages that show rows, by their names; `data` imports none of them by itself.
STAGES = {"pretrain": "train.pretrain", "sft": "align.sft", "dpo": "align.dpo",
          "reward": "align.reward"}
STYLE = Path(__file__).with_name("batch.css")
BREAK = "\u21b5"        # before a line break of the text

# By kind of weight, each in two shades that take turns, so that the edges of tokens are seen.
ANSI = {"unscored": ("38;5;244", "38;5;248"), "scored": ("1;32", "32"), "less": ("1;33", "33"),
        "more": ("1;35", "35")}
IN_COLOUR = ("weight 0 \x1b[38;5;244mgrey\x1b[0m, 1 \x1b[1;32mgreen\x1b[0m, below 1 "
             "\x1b[1;33myellow\x1b[0m, above 1 \x1b[1;35mmagenta\x1b[0m, the shade changes with "
             "each token; \x1b[7mspecial tokens\x1b[0m; \u21b5 a line break of the text")
IN_MARKS = ("text of weight 0 as it is, \u27e6of weight 1\u27e7, \u27e60.5:of another weight\u27e7"
            "; \u00abspecial tokens\u00bb; \u21b5 a line break of the text")


class Piece(NamedTuple):
    """One token of a row.

    Attributes:
        token: its id.
        text: the characters that it completes: none where one goes on in the next token.
        weight: of its loss as a target; 0 for a document's first input, which nothing predicts.
        is_special: whether it is a special token, whose name is the text.
    """

    token: int
    text: str
    weight: float
    is_special: bool

    @property
    def kind(self) -> str:
        """Name of its colours."""
        return ("unscored" if self.weight == 0 else "scored" if self.weight == 1 else
                "less" if self.weight < 1 else "more")


class Strip(NamedTuple):
    """Tokens of a row that are shown together: a document, or what an objective reads of it."""

    title: str
    pieces: tuple[Piece, ...]


class View(NamedTuple):
    """A row, ready to be shown.

    Attributes:
        name: of the row.
        counts: `scored`, `unscored` and `padding` positions, and `documents`.
        strips: its documents in order.
    """

    name: str
    counts: dict[str, int]
    strips: tuple[Strip, ...]

    @property
    def title(self) -> str:
        """The row's name and counts."""
        counts = self.counts
        documents = "document" if counts["documents"] == 1 else "documents"
        return (f"{self.name}: {count(counts['documents'])} {documents}, "
                f"{count(counts['scored'])} tokens scored, {count(counts['unscored'])} not, "
                f"{count(counts['padding'])} of padding")


def inspect_batch(stage: str, num: int, *, in_colour: bool, page: Path | None) -> dict[str, Any]:
    """Prints the first rows of a stage, which the command line's config and workdir describe.

    Args:
        num: examples to print.
        in_colour: whether stdout shows ANSI colours.
        page: an HTML file to write as well.

    Returns:
        The counts of all rows together.

    Raises:
        UserError: the stage shows no rows, or an artifact that it learns from is missing.
    """
    if stage not in STAGES:
        raise UserError(f"--stage={stage}", f"is none of {', '.join(STAGES)}", "choose one of them")
    config, workdir = config_and_workdir()
    module = importlib.import_module(STAGES[stage])
    rows, tokenizer = module.show_rows(config, find_parents(module.STAGE, config, workdir), num)
    views = [view_row(name, row, tokenizer) for name, row in rows.items()]
    print("\n".join(print_views(views, in_colour)))
    if page is not None:
        page.write_text(render_views(views, f"{stage}: {config[stage].out}"), encoding="utf-8")
    totals = sum((Counter(view.counts) for view in views), Counter())
    return {"stage": stage, "rows": len(views), "documents": totals["documents"],
            "scored_tokens": totals["scored"], "unscored_tokens": totals["unscored"],
            "padding_tokens": totals["padding"]} | ({"html": str(page)} if page else {})


def view_row(name: str, row: Batch, tokenizer: Tokenizer) -> View:
    """Splits a row into its documents.

    Args:
        row: without its B axis.
    """
    strips = []
    for number, begin, end in _segments(row.segment_ids_BL):
        if row.source is not None:
            inside = np.asarray(row.source.segment_ids_BM) == number
            strips.append(Strip(f"source of document {number}", _pieces(
                row.source.tokens_BM[inside], np.zeros(inside.sum()), tokenizer)))
        strips += _view_document(row, number, begin, end, tokenizer)
    weights, segments = np.asarray(row.loss_weights_BL), np.asarray(row.segment_ids_BL)
    counts = {"documents": len({*segments.tolist()} - {0}), "scored": int((weights != 0).sum()),
              "unscored": int(((weights == 0) & (segments > 0)).sum()),
              "padding": int(((weights == 0) & (segments == 0)).sum())}
    return View(name, counts, tuple(strips))


def _segments(segments: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each document in a row."""
    place = 0
    for number, run in itertools.groupby(np.asarray(segments).tolist()):
        begin, place = place, place + len(list(run))
        if number:
            yield number, begin, place


def _view_document(row: Batch, number: int, begin: int, end: int,
                   tokenizer: Tokenizer) -> list[Strip]:
    inputs, targets = row.tokens_BL[begin:end], row.targets_BL[begin:end]
    weights, title = row.loss_weights_BL[begin:end], f"document {number}, inputs {begin}-{end - 1}"
    if not np.array_equal(inputs[1:], targets[:-1]):    # hidden tokens, which targets restore
        return [Strip(title, _pieces(inputs, np.zeros(end - begin), tokenizer)),
                Strip(f"targets of document {number}", _pieces(targets, weights, tokenizer))]
    # The last target may be the first token of what follows, which is not learned from here.
    follows = end < len(row.tokens_BL) and row.tokens_BL[end] == targets[-1] and not weights[-1]
    last = len(targets) - bool(follows)
    return [Strip(title, _pieces([inputs[0], *targets[:last]], [0.0, *weights[:last]], tokenizer))]


def _pieces(tokens: Sequence[int], weights: Sequence[float],
            tokenizer: Tokenizer) -> tuple[Piece, ...]:
    decoder, pieces = codecs.getincrementaldecoder("utf-8")("replace"), []
    ids = [int(token) for token in tokens]
    for place, (token, piece) in enumerate(zip(ids, tokenizer.stream(ids))):
        text = decoder.decode(piece, final=place == len(ids) - 1)
        pieces.append(Piece(token, text, float(weights[place]), token in tokenizer.special_ids))
    return tuple(pieces)


def print_views(views: Sequence[View], in_colour: bool) -> Iterator[str]:
    """The lines that show rows: what the marks mean, then each row with its documents."""
    yield IN_COLOUR if in_colour else IN_MARKS
    for view in views:
        yield f"\n== {view.title}"
        for strip in view.strips:
            yield f"-- {strip.title}"
            yield from (_colour if in_colour else _mark)(strip.pieces).splitlines()
        if view.counts["padding"]:
            yield f"-- padding: {count(view.counts['padding'])}"


def _colour(pieces: Sequence[Piece]) -> str:
    shown = []
    for place, piece in enumerate(pieces):
        code = ANSI[piece.kind][place % 2] + (";7" if piece.is_special else "")
        lines = visible(piece.text).replace("\n", f"{BREAK}\n").split("\n")
        shown.append("\n".join(f"\x1b[{code}m{line}\x1b[0m" if line else "" for line in lines))
    return "".join(shown)


def _mark(pieces: Sequence[Piece]) -> str:
    shown = []
    for weight, run in itertools.groupby(pieces, key=lambda piece: piece.weight):
        text = "".join(f"\u00ab{piece.text}\u00bb" if piece.is_special else piece.text
                       for piece in run)
        text = visible(text).replace("\n", f"{BREAK}\n")
        before = "" if weight == 1 else f"{weight:.4g}:"
        shown.append(f"\u27e6{before}{text}\u27e7" if weight else text)
    return "".join(shown)


def render_views(views: Sequence[View], title: str) -> str:
    """Rows as a page of their own, in HTML; a token's id and weight show under the pointer."""
    totals: Mapping[str, int] = sum((Counter(view.counts) for view in views), Counter())
    tiles = [("Rows", count(len(views)), f"{count(totals['documents'])} documents"),
             ("Scored", count(totals["scored"]), "tokens with a loss"),
             ("Not scored", count(totals["unscored"]), "tokens read only"),
             ("Padding", count(totals["padding"]), "empty inputs")]
    legend = tag("p", [join(tag("span", text, class_=f"token {style}"), " ") for text, style in (
        ("weight 0", "unscored"), ("weight 1", "scored"), ("below 1", "less"),
        ("above 1", "more"), ("special token", "unscored special"))], class_="legend tokens")
    return render_page(
        f"Heartwood: rows of {title}",
        headline("Heartwood \u00b7 rows", title, "What training sees: each token in the colour of "
                 "its loss weight. Documents of a row do not see each other.", tiles),
        legend, tag("main", [_render_view(view) for view in views]), style=STYLE.read_text())


def _render_view(view: View) -> Markup:
    strips = [join(tag("h3", strip.title), tag("pre", [
        tag("span", piece.text.replace("\n", f"{BREAK}\n"),
            class_=f"token {piece.kind}{' special' if piece.is_special else ''}",
            title=f"{piece.token}, weight {piece.weight:.4g}") for piece in strip.pieces],
        class_="tokens")) for strip in view.strips]
    padding = view.counts["padding"]
    return tag("section", tag("h2", view.title), strips,
               tag("p", f"padding: {count(padding)}", class_="padding")
               if padding else None)
