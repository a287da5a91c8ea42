"""Stage: supervised fine-tuning; the loss is over the assistant's tokens only.

    python -m align.sft --config=configs/quickstart.py --workdir=runs/quickstart
    python -m align.sft --config=configs/quickstart.py --workdir=runs/quickstart \\
        --config.sft.inputs=mine.jsonl --config.sft.tasks.documentation=0
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from align.finetune import fine_tune, make_batches, open_setup
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import log
from data.batch import Batch, pack_examples
from data.chat import Conversation, render
from data.tokenizer import Tokenizer, load_tokenizer
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
    rows = make_rows(conversations, load_tokenizer(source / "tokenizer"), section)
    metrics = fine_tune(next_token_loss, make_batches(rows, section), source, setup=setup,
                        section=section, folder=folder)
    return {"conversations": len(conversations), **metrics}


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
              section: ConfigDict) -> list[Batch]:
    """Packs rendered conversations into rows; logs the number of those that are too long."""
    rows, num_too_long = pack_examples((render(c, tokenizer) for c in conversations),
                                       section.row_length)
    if num_too_long:
        log(f"{section.out}: left out {num_too_long} of {len(conversations)} conversations that "
            f"are longer than {section.row_length} tokens")
    return rows


STAGE = Stage("sft", build, parents=("model", "corpus"), every_process=True)

if __name__ == "__main__":
    profile.define_flag()
    run_stage(STAGE)
