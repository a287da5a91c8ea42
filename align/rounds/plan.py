"""What a round consists of: its stages, and their configs.

    <workdir>/rounds/0/measured         the first model
    <workdir>/rounds/1/pairs            labels of the first model's answers; before them, where
                                        people label, `candidates`
    <workdir>/rounds/1/dpo              the model of round 1; or `reward` and `rl`
    <workdir>/rounds/1/measured         it, beside the first model; with a critic `chosen` as well
    <workdir>/rounds/2/...

Seeds of the config are those of round 0; those of each round are greater by its number, save for
`measure` and `candidates`, which draw from the prompts that no earlier round took.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from align import constitution, dpo, pairs, reward
from align.rl import __main__ as rl
from align.rounds import candidates, label
from align.synthetic.parties import check_parties
from core import artifacts
from core.entry import Stage
from core.errors import UserError

# The stages that sample and label, the last of which writes `pairs.jsonl` and `rankings.jsonl`.
LABELS: Mapping[str, tuple[Stage, ...]] = {
    "task": (pairs.STAGE,), "reward": (pairs.STAGE,),
    "judge": (constitution.STAGE,), "rule": (constitution.STAGE,),
    "votes": (candidates.STAGE, label.STAGE), "none": ()}
# The stages that train, the last of which writes the round's model.
TRAINING: Mapping[str, tuple[Stage, ...]] = {
    "dpo": (dpo.STAGE,), "reward_rl": (reward.STAGE, rl.STAGE), "rl": (rl.STAGE,)}
CRITICS = ("judge", "rule")     # labels of `config.constitution`
VOTES = "votes.jsonl"
# Fields that follow from those of `rounds`, by the field that decides them.
DECIDED = {
    "model": ("pairs.model", "candidates.model", "constitution.model", "dpo.model", "reward.model",
              "rl.model", "measure.model", "measure.first"),
    "corpus": ("pairs.corpus", "candidates.corpus", "constitution.corpus", "rl.corpus",
               "measure.corpus"),
    "reward": ("pairs.reward", "rl.reward", "measure.reward"), "labels": ("label.votes",)}


class Plan:
    """The rounds of a config.

    Args:
        config: see `configs/rounds.py`.
        workdir: holds the artifacts that the config names.

    Attributes:
        first: the first model's folder.

    Raises:
        UserError: the config is contradictory, or an artifact is missing.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        if "rounds" not in config:
            raise UserError("config.rounds", "this config has no such section",
                            "try --config=configs/rounds.py")
        check(config)
        self._config, self._workdir = config, workdir
        self.first = self._find("model")
        self._corpus, self._reward = self._find("corpus"), self._find("reward")

    @property
    def labelling(self) -> tuple[Stage, ...]:
        """The stages that sample and label."""
        return LABELS[self._config.rounds.labels]

    @property
    def training(self) -> tuple[Stage, ...]:
        """The stages that train."""
        return TRAINING[self._config.rounds.training]

    def folder(self, number: int) -> Path:
        """The folder of a round's artifacts, a workdir for its stages."""
        return self._workdir / self._config.rounds.out / str(number)

    def artifact(self, number: int, section: str) -> Path:
        """The folder of the artifact that a round makes by a section."""
        return self.folder(number) / self._config[section].out

    def model(self, number: int) -> Path:
        """The model that a round ends with; of round 0 the first one."""
        return self.artifact(number, self.training[-1].section) if number else Path(self.first)

    def configure(self, number: int) -> ConfigDict:
        """The config of a round's stages; of round 0 only `measure` counts."""
        c, given = ConfigDict(self._config.to_dict()), self._config
        source, folder = str(self.model(max(number - 1, 0))), self.folder(number)
        for name in ("pairs", "candidates", "constitution", "dpo", "reward", "rl"):
            c[name].model = source
        for name in ("pairs", "candidates", "constitution", "rl", "measure"):
            c[name].corpus = self._corpus
        for name in ("pairs", "constitution", "dpo", "reward", "rl"):
            c[name].seed += number
        c.candidates.round = max(number - 1, 0)
        labels = given.rounds.labels
        c.pairs.reward = self._reward if given.pairs.rewards.model else ""
        c.label.votes = str(folder / VOTES) if labels == "votes" else ""
        for name in ("dpo", "reward") if self.labelling else ():
            c[name].pairs = given[self.labelling[-1].section].out
        c.rl.reward = given.reward.out if given.rounds.training == "reward_rl" else (
            self._reward if given.rl.rewards.model else "")
        c.measure.update(
            model=str(self.model(number)), first=self.first, reward=self._reward
            if given.measure.rewards.model else "",
            against=str(self.artifact(0, "measure")) if number else "")
        critic = given.constitution.critic
        c.constitution.critic = c.chosen.critic = critic and self._path(critic)
        c.chosen.update(ours=given.measure.out, theirs=str(self.artifact(0, "measure")))
        return c

    def _find(self, field: str) -> str:
        """The path of an artifact that `rounds` names, "" for none."""
        name = self._config.rounds[field]
        return name and str(artifacts.parent(self._workdir, f"rounds.{field}", name)[0])

    def _path(self, name: str) -> str:
        return name if os.sep in name else str(self._workdir / name)


