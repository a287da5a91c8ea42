"""The run of `scripts.bench.device`: tables of lines, each measured in a process of its own.

The process for the next line imports its packages while the line before is measured. A kernel that
does not compile, a size that does not fit or a crash becomes a line with its reason.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from core.artifacts import ROOT, read_json, write_json
from core.errors import UserError
from core.progress import log
from model.flops import peak_flops, train_flops_per_token
from scripts.bench.device_table import format_tables
from scripts.bench.train_workload import Workload, make_config

TABLES = ("checks", "training", "again", "peer", "attention", "generation", "profile", "optimizer",
          "head", "search")
LEAST_SECS = 15         # no line begins with less time left
LINE_SECS = 150         # at most, for any process
NUM_STEPS, NUM_TRIAL_STEPS = 20, 8
OUT_OF_MEMORY = "out of memory"

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A training step with the settings to measure.

    Attributes:
        size: key of `train_workload.SIZES`.
        rows: of a step.
        row_length: inputs of a row.
        dtype: of matmuls.
        fields: of our `Execution`.
        xla_flags: beside those of the environment.
    """

    size: str
    rows: int
    row_length: int
    dtype: str
    fields: Mapping[str, Any]
    xla_flags: str = ""

    @property
    def name(self) -> str:
        """The line's name in the table."""
        settings = [f"{name}={value}" for name, value in self.fields.items()]
        return " ".join(filter(None, (self.size, f"{self.rows}x{self.row_length}", *settings,
                                      self.xla_flags)))

    def workload(self, num_steps: int, profile: bool = False) -> dict[str, Any]:
        """The workload of one process, whose clock starts when it is sent."""
        return dataclasses.asdict(Workload(
            size=self.size, batch_size=self.rows, row_length=self.row_length, dtype=self.dtype,
            num_steps=num_steps, fields=dict(self.fields), profile=profile))


# Where the search starts on 80 GB, and the changes that it tries, each kept if it is faster. With
# `LARGE_MEMORY` the rows are doubled; those that do not fit are halved.
LARGE_MEMORY = 120e9
STARTS = {
    "gpu": [Trial("1.3B", 8, 2048, "bfloat16", {"scan_unroll": 24}),
            Trial("350M", 16, 2048, "bfloat16", {"scan_unroll": 24}),
            Trial("124M", 32, 2048, "bfloat16", {"scan_unroll": 12})],
    "tpu": [Trial("124M", 16, 2048, "bfloat16", {"scan_unroll": 1}),
            Trial("350M", 8, 2048, "bfloat16", {"scan_unroll": 1, "loss_chunks": 8})],
    "cpu": [Trial("tiny", 2, 64, "float32", {"scan_unroll": 1})],
}
COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer="
CHANGES: dict[str, list[dict[str, Any]]] = {
    "1.3B": [{"loss_chunks": 4}, {"rows": 16, "remat": "names:qkv,attention,hidden"},
             {"scan_unroll": 1}],
    "350M": [{"loss_chunks": 8}, {"xla_flags": "--xla_gpu_enable_triton_gemm=true"},
             {"scan_unroll": 1}],
    "124M": [{"xla_flags": "--xla_gpu_enable_triton_gemm=true"}, {"loss_chunks": 8},
             {"xla_flags": COMMAND_BUFFERS}, {"scan_unroll": 1}],
    "tiny": [{"scan_unroll": 2}],
}

COMMANDS = {"ours": ["-m", "scripts.bench.device_worker"],
            "peer": ["-m", "scripts.bench.peer_llama", "-"]}


