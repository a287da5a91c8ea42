"""The planner's memory, its mesh and its page: the trainer's own bytes, and one set of formulas."""

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
import sys

import jax
import pytest

from configs.quickstart import get_config
from core.artifacts import ROOT
from model.config import ModelConfig
from model.execution import make_execution
from model.flops import matmul_params, train_flops_per_token
from model.parallel.sharding import make_mesh
from model.presets import PRESETS
from train.fit import measure
from train.plan.allocation import HOFFMANN
from train.plan.cost import Rates, make_bill
from train.plan.memory import (
    Training,
    activation_bytes,
    checkpoint_bytes,
    find_mesh,
    make_abstract_mesh,
)
from train.plan.page import SCRIPT, page_data, render_plan
from train.plan.request import Request
from train.plan.result import describe_run
from train.plan.shape import stand_in
from train.plan.solve import solve
from train.plan.subject import Subject, usual_batch_tokens
from train.setup import RUN_FIELDS, Setup

RATES = Rates(989e12, 0.4, 2.0, 700, 1.1, 0.369, None, 50_677, 5, 600)


@pytest.fixture(scope="module")
def small():
    """The plan of a named model that is small enough to be counted at once, as the flags give it;
    the tiny model of the other tests has no name."""
    config = ModelConfig(V=512, D=256, N=4, H=4, G=2, K=64, F=512)
    return Subject("tiny", config, 128, batch_tokens=128 * 64)


def training(subject, **changes):
    return dataclasses.replace(subject.training(1e9, None), **changes)


def test_memory_is_that_of_the_trainers_own_state(small):
    """Exact parts: float32 parameters, two moments of AdamW, cut as the trainer cuts them."""
    total, _ = small.params()
    one = find_mesh(training(small), 1, 8, 80e9)
    assert one.mesh == {} and one.params == 4 * total and one.batch_rows == 64
    assert 2 * one.params <= one.opt_state <= 2 * one.params + 64
    cut = find_mesh(training(small), 8, 8, 80e9)
    assert cut.mesh == {"fsdp": 8} and cut.params == pytest.approx(one.params / 8, rel=0.01)
    assert find_mesh(training(small, keep_ema=True), 8, 8, 80e9).ema == cut.params
    assert cut.rows * 8 * cut.num_microbatches == cut.batch_rows == 64
    assert checkpoint_bytes(training(small))["state"] == one.params + one.opt_state
    assert checkpoint_bytes(training(small))["weights_bfloat16"] == 2 * total


def test_a_mesh_gets_no_more_complicated_than_it_must(small):
    whole = find_mesh(training(small), 8, 8, 80e9)
    tight = find_mesh(training(small), 8, 8, 0.99 * whole.peak)
    assert tight.rows < whole.rows, "first by fewer rows at a time"
    least = find_mesh(training(small), 64, 8, 80e9)
    assert least.mesh == {"data": 8, "fsdp": 8}
    more = find_mesh(training(small), 64, 8, 7e6)
    assert more.mesh == {"fsdp": 64} or more.mesh.get("tensor", 1) > 1
    assert more.peak <= 0.9 * 7e6
    assert find_mesh(training(small), 8, 8, 1e6) is None
    assert find_mesh(training(small), 3, 8, 80e9).mesh == {"data": 3}, "3 does not divide D"


@pytest.mark.parametrize("more, less", [("none", "dots"), ("dots", "full"),
                                        ("names:qkv,attention", "names:qkv"),
                                        ("names:hidden", "offload:hidden")])
def test_remat_keeps_less(small, more, less):
    mesh = make_abstract_mesh(fsdp=2)

    def kept(policy):
        own = training(small, execution=dataclasses.replace(small.execution, remat=policy))
        return activation_bytes(own, mesh, 1000.0)

    assert kept(more) > kept(less)
    # Of a token in one layer: 512 of queries, keys and values, 256 of attention and of the residual
    # stream, 512 of two norms, 1,024 of gate and up and 512 of their product.
    assert kept("full") == 2 * 1000 * (4 * 256 + 2 * 3072)
    assert kept("names:qkv") == kept("full") + 2 * 1000 * 4 * 512
    own = training(small)
    assert activation_bytes(own, make_abstract_mesh(tensor=2), 1000.0) == kept("full") / 2
    assert activation_bytes(own, mesh, 2000.0) == 2 * kept("full")


@pytest.mark.full
@pytest.mark.parametrize("remat", ["none", "full"])
def test_estimates_are_near_what_the_compiler_takes(remat):
    """Against `train.fit` on a CPU, whose attention also holds scores of every pair."""
    config = get_config("accelerator")
    section = config.pretrain
    section.run.remat, section.run.attention, section.compute_dtype = remat, "xla", "float32"
    section.batch_size, section.row_length, section.run.loss_chunks = 8, 256, 0
    # With the stack unrolled and Muon, full rematerialisation took three times the estimate.
    section.run.scan_unroll, section.optimizer.name = 1, "adamw"
    model = dataclasses.replace(PRESETS["smollm2-135m"], N=8, V=4096)
    execution = make_execution(section, also=RUN_FIELDS)
    measured = measure(section, Setup(model, execution, make_mesh({}, jax.devices()[:1])),
                       microbatch_rows=8)
    own = Training(model, 256, 8, execution, section.optimizer)
    planned = find_mesh(own, 1, 8, 80e9)
    assert planned.rows == 8 and planned.params == measured.params
    assert planned.opt_state == measured.opt_state
    temporaries = planned.peak - planned.params - planned.opt_state
    assert 0.5 < temporaries / measured.temporaries < 2.0, (planned, measured)


