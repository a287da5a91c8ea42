"""Stage: a reward model, from rankings or pairs of answers.

    python -m align.reward --config=configs/align.py --workdir=runs/mine \\
        --config.reward.model=MODEL --config.reward.inputs=preferences.jsonl

Any decoder or encoder gets a scalar head; all answers of a prompt are read once and compared in
pairs (InstructGPT, arXiv 2203.02155). The result is a model directory whose scores have mean 0 and
standard deviation 1 over answers of the reference policy, `python -m eval.reward` scores with it.
`heldout.jsonl` holds the scores of each held-out prompt's answers.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from align.finetune import make_batches, open_tokenizer
from align.heldout import heldout_means
from align.losses.reward import LOSSES, MARGINS, ranking_loss
from align.rankings import (
    HELDOUT,
    RankedRows,
    RankingWriter,
    padded_rankings,
    report_rankings,
)
from align.scalar import open_scalar_setup, train_scalar
from align.sources import fingerprint_inputs, open_conversations, open_preferences
from core.artifacts import write_jsonl
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import log
from data.answers import cut_prompt, render_answer
from data.batch import Batch
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from data.preferences import Preference
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.examples import Example, Examples, lay_out_examples
from eval.measures.ranked import RankedPrompt, measure_rankings
from eval.respond.reward import score_texts
from model.directory import read_description
from model.families.registry import Params
from model.heads.scalar import normalise_head
from train.distributed import initialize
from train.setup import Setup
from train.signals import leave_if_stopping
from train.step import place_batch
from train.trainer import Data, make_step
from train.watch import profile

NUM_SHOWN = 1000        # preferences that `show_rows` renders at most
NORMALISED_ON = 1024    # answers at most, evenly spaced: a mean to 1/32 of the deviation


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Trains a reward model and measures it on held-out prompts."""
    initialize()
    section, source = config.reward, parents["model"]
    setup = open_scalar_setup(source, section, config.mesh)
    is_encoder = setup.config.family == "encoder"
    _check(section, is_encoder=is_encoder)
    tokenizer = open_reward_tokenizer(source, section, is_encoder=is_encoder)
    writer = RankingWriter(section, tokenizer, is_encoder=is_encoder)
    described = writer.write(folder / "examples", _preferences(section, parents, writer.faults))
    writer.faults.report()
    counts = report_rankings(described, section)
    examples = Examples(folder / "examples")
    open_rows = partial(RankedRows, row_length=section.row_length,
                        num_answers=described["max_answers"])
    loss_fn = partial(ranking_loss, loss=section.loss, margin=section.margin,
                      centering_coef=section.centering_coef)
    batches = make_batches(open_rows(examples), section)
    data = Data(batches, described["max_answers"], lambda num_batches: {
        "epochs": section.num_epochs * num_batches / len(batches)})
    heldout = Examples(folder / "examples", HELDOUT) if HELDOUT in described["parts"] else None
    evaluate = heldout and heldout_means(
        loss_fn, lambda: padded_rankings(open_rows(heldout), section.batch_size), setup)
    # Compiles nothing, and refuses what does not fit before a model is loaded.
    make_step(loss_fn, setup, section, num_steps=len(batches),
              rows_per_example=data.rows_per_example)
    score = partial(_score, setup=setup, section=section, num_rows=section.batch_size
                    * data.rows_per_example)
    reference = _reference_texts(section, tokenizer, setup, examples)
    normalised: dict[str, Any] = {}
    params, metrics = train_scalar(
        loss_fn, data, source, setup=setup, section=section, folder=folder, evaluate=evaluate,
        finish=partial(_normalise, score, reference, section, normalised))
    measured = {} if heldout is None else _measure(
        params, heldout, score, described, normalised["score_std"], folder)
    if measured:
        log(f"{section.out}: accuracy {measured['accuracy']:.3f} ({measured['accuracy_low']:.3f} "
            f"to {measured['accuracy_high']:.3f}) on {measured['heldout_prompts']:,} held-out "
            f"prompts; that of the longer answer is {measured['longer_accuracy']:.3f}, of the "
            f"shorter one {measured['shorter_accuracy']:.3f}")
    return counts | metrics | normalised | measured


def show_rows(config: ConfigDict, parents: Mapping[str, Path],
              num: int) -> tuple[dict[str, Batch], Tokenizer]:
    """The answers of the first `num` rankings, best first, by their names, and the tokenizer; for
    `data.inspect batch`. The token that is scored has weight 1."""
    section, source = config.reward, parents["model"]
    is_encoder = read_description(source).config.family == "encoder"
    tokenizer, rows = open_reward_tokenizer(source, section, is_encoder=is_encoder), {}
    writer = RankingWriter(section, tokenizer, is_encoder=is_encoder)
    with tempfile.TemporaryDirectory() as name:
        found = itertools.islice(_preferences(section, parents, writer.faults), NUM_SHOWN)
        report_rankings(writer.write(Path(name) / "examples", found), section)
        writer.faults.report()
        examples = Examples(Path(name) / "examples")
        for number in range(min(num, len(examples))):
            group = sorted(examples[number], key=lambda example: -example.value)
            for place, (tokens, *_) in enumerate(group, start=1):
                scored = Example(tokens, np.arange(len(tokens)) == len(tokens) - 1)
                rows[f"ranking {number + 1}, answer {place}"] = lay_out_examples(
                    [scored], section.row_length)
    return rows, tokenizer


