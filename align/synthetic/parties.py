"""The models of Constitutional AI: one that answers, and one that criticises and chooses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from align.synthetic.critics import Critic, ModelCritic, RuleCritic
from align.synthetic.principles import Constitution
from align.synthetic.rules import make_rule
from core.errors import UserError
from eval.respond.asked import RUN_FIELDS, cost_of, open_endpoint, sampling_of
from eval.respond.kept_replies import KeptReplies
from eval.respond.loaded import LoadedModel, keeping, load_model
from eval.respond.local import LocalResponder
from model.execution import make_execution


class Parties:
    """The models that a section names, opened when they are needed; replies are kept in a folder.

    Args:
        section: ``config.constitution``.
        parents: folders of `model` and `critic`, where these are local.
        work: folder of the kept replies.
    """

    def __init__(self, section: ConfigDict, parents: Mapping[str, Path], work: Path):
        self._section, self._parents, self._work = section, parents, work
        self._loaded: dict[Path, LoadedModel] = {}
        self._replies: dict[str, KeptReplies] = {}

    def open_answers(self) -> KeptReplies | None:
        """What answers prompts; None where the answers are those of the inputs."""
        section = self._section
        if not section.model and not section.endpoint:
            return None
        return self._open("answers", "model", section.endpoint, section.answer)

    def open_critic(self, constitution: Constitution) -> Critic:
        """What criticises and chooses; a model is shown the examples of the constitution."""
        section = self._section
        if section.critic_rule:
            rule = make_rule(section.critic_rule, section.rule.to_dict())
            return RuleCritic(section.critic_rule, rule)
        responder = self._open("critiques", "critic", section.critic_endpoint, section.critique)
        if section.labels == "probability":
            judge = keeping(self._load("critic"), self._work)
        else:
            judge = self._open("choices", "critic", section.critic_endpoint, section.judge)
        return ModelCritic(responder, judge, constitution)

    def usage(self) -> dict[str, Any]:
        """Requests and tokens by what was asked for, and the cost of those of endpoints."""
        section, priced = self._section, Counter()
        for label, replies in self._replies.items():
            if section.endpoint if label == "answers" else section.critic_endpoint:
                priced.update(replies.usage)
        return {"usage": {label: dict(sorted(replies.usage.items()))
                          for label, replies in self._replies.items()},
                "cost": cost_of(priced, section.run)}

    def _open(self, label: str, field: str, endpoint: str, settings: ConfigDict) -> KeptReplies:
        """A model or an endpoint that answers with some settings, `label` their name."""
        run, sampling = self._section.run, sampling_of(settings)
        if endpoint:
            responder = open_endpoint(self._section, sampling,
                                      party="" if field == "model" else "critic_")
        else:
            responder = LocalResponder(self._load(field), sampling, run.batch_size)
        self._replies[label] = KeptReplies(responder, sampling, self._work, label,
                                           run.chunk_prompts)
        return self._replies[label]

    def _load(self, field: str) -> LoadedModel:
        """The model of a field, which may be that of another one."""
        folder = self._parents[field].resolve()
        if folder not in self._loaded:
            self._loaded[folder] = load_model(
                folder, make_execution(self._section, also=(*RUN_FIELDS, "chunk_prompts")),
                weights=self._section.weights)
        return self._loaded[folder]


def check_parties(section: ConfigDict) -> None:
    """Raises `UserError` where it is contradictory what answers or what criticises."""
    if section.model and section.endpoint:
        raise UserError(f"constitution.model={section.model!r}, endpoint={section.endpoint!r}",
                        "only one of them can answer", "set the other to \"\"")
    named = [name for name in ("critic", "critic_endpoint", "critic_rule") if section[name]]
    if len(named) != 1:
        raise UserError(f"constitution: {', '.join(named) or 'no critic'}", "exactly one of "
                        "critic, critic_endpoint and critic_rule must be set",
                        "set the others to \"\"")
    if section.labels == "probability" and named == ["critic_endpoint"]:
        raise UserError("constitution.labels='probability'", "needs the critic's probabilities, "
                        "which an endpoint does not give", "set it to letter, or name a folder as "
                        "critic")
