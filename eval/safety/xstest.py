"""XSTest (arXiv 2308.01263): safe prompts that look unsafe, and unsafe ones beside them.

Its files are read as the authors publish them: prompts, with a type and a label (CSV), or models'
completions of them (JSONL), with labels of people, of GPT-4 and of string match.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.errors import UserError
from data.chat import ask
from data.layouts.faults import Faults
from data.layouts.rows import name_of
from eval.safety.items import EMPTY, spread
from eval.safety.probe import Section, Settings, Subject
from eval.safety.refusal import FULL_COMPLIANCE, FULL_REFUSAL, PARTIAL_REFUSAL, VERDICTS
from eval.safety.replies import FAULT, judge_refusal, read_items
from eval.statistics import Estimate, estimate_share

CONTRAST = "contrast_"      # begins the types of unsafe prompts
SAFE, UNSAFE = "safe", "unsafe"
LABELS = {"1_full_compliance": FULL_COMPLIANCE, "2_full_refusal": FULL_REFUSAL,
          "3_partial_refusal": PARTIAL_REFUSAL}
LABELLERS = {"human": "final_label", "GPT-4": "gpt4_label", "string match": "strmatch_label"}
WORDS = {FULL_REFUSAL: "full refusal", PARTIAL_REFUSAL: "partial refusal",
         FULL_COMPLIANCE: "full compliance", EMPTY: "empty reply"}
ABOUT = ("Prompts of XSTest (arXiv 2308.01263) were asked, safe ones that look unsafe and unsafe "
         "ones. Refusals are found by the rules of eval.safety.refusal, made for English. On "
         "prompts that they were not written with they agree with people on 83 to 96 % of the "
         "replies of four larger models. They read neither whether an answer is right nor whether "
         "it makes sense; an empty reply is neither a refusal nor compliance.")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt of XSTest: its id, text and type (`group`); `label` is `SAFE` or `UNSAFE`."""

    id: str
    text: str
    group: str
    label: str


@dataclasses.dataclass(frozen=True)
class Completion:
    """A model's completion, with its class by labeller; "" where a label is none of the three."""

    prompt: Prompt
    text: str
    labels: Mapping[str, str]


def read_prompts(path: Path, faults: Faults) -> list[Prompt]:
    """The prompts of a file or folder, each once, where several files hold them.

    Raises:
        UserError: there is none, or see `read_items`.
    """
    found: dict[str, Prompt] = {}
    for _, row in read_items(path, faults, ("prompt", "type")):
        prompt = _make_prompt(row)
        found.setdefault(prompt.id.rpartition("-")[2], prompt)      # 17 is v2-17 elsewhere
    if not found:
        raise UserError(f"--xstest={str(path)!r}", "holds no row with a prompt and a type "
                        f"(left out: {dict(faults.counts)})", "name a file of XSTest")
    return list(found.values())


def read_completions(path: Path, faults: Faults) -> dict[str, list[Completion]]:
    """The labelled completions of a file, or of each file of a folder that has any, by its name.

    Raises:
        UserError: there is none, or see `read_items`.
    """
    found: dict[str, list[Completion]] = {}
    for file, row in read_items(path, faults, ("prompt", "type")):
        if LABELS.get(row.get("final_label")) and isinstance(row.get("completion"), str):
            labels = {name: LABELS.get(row.get(field), "") for name, field in LABELLERS.items()}
            found.setdefault(name_of(file), []).append(
                Completion(_make_prompt(row), row["completion"], labels))
        elif "completion" in row:
            faults.add("no_label", str(file), "holds a completion that no person labelled")
    if not found:
        raise UserError(f"--xstest={str(path)!r}", "holds no completion with a label of people",
                        "name a file of completions, or a model: --model=DIR")
    return found


def _make_prompt(row: Mapping[str, str]) -> Prompt:
    kind = row["type"]
    label = row.get("label")
    if label not in (SAFE, UNSAFE):     # files of completions have none
        label = UNSAFE if kind.startswith(CONTRAST) else SAFE
    return Prompt(str(row.get("id", row["prompt"])), row["prompt"], kind, label)


def probe_over_refusal(subject: Subject, settings: Settings) -> Section:
    """Asks XSTest's prompts; see `eval.safety.probe.Probe`."""
    faults = Faults("xstest")
    prompts = spread(read_prompts(settings.files["xstest"], faults), settings.num, settings.seed)
    faults.report()
    replies = subject.respond([ask(prompt.text) for prompt in prompts], settings.max_new_tokens,
                              seed=settings.seed)
    rows = [{"id": prompt.id, "group": prompt.group, "label": prompt.label, "prompt": prompt.text,
             "reply": reply.text, "fault": reply.fault,
             "verdict": judge_refusal(prompt.text, reply)}
            for prompt, reply in zip(prompts, replies, strict=True)]
    counts = dict(faults.counts)
    if num := sum(row["verdict"] == FAULT for row in rows):
        counts[FAULT] = num
    return Section("over_refusal", "Refusal of safe and of unsafe prompts", ABOUT,
                   _estimate(rows), rows, counts)


def _estimate(rows: Sequence[Mapping[str, str]]) -> dict[str, Estimate]:
    """Shares of each verdict among safe and unsafe prompts, then refusals by type."""
    answered = [row for row in rows if row["verdict"] != FAULT]
    found = {}
    for label in (SAFE, UNSAFE):
        verdicts = [row["verdict"] for row in answered if row["label"] == label]
        for verdict, words in WORDS.items():
            if verdicts:
                found[f"{words}, {label} prompts"] = estimate_share(
                    [float(one == verdict) for one in verdicts])
    for label in (SAFE, UNSAFE):
        for kind in dict.fromkeys(row["group"] for row in answered if row["label"] == label):
            verdicts = [row["verdict"] for row in answered if row["group"] == kind]
            found[f"any refusal, {kind} ({label})"] = estimate_share(
                [float(one in VERDICTS[1:]) for one in verdicts])
    return found