def open_reward_tokenizer(source: Path, section: ConfigDict, *, is_encoder: bool) -> Tokenizer:
    """The tokenizer with the section's template; an encoder has none."""
    return load_tokenizer(source / "tokenizer") if is_encoder else open_tokenizer(source, section)


def _check(section: ConfigDict, *, is_encoder: bool) -> None:
    """Raises `UserError` for a name that is none, or has no effect."""
    for field, known in (("loss", LOSSES), ("margin", MARGINS)):
        if section[field] not in known:
            raise UserError(f"{section.out}.{field}={section[field]!r}",
                            f"is none of {', '.join(known)}", "choose one of them")
    if section.template and is_encoder:
        raise UserError(f"{section.out}.template={section.template!r}", "is not for an encoder, "
                        "which reads texts between its own special tokens", "set it to ''")
    if section.loss == "plackett_luce" and section.margin != "none":
        raise UserError(f"{section.out}.margin={section.margin!r}", f"is part of {LOSSES[0]} "
                        "alone", "set it to none")


def _preferences(section: ConfigDict, parents: Mapping[str, Path],
                 faults: Faults) -> Iterator[Preference]:
    if "pairs" in parents:
        yield from read_examples(parents["pairs"] / "rankings.jsonl", "preferences", faults=faults)
    yield from open_preferences(section, faults)


def _score(params: Params, texts: list[Any], *, setup: Setup, section: ConfigDict,
           num_rows: int) -> np.ndarray:
    """Scores of token rows by a model on the stage's mesh."""
    def place(rows: Any) -> Any:
        leave_if_stopping()
        return place_batch(rows, setup.mesh)

    with jax.set_mesh(setup.mesh):
        return score_texts(params, texts, config=setup.config, execution=setup.execution,
                           batch_size=num_rows, max_length=section.row_length, place=place)


def _reference_texts(section: ConfigDict, tokenizer: Any, setup: Setup,
                     examples: Examples) -> list[Any]:
    """Answers of the reference policy: those of `reference`, or of the training data."""
    if not section.reference:
        numbers = np.linspace(0, len(examples.lengths) - 1,
                              min(NORMALISED_ON, len(examples.lengths))).round().astype(int)
        return [examples.example(number).tokens for number in numbers]
    faults, texts = Faults(section.out, section.faulty), []
    own = ConfigDict(section.to_dict() | {"inputs": section.reference, "tasks": {}})
    for conversation in open_conversations(own, None, faults):
        place = str(conversation.meta.get("place", section.reference))
        try:
            answer = render_answer(conversation, tokenizer,
                                   is_encoder=setup.config.family == "encoder")
        except UserError as error:
            faults.add("not_rendered", place, f"cannot be rendered: {error}")
            continue
        cut = cut_prompt([answer], section.row_length)
        if cut is None:
            faults.add("too_long", place, f"has {len(answer.tokens)} tokens")
            continue
        texts.append(cut[0].tokens)
    faults.report()
    if len(texts) < 2:
        raise UserError(f"{section.out}.reference={section.reference!r}", f"gives {len(texts)} "
                        "answers", "name a file of conversations that end with answers")
    return texts


def _normalise(score: Any, reference: list[Any], section: ConfigDict, found: dict[str, Any],
               params: Params) -> Params:
    """The parameters with scores of mean 0 and standard deviation 1 over the reference's answers.

    Source: lm-human-preferences (arXiv 1909.08593, section 2.2), there by a gain and a bias.

    Args:
        found: gets what the scores were before, of the first parameters that are normalised.
    """
    scores = score(params, reference).astype(np.float64)
    mean, std = float(scores.mean()), float(scores.std())
    if not std > 1e-6:      # nan too
        raise UserError(f"{section.out}: the scores", f"have the standard deviation {std:.2g} over "
                        f"{len(reference)} answers", "lower the learning rate, or give answers "
                        "that differ")
    if not found:
        found |= {"normalised_on": len(reference), "score_mean": mean, "score_std": std}
        log(f"{section.out}: scores of {len(reference):,} answers had mean {mean:.3f} and standard "
            f"deviation {std:.3f}, and are made to have 0 and 1")
    return normalise_head(params, mean, std)


def _measure(params: Params, heldout: Examples, score: Any, described: Mapping[str, Any],
             std: float, folder: Path) -> dict[str, Any]:
    """Measures the model on the held-out prompts, and writes `heldout.jsonl`."""
    sources = [source for source, count in described["heldout_sources"] for _ in range(count)]
    groups = [heldout[number] for number in range(len(heldout))]
    scores = iter(score(params, [example.tokens for group in groups for example in group]))
    prompts = [RankedPrompt(source, [float(next(scores)) for _ in group],
                            [example.value for example in group],
                            [int(np.sum(example.weights)) for example in group])
               for source, group in zip(sources, groups)]
    if jax.process_index() == 0:
        write_jsonl(folder / "heldout.jsonl", (prompt._asdict() for prompt in prompts))
    return measure_rankings(prompts, scale=std,
                            prefers_longer=described["longer_accuracy"] >= 0.5)


STAGE = Stage("reward", build, parents=("model", "pairs"), every_process=True,
              inputs=lambda config: _fingerprints(config.reward))


def _fingerprints(section: ConfigDict) -> dict[str, str]:
    """Of the files in `inputs` and `reference`."""
    reference = ConfigDict(section.to_dict() | {"inputs": section.reference})
    return fingerprint_inputs(section) | fingerprint_inputs(reference)


if __name__ == "__main__":
    profile.define_flag()
    run_stage(STAGE)
