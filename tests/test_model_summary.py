"""The summary: figures against arithmetic, caches that are made, and the command's last line."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial

import jax
import pytest

from core.artifacts import ROOT
from model.config import ModelConfig
from model.execution import Execution
from model.families.registry import make_cache
from model.presets import PRESETS
from model.summary import cache_bytes, count_parameters, rows_of, summarise


def test_parameters_of_experts_by_part():
    """Qwen3-30B-A3B: its card gives 30.5B, of which 29.9B no embedding and 3.3B active."""
    counted = count_parameters(PRESETS["qwen3-30b-a3b"])
    assert counted["total"] == sum(counted["by_part"].values()) == 30_532_122_624
    assert counted["by_part"]["mlp"] == 48 * 128 * 3 * 2048 * 768
    assert counted["total"] - counted["active"] == 48 * 120 * 3 * 2048 * 768
    assert round(counted["active"] / 1e9, 1) == 3.4     # with the table, which the card leaves out
    assert counted["without_embedding"] - counted["by_part"]["head"] == pytest.approx(29.9e9, 1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_has_a_part(name):
    config, counted = PRESETS[name], count_parameters(PRESETS[name])
    assert sum(counted["by_part"].values()) == counted["total"]
    parts = set(counted["by_part"])
    assert {"embedding", "norms", "mlp", "attention"} <= parts
    assert ("head" in parts) == (not config.tied or config.head_bias)
    assert ("cross attention" in parts) == (config.family == "encoder_decoder")
    assert ("router" in parts) == (config.E > 0)
    assert {"encoder mlp", "encoder attention"} <= parts or config.family != "encoder_decoder"


@pytest.mark.parametrize("changes", [{}, dict(window=8, global_every=2, N=4), dict(family="lstm")])
def test_a_cache_of_one_row_holds_as_many_bytes(config, changes):
    config = dataclasses.replace(config, embed_previous=False, **changes)
    made = jax.eval_shape(partial(make_cache, config, Execution("bfloat16"), 1, 1024))
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made) if leaf.ndim > 1)
    assert cache_bytes(config, 1024)["held"] == held


def test_a_window_bounds_what_a_cache_needs():
    gemma = PRESETS["gemma-3-1b"]       # 4 of 26 layers are global
    token = 2 * 1 * 256 * 2
    cache = cache_bytes(gemma, 8192)
    assert cache["per_token"] == 26 * token
    assert cache["at_context"] == token * (4 * 8192 + 22 * 512)
    assert cache_bytes(gemma, 100)["at_context"] == 26 * token * 100
    assert cache_bytes(PRESETS["minilm-l6"], 512)["held"] == 0


def test_flops_and_bytes_of_gpt2():
    found = summarise(PRESETS["gpt2"], 1024)
    matmul = 12 * 12 * 768**2 + 768 * 50_257
    assert found["flops_per_token"]["forward"]["full"] == 2 * matmul + 4 * 12 * 768 * 1024
    assert found["flops_per_token"]["training"]["causal"] == 6 * matmul + 6 * 12 * 768 * 1024
    assert found["bytes"]["bfloat16"] == 2 * 124_439_808


def test_the_table_names_the_parts():
    text = dict(rows_of(summarise(PRESETS["gemma-2-9b"], 4096)))
    assert text["attention"] == "GQA 16/8 x 256, window 4096, 1 of 2 layers global, cap 50"
    assert (text["norm"], text["residual"], text["mlp"]) == ("rms_plus_one", "sandwich",
                                                             "geglu 14336")
    assert text["parameters"] == "9,241,705,984" and "  active for a token" not in text
    lstm = ModelConfig(V=8, D=8, N=1, H=1, G=1, K=8, F=16, family="lstm")
    assert "attention" not in dict(rows_of(summarise(lstm, 64)))


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "model.summary", *arguments], cwd=ROOT, text=True,
                          capture_output=True, env=os.environ)


def test_the_command_ends_in_a_line_of_json():
    done = run("--config=configs/preset.py:smollm2-360m", "--context=512")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["parameters"]["total"] == 361_821_120 - (49_152 - 32_768) * 960
    assert found["context"] == 512 and "GQA 15/5 x 64" in done.stderr


@pytest.mark.parametrize("arguments, message", [
    (["--preset=lama-3.1-8b"], "--preset='lama-3.1-8b': is no preset: name one of llama-3.1-8b"),
    (["--preset=gpt2", "--context=2000"], "--context=2000: exceeds max_positions=1024"),
    ([], "--preset: exactly one of --preset, --model and --config")])
def test_what_is_not_named_is_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