@pytest.mark.parametrize("params", [1e7, 1.5e8, 1e9, 7e9, 7e10, 4.05e11, 1e12])
def test_a_stand_in_has_about_the_size(params):
    config = stand_in(params)
    total = matmul_params(config) + (0 if config.tied else config.V * config.D)
    assert total == pytest.approx(params, rel=0.021)
    assert config.H % config.G == 0 and config.D == config.H * config.K
    assert stand_in(1e5) is None


def test_the_usual_batch_is_near_that_of_published_runs():
    """Llama 3 405B read 16M tokens a step, GPT-3 3.2M."""
    assert usual_batch_tokens(15.6e12) == pytest.approx(16e6, rel=0.25)
    assert usual_batch_tokens(300e9) == pytest.approx(3.2e6, rel=0.4)


@pytest.fixture(scope="module")
def result(small):
    """A plan of a tiny model whose title is an attack, as a folder's name may be one."""
    total, active = small.params()
    request = Request(params=total, active_params=active, tokens=3e9, num_chips=16,
                      inference_tokens=1e11)
    subject = dataclasses.replace(small, title="</script><img src=http://evil.example onerror=x>")
    done = solve(request, RATES, 8, lambda active: subject.flops_per_token("causal"))
    return describe_run(done, request, RATES, "h100", subject=subject, count="causal",
                        batch_tokens=None)


def test_a_named_model_has_its_own_counts(small, result):
    tokens = 3e9
    assert result["flops"]["causal"] == pytest.approx(tokens * train_flops_per_token(
        small.config, 128))
    assert result["planned_flops"] == result["flops"]["causal"] < result["flops"]["full"]
    assert result["flops"]["6ND"] == 6 * result["params"] * tokens
    assert result["memory"]["mesh"] and not result["is_stand_in"]
    assert result["memory"]["num_steps"] == math.ceil(
        tokens / (result["memory"]["batch_rows"] * 128))
    served = result["allocations"][-1]
    assert served["loss_nats"] == pytest.approx(result["allocations"][0]["loss_nats"])
    assert served["lifetime_flops"] < result["allocations"][0]["lifetime_flops"]


def test_the_page_needs_nothing_and_runs_nothing_else(result):
    page = render_plan(result)
    assert page.count("<script>") == page.count("</script>") == 1
    assert "<img" not in page and "&lt;img src=http://evil.example" in page
    assert not re.search(r"<link|<iframe|\bsrc=[\"']|url\(|@import", page)
    script = re.search("<script>(.*)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(re.search('Content-Security-Policy" content="(.*?)"', page)[1])
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "nan" not in script and render_plan(result) == page
    names = set(re.findall(r' id="(\w+)"', page))
    assert len(names) == len(re.findall(r' id="(\w+)"', page)), "an id stands for one element"


def run_script(result, code):
    """What `code` returns after the page's script, which finds no document and starts nothing."""
    program = (f"const PLAN = {json.dumps(page_data(result))};\n{SCRIPT.read_text()}\n"
               f"console.log(JSON.stringify((() => {{ {code} }})()));")
    done = subprocess.run(["node", "-"], input=program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_scripts_formulas_are_the_planners(result):
    grid = [(flops, chips, dataclasses.replace(RATES, goodput=goodput, watts=watts, mfu=mfu))
            for flops in (1e18, 3.8e25) for chips in (1, 1000, 16_384, 500_000)
            for goodput in (None, 0.9) for watts, mfu in ((700, 0.4), (None, 0.123))]
    cases = [[flops, chips, dataclasses.asdict(rates)] for flops, chips, rates in grid]
    found = run_script(result, f"return {json.dumps(cases)}.map((c) => makeBill(...c));")
    for (flops, chips, rates), bill in zip(grid, found):
        ours = dataclasses.asdict(make_bill(flops, chips, rates))
        assert list(bill) == list(ours) and list(bill["failures"]) == list(ours["failures"])
        inner = ours.pop("failures")
        for name, value in {**ours, **inner}.items():
            theirs = {**bill, **bill["failures"]}[name]
            if value is None or math.isinf(value):      # JSON has no infinity
                assert theirs is None, name
            else:
                assert theirs == pytest.approx(value, rel=1e-12), name
    sizes = [(1e6, 1e8), (7e10, 1.4e12), (1e13, 1e14)]
    losses = run_script(result, f"return {json.dumps(sizes)}.map((c) => lawLoss(PLAN.law, ...c));")
    assert losses == pytest.approx([HOFFMANN.loss(*size) for size in sizes], rel=1e-12)


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_page_shows_first_what_the_script_would(result):
    """So that a slider that is moved and moved back changes nothing, and no script is needed."""
    texts = run_script(result, "return describe(PLAN, PLAN.start).texts;")
    page = render_plan(result)
    shown = {name: html.unescape(text) for name, text in
             re.findall(r'<(?:span|dd)[^>]* id="(\w+)"[^>]*>([^<]*)<', page)}
    assert texts and {name: shown.get(name) for name in texts} == texts


def test_the_command_ends_in_a_line_of_json(tmp_path):
    """A config's own model and schedule, by its exact FLOPs."""
    path = tmp_path / "plan.html"
    done = subprocess.run(
        [sys.executable, "-m", "train.plan", "--config=configs/quickstart.py:smoke",
         f"--html={path}", "--days=1"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    found, section = json.loads(done.stdout.splitlines()[-1]), get_config("smoke").pretrain
    assert found["tokens"] == section.batch_size * section.row_length * section.num_steps
    assert found["count"] == "causal" and found["planned_flops"] == found["flops"]["causal"]
    assert found["memory"]["num_steps"] == section.num_steps and found["num_chips"] == 1
    assert "checkpoint to resume from" in done.stderr and path.read_text().startswith("<!doctype")
