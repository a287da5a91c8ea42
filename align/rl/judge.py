"""The reward `judge`: a chat model reads the conversation and the answer, and gives a number.

The judge is a folder or a chat endpoint. It replies with a number from 0 to 10, greedily; the
reward is a tenth of it. So a model trains on the direct scores of another one (d-RLAIF, arXiv
2309.00267). Only a reply that is nothing but such a number counts: whatever else it says, the
answer's reward is not a number, and it is treated and counted like any other of that kind.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from align.rl.answers import Answer
from align.sources import digest_file
from core.errors import UserError
from data.chat import write_dialogue
from eval.respond.asked import check_model, cost_of, count_usage, open_endpoint
from eval.respond.endpoint import UNREACHABLE
from eval.respond.loaded import load_model
from eval.respond.local import LocalResponder
from eval.respond.responder import Reply, Responder
from model.execution import Execution
from model.generation.sampling import Sampling
from train.signals import leave_if_stopping

OWN = Path(__file__).with_name("judge_prompt.txt")
MAX_SCORE = 10
UNREACHABLE_RULES = ("fail", "count")
# Why an answer has no score: the reply is no number from 0 to 10, or was cut; or there is none.
REASONS = ("no_score", "truncated", "prompt_too_long", "rejected", UNREACHABLE)

_NUMBER = re.compile(r"[0-9]{1,2}(?:\.[0-9]+)?")
_PLACE = re.compile(r"\{(conversation|answer)\}")


def open_judge(section: ConfigDict, folder: Path | None, execution: Execution,
               mesh: Mesh | None) -> Judge:
    """The judge of a section.

    Args:
        folder: of a chat model; None for an endpoint.
        execution, mesh: how and where a model of a folder runs.

    Raises:
        UserError: there is no judge, or there are two; or its prompt cannot be used.
    """
    check_model(section, section.out, "judge", "judge_endpoint")
    if section.judge_unreachable not in UNREACHABLE_RULES:
        raise UserError(f"{section.out}.judge_unreachable={section.judge_unreachable!r}",
                        f"is none of {', '.join(UNREACHABLE_RULES)}", "choose one of them")
    template, sampling = _read_template(section), Sampling(section.judge_tokens, temperature=0.0)
    if folder is None:
        responder = open_endpoint(section, sampling, party="judge_",
                                  fails=section.judge_unreachable == "fail")
    else:
        model = dataclasses.replace(load_model(folder, execution, mesh),
                                    between_batches=leave_if_stopping)
        responder = LocalResponder(model, sampling, section.run.num_slots)
    return Judge(responder, template, section)


def fingerprint_judge(section: ConfigDict) -> dict[str, str]:
    """The digest of the prompt's file, where a judge is asked and the file is there."""
    path = _path_of(section)
    if not section.rewards.get("judge") or not path.is_file():     # reported when it is opened
        return {}
    return {"judge_prompt": digest_file(path)}


def _path_of(section: ConfigDict) -> Path:
    return Path(section.judge_prompt) if section.judge_prompt else OWN


def _read_template(section: ConfigDict) -> str:
    """The prompt's text, in which both places are to be filled."""
    field, path = f"{section.out}.judge_prompt={section.judge_prompt!r}", _path_of(section)
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(field, f"cannot be read ({error})", "name a text file") from None
    if missing := {"conversation", "answer"} - set(_PLACE.findall(text)):
        raise UserError(field, f"has no place {{{min(missing)}}}",
                        "write {conversation} and {answer} where they belong")
    return text


class Judge:
    """Scores answers; a reward of `align.rl.rewards`.

    Equal prompts are asked once. Of several processes the first asks an endpoint, whose replies to
    others might differ.

    Args:
        responder: gives the numbers.
        template: of the prompt.
        section: of the config.

    Attributes:
        counts: of the last call, by name: requests, tokens and their cost, and the answers without
            a score by the reason.
    """

    def __init__(self, responder: Responder, template: str, section: ConfigDict):
        self._responder, self._template, self._section = responder, template, section
        self.counts: dict[str, float] = {}

    def __call__(self, answers: Sequence[Answer]) -> np.ndarray:
        """A reward in [0, 1] for each answer; NaN without a score.

        Raises:
            UserError: the endpoint fails for good, or rejects every prompt.
        """
        scores_B = np.full(len(answers), np.nan, np.float32)
        is_shared = bool(self._section.judge_endpoint) and jax.process_count() > 1
        if not is_shared or jax.process_index() == 0:
            scores_B[:] = self._ask([self._write(answer) for answer in answers])
        return multihost_utils.broadcast_one_to_all(scores_B) if is_shared else scores_B

    def _write(self, answer: Answer) -> str:
        """The prompt about an answer; what stands in the answer is not filled in again."""
        parts = {"conversation": write_dialogue(answer.question.messages[:-1]),
                 "answer": answer.text}
        return _PLACE.sub(lambda place: parts[place[1]], self._template)

    def _ask(self, prompts: Sequence[str]) -> list[float]:
        distinct = list(dict.fromkeys(prompts))
        # Asking all processes whether to stop takes all of them.
        keep = (lambda number, reply: leave_if_stopping()) if jax.process_count() == 1 else None
        replies = dict(zip(distinct, self._responder.respond(distinct, self._section.seed, keep),
                           strict=True))
        found = {prompt: read_score(reply) for prompt, reply in replies.items()}
        reasons = Counter(found[prompt][1] for prompt in prompts)
        if reasons["rejected"] == len(prompts):
            raise UserError(self._responder.name, "rejects every prompt of the judge "
                            f"({next(iter(replies.values())).fault})", "check judge_endpoint, "
                            "judge_endpoint_model and judge_tokens")
        self._count(reasons, list(replies.values()))
        return [found[prompt][0] for prompt in prompts]

    def _count(self, reasons: Mapping[str, int], replies: Sequence[Reply]) -> None:
        usage = count_usage(replies)
        cost = cost_of(usage, self._section.run) if self._section.judge_endpoint else 0.0
        self.counts = {f"judge/{name}": float(count) for name, count in usage.items()} | {
            "judge/cost": cost} | {f"judge/{reason}": float(reasons[reason]) for reason in REASONS}


def read_score(reply: Reply) -> tuple[float, str]:
    """The reward that a reply gives, in [0, 1], and ""; or NaN, and why it gives none.

    A reply that was cut gives none, as "1" may be the beginning of "10".
    """
    if reply.fault:
        return float("nan"), "rejected" if reply.fault.startswith("rejected_") else reply.fault
    text = reply.text.strip()
    if _NUMBER.fullmatch(text) and float(text) <= MAX_SCORE:
        return float(text) / MAX_SCORE, ""
    return float("nan"), "no_score"
