"""Judges: a chat model, local or behind an endpoint, or a reward model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ml_collections import ConfigDict
from scipy.special import expit

from core.artifacts import digest
from core.errors import UserError
from data.chat import Conversation
from eval.judges.candidates import Messages, Pair
from eval.judges.mt_bench import PublishedPrompts
from eval.judges.prompts import CHOOSE, NAMES, Asked, Criterion, ask_to_compare, ask_to_rate
from eval.judges.verdicts import (
    Verdict,
    read_choice,
    read_published_choice,
    read_published_rating,
    read_rating,
)
from eval.measures.choices import ChoiceScore, score_choices
from eval.respond.asked import RUN_FIELDS, Budget, cost_of, open_endpoint, sampling_of
from eval.respond.kept_replies import KeptReplies
from eval.respond.loaded import LoadedModel, keeping, load_model
from eval.respond.local import LocalResponder
from eval.respond.responder import Reply
from eval.respond.reward import RewardModel, load_reward
from eval.tasks.task import Choice
from model.execution import make_execution

KINDS = ("model", "endpoint", "reward")
VERDICTS = WRITTEN, LIKELIHOOD = ("written", "likelihood")


class Rated(NamedTuple):
    """An answer that is to be rated, and by what; see `eval.judges.prompts.ask_to_rate`."""

    prompt: Messages
    answer: Messages
    reference: tuple[str, ...] = ()
    criterion: Criterion | None = None


class Judge(Protocol):
    """Compares and rates answers.

    Attributes:
        name: for records.
        reads_order: whether it sees two answers at once, so that their order may matter.
        tied: ratings that differ by less are a tie; 0 where only equal ones are.
    """

    name: str
    reads_order: bool
    tied: float

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """The share of each pair's first answer, which is shown first."""

    def rate(self, rated: Sequence[Rated]) -> list[Verdict]:
        """A number for each answer, the higher the better."""

    def usage(self) -> dict[str, Any]:
        """Requests, tokens and their cost."""


class ModelJudge:
    """A chat model that writes verdicts.

    Args:
        replies: writes them.
        seed: of the codes and of the replies.
        run: the subsection with the prices; None where tokens cost nothing.
        published: prompts of MT-Bench, which it is asked with; None for our own.
    """

    reads_order, tied = True, 0.1       # as in MT-Bench

    def __init__(self, replies: KeptReplies, seed: int, run: ConfigDict | None = None,
                 published: PublishedPrompts | None = None):
        self._replies, self._seed, self._run, self._published = replies, seed, run, published
        self.name = replies.name

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """See `Judge`."""
        if self._published is not None:
            return self._read([self._published.compare(pair) for pair in pairs],
                              lambda reply, code: read_published_choice(reply))
        return self._read([ask_to_compare(pair, self._seed) for pair in pairs], read_choice)

    def rate(self, rated: Sequence[Rated]) -> list[Verdict]:
        """See `Judge`."""
        if self._published is not None:
            return self._read([self._published.rate(*one[:3]) for one in rated],
                              lambda reply, code: read_published_rating(reply))
        return self._read([ask_to_rate(*one, self._seed) for one in rated], read_rating)

    def write(self, prompts: Sequence[Conversation]) -> list[Reply]:
        """Its answers to prompts of another kind."""
        return self._replies.respond(prompts, self._seed)

    def usage(self) -> dict[str, Any]:
        """See `Judge`."""
        usage = self._replies.usage
        return {"usage": dict(sorted(usage.items())),
                "cost": 0.0 if self._run is None else cost_of(usage, self._run)}

    def _read(self, asked: Sequence[Asked],
              read: Callable[[Reply, str], Verdict]) -> list[Verdict]:
        replies = self.write([one.prompt for one in asked])
        return [read(reply, one.code)._replace(prompt=one.prompt.messages[-1].content)
                for one, reply in zip(asked, replies, strict=True)]


class LikelihoodJudge(ModelJudge):
    """A local chat model whose verdict is how likely it finds either letter as its answer.

    The share of answer A is P(A) / (P(A) + P(B)), as AlpacaEval 2 weighs the letters of its judge
    (arXiv 2404.04475). A comparison reads the prompt once and writes nothing, and every one that
    the model's context holds has a verdict.
    """

    def __init__(self, model: LoadedModel, replies: KeptReplies, section: ConfigDict):
        super().__init__(replies, section.seed)
        self._model, self._batch_tokens = model, section.run.batch_tokens

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """See `Judge`."""
        prompts = [ask_to_compare(pair, self._seed, CHOOSE).prompt for pair in pairs]
        scores = score_choices(self._model, [Choice(prompt, NAMES, 0) for prompt in prompts],
                               batch_tokens=self._batch_tokens)
        return [_weigh(score)._replace(prompt=prompt.messages[-1].content)
                for score, prompt in zip(scores, prompts, strict=True)]