def check(config: ConfigDict) -> None:
    """Raises `UserError` where fields contradict each other, before anything is built."""
    section = config.rounds
    for field, known in (("labels", LABELS), ("training", TRAINING)):
        if section[field] not in known:
            raise UserError(f"rounds.{field}={section[field]!r}", f"is none of {', '.join(known)}",
                            "choose one of them")
    for decisive, fields in DECIDED.items():
        for field in fields:
            name, _, own = field.partition(".")
            if config[name][own]:
                raise UserError(f"{field}={config[name][own]!r}", "is what each round sets",
                                f"set --config.rounds.{decisive} instead")
    if (section.labels == "none") != (section.training == "rl"):
        raise UserError(f"rounds.labels={section.labels!r}", "does not go with "
                        f"training={section.training!r}: rl alone needs none, and all else does",
                        "change --config.rounds.labels or --config.rounds.training")
    if section.training == "reward_rl" and not config.rl.rewards.model:
        raise UserError("rl.rewards.model=0", "leaves out the reward model that each round trains",
                        "set --config.rl.rewards.model=1.0")
    _check_reward(config)
    _check_critic(config)


def _check_reward(config: ConfigDict) -> None:
    section = config.rounds
    if section.labels == "reward" and not config.pairs.rewards.model:
        raise UserError("pairs.rewards.model=0", "leaves out the reward model that labels",
                        "set --config.pairs.rewards.model=1.0")
    readers = {"pairs.rewards.model": config.pairs.rewards.model,
               "rl.rewards.model": section.training == "rl" and config.rl.rewards.model,
               "measure.rewards.model": config.measure.rewards.model}
    for reader, needs_it in readers.items():
        if needs_it and not section.reward:
            raise UserError(reader, "needs a reward model, and rounds.reward names none",
                            "set --config.rounds.reward to an artifact of align.reward")


def _check_critic(config: ConfigDict) -> None:
    section, labels = config.constitution, config.rounds.labels
    if labels not in CRITICS:
        return
    check_parties(section)
    if section.makes != ("pairs",):
        raise UserError(f"constitution.makes={section.makes}", "is more than the pairs of a round",
                        "set it to ('pairs',)")
    if section.endpoint:
        raise UserError(f"constitution.endpoint={section.endpoint!r}", "answers in place of the "
                        "round's model", "set it to \"\"; the critic has critic_endpoint")
    if (labels == "rule") != bool(section.critic_rule):
        raise UserError(f"constitution.critic_rule={section.critic_rule!r}",
                        f"does not go with rounds.labels={labels!r}",
                        "name a rule for labels=rule, and a model or an endpoint for labels=judge")
