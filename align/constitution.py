"""Stage: Constitutional AI: revised answers for SFT, and a critic's preferences (arXiv 2212.08073).

    python -m align.constitution --config=configs/constitution.py --workdir=runs/x
    python -m align.sft --config=configs/align.py --workdir=runs/x --config.sft.model=MODEL \\
        --config.sft.inputs=runs/x/constitution/revisions.jsonl
    python -m align.dpo --config=configs/align.py --workdir=runs/x --config.dpo.pairs=constitution

A model answers prompts. A critic, which is a model, an endpoint or a rule, criticises and revises
the answers in rounds, and chooses between two answers to each prompt. Writes `revisions.jsonl`,
conversations with the revised answer, its history in `meta`; `pairs.jsonl` and `rankings.jsonl`,
preferences as `align.pairs` writes them; and `left_out.jsonl`, what a rule removed and why. Replies
are kept as they come: a run that was killed asks for none of them again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from align.sources import digest_file, fingerprint_inputs, open_prompts
from align.synthetic.choices import DISAGREEMENTS, TwoAnswers, prefer
from align.synthetic.constitution import fault_of
from align.synthetic.critics import Critic
from align.synthetic.outcomes import Outcomes
from align.synthetic.parties import Parties, check_parties
from align.synthetic.principles import OWN, Constitution, read_constitution
from align.synthetic.revisions import Revised, revise
from align.synthetic.rules import RULES
from core.artifacts import digest, write_jsonl
from core.bounds import check_numbers
from core.entry import Stage, run_stage
from core.errors import UserError
from core.functions import defining_file, load_function
from core.progress import log
from data.chat import Conversation
from data.layouts.faults import Faults
from data.preferences import write_preferences
from eval.respond.kept_replies import KeptReplies
from eval.respond.responder import Reply

MAKES = ("revisions", "pairs")
LABELS = ("letter", "probability")


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Writes revisions and preferences by ``config.constitution``; see the module's docstring.

    Returns:
        prompts; left_out, prompts by the reason; faults of replies by step and reason; what
        `_write_revisions` and `_write_pairs` return; usage, requests and tokens by what was asked
        for; and cost.

    Raises:
        UserError: the config is contradictory, a file is damaged, an endpoint fails, or nothing
            comes out.
    """
    section = config.constitution
    _check(section)
    constitution = read_constitution(principle_files(section))
    _check_principles(section, constitution)
    outcomes = Outcomes(section.rules.to_dict())
    work = folder / "work"
    work.mkdir(exist_ok=True)
    parties = Parties(section, parents, work)
    critic = parties.open_critic(constitution.with_examples(section.num_examples))
    responder = parties.open_answers()
    prompts, left_out = _read_prompts(section, parents, needs_answer=responder is None)
    samples = [_answer(prompts, responder, number, section.seed, outcomes)
               for number in range(1 + ("pairs" in section.makes))]
    metrics = {"prompts": len(prompts), "left_out": left_out}
    if "revisions" in section.makes:
        name = responder.name if responder is not None else ""
        metrics |= _write_revisions(folder, prompts, samples[0], critic, constitution, outcomes,
                                    section, name)
    if "pairs" in section.makes:
        metrics |= _write_pairs(folder, prompts, samples, critic, constitution, outcomes, section)
    write_jsonl(folder / "left_out.jsonl", outcomes.removed)
    counts = {step: dict(counts) for step, counts in sorted(outcomes.counts.items())}
    if not metrics.get("revisions") and not metrics.get("pairs"):
        raise UserError("constitution", f"nothing comes out of {len(prompts)} prompts: {counts}",
                        "use a better critic, or set config.constitution.rules to keep")
    shutil.rmtree(work)
    return metrics | {"faults": counts} | parties.usage()


def _read_prompts(section: ConfigDict, parents: Mapping[str, Path],
                  needs_answer: bool) -> tuple[list[Conversation], dict[str, int]]:
    """The prompts, none of them twice, and how many rows were left out by the reason."""
    faults = Faults(section.out, section.faulty)
    prompts: dict[str, Conversation] = {}
    for prompt in open_prompts(section, parents.get("corpus"), faults):
        place, mark = prompt.meta["place"], digest(prompt.to_dict()["messages"])
        if needs_answer and not str(prompt.meta.get("answer", "")).strip():
            faults.add("no_answer", place, "has no answer, and no model answers")
        elif mark in prompts:
            faults.add("repeated", place, "asks what another row asks")
        else:
            prompts[mark] = prompt
    faults.report()
    if not prompts:
        raise UserError("constitution: tasks, inputs", f"give no prompt (left out: "
                        f"{dict(faults.counts)})", "raise a count in tasks, or name files in "
                        "inputs")
    return list(prompts.values()), dict(faults.counts)


def _answer(prompts: Sequence[Conversation], responder: KeptReplies | None, number: int, seed: int,
            outcomes: Outcomes) -> list[Reply | None]:
    """Sample `number` of the answers to prompts; None where a rule leaves one out."""
    replies = [Reply(str(prompt.meta["answer"])) for prompt in prompts] if responder is None \
        else responder.respond(prompts, int(digest([seed, "answer", number]), 16) >> 33)
    answers = []
    for prompt, reply in zip(prompts, replies, strict=True):
        text = reply.text.strip()
        fault = fault_of(reply, text)
        fault = "" if fault == "refusal" else fault     # an answer like others
        kept = outcomes.keeps("answer", fault, prompt, text)
        if kept and not text:       # nothing to go on with
            outcomes.remove("answer", fault, prompt, text)
        answers.append(reply._replace(text=text) if kept and text else None)
    return answers


