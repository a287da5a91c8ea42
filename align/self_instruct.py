"""Stage: generates instructions with their answers from seed tasks (Self-Instruct).

    python -m align.self_instruct --config=configs/self_instruct.py --workdir=runs/x
    python -m align.sft --config=configs/align.py --workdir=runs/x --config.sft.model=MODEL \\
        --config.sft.inputs=people.jsonl,runs/x/self_instruct/instructions.jsonl@0.5

A model is shown tasks of people and some of its own, and writes more (arXiv 2212.10560). Writes
`instructions.jsonl`, in the layout `alpaca`, and `removed.jsonl`, what the filters removed, with
the reason of each. Replies are kept as they come: a run that was killed asks for none of them
again.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from align.sources import fingerprint_inputs, open_seeds
from align.synthetic.similar import SimilarityIndex
from align.synthetic.tasks import PROMPT_ID, Judged, judge_task, make_prompt, parse_tasks
from core.artifacts import digest, write_jsonl
from core.bounds import check_numbers
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import log
from data.layouts.faults import Faults
from data.layouts.instructions import Instruction
from eval.respond.asked import add_cost, check_model, make_responder, sampling_of
from eval.respond.kept_replies import KeptReplies
from eval.respond.responder import Reply

SOURCE = "self_instruct"


class Pool:
    """Seed tasks, and those that were generated and kept.

    Args:
        seeds: the tasks of people.
        section: ``config.self_instruct``.

    Attributes:
        kept, removed: rows, in the order in which they came.
        reasons: removed tasks and replies by reason.
    """

    def __init__(self, seeds: Sequence[Instruction], section: ConfigDict):
        self._section = section
        self._index = SimilarityIndex(section.filters.max_similarity)
        for seed in seeds:
            self._index.add(seed.instruction)
        self._seeds = [seed for seed in seeds if self._can_be_shown(seed)]
        self._own: list[Instruction] = []
        self.kept: list[dict[str, Any]] = []
        self.removed: list[dict[str, Any]] = []
        self.reasons: Counter[str] = Counter()
        if not self._seeds:
            raise UserError(f"self_instruct.inputs={section.inputs!r}", f"none of its {len(seeds)} "
                            f"tasks has at most {section.max_shown_words} words",
                            "add shorter tasks, or raise max_shown_words")

    @property
    def is_full(self) -> bool:
        """Whether there are as many tasks as are wanted."""
        return len(self.kept) >= self._section.num_instructions

    def draw(self, number: int) -> list[Instruction]:
        """The tasks that prompt `number` shows, drawn by the seed; seeds where it has no other."""
        section, rng = self._section, random.Random(f"{self._section.seed}/{number}")
        own = rng.sample(self._own, min(section.own_shots, len(self._own)))
        num_seeds = min(section.seed_shots + section.own_shots - len(own), len(self._seeds))
        shown = own + rng.sample(self._seeds, num_seeds)
        rng.shuffle(shown)
        return shown

    def take(self, number: int, reply: Reply, model: str) -> None:
        """Keeps or removes the tasks of the reply to prompt `number`."""
        if reply.fault and reply.fault != "truncated":
            return self._remove(Instruction("", "", reply.text), Judged(reply.fault), number)
        tasks = parse_tasks(reply.text)
        if not tasks:
            return self._remove(Instruction("", "", reply.text), Judged("no_task"), number)
        for place, task in enumerate(tasks, start=1):
            is_cut = reply.fault == "truncated" and place == len(tasks)
            judged = Judged("truncated") if is_cut else self._judge(task)
            if judged.reason:
                self._remove(task, judged, number)
                continue
            self._index.add(task.instruction)
            if self._can_be_shown(task):
                self._own.append(task)
            meta = {"model": model, "request": PROMPT_ID, "prompt": number, "task": place}
            self.kept.append({**task._asdict(), "source": SOURCE, "meta": meta})
        return None

    def _judge(self, task: Instruction) -> Judged:
        if self.is_full:
            return Judged("beyond_target")
        judged = judge_task(task, self._section.filters)
        if judged.reason:
            return judged
        similarity = self._index.nearest(task.instruction)
        return Judged("similar", similarity) if similarity else judged

    def _remove(self, task: Instruction, judged: Judged, number: int) -> None:
        self.reasons[judged.reason] += 1
        self.removed.append({"reason": judged.reason, "score": judged.score, "prompt": number,
                             **task._asdict()})

    def _can_be_shown(self, task: Instruction) -> bool:
        return sum(len(field.split()) for field in task) <= self._section.max_shown_words


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Writes instructions by ``config.self_instruct``; see the module's docstring.

    Returns:
        instructions; seeds; prompts sent; removed, tasks by reason; left_out, rows of the inputs
        by reason; usage and cost, see `add_cost`.

    Raises:
        UserError: the config is contradictory, there is no seed task, nothing is kept, or the
            endpoint fails.
    """
    section = config.self_instruct
    check_numbers(section, "self_instruct")
    check_model(section, "self_instruct")
    if not section.inputs:
        raise UserError("self_instruct.inputs", "names no seed tasks",
                        "set --config.self_instruct.inputs=PATH")
    faults = Faults(section.out, section.faulty)
    seeds = list(open_seeds(section, faults))
    faults.report()
    pool, work = Pool(seeds, section), folder / "work"
    work.mkdir(exist_ok=True)
    responder = KeptReplies(make_responder(section, parents), sampling_of(section), work,
                            SOURCE, section.round_prompts)
    num_prompts = _generate(pool, responder, section)
    if not pool.kept:
        raise UserError("self_instruct.filters", f"let no task pass: "
                        f"{dict(pool.reasons.most_common())}",
                        "use a better model, or loosen config.self_instruct.filters")
    write_jsonl(folder / "instructions.jsonl", pool.kept)
    write_jsonl(folder / "removed.jsonl", pool.removed)
    shutil.rmtree(work)
    return {"instructions": len(pool.kept), "seeds": len(seeds), "prompts": num_prompts,
            "removed": dict(pool.reasons.most_common()), "left_out": dict(faults.counts),
            **add_cost(responder.usage, section)}


def _generate(pool: Pool, responder: KeptReplies, section: ConfigDict) -> int:
    """Asks in rounds until the pool is full or prompts are spent; returns the number of prompts."""
    num_asked = num_drawn = 0
    while not pool.is_full and num_drawn < section.max_prompts:
        last = min(num_drawn + section.round_prompts, section.max_prompts)
        prompts: dict[str, int] = {}    # with few seeds two may be equal, and are asked once
        for number in range(num_drawn, last):
            shown = pool.draw(number)
            prompts.setdefault(make_prompt(shown, section.tasks_per_prompt), number)
        seed = int(digest([section.seed, num_drawn]), 16) >> 33
        replies = responder.respond(list(prompts), seed)
        for number, reply in zip(prompts.values(), replies, strict=True):
            pool.take(number, reply, responder.name)
        num_asked, num_drawn = num_asked + len(prompts), last
        log(f"{section.out}: {len(pool.kept):,} of {section.num_instructions:,} instructions after "
            f"{num_asked:,} prompts, {pool.reasons.total():,} removed")
    return num_asked


STAGE = Stage("self_instruct", build, parents=("model",),
              inputs=lambda config: fingerprint_inputs(config.self_instruct))

if __name__ == "__main__":
    run_stage(STAGE)
