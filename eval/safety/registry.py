"""All probes of a safety report by name, and the files that some of them read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from core.errors import UserError
from eval.safety import confidence, hallucination, sycophancy
from eval.safety.probe import Probe, Settings, Subject


class Entry(NamedTuple):
    """A probe with what it needs.

    Attributes:
        file: the flag of a file without which it does not run; "" if there is none.
        likelihoods: whether it reads likelihoods, which an endpoint does not give.
    """

    probe: Probe
    file: str = ""
    likelihoods: bool = False


# Flags of optional files, with their help.
FILES: Mapping[str, str] = {
    "xstest": "XSTest's prompts (CSV), or completions of it with labels (JSONL), a file or a "
              "folder.",
    "bbq": "BBQ's items (JSONL), a file or a folder.",
    "questions": "Multiple-choice questions of sycophancy and confidence, rows with question, "
                 "choices and answer; without it our own.",
}

PROBES: Mapping[str, Entry] = {
    "sycophancy": Entry(sycophancy.probe),
    "hallucination": Entry(hallucination.probe),
    "confidence": Entry(confidence.probe),
}


def choose(names: Sequence[str]) -> dict[str, Entry]:
    """The probes of these names, all without any.

    Raises:
        UserError: a name is unknown.
    """
    for name in names:
        if name not in PROBES:
            raise UserError(f"--probes={name!r}", f"is none of {', '.join(PROBES)}",
                            "choose among them")
    return {name: entry for name, entry in PROBES.items() if not names or name in names}


def why_not(entry: Entry, subject: Subject, settings: Settings) -> str:
    """Why a probe cannot be run; "" if it can."""
    if entry.file and entry.file not in settings.files:
        return f"needs --{entry.file}"
    if entry.likelihoods and subject.model is None:
        return "reads likelihoods, which an endpoint does not give"
    return ""
