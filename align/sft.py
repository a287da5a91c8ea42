"""Stage: supervised fine-tuning on conversations, by default on the assistant's tokens only.

    python -m align.sft --config=configs/quickstart.py --workdir=runs/quickstart
    python -m align.sft --config=configs/quickstart.py --workdir=runs/quickstart \\
        --config.sft.inputs=mine.jsonl --config.sft.tasks.documentation=0
    python -m data.inspect batch --config=configs/quickstart.py --workdir=runs/quickstart

Conversations are rendered once, into `rows/` of the artifact, and streamed from there. With
`pretrain_frac` that share of the rows is pretraining text, which keeps what the model knows.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from align.finetune import (
    fine_tune,
    make_batches,
    make_passes,
    open_setup,
    open_tokenizer,
    pretraining_rows,
)
from align.heldout import Evaluate, heldout_means, joined, padded_batches, sampled_answers
from align.neftune import with_noise
from align.sources import fingerprint_inputs, is_heldout, open_conversations, prompt_of
from core.artifacts import read_json
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import log
from data.batch import Batch
from data.chat import Conversation, Message, render
from data.layouts.faults import Faults
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.examples import HELDOUT, TRAIN, Example, Examples, PackedRows, write_examples
from data.tokens.rows import batches as group_rows
from data.tokens.rows import check_tokenizer, first_rows
from model.directory import read_description
from train.distributed import initialize
from train.loss import next_token_loss
from train.setup import Setup
from train.watch import profile

ROWS = "rows"                                   # in the artifact: the rendered conversations
WEIGHTINGS = ("tokens", "conversations")
OVERLONG = ("drop", "cut", "fail")
NUM_SHOWN = 1000                                # conversations that `show_rows` renders at most

conversation_loss = partial(next_token_loss, skip_unscored=True)


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Fine-tunes a model on conversations."""
    initialize()
    section, source = config.sft, parents["model"]
    setup = open_setup(source, section, config.mesh)
    tokenizer = open_tokenizer(source, section)
    described = write_rows(section, parents.get("corpus"), tokenizer, folder / ROWS)
    rows = PackedRows(Examples(folder / ROWS), section.row_length)
    batches = make_batches(rows, section)
    if section.pretrain_frac:
        check_tokenizer(parents["tokens"], tokenizer.fingerprint, "sft.tokens")
        batches = mix_pretraining(rows, section, parents["tokens"])
    metrics = fine_tune(with_noise(conversation_loss, section.neftune_alpha), batches, source,
                        setup=setup, section=section, folder=folder,
                        evaluate=make_evaluate(section, setup, tokenizer, source, folder / ROWS))
    parts = described["parts"]
    return {"conversations": parts[TRAIN]["groups"], "rows": len(rows),
            "heldout_conversations": parts.get(HELDOUT, {"groups": 0})["groups"],
            "left_out": described["left_out"], **metrics}


def show_rows(config: ConfigDict, parents: Mapping[str, Path],
              num: int) -> tuple[dict[str, Batch], Tokenizer]:
    """Rows of the first conversations by their names, and the tokenizer; for `data.inspect batch`.
    """
    section = config.sft
    tokenizer = open_tokenizer(parents["model"], section)
    faults, corpus = Faults(section.out, section.faulty), parents.get("corpus")
    rendered = _render_all(section, corpus, tokenizer, faults, [])
    with tempfile.TemporaryDirectory() as name:
        write_examples(Path(name) / ROWS, itertools.islice(
            (group for group in rendered if group[0] == TRAIN), NUM_SHOWN))
        faults.report()
        rows = PackedRows(Examples(Path(name) / ROWS), section.row_length)
        shuffled = grain.MapDataset.source(rows).seed(section.seed).shuffle()
        return first_rows(group_rows(shuffled, 1), num), tokenizer


def write_rows(section: ConfigDict, corpus: Path | None, tokenizer: Tokenizer,
               folder: Path) -> dict[str, Any]:
    """Renders all conversations into a folder of examples, once.

    Returns:
        The contents of its `examples.json`; `left_out` counts conversations by the reason.

    Raises:
        UserError: no conversation is left to train on, or a rule of the section is unknown.
    """
    for field, words in (("weighting", WEIGHTINGS), ("overlong", OVERLONG)):
        if section[field] not in words:
            raise UserError(f"{section.out}.{field}={section[field]!r}",
                            f"is none of {', '.join(words)}", "choose one of them")
    faults, prompts = Faults(section.out, section.faulty), []
    described = write_examples(
        folder, _render_all(section, corpus, tokenizer, faults, prompts),
        lambda: {"left_out": dict(faults.counts), "prompts": prompts})
    faults.report()
    if TRAIN not in described["parts"]:
        raise UserError(f"{section.out}: tasks, inputs", "give no conversation to train on",
                        "raise a count in tasks, or name files in inputs")
    return described