class Workers:
    """Processes that wait for a job, one of each side, so that importing costs no time."""

    def __init__(self, pythons: Mapping[str, str], folder: Path):
        """Starts one process of each side.

        Args:
            pythons: by side, the interpreter.
            folder: gets the compilation caches and what the processes write to stderr.
        """
        self._pythons, self._folder = pythons, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._waiting = {side: self._start(side) for side in pythons}

    def _start(self, side: str) -> subprocess.Popen:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1",
                       "JAX_COMPILATION_CACHE_DIR": str(self._folder / "jax"),
                       "TORCHINDUCTOR_CACHE_DIR": str(self._folder / "inductor"),
                       "TRITON_CACHE_DIR": str(self._folder / "triton")}
        with self._stderr(side).open("a") as stderr:
            return subprocess.Popen(
                [self._pythons[side], *COMMANDS[side]], cwd=ROOT, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)

    def _stderr(self, side: str) -> Path:
        return self._folder / f"{side}.log"

    def run(self, side: str, job: Mapping[str, Any], secs: float,
            add: Callable[[Row], None]) -> str:
        """Gives the waiting process its job; returns why it failed, or nothing.

        Args:
            secs: after which it is killed.
            add: called with every row as it comes.
        """
        process, self._waiting[side] = self._waiting[side], self._start(side)
        began, timer = time.monotonic(), threading.Timer(secs, process.kill)
        timer.start()
        with contextlib.suppress(BrokenPipeError):  # it died before: its exit status tells
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.close()
        with process.stdout as output:
            for line in output:
                if line.startswith("{") and line.endswith("\n"):   # else it was cut
                    add(json.loads(line))
        status = process.wait()
        timer.cancel()
        if time.monotonic() - began >= secs:
            return f"took more than {secs:.0f} s"
        if status == -9:    # SIGKILL, by Linux when memory runs out
            return OUT_OF_MEMORY
        lines = self._stderr(side).read_text(errors="replace").strip().splitlines()
        return (lines or [f"exit status {status}"])[-1][:300] if status else ""

    def close(self) -> None:
        """Ends the waiting processes, which get no job."""
        for process in self._waiting.values():
            process.kill()
            process.communicate()


class Results:
    """The lines that are measured, on disk after every one."""

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "results.json"
        self.values: dict[str, Any] = read_json(path) if path.exists() else {"tables": {}}

    def describe(self, machine: Row) -> None:
        """Records the device and its ceilings.

        Raises:
            UserError: the folder holds figures of another device or of other versions.
        """
        earlier = self.values.setdefault("machine", machine)
        for field in ("device", "versions"):
            if earlier[field] != machine[field]:
                raise UserError(f"--out={self._folder}", f"holds figures of {earlier[field]}, and "
                                f"this is {machine[field]}", "give another folder")
        self.save()

    def find(self, table: str, name: str) -> Row | None:
        """An earlier line without an error."""
        row = self.values["tables"].get(table, {}).get(name)
        return row if row and "error" not in row else None

    def add(self, table: str, name: str, row: Row) -> Row:
        """Records a line, and writes both files."""
        self.values["tables"].setdefault(table, {})[name] = row
        log(f"{table}: {name}: " + (row.get("error") or ", ".join(
            f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float))))
        self.save()
        return row

    def save(self) -> None:
        """Writes `results.json` and `table.md`."""
        write_json(self._folder / "results.json", self.values)
        (self._folder / "table.md").write_text(format_tables(self.values))


@dataclasses.dataclass
class Bench:
    """What all tables share."""

    workers: Workers
    results: Results
    until: float        # time.monotonic() at which no further line begins

    @property
    def secs(self) -> float:
        """Seconds that the next process may take."""
        return min(LINE_SECS, self.until - time.monotonic())

    @property
    def machine(self) -> Row:
        """The device and its ceilings."""
        return self.results.values["machine"]