def _weigh(score: ChoiceScore) -> Verdict:
    """The verdict of two letters' log-probabilities."""
    first, second = score.logps_nats
    text = f"P(A) = {exp(first):.3g}, P(B) = {exp(second):.3g}"
    if score.is_cut:        # an answer may be missing
        return Verdict(None, "prompt_too_long", text)
    return Verdict(float(expit(first - second)), "", text)


class RewardJudge:
    """A reward model; the share of an answer is the sigmoid of the difference of the scores.

    That is the probability of the Bradley-Terry model that it was trained by. It reads neither a
    reference nor the criterion of a rubric.
    """

    reads_order, tied = False, 0.0

    def __init__(self, model: RewardModel, batch_size: int):
        self._model, self._batch_size = model, batch_size
        self._scores: dict[str, float] = {}
        self.name = model.name

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """See `Judge`."""
        scores = self._score([(*pair.prompt, *answer) for pair in pairs for answer in pair.answers])
        return [Verdict(float(expit(first - second)))
                for first, second in zip(scores[::2], scores[1::2], strict=True)]

    def rate(self, rated: Sequence[Rated]) -> list[Verdict]:
        """See `Judge`."""
        return [Verdict(score) for score in self._score([(*one.prompt, *one.answer)
                                                         for one in rated])]

    def usage(self) -> dict[str, Any]:
        """See `Judge`."""
        return {"usage": {"scored": len(self._scores)}, "cost": 0.0}

    def _score(self, texts: Sequence[Messages]) -> list[float]:
        asked = {digest(Conversation(text).to_dict()): Conversation(text) for text in texts}
        new = {mark: text for mark, text in asked.items() if mark not in self._scores}
        if new:
            scores = self._model.score(list(new.values()), batch_size=self._batch_size)
            self._scores |= zip(new, map(float, scores), strict=True)
        return [self._scores[digest(Conversation(text).to_dict())] for text in texts]


def open_judge(section: ConfigDict, parents: Mapping[str, Path], work: Path) -> Judge:
    """The judge of a section.

    Args:
        parents: folders of `model` or `reward`, where it is one.
        work: folder of the kept replies.

    Raises:
        UserError: there is no judge, or there are two; or it cannot be opened.
    """
    check_judge(section)
    execution = make_execution(section, also=(*RUN_FIELDS, "chunk_prompts",
                                              "batch_tokens"))
    if section.reward:
        return RewardJudge(load_reward(parents["reward"], execution), section.run.batch_size)
    sampling = sampling_of(section)
    if section.endpoint:
        responder, run = open_endpoint(section, sampling, fails=False), section.run
    else:
        model = load_model(parents["model"], execution, weights=section.weights)
        responder, run = LocalResponder(model, sampling, section.run.batch_size), None
    budget = Budget(section.max_requests, section.max_cost, section.run)
    replies = KeptReplies(responder, sampling, work, "verdicts", section.run.chunk_prompts,
                          budget.allows)
    if section.verdict == LIKELIHOOD:
        return LikelihoodJudge(keeping(model, work), replies, section)
    return ModelJudge(replies, section.seed, run,
                      PublishedPrompts(Path(section.prompts)) if section.prompts else None)


def check_judge(section: ConfigDict) -> None:
    """Raises `UserError` unless exactly one judge is named, and one that can do what is asked."""
    named = [kind for kind in KINDS if section[kind]]
    if len(named) != 1:
        raise UserError(f"judge: {', '.join(named) or 'no judge'}", f"exactly one of "
                        f"{', '.join(KINDS)} must be set", "set the others to \"\"")
    if section.verdict not in VERDICTS:
        raise UserError(f"judge.verdict={section.verdict!r}", f"is none of {', '.join(VERDICTS)}",
                        "choose one of them")
    if section.verdict == LIKELIHOOD and (not section.model or section.form != "pairwise"
                                          or section.prompts):
        raise UserError(f"judge.verdict={LIKELIHOOD!r}", "is that of a local model which compares "
                        "two answers", "set model, form to pairwise and prompts to \"\", or set "
                        "verdict to written")
    if section.prompts and section.form == "rubric":
        raise UserError(f"judge.prompts={section.prompts!r}", "knows no rubric",
                        "set form to pairwise or single, or prompts to \"\"")
    if section.reward and (section.form == "rubric" or section.experiments or section.prompts):
        raise UserError(f"judge.reward={section.reward!r}", "reads no prompts and writes no text",
                        "name a chat model, or set form to pairwise, experiments to () and "
                        "prompts to \"\"")
