"""What a judge's reply says: a verdict, or why it gives none. What is unclear is never guessed."""

from __future__ import annotations

import re
from typing import NamedTuple

from eval.judges.prompts import HIGH, LOW
from eval.respond.responder import Reply

SHARES = {"A": 1.0, "B": 0.0, "C": 0.5}     # of the answer that is shown first
# Why there is no verdict: it is missing, lacks the code, or there are several; a rating is out of
# its range; the reply was cut, is missing, or was not asked for.
REASONS = ("no_verdict", "no_code", "several", "out_of_range", "truncated", "prompt_too_long",
           "rejected", "unreachable", "over_budget")

_CHOICE = re.compile(r"\[\[([ABC])\]\]")
_LETTER, _RATING = "[ABC]", r"-?[0-9]+(?:\.[0-9]+)?"
# FastChat's `one_score_pattern` and its backup (lm-sys/FastChat@0e6d3e4).
_MT_BENCH = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


class Verdict(NamedTuple):
    """A judge's verdict.

    Attributes:
        value: of a comparison the share of the answer shown first, from 0 to 1; or a rating; None
            without a verdict.
        reason: why there is none, one of `REASONS`; "" with one.
        text: the judge's reply.
        prompt: what it was asked, as far as it reads one.
    """

    value: float | None
    reason: str = ""
    text: str = ""
    prompt: str = ""


def read_choice(reply: Reply, code: str) -> Verdict:
    """The verdict ``[[A code]]``, ``[[B code]]`` or ``[[C code]]`` of a reply.

    It may be repeated, but two different ones are none.
    """
    found, reason = _find(reply, _LETTER, code)
    return Verdict(None if reason else SHARES[found.upper()], reason, reply.text)


def read_rating(reply: Reply, code: str) -> Verdict:
    """The rating ``[[7 code]]`` of a reply, from 1 to 10."""
    found, reason = _find(reply, _RATING, code)
    if reason:
        return Verdict(None, reason, reply.text)
    if not LOW <= float(found) <= HIGH:
        return Verdict(None, "out_of_range", reply.text)
    return Verdict(float(found), "", reply.text)


def read_published_choice(reply: Reply) -> Verdict:
    """The verdict ``[[A]]``, ``[[B]]`` or ``[[C]]`` of a reply to a prompt of MT-Bench.

    FastChat takes A where both are named, which here is no verdict.
    """
    found, reason = ("", _fault(reply)) if reply.fault else _only(
        set(_CHOICE.findall(reply.text)), "no_verdict")
    return Verdict(None if reason else SHARES[found], reason, reply.text)


def read_published_rating(reply: Reply) -> Verdict:
    """The rating of a reply to a prompt of MT-Bench, see `read_mt_bench`, from 1 to 10."""
    score = read_mt_bench(reply.text)
    reason = _fault(reply) or ("no_verdict" if score is None else
                               "" if LOW <= score <= HIGH else "out_of_range")
    return Verdict(None if reason else score, reason, reply.text)


def read_mt_bench(text: str) -> float | None:
    """The score in a judgment of MT-Bench: the first ``[[n]]``, else the first ``[n]``.

    For judgments that were written without codes; a text without either has none.
    """
    for pattern in _MT_BENCH:
        if found := pattern.search(text):
            return float(found[1])
    return None


def _fault(reply: Reply) -> str:
    return "rejected" if reply.fault.startswith("rejected_") else reply.fault


def _only(found: set[str], otherwise: str) -> tuple[str, str]:
    """The only verdict of several equal ones; or "" and why there is none."""
    if len(found) == 1:
        return found.pop(), ""
    return "", "several" if found else otherwise


def _find(reply: Reply, pattern: str, code: str) -> tuple[str, str]:
    """The one verdict with the code; or "" and the reason why there is none.

    A reply that was cut has none: its judge might have gone on to another one.
    """
    if reply.fault:
        return "", _fault(reply)
    found = {verdict.upper() for verdict in re.findall(
        rf"\[\[\s*({pattern})[\s:,]+{code}\s*\]\]", reply.text, re.IGNORECASE)}
    has_verdict = re.search(rf"\[\[\s*{pattern}\b", reply.text, re.IGNORECASE)
    return _only(found, "no_code" if has_verdict else "no_verdict")