def measure_named(bench: Bench, table: str, job: Row) -> None:
    """All lines of a table whose process measures several: together, then one by one what died."""
    done = [name for name in bench.results.values["tables"].get(table, {})
            if bench.results.find(table, name)]
    names: list[str] = []

    def add(row: Row) -> None:
        if "names" in row:
            names.extend(row["names"])
        else:
            bench.results.add(table, row.pop("name"), row)

    def run(**choice: list[str]) -> str:
        arguments = {**job.get("arguments", {}), **choice}
        return bench.workers.run("ours", {**job, "arguments": arguments}, bench.secs, add)

    if bench.secs < LEAST_SECS:
        return
    fault = run(done=done)
    for name in tuple(names):
        if name in bench.results.values["tables"].get(table, {}):
            continue
        if bench.secs >= LEAST_SECS:
            fault = run(only=[name])
        if name not in bench.results.values["tables"].get(table, {}):
            bench.results.add(table, name, {"error": fault or "not run: the time was over"})


def measure_training(bench: Bench, table: str, trial: Trial, *, side: str = "ours",
                     num_steps: int = NUM_STEPS, profile: bool = False) -> tuple[Trial, Row]:
    """One training line; rows are halved while they do not fit.

    Returns:
        What ran in the end, and its line.
    """
    if side == "peer":
        trial = dataclasses.replace(trial, fields={}, xla_flags="")
    if row := bench.results.find(table, trial.name):
        return trial, row
    if bench.secs < LEAST_SECS:
        return trial, {"error": "not run: the time was over"}
    work = trial.workload(num_steps, profile)
    job = work if side == "peer" else {
        "kind": "training", "arguments": {"work": work}, "xla_flags": trial.xla_flags}
    rows: list[Row] = []
    fault = bench.workers.run(side, job, bench.secs, rows.append)
    row = rows[-1] if rows else {"error": fault}
    row = bench.results.add(table, trial.name, {
        "size": trial.size, "rows": trial.rows, "row_length": trial.row_length, "side": side,
        "settings": dict(trial.fields) | ({"xla_flags": trial.xla_flags} if trial.xla_flags
                                          else {}),
        **_with_utilisation(trial, row, bench.machine)})
    if row.get("error") == OUT_OF_MEMORY and trial.rows > 1:
        smaller = dataclasses.replace(trial, rows=trial.rows // 2)
        return measure_training(bench, table, smaller, side=side, num_steps=num_steps,
                                profile=profile)
    return trial, row


def _with_utilisation(trial: Trial, row: Row, machine: Row) -> Row:
    """Adds the shares of the device's peak and of its measured product."""
    row = {name: value for name, value in row.items() if name != "step_secs"} | (
        {"slowest_step_secs": max(row["step_secs"])} if "step_secs" in row else {})
    if "tokens_per_sec" not in row:
        return row
    config = make_config(trial.size)
    peak = peak_flops(machine["device"], trial.dtype)
    for count in ("causal", "full"):
        flops = row["tokens_per_sec"] * train_flops_per_token(config, trial.row_length, count)
        row[f"mfu_{count}"] = flops / peak if peak else None
    causal = row["tokens_per_sec"] * train_flops_per_token(config, trial.row_length, "causal")
    return row | {"product_frac": causal / machine[f"{trial.dtype}_matmul_flops_per_sec"]}


def fastest(bench: Bench, start: Trial) -> Trial:
    """The settings of the fastest line of a size so far."""
    best, speed = start, 0.0
    for table in ("training", "search"):
        for row in bench.results.values["tables"].get(table, {}).values():
            if row["size"] == start.size and row.get("tokens_per_sec", 0.0) > speed:
                speed, settings = row["tokens_per_sec"], dict(row["settings"])
                xla_flags = settings.pop("xla_flags", "")
                best = dataclasses.replace(start, rows=row["rows"], fields=settings,
                                           xla_flags=xla_flags)
    return best


def search(bench: Bench, starts: list[Trial]) -> None:
    """Tries the changes of every size in turn, each on top of the fastest settings so far."""
    for round_of_changes in _rounds(starts):
        for start, change in round_of_changes:
            best = fastest(bench, start)
            change = dict(change)
            trial = dataclasses.replace(
                best, rows=change.pop("rows", best.rows),
                xla_flags=" ".join(filter(None, (best.xla_flags, change.pop("xla_flags", "")))),
                fields=best.fields | change)
            if bench.results.find("training", trial.name) is None:
                measure_training(bench, "search", trial, num_steps=NUM_TRIAL_STEPS)


def _rounds(starts: list[Trial]) -> Iterator[list[tuple[Trial, dict[str, Any]]]]:
    """One change of each size after the other, so that a short search helps every size."""
    for number in range(max(len(CHANGES[start.size]) for start in starts)):
        yield [(start, CHANGES[start.size][number]) for start in starts
               if number < len(CHANGES[start.size])]


def make_table(bench: Bench, table: str, starts: list[Trial]) -> None:
    """Measures the lines of one table."""
    if table == "checks":
        # Its threads run programs side by side, and CUDA refuses that while one records a buffer.
        on_gpu = bench.machine["platform"] == "gpu"
        measure_named(bench, table, {"kind": "checks",
                                     "xla_flags": COMMAND_BUFFERS if on_gpu else ""})
    elif table == "search":
        search(bench, starts)
    elif table in ("training", "again", "peer", "profile"):
        for start in starts:
            trial = start if table == "training" else fastest(bench, start)
            if table == "profile":  # a command buffer is one operation to the profiler
                trial = dataclasses.replace(
                    trial, xla_flags=f"{trial.xla_flags} {COMMAND_BUFFERS}".strip())
            measure_training(bench, table, trial, profile=table == "profile",
                             side="peer" if table == "peer" else "ours")
    else:
        measure_named(bench, table, {"kind": "parts", "arguments": {"table": table}})


def main() -> dict[str, Any]:
    """Measures the tables until the time is over; returns the summary."""
    given = flags.FLAGS
    for table in given.tables:
        if table not in TABLES:
            raise UserError(f"--tables={table}", f"is none of {', '.join(TABLES)}",
                            "name some of them, in the order in which to measure")
    until = time.monotonic() + 60 * given.minutes
    results = Results(Path(given.out))
    pythons = {"ours": sys.executable} | ({"peer": given.peer_python} if "peer" in given.tables
                                          else {})
    workers = Workers(pythons, Path(given.out) / "caches")
    try:
        bench = Bench(workers, results, until)
        rows: list[Row] = []
        fault = workers.run("ours", {"kind": "ceilings"}, LINE_SECS, rows.append)
        if not rows:
            raise UserError("the device", f"does not run jax: {fault}", "check the installation")
        results.describe(rows[0])
        starts = STARTS[rows[0]["platform"]]
        if (rows[0]["memory_bytes"] or 0) > LARGE_MEMORY:
            starts = [dataclasses.replace(trial, rows=2 * trial.rows) for trial in starts]
        for table in given.tables:
            make_table(bench, table, starts)
    finally:
        workers.close()
    return summarise(results.values)


def summarise(values: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of the last line: failed checks, and by size speed, utilisation and ratio."""
    tables = values["tables"]
    checks = tables.get("checks", {})
    failed = [name for name, row in checks.items() if not row.get("passed")]
    sizes: dict[str, Any] = {}
    for table in ("training", "search", "again", "peer"):
        for row in tables.get(table, {}).values():
            if "tokens_per_sec" in row:
                best = sizes.setdefault(row["size"], {})
                best[row["side"]] = max(best.get(row["side"], 0.0), row["tokens_per_sec"])
                if row["side"] == "ours" and best["ours"] == row["tokens_per_sec"]:
                    best["mfu_causal"] = row["mfu_causal"]
    for best in sizes.values():
        best["ratio"] = best["ours"] / best["peer"] if {"ours", "peer"} <= set(best) else None
    return {"device": values["machine"]["device"], "num_checks": len(checks),
            "failed_checks": failed, "sizes": sizes}

