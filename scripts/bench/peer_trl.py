"""The peer of `scripts.bench.align`: TRL's SFTTrainer and DPOTrainer.

    PYTHON -m scripts.bench.peer_trl     # requests of `scripts.bench.generate_engine` on stdin

A step is the trainer's own `training_step`, then clipping and AdamW. The weights are those of
`weights.npz`, the reference is a copy of them.
"""

from __future__ import annotations

import copy
import itertools
import os
import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.align_workload import BETA, BOS, END, PAD, read_work
from scripts.bench.generate_engine import serve
from scripts.bench.peer_llama import make_model
from scripts.bench.train_workload import ADAMW


class Trl:
    """See `scripts.bench.align_turns.Trainer`."""

    def load(self, folder: str, task: str, batch_size: int, num_threads: int) -> dict[str, Any]:
        """Makes the trainer of a task: sft, dpo, or dpo_precomputed, which scores the reference
        once before training."""
        versions, work = start(num_threads), read_work(folder)
        self._trainer = _make_trainer(task, open_model(folder, work), work, batch_size)
        self._trainer.current_gradient_accumulation_steps = 1    # which `train` would set
        self._batches = itertools.cycle(list(self._trainer.get_train_dataloader()))
        self._optimizer = make_optimizer(self._trainer.model)
        return {"versions": versions}

    def steps(self, count: int) -> dict[str, list[float]]:
        """Takes steps; gives the seconds and the loss of each."""
        secs, losses = [], []
        for batch in itertools.islice(self._batches, count):
            began = time.perf_counter()
            model = self._trainer.model.train()
            loss = self._trainer.training_step(model, batch)
            update(model, self._optimizer)
            losses.append(float(loss))      # waits for the device
            secs.append(time.perf_counter() - began)
        return {"secs": secs, "losses": losses}

    def peak_bytes(self) -> int:
        """See `peak_memory_bytes`."""
        return peak_memory_bytes()


def start(num_threads: int) -> dict[str, str]:
    """Sets the packages up, before anything is made with them; gives their versions."""
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
    import torch
    import transformers
    import trl

    torch.set_num_threads(num_threads)
    transformers.logging.set_verbosity_error()
    return {"torch": torch.__version__, "transformers": transformers.__version__,
            "trl": trl.__version__}


def open_model(folder: str, work: dict[str, Any]) -> Any:
    """The model of the weights in a folder."""
    import torch

    model = make_model(work["shape"], 2 * work["row_length"], "sdpa")
    weights = np.load(Path(folder) / "weights.npz")
    model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    # SFTTrainer reads where a model came from.
    model.config._name_or_path = folder
    return model


def make_optimizer(model: Any) -> Any:
    """AdamW with the numbers of both sides."""
    import torch

    return torch.optim.AdamW(
        model.parameters(), lr=ADAMW["learning_rate"], betas=(ADAMW["b1"], ADAMW["b2"]),
        eps=ADAMW["eps"], weight_decay=ADAMW["weight_decay"], fused=True)


def update(model: Any, optimizer: Any) -> Any:
    """Clips the gradient, takes a step with it; gives its norm before."""
    import torch

    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW["clip_norm"])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def peak_memory_bytes() -> int:
    """The most memory of the device so far; of the process on a CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def trainer_settings(batch_size: int) -> dict[str, Any]:
    """What the configs of all trainers share: nothing is logged or saved."""
    import torch

    on_gpu = torch.cuda.is_available()
    return dict(output_dir=tempfile.mkdtemp(), report_to="none", use_cpu=not on_gpu, bf16=on_gpu,
                per_device_train_batch_size=batch_size, gradient_checkpointing=False,
                disable_tqdm=True, logging_strategy="no", save_strategy="no",
                dataloader_pin_memory=False, max_steps=10**6)


def _make_trainer(task: str, model: Any, work: dict[str, Any], batch_size: int) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    shared = trainer_settings(batch_size) | dict(max_length=None,
                                                 train_sampling_strategy="sequential")
    pairs = work["pairs"]
    prompts = [to_text(pair["prompt"]) + " " for pair in pairs]
    answers = {side: [to_text(pair[side]) for pair in pairs] for side in ("chosen", "rejected")}
    if task == "sft":
        data = Dataset.from_dict({"prompt": prompts, "completion": answers["chosen"]})
        return SFTTrainer(model=model, processing_class=make_tokenizer(work["shape"]["V"]),
                          train_dataset=data, args=SFTConfig(**shared, completion_only_loss=True))
    data = Dataset.from_dict({"prompt": prompts, **answers})
    args = DPOConfig(**shared, beta=BETA, precompute_ref_log_probs=task == "dpo_precomputed")
    return DPOTrainer(model=model, ref_model=copy.deepcopy(model), train_dataset=data, args=args,
                      processing_class=make_tokenizer(work["shape"]["V"]))


# Names of special tokens are found inside of other words, too: none may begin one.
SPECIALS = {PAD: "<pad>", BOS: "<bos>", END: "<end>"}


def to_text(tokens: Iterable[int]) -> str:
    """Text that `make_tokenizer` encodes as these tokens."""
    return " ".join(SPECIALS.get(token, f"w{token}") for token in tokens)


def make_tokenizer(size: int) -> Any:
    """Token n is the word wn, special tokens aside."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {SPECIALS.get(n, f"w{n}"): n for n in range(size)}
    words = Tokenizer(models.WordLevel(names, unk_token=SPECIALS[PAD]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=SPECIALS[PAD],
                                   bos_token=SPECIALS[BOS], eos_token=SPECIALS[END])


if __name__ == "__main__":
    serve(Trl())
