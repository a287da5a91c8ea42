"""The benchmark of a device: every line is kept or has a reason, and the fastest settings win."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from core.artifacts import ROOT, read_json
from core.errors import UserError
from scripts.bench import device_run
from scripts.bench.device import packages_fault
from scripts.bench.device_checks import relative_error
from scripts.bench.device_run import OUT_OF_MEMORY, Bench, Results, Trial, Workers

MACHINE = {"device": "NVIDIA H200", "versions": {"jax": "0"}, "platform": "gpu",
           "memory_bytes": None, "bfloat16_matmul_flops_per_sec": 8e14,
           "float32_matmul_flops_per_sec": 4e14, "copy_bytes_per_sec": 4e12}
START = Trial("124M", 8, 2048, "bfloat16", {"scan_unroll": 1})


class StubWorkers:
    """Answers jobs as `answer(side, job)` does: with rows, or with a fault."""

    def __init__(self, answer):
        self.answer, self.jobs = answer, []

    def run(self, side, job, secs, add):
        self.jobs.append((side, job))
        rows, fault = self.answer(side, job)
        for row in rows:
            add(dict(row))
        return fault


def make_bench(folder, answer, secs=1000.0):
    results = Results(folder)
    results.describe(dict(MACHINE))
    return Bench(StubWorkers(answer), results, time.monotonic() + secs)


def _speed(rows, **settings):
    return {"tokens_per_sec": 1000.0 * rows, "step_secs": [1.0, 2.0], "versions": {}, **settings}


def _work(job):
    return job["arguments"]["work"] if "arguments" in job else job


def test_a_training_line_has_its_utilisation_and_is_not_measured_twice(tmp_path):
    bench = make_bench(tmp_path, lambda side, job: ([_speed(500)], ""))
    trial, row = device_run.measure_training(bench, "training", START)
    assert trial == START and row["slowest_step_secs"] == 2.0
    # 124M: 6 N_matmul + 6 N H K L = 6 * 123,568,128 + 6 * 12 * 768 * 2048 FLOPs a token
    flops = 6 * (12 * (4 * 768**2 + 3 * 768 * 2048) + 768 * 50_304) + 6 * 12 * 768 * 2048
    assert row["mfu_causal"] == pytest.approx(500_000 * flops / 989e12)
    assert row["product_frac"] == pytest.approx(500_000 * flops / 8e14)
    again = make_bench(tmp_path, lambda side, job: pytest.fail("measured again"))
    assert device_run.measure_training(again, "training", START)[1] == row
    text = (tmp_path / "table.md").read_text()
    assert "| 124M, 8 x 2048 | scan_unroll=1 | 500,000 |" in text and "NVIDIA H200" in text


def test_rows_are_halved_until_they_fit_and_failures_are_lines(tmp_path):
    def answer(side, job):
        rows = _work(job)["batch_size"]
        return ([{"error": OUT_OF_MEMORY}], "") if rows > 2 else ([], "the kernel died | here")

    bench = make_bench(tmp_path, answer)
    trial, row = device_run.measure_training(bench, "training", START)
    assert trial.rows == 2 and row["error"] == "the kernel died | here"
    lines = read_json(tmp_path / "results.json")["tables"]["training"]
    assert [line["error"] for line in lines.values()] == [
        OUT_OF_MEMORY, OUT_OF_MEMORY, "the kernel died | here"]
    assert "not measured: the kernel died / here |" in (tmp_path / "table.md").read_text()


def test_the_search_keeps_what_is_faster_and_the_peer_gets_its_rows(tmp_path, monkeypatch):
    monkeypatch.setitem(device_run.CHANGES, "124M", [
        {"scan_unroll": 12}, {"loss_chunks": 8}, {"rows": 16}, {"xla_flags": "--xla_a=1"}])

    def answer(side, job):
        work = _work(job)
        fast = 10 * work["fields"].get("scan_unroll", 0) - 5 * ("loss_chunks" in work["fields"])
        return [_speed(work["batch_size"] + fast + 7 * bool(job.get("xla_flags")))], ""

    bench = make_bench(tmp_path, answer)
    device_run.make_table(bench, "training", [START])
    device_run.make_table(bench, "search", [START])
    best = device_run.fastest(bench, START)
    assert best == Trial("124M", 16, 2048, "bfloat16", {"scan_unroll": 12}, "--xla_a=1")
    device_run.make_table(bench, "peer", [START])
    side, work = bench.workers.jobs[-1]
    assert side == "peer" and work["batch_size"] == 16 and work["fields"] == {}
    summary = device_run.summarise(bench.results.values)
    assert summary["sizes"]["124M"]["ratio"] == pytest.approx((16 + 120 + 7) / 16)


def test_a_crash_in_a_table_costs_only_its_own_line(tmp_path):
    def answer(side, job):
        arguments = job["arguments"]
        names = [name for name in arguments.get("only") or "abc"
                 if name not in arguments.get("done", ())]
        rows = [{"names": names}]
        for name in names:
            if name == "b":
                return rows, "killed by signal 11"
            rows.append({"name": name, "relative_error": 0.5, "limit": 0.1, "passed": False})
        return rows, ""

    bench = make_bench(tmp_path, answer)
    device_run.make_table(bench, "checks", [])
    lines = bench.results.values["tables"]["checks"]
    assert set(lines) == {"a", "b", "c"} and lines["b"] == {"error": "killed by signal 11"}
    assert device_run.summarise(bench.results.values)["failed_checks"] == ["a", "b", "c"]
    device_run.make_table(bench, "checks", [])
    assert bench.workers.jobs[-1][1]["arguments"]["done"] == ["a", "c"]


def test_no_line_begins_after_the_time(tmp_path):
    bench = make_bench(tmp_path, lambda side, job: pytest.fail("began"), secs=1.0)
    assert "time was over" in device_run.measure_training(bench, "training", START)[1]["error"]
    device_run.make_table(bench, "checks", [])


def test_figures_of_another_device_are_not_mixed(tmp_path):
    make_bench(tmp_path, None)
    with pytest.raises(UserError, match="holds figures of NVIDIA H200"):
        Results(tmp_path).describe(MACHINE | {"device": "cpu"})


def test_a_process_that_crashes_hangs_or_prints_is_bounded(tmp_path, monkeypatch):
    script = ("import os, sys, time\n"
              "job = sys.stdin.readline()\n"
              "print('a library speaks', file=sys.stderr)\n"
              "print('{\"x\": 1}', flush=True)\n"
              "if 'hang' in job: time.sleep(60)\n"
              "if 'crash' in job: sys.exit('RuntimeError: no kernel')\n")
    monkeypatch.setattr(device_run, "COMMANDS", {"ours": ["-c", script]})
    workers = Workers({"ours": sys.executable}, tmp_path)
    try:
        for job, fault in (("work", ""), ("crash", "RuntimeError: no kernel"),
                           ("hang", "took more than 1 s")):
            rows = []
            assert workers.run("ours", {"kind": job}, 1.0 if job == "hang" else 60.0,
                               rows.append) == fault
            assert rows == [{"x": 1}]
    finally:
        workers.close()


def test_an_error_is_relative_and_not_a_number_never_passes():
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 3.0])) == pytest.approx(1 / 18**0.5)
    assert relative_error([np.ones(2), np.array(np.nan)], [np.ones(2), np.ones(())]) == np.inf


def test_missing_packages_are_named_with_the_command_that_brings_them():
    assert packages_fault(("jax",)) == ""
    fault = packages_fault(("jax", "ml_things_not_there"))
    assert "lacks ml_things_not_there" in fault and "--no-deps ml-things-not-there`" in fault


@pytest.mark.full
def test_every_table_is_made_on_the_cpu(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.device", "--minutes=8", f"--out={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["num_checks"] >= 18 and result["failed_checks"] == []
    tables = read_json(tmp_path / "results.json")["tables"]
    assert set(tables) == set(device_run.TABLES)
    errors = {f"{table}: {name}": row["error"] for table, rows in tables.items() if table != "peer"
              for name, row in rows.items() if "error" in row}
    assert not errors
    assert tables["again"]["tiny 2x64 scan_unroll=1"]["first_loss"] == (
        tables["training"]["tiny 2x64 scan_unroll=1"]["first_loss"])
