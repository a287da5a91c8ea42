"""What must be equal of two artifacts for a measure of one to mean the same in the other."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from core.artifacts import digest
from serve.report.runs import Artifact, Run

# Of a training, what its losses and the like are measured on.
DATA: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("inputs.tokens", "pretrain.row_length", "pretrain.mixture",
                 "pretrain.anneal_mixture", "pretrain.objective", "pretrain.corruption"),
    "sft": ("tokenizer", "inputs.corpus", "sft.tasks", "sft.inputs", "sft.heldout_frac",
            "sft.row_length", "sft.train_on", "sft.weighting", "sft.template"),
    "dpo": ("tokenizer", "inputs.pairs", "dpo.inputs", "dpo.heldout_frac", "dpo.row_length",
            "dpo.template"),
    "reward": ("inputs.pairs", "reward.inputs", "reward.heldout_frac",
               "reward.row_length", "reward.template"),
    "rl": ("inputs.corpus", "rl.tasks", "rl.inputs", "rl.max_new_tokens", "rl.template")}
SEEDED = ("sft", "rl")      # whose held-out questions are drawn by the seed
# What a measure depends on besides.
ALSO: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("dpo", "loss"): ("dpo.loss", "dpo.beta", "dpo.gamma", "dpo.label_smoothing"),
    ("dpo", "heldout_loss"): ("dpo.loss", "dpo.beta", "dpo.gamma", "dpo.label_smoothing"),
    **{("dpo", key): ("dpo.beta",) for key in ("margin", "chosen_reward", "rejected_reward")},
    ("rl", "loss"): ("rl.algorithm", "rl.kl_coef", "rl.vf_coef"),
    ("rl", "reward"): ("rl.rewards", "rl.pattern", "rl.temperature", "rl.missing_end_penalty",
                       "inputs.reward", "inputs.judge"),
    ("rl", "kl"): ("inputs.model", "tokenizer", "rl.temperature"),
    ("rl", "answer_tokens"): ("tokenizer", "rl.temperature")}
T = TypeVar("T")
FREE = ("learning_rate", "gradient_norm")      # mean the same everywhere


@dataclasses.dataclass(frozen=True)
class Unlike:
    """A setting in which two artifacts differ."""

    field: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        return f"{self.field} is {_short(self.ours)} and {_short(self.theirs)}"


def find_unlike(ours: Artifact, theirs: Artifact, fields: Sequence[str]) -> Unlike | None:
    """The first of some settings that differs."""
    for field in fields:
        values = value_of(ours, field), value_of(theirs, field)
        if values[0] != values[1]:
            return Unlike(field, *values)
    return None


def value_of(artifact: Artifact, field: str) -> Any:
    """A setting: ``section.field`` of the config, ``inputs.field``, ``tokenizer``, or ``run.field``
    of the stage's section `run` in the process that finished it.

    None stands for what is not there.
    """
    if field == "tokenizer":
        paths = sorted((artifact.folder / "tokenizer").glob("*"))
        return digest([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
                       for path in paths if path.is_file()]) if paths else None
    section, *names = field.split(".")
    if section == "inputs":
        return artifact.lineage["inputs"].get(".".join(names))
    value: Any = artifact.lineage["config"].get(section)
    if section == "run":
        runs = artifact.lineage["runs"]
        value = runs[-1].get("run", {}).get(artifact.stage) if runs else None
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def unlike_training(runs: tuple[Run, Run], ours: Artifact, theirs: Artifact,
                    key: str) -> Unlike | None:
    """What makes a measure of two trainings of one stage incomparable; None where nothing does."""
    stage = ours.stage
    if key in FREE:
        return None
    if key == "heldout_bpb":
        return (unlike_heldout(runs, ours, theirs)
                or find_unlike(ours, theirs, (f"{stage}.row_length",)))
    if stage not in DATA:
        return find_unlike(ours, theirs, (stage, *(f"inputs.{name}" for name in sorted(
            {*ours.lineage["inputs"], *theirs.lineage["inputs"]}))))
    found = find_unlike(ours, theirs, (*DATA[stage], *ALSO.get((stage, key), ())))
    if found is None and key.endswith("_acc"):      # of a task asked while training
        return find_unlike(ours, theirs, ("run.tasks",))
    if found is None and key.startswith("heldout_"):
        items = [one.metrics.get(f"{key}_items") for one in (ours, theirs)]
        found = (find_unlike(ours, theirs, (f"{stage}.seed",)) if stage in SEEDED else None) or (
            Unlike(f"{key}_items", *items) if items[0] != items[1] else None)
    return found


def unlike_heldout(runs: tuple[Run, Run], ours: Artifact, theirs: Artifact) -> Unlike | None:
    """Whether bits per byte are of different held-out texts: those of the tokens' corpora."""
    tokens = find_unlike(ours, theirs, ("inputs.tokens",))
    if tokens is None:
        return None
    packed = [run.owner(value_of(artifact, "inputs.tokens"))
              for run, artifact in zip(runs, (ours, theirs))]
    if None in packed:
        return tokens
    return find_unlike(*packed, ("inputs.corpus",))


def group_alike(items: Sequence[T],
                   unlike: Callable[[T, T], Unlike | None]) -> list[tuple[list[T], Unlike | None]]:
    """Groups what is comparable with the group's first one.

    Returns:
        The groups, each with what tells it from the first group; None for that one.
    """
    groups: list[tuple[list[T], Unlike | None]] = []
    for item in items:
        for members, _ in groups:
            if unlike(members[0], item) is None:
                members.append(item)
                break
        else:
            groups.append(([item], unlike(groups[0][0][0], item) if groups else None))
    return groups


def _short(value: Any) -> str:
    text = "not set" if value is None or value == "" else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
