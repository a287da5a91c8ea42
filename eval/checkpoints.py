"""The saved checkpoints of a run as models to evaluate, and tasks measured on each of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import code_digest, digest, read_json, read_jsonl, read_lineage, write_json
from core.errors import UserError
from core.file_sums import NAME as SUMS
from core.progress import log
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from eval.aggregate.curves import Point
from eval.aggregate.table import Score
from eval.measures.items import Asking, measure_task
from eval.respond.loaded import LoadedModel
from eval.tasks.task import Task
from model.checkpoint import load_checkpoint, saved_steps
from model.config import ModelConfig, make_model_config
from model.directory import read_description
from model.execution import Execution
from model.families.registry import check_generates

TRAINING = "while training"     # series of what the run measured itself
Row = tuple[str, str, str, Point]       # of `eval.aggregate.curves.make_curves`


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of training, finished or not, with its checkpoints.

    Attributes:
        folder: of the run.
        fingerprint: of its lineage.
        steps: of the checkpoints that are saved, the oldest first.
        tokens: what the model was trained on by step, where that is known.
    """

    folder: Path
    fingerprint: str
    config: ModelConfig
    tokenizer: Tokenizer
    chat: bool
    context_tokens: int
    steps: tuple[int, ...]
    tokens: Mapping[int, int]

    def load(self, step: int, *, raw: bool) -> LoadedModel:
        """The model of a checkpoint; arguments and errors as `model.checkpoint.load_checkpoint`."""
        params = load_checkpoint(self.folder / "checkpoints", step, self.config, raw=raw)
        return LoadedModel(params, self.config, Execution(), self.tokenizer, self.chat,
                           self.context_tokens, f"{self.folder.name}/{step}@{self.fingerprint}")

    def mark(self, step: int) -> str:
        """What tells a checkpoint from others: the digest of its files' checksums."""
        return read_json(self.folder / "checkpoints" / str(step) / SUMS)["digest"]


def open_run(folder: Path) -> Run:
    """Opens a run's folder: a model directory, or one that pretraining is still writing.

    Raises:
        UserError: it is neither, has no checkpoint, or its model does not continue text.
    """
    folder = Path(folder)
    if not folder.exists():
        folder = folder.with_name(f"{folder.name}.partial")
    lineage, steps = read_lineage(folder), tuple(saved_steps(folder / "checkpoints"))
    if not steps:
        raise UserError(str(folder), "has no checkpoint", "name a run whose config has "
                        "run.keep_checkpoints or run.keep_every above 0")
    reading = read_json(folder / "data.json") if (folder / "data.json").exists() else None
    if (folder / "model.json").exists():
        described = read_description(folder)
        config, chat = described.config, described.chat
        context_tokens, tokenizer = described.context_tokens, folder / "tokenizer"
    elif reading is not None:
        sizes = dict(reading["model"])
        config, chat = make_model_config(sizes, sizes.pop("V")), False
        context_tokens = reading["source"]["row_length"]
        tokens = lineage["config"]["pretrain"]["tokens"]
        tokenizer = (Path(tokens) if os.sep in tokens else folder.parent / tokens) / "tokenizer"
    else:
        raise UserError(str(folder), "is not finished, and does not say what model it trains",
                        "wait for its end; runs of pretraining can be read before")
    check_generates(config, str(folder))
    return Run(folder, lineage["fingerprint"], config, load_tokenizer(tokenizer), chat,
               context_tokens, steps, _tokens_by_step(folder, reading, steps))


def recorded(run: Run) -> Iterator[Row]:
    """The bits per byte of held-out pages that the run measured itself, of the series `TRAINING`.
    """
    path = run.folder / "metrics.jsonl"
    for row in read_jsonl(path) if path.exists() else ():
        if row.get("heldout_bpb") is not None:
            tokens = run.tokens.get(row["step"])
            yield TRAINING, "heldout", "bpb", Point(row["step"], Score(row["heldout_bpb"]), tokens)


def measure_checkpoints(run: Run, tasks: Sequence[tuple[Task, int]], cache: Path, *, raw: bool,
                        origin: Mapping[str, Any], row_length: int, batch_size: int,
                        seed: int) -> tuple[list[Row], dict[int, str]]:
    """Measures tasks on every checkpoint, the oldest first.

    Args:
        tasks: with their numbers of questions, of the test split.
        cache: folder of results by checkpoint, which a repeated command reads.
        raw: evaluates the raw parameters where there is a running average.
        origin: what else decides the questions, e.g. the corpus; plain data.

    Returns:
        Rows of curves; and of each checkpoint that could not be read, why.

    Raises:
        UserError: no checkpoint can be read, or a task has no question.
    """
    rows: list[Row] = []
    failed: dict[int, str] = {}
    cache.mkdir(parents=True, exist_ok=True)
    settings = [run.fingerprint, raw, dict(origin), row_length, seed,
                {task.name: count for task, count in tasks}, code_digest(__file__)]
    for step in run.steps:
        try:
            mark = digest([run.mark(step), settings])
            found = _cached(cache / f"{step}.json", mark, lambda step=step: _measure_all(
                run.load(step, raw=raw), tasks, row_length=row_length, batch_size=batch_size,
                seed=seed))
        except UserError as error:
            if not str(error).startswith(str(run.folder)):
                raise
            failed[step] = str(error)
            log(f"curve: step {step} is left out: {error}")
            continue
        rows += [("", task, metric, Point(step, Score(**score), run.tokens.get(step)))
                 for task, metric, score in found]
    if len(failed) == len(run.steps):
        raise UserError(str(run.folder), f"none of its {len(failed)} checkpoints can be read; of "
                        f"step {run.steps[-1]}: {failed[run.steps[-1]]}", "name another run")
    return rows, failed


def _cached(path: Path, mark: str, measure: Callable[[], list[Any]]) -> list[Any]:
    """What a file holds under this mark; else what is measured, and written there."""
    if path.exists() and (saved := read_json(path))["mark"] == mark:
        return saved["scores"]
    scores = measure()
    write_json(path, {"mark": mark, "scores": scores})
    return scores


def _measure_all(model: LoadedModel, tasks: Sequence[tuple[Task, int]],
                 **settings: int) -> list[tuple[str, str, dict[str, Any]]]:
    return [found for task, count in tasks for found in _measure(model, task, count, **settings)]


def _measure(model: LoadedModel, task: Task, count: int, *, row_length: int, batch_size: int,
             seed: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(task, metric, fields of `Score`): accuracies as those of `eval.run`."""
    _, found = measure_task(model, task, count, Asking(seed, batch_size=batch_size,
                                                       batch_tokens=row_length * batch_size))
    for metric in ("acc", "acc_raw"):
        if metric in found:
            stderr = found["stderr"] if metric == "acc" else None
            log(f"curve: {model.name.partition('@')[0]}: {task.name} {metric} {found[metric]:.4f} "
                f"of {found['items']}")
            yield task.name, metric, dataclasses.asdict(Score(
                found[metric], stderr, found["items"], found.get("chance", 0.0)))


def _tokens_by_step(folder: Path, reading: Mapping[str, Any] | None,
                    steps: Sequence[int]) -> dict[int, int]:
    """Tokens of text by step: of pretraining as its `data.json` counts them, else as logged."""
    path = folder / "metrics.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    if reading is None:
        return {row["step"]: round(row["tokens"]) for row in rows if row.get("tokens") is not None}
    per_step = reading["batch_size"] * reading["source"]["row_length"]
    return {step: reading["tokens_before"] + (step - reading["first_step"]) * per_step
            for step in {*steps, *(row["step"] for row in rows)}}