def _write_revisions(folder: Path, prompts: Sequence[Conversation],
                     answers: Sequence[Reply | None], critic: Critic, constitution: Constitution,
                     outcomes: Outcomes, section: ConfigDict, model: str) -> dict[str, Any]:
    """Writes `revisions.jsonl`.

    Returns:
        revisions: rows; changed: those whose answer is not the first one; initial_words_mean and
        revised_words_mean.
    """
    first = [Revised(prompt, answer.text, answer.text)
             for prompt, answer in zip(prompts, answers, strict=True) if answer is not None]
    revised = revise(first, critic, constitution.principles, outcomes,
                     num_rounds=section.num_rounds, seed=section.seed)
    write_jsonl(folder / "revisions.jsonl", (one.to_dict(model, critic.name) for one in revised))
    changed = sum(one.answer.split() != one.initial.split() for one in revised)
    log(f"constitution: {len(revised)} of {len(prompts)} conversations revised, {changed} of them "
        "with another answer")
    return {"revisions": len(revised), "changed": changed,
            "initial_words_mean": _mean_words(one.initial for one in revised),
            "revised_words_mean": _mean_words(one.answer for one in revised)}


def _mean_words(texts: Iterable[str]) -> float | None:
    sizes = [len(text.split()) for text in texts]
    return sum(sizes) / len(sizes) if sizes else None


def _write_pairs(folder: Path, prompts: Sequence[Conversation],
                 samples: Sequence[Sequence[Reply | None]], critic: Critic,
                 constitution: Constitution, outcomes: Outcomes,
                 section: ConfigDict) -> dict[str, Any]:
    """Writes `pairs.jsonl` and, for a reward model, the same as `rankings.jsonl`.

    Returns:
        pairs, ties included, and the counts of `prefer`.
    """
    candidates = []
    for prompt, *both in zip(prompts, *samples, strict=True):
        if None in both:
            continue
        if both[0].text == both[1].text:
            outcomes.count("choice", "equal")
            outcomes.remove("choice", "equal", prompt, both[0].text)
            continue
        finishes = tuple("length" if reply.fault else "stop" for reply in both)
        candidates.append(TwoAnswers(prompt, (both[0].text, both[1].text), finishes))
    pairs, described = prefer(candidates, critic, constitution.preferences, outcomes,
                              disagreement=section.disagreement, seed=section.seed)
    for name in ("pairs.jsonl", "rankings.jsonl"):
        write_preferences(folder / name, pairs)
    log(f"constitution: {len(pairs)} pairs of {len(prompts)} prompts; in "
        f"{described['disagreements']} the better answer depended on the order")
    return {"pairs": len(pairs), **described}


def principle_files(section: ConfigDict) -> list[Path]:
    """Files of the principles; our own where none is named."""
    names = [part.strip() for part in section.principles.split(",") if part.strip()]
    return [Path(name) for name in names] or [OWN]


def _check(section: ConfigDict) -> None:
    check_numbers(section, "constitution")
    check_parties(section)
    for field, options in (("labels", LABELS), ("disagreement", DISAGREEMENTS)):
        if section[field] not in options:
            raise UserError(f"constitution.{field}={section[field]!r}",
                            f"is none of {', '.join(options)}", "choose one of them")
    if not section.makes or set(section.makes) - set(MAKES):
        raise UserError(f"constitution.makes={tuple(section.makes)}",
                        f"must be one or more of {', '.join(MAKES)}", "choose among them")
    if "pairs" in section.makes and not section.model and not section.endpoint:
        raise UserError("constitution.makes: pairs", "needs two answers to each prompt, and "
                        "nothing answers", "set model or endpoint, or makes to revisions alone")


def _check_principles(section: ConfigDict, constitution: Constitution) -> None:
    """Raises `UserError` where a model would be asked by principles that there are none of."""
    needed = {"revisions": ("critique and revision", constitution.principles),
              "pairs": ("preference", constitution.preferences)}
    for what in () if section.critic_rule else section.makes:
        name, found = needed[what]
        if not found:
            raise UserError(f"constitution.principles={section.principles!r}",
                            f"holds no principle with {name}, which {what} need",
                            "add a file that has some, separated by a comma, or change makes")


def _fingerprint(config: ConfigDict) -> dict[str, str]:
    """What decides the result beside the config and the parents: the contents of files."""
    section = config.constitution
    marks = fingerprint_inputs(section)
    for path in principle_files(section):
        if path.is_file():      # `build` reports one that is missing
            marks[f"principles {path.name}"] = digest_file(path)
    if "." in section.critic_rule and section.critic_rule not in RULES:
        rule = load_function("constitution.critic_rule", section.critic_rule)
        marks["critic_rule"] = digest_file(defining_file(rule))
    return marks


STAGE = Stage("constitution", build, parents=("model", "critic", "corpus"), inputs=_fingerprint)

if __name__ == "__main__":
    run_stage(STAGE)
