"""The stage align.rl with a tiny chat model, for tests: parents, a config, a run."""

import json

import jax
import numpy as np

from align.rl import __main__ as rl
from align.rl import rewards as rewarding
from configs.rl import get_config
from core.artifacts import make_lineage, write_json
from data.tokenizers.bpe import BytePairTokenizer
from data.tokens.checked import write_sums
from model.directory import save_model
from model.parallel.sharding import make_mesh
from train.watch.metrics import read_metrics

TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 125))})
LETTERS = "abcdefghijklmnop"


def write_parents(root, params, config):
    """Writes `sft`, the tiny model as a chat model, and `questions.jsonl`."""
    (root / "tokenizer").mkdir()
    TOKENIZER.save(root / "tokenizer")
    save_model(root / "sft", params, config, root / "tokenizer", chat=True, context_tokens=64)
    write_lineage(root / "sft")
    (root / "questions.jsonl").write_text("".join(
        json.dumps({"question": letter, "answer": letter}) + "\n" for letter in LETTERS))


def write_tokens(folder, num_tokens=400):
    """Writes a token folder of two domains: `pages`, of random letters, and `code`, of one."""
    domains, drawn = {}, np.random.default_rng(0).choice(list(LETTERS), num_tokens)
    for name, text in (("pages", "".join(drawn)), ("code", "z" * num_tokens)):
        tokens = np.array(TOKENIZER.encode(text), "<u2")
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.tokens").write_bytes(tokens.tobytes())
        (folder / f"{name}.ends").write_bytes(np.array([len(tokens)], "<i8").tobytes())
        for suffix in ("tokens", "ends"):
            write_sums(folder / f"{name}.{suffix}")
        domains[name] = {"tokens": len(tokens)}
    write_json(folder / "tokens.json", {"dtype": "uint16", "domains": domains})
    (folder / "tokenizer").mkdir()
    TOKENIZER.save(folder / "tokenizer")


def write_lineage(folder):
    write_json(folder / "lineage.json",
               make_lineage(stage=folder.name, config={}, inputs={}, code=""))


def make_config(parents, variant="grpo", **changes):
    config = get_config(variant)
    config.rl.update(num_iterations=3, num_prompts=8, num_samples=16, oversampling=1,
                     num_epochs=1, num_minibatches=2, max_new_tokens=6, row_length=16,
                     kl_coef=0.0, corpus="", tasks=dict(verifiable=0),
                     inputs=str(parents / "questions.jsonl"))
    config.rl.run.update(checkpoint_every=1, keep_checkpoints=9, log_every=1, scan_unroll=1,
                         evaluate_every=0, num_slots=128, tasks=dict(verifiable=0))
    config.rl.optimizer.update(name="adamw", learning_rate=0.01, lr_multipliers=dict(),
                               schedule="constant", warmup_steps=0)
    with config.unlocked():
        config.rl.update(changes)
    return config


def on_one_device(section):
    """As `make_mesh`: eight simulated devices would take eight times as long."""
    return make_mesh(section, jax.devices()[:1])


def plant_reward(patch):
    """Adds a reward `even`, the share of an answer's 6 tokens whose number is even; returns the
    weights that choose it."""
    patch.setitem(rewarding.REWARDS, "even", lambda given: lambda answers: [
        sum(token % 2 == 0 for token in answer.tokens) / 6 for answer in answers])
    return dict(task=0.0, even=1.0)


def run_stage(folder, config, parents, **more):
    """Builds the stage in `folder`, or goes on there: its JSON, and the rows of metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lineage(folder)
    found = rl.build(config, {"model": parents / "sft", **more}, folder)
    return found, read_metrics(folder / "metrics.jsonl")


def iterations_of(rows):
    return [row for row in rows if "iteration" in row]