def _render_all(section: ConfigDict, corpus: Path | None, tokenizer: Tokenizer, faults: Faults,
                prompts: list[Any]) -> Iterator[tuple[str, list[Example]]]:
    """Examples with their part; the first held-out prompts are added to `prompts`."""
    for conversation in open_conversations(section, corpus, faults):
        example = render_example(conversation, tokenizer, section, faults)
        if example is None:
            continue
        part = HELDOUT if is_heldout(conversation, section.heldout_frac) else TRAIN
        if part == HELDOUT and len(prompts) < section.run.samples:
            prompts.append(prompt_of(conversation))
        yield part, [example]


def render_example(conversation: Conversation, tokenizer: Tokenizer, section: ConfigDict,
                   faults: Faults) -> Example | None:
    """A conversation as tokens and weights; None if it is left out, which `faults` counts."""
    place = str(conversation.meta.get("place", "a conversation"))
    answers = [m for m in conversation.messages if m.role == "assistant"]
    if not any(m.content.strip() or m.tool_calls for m in answers):
        faults.add("empty_answer" if answers else "no_answer", place, "has no text to learn from")
        return None
    try:
        tokens, weights = render(conversation, tokenizer, train_on=section.train_on)
    except UserError as error:
        faults.add("refused_by_template", place, f"cannot be rendered ({error})")
        return None
    longest = section.row_length + 1
    if len(tokens) > longest and section.overlong == "fail":
        raise UserError(place, f"has {len(tokens)} tokens, more than {section.out}.row_length="
                        f"{section.row_length}", f"set {section.out}.overlong to drop or cut")
    if len(tokens) > longest and section.overlong == "drop":
        faults.add("too_long", place, f"is longer than {section.row_length} tokens")
        return None
    tokens, weights = tokens[:longest], np.asarray(weights[:longest], np.float32)
    if not weights[1:].any():
        faults.add("no_scored_token", place, "has no token of an answer within the row")
        return None
    if section.weighting == "conversations":
        weights = weights / weights[1:].sum()
    return Example(tokens, weights)


def mix_pretraining(rows: PackedRows, section: ConfigDict, tokens: Path) -> grain.MapDataset:
    """Batches in which `pretrain_frac` of the rows are pretraining text, evenly spread."""
    passes = make_passes(rows, section, section.num_epochs)
    num_text = round(len(passes) * section.pretrain_frac / (1 - section.pretrain_frac))
    num_text += -(len(passes) + num_text) % section.batch_size
    text = pretraining_rows(section, tokens, num_text)
    log(f"{section.out}: {num_text} rows of pretraining text beside {len(passes)} of conversations")
    return group_rows(grain.MapDataset.source(_Interleaved(passes, text)), section.batch_size)


class _Interleaved:
    """All of `first` and all of `second`, in their orders and evenly spread."""

    def __init__(self, first: grain.MapDataset, second: grain.MapDataset):
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: int) -> Batch:
        before = index * len(self._second) // len(self)
        is_second = (index + 1) * len(self._second) // len(self) > before
        return self._second[before] if is_second else self._first[index - before]

    def __repr__(self) -> str:      # Grain compares it on restore
        return f"Interleaved({len(self._first)}, {len(self._second)})"


def make_evaluate(section: ConfigDict, setup: Setup, tokenizer: Tokenizer, source: Path,
                  folder: Path) -> Evaluate | None:
    """What is measured while training: the loss of held-out conversations, and sampled answers."""
    described = read_json(folder / "examples.json")
    if HELDOUT not in described["parts"]:
        return None
    rows = PackedRows(Examples(folder, HELDOUT), section.row_length)
    prompts = [Conversation(tuple(Message(role, content) for role, content in prompt))
               for prompt in described["prompts"]]
    evaluations = [heldout_means(conversation_loss,
                                 partial(padded_batches, rows, section.batch_size), setup,
                                 names=("loss",))]
    if prompts:
        evaluations.append(sampled_answers(prompts, tokenizer, setup,
                                           read_description(source).context_tokens))
    return joined(evaluations)


STAGE = Stage("sft", build, parents=("model", "corpus", "tokens"), every_process=True,
              inputs=lambda config: fingerprint_inputs(config.sft))

if __name__ == "__main__":
    profile.define_flag()
    run_stage(STAGE)
