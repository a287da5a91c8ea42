"""Stage: supervised fine-tuning; the loss sees the assistant's tokens only.

    python -m align.sft --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
from ml_collections import ConfigDict

from core import entry
from core.errors import UserError
from core.progress import log
from data.batch import pack_examples
from data.chat import Conversation, render
from data.tokenizer import load_tokenizer
from data.tokens.rows import batches
from eval.tasks.documentation import load_documentation
from eval.tasks.verifiable import Verifiable
from model.directory import context_tokens, load_model, save_model
from model.parallel.sharding import make_mesh
from train.distributed import initialize
from train.loss import next_token_loss
from train.trainer import train
from train.watch import profile


def make_conversations(section: ConfigDict, corpus: Path) -> list[Conversation]:
    """The training questions of all tasks, shuffled."""
    made = load_documentation(corpus).conversations("train", section.num_documentation,
                                                    section.seed)
    made += Verifiable().conversations("train", section.num_verifiable, section.seed)
    random.Random(section.seed).shuffle(made)
    return made


def make_rows(conversations: Sequence[Conversation], tokenizer, section: ConfigDict) -> list:
    """Packs rendered conversations into rows; too long ones are counted and said.

    Raises:
        UserError: fewer rows than one batch.
    """
    rows, num_too_long = pack_examples((render(c, tokenizer) for c in conversations),
                                       section.row_length)
    if num_too_long:
        log(f"{section.out}: left out {num_too_long} of {len(conversations)} conversations that "
            f"are longer than {section.row_length} tokens")
    if len(rows) < section.batch_size:
        raise UserError(f"{section.out}: {len(rows)} rows", "do not fill one batch of "
                        f"{section.batch_size}", "give more conversations or a smaller batch_size")
    return rows


def epochs(rows: Sequence[Any], section: ConfigDict) -> grain.MapDataset:
    """Batches of `num_epochs` passes over rows, each pass in an order of its own."""
    source = grain.MapDataset.source(rows).seed(section.seed).shuffle()
    return batches(source.repeat(section.num_epochs), section.batch_size)


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Fine-tunes the base model on solved questions."""
    initialize()
    section = config.sft
    tokenizer_folder = parents["model"] / "tokenizer"
    mesh = make_mesh(config.mesh)
    params, model_config = load_model(parents["model"], mesh)
    conversations = make_conversations(section, parents["corpus"])
    rows = epochs(make_rows(conversations, load_tokenizer(tokenizer_folder), section), section)
    params, told = train(next_token_loss, rows, make_params=lambda p: p, source=params,
                   config=model_config, mesh=mesh, section=section, folder=folder)
    save_model(folder, params, model_config, tokenizer_folder, chat=True,
               context_tokens=context_tokens(parents["model"]))
    return {"conversations": len(conversations), "steps": len(rows), **told}


if __name__ == "__main__":
    profile.define_flag()
    entry.run_stage("sft", build, parents=("model", "corpus"), every_process=True)
