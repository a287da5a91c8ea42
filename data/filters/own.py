"""Filters of the user's own: functions that ``config.curate.filters`` names by module.

    def too_many_links(document):
        links = document.text.count("http")
        return links if links > 20 else None

A filter takes a `data.documents.Document`, with its cleaned text and, in `meta`, the signals of all
rules and the scores of classifiers. It returns None to keep it or a number, the score of its
removal; the reason of the removal is the name of the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from core.errors import UserError
from core.functions import load_function
from data.documents import Document

FIELD = "curate.filters"

Filter = Callable[[Document], float | None]


def load_filter(path: str) -> Filter:
    """The filter of a path such as ``my_filters.too_many_links``.

    Raises:
        UserError: there is no such function.
    """
    return load_function(FIELD, path)


def apply(path: str, judge: Filter, document: Document) -> float | None:
    """The score with which a filter removes a document, or None.

    Raises:
        UserError: the filter fails, or returns neither None nor a number.
    """
    where = f"on document {document.id} of {document.source}"
    try:
        score: Any = judge(document)
    except Exception as error:      # any that the user's own code may raise
        raise UserError(f"{FIELD}={path!r}", f"raises {error!r} {where}",
                        "correct the function") from error
    # True means `keep` elsewhere, and would be a score of 1 here.
    if isinstance(score, bool) or not isinstance(score, int | float | None):
        raise UserError(f"{FIELD}={path!r}", f"returns {score!r} {where}",
                        "return None to keep it, or a number to remove it")
    return None if score is None else float(score)
