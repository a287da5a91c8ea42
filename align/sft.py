"""Stage: supervised fine-tuning, by default on the assistant's tokens only.

    python -m align.sft --config=configs/quickstart.py --workdir=runs/quickstart
    python -m align.sft --config=configs/quickstart.py --workdir=runs/quickstart \\
        --config.sft.inputs=mine.jsonl --config.sft.tasks.documentation=0
    python -m data.inspect batch --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from align.finetune import fine_tune, make_batches, open_setup, open_tokenizer
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import log
from data.batch import Batch, pack_examples
from data.chat import Conversation, render
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.rows import first_rows
from eval.tasks.registry import open_tasks
from train.distributed import initialize
from train.loss import next_token_loss
from train.watch import profile


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Fine-tunes the base model on solved questions."""
    initialize()
    section, source = config.sft, parents["model"]
    setup = open_setup(source, section, config.mesh)
    conversations = make_conversations(section, parents.get("corpus"))
    rows, left_out = make_rows(conversations, open_tokenizer(source, section), section)
    metrics = fine_tune(next_token_loss, make_batches(rows, section), source, setup=setup,
                        section=section, folder=folder)
    return {"conversations": len(conversations), **left_out, **metrics}


def show_rows(config: ConfigDict, parents: Mapping[str, Path],
              num: int) -> tuple[dict[str, Batch], Tokenizer]:
    """The first rows of the run by their names, and their tokenizer; for `data.inspect batch`."""
    section = config.sft
    tokenizer = open_tokenizer(parents["model"], section)
    rows, _ = make_rows(make_conversations(section, parents.get("corpus")), tokenizer, section)
    return first_rows(make_batches(rows, section), num), tokenizer


def make_conversations(section: ConfigDict, corpus: Path | None) -> list[Conversation]:
    """The training questions of all tasks and the conversations of all inputs, shuffled."""
    conversations = []
    for task, count in open_tasks(section.tasks, corpus, section.inputs):
        conversations += task.conversations("train", count, section.seed)
    if not conversations:
        raise UserError(f"{section.out}: tasks, inputs", "give no conversation",
                        "raise a count in tasks, or name files in inputs")
    random.Random(section.seed).shuffle(conversations)
    return conversations


def make_rows(conversations: Sequence[Conversation], tokenizer: Tokenizer,
              section: ConfigDict) -> tuple[list[Batch], dict[str, int]]:
    """Packs rendered conversations into rows, and logs how many are left out.

    Returns:
        The rows; and the numbers of conversations left out as longer than a row (`too_long`) and
        as without a text of the assistant (`empty_answers`).
    """
    answered = [c for c in conversations
                if any(m.role == "assistant" and m.content.strip() for m in c.messages)]
    rows, num_too_long = pack_examples(
        (render(c, tokenizer, train_on=section.train_on) for c in answered), section.row_length)
    left_out = {"too_long": num_too_long, "empty_answers": len(conversations) - len(answered)}
    for name, reason in (("too_long", f"longer than {section.row_length} tokens"),
                         ("empty_answers", "without a text to learn from")):
        if left_out[name]:
            log(f"{section.out}: left out {left_out[name]} of {len(conversations)} conversations "
                f"that are {reason}")
    return rows, left_out


STAGE = Stage("sft", build, parents=("model", "corpus"), every_process=True)

if __name__ == "__main__":
    profile.define_flag()
    run_stage(STAGE)
