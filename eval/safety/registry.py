"""All probes of a safety report by name, and the files that some of them read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from core.errors import UserError
from eval.safety import confidence, hallucination, memorisation, sycophancy, toxicity
from eval.safety.bbq import probe_bias
from eval.safety.probe import Probe, Settings, Subject
from eval.safety.red_team import probe_red_team
from eval.safety.xstest import probe_over_refusal


class Entry(NamedTuple):
    """A probe with what it needs.

    Attributes:
        file: the flag of a file without which it does not run; "" if there is none.
        likelihoods: whether it reads likelihoods, which an endpoint does not give.
    """

    probe: Probe
    file: str = ""
    likelihoods: bool = False


# Flags of `eval.safety`, each the path of a file or folder.
FILES = ("xstest", "bbq", "questions", "toxicity_prompts", "toxicity_classifier", "toxicity_words",
         "training_text", "heldout_text")

PROBES: Mapping[str, Entry] = {
    "over_refusal": Entry(probe_over_refusal, file="xstest"),
    "red_team": Entry(probe_red_team),
    "bias": Entry(probe_bias, file="bbq", likelihoods=True),
    "toxicity": Entry(toxicity.probe),
    "sycophancy": Entry(sycophancy.probe),
    "hallucination": Entry(hallucination.probe),
    "confidence": Entry(confidence.probe),
    "memorisation": Entry(memorisation.probe, file="training_text", likelihoods=True),
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
