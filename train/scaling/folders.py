"""Runs of this project: folders of pretraining, alone, in a workdir, or as points of a sweep."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from core.artifacts import is_set_aside, read_json, read_lineage
from core.errors import UserError
from model.config import ModelConfig, make_model_config
from model.flops import matmul_params
from model.summary import count_parameters
from train.reading import NAME, read_reading
from train.scaling.forms import FLOPS_PER_PARAM
from train.scaling.runs import Runs
from train.scaling.table import Point, make_runs
from train.watch.metrics import read_metrics

PLACES = (NAME, f"*/{NAME}", f"*/*/{NAME}")     # of a run, of a workdir's runs, of a sweep's points


def read_folders(path: Path, count: str, metric: str) -> tuple[Runs, dict[str, int]]:
    """Reads the finished runs of a folder: their sizes, and a metric at every evaluation.

    Args:
        count: which parameters are counted, one of `COUNTS`.
        metric: of the evaluations while training, e.g. `heldout_bpb`.

    Returns:
        The runs; and how many were left out, by reason: not finished, set aside for a
        later run of the same name, or failed.

    Raises:
        UserError: there is none, one has no such metric or one that is not finite, or they differ
            in what must be held fixed.
    """
    folders = sorted({file.parent for place in PLACES for file in path.glob(place)})
    current = [folder for folder in folders
               if folder == path or not is_set_aside(folder, read_lineage(folder))]
    finished = [folder for folder in current if (folder / "metrics.json").exists()]
    left_out = Counter({
        "not_finished": len(current) - len(finished), "set_aside": len(folders) - len(current),
        "failed": sum(read_json(file).get("status") == "failed"
                      for file in path.glob("*/result.json"))})
    if not finished:
        raise UserError(str(path), "holds no finished run of pretraining",
                        "name a run, a workdir or a sweep, or a table of runs")
    points = [point for folder in finished
              for point in read_run(folder, str(folder.relative_to(path)), count, metric)]
    return make_runs(points, count), {name: num for name, num in left_out.items() if num}


def read_run(folder: Path, name: str, count: str, metric: str) -> list[Point]:
    """The evaluations of one run."""
    reading = read_reading(folder)
    sizes = dict(reading.model)
    params = count_by_convention(make_model_config(sizes, sizes.pop("V")))[count]
    section = read_lineage(folder)["config"]["pretrain"]
    origin = {"tokenizer": reading.tokenizer, "corpus": reading.source["tokens"],
              "eval_length": str(section["row_length"])}
    rows = read_metrics(folder / "metrics.jsonl")
    points = []
    for row in rows:
        if metric not in row or row["step"] == reading.first_step == 0:
            continue
        if not isinstance(row[metric], int | float) or not math.isfinite(row[metric]):
            raise UserError(f"{folder} at step {row['step']}", f"{metric} is {row[metric]}",
                            "find out why, or move this run away")
        tokens = reading.tokens_at(row["step"])
        points.append(Point(name, params, tokens, FLOPS_PER_PARAM * params * tokens, row[metric],
                            math.nan, origin))
    if not points:
        known = sorted({found for row in rows for found in row} - {"step", "evaluated"})
        raise UserError(f"--metric={metric}", f"{folder} has none (it has {', '.join(known)})",
                        "name one of these")
    return points


def count_by_convention(config: ModelConfig) -> dict[str, int]:
    """Parameters by each of `COUNTS`."""
    counted = count_parameters(config)
    parts = counted["by_part"]
    body = counted["total"] - parts.get("embedding", 0) - parts.get("head", 0)
    head = config.D * config.V if config.tied else parts.get("head", 0)
    return {"total": counted["total"], "non_embedding": body, "with_head": body + head,
            "products": matmul_params(config)}
