"""Fine-tuning of an adapter: it alone is trained and saved, and the result is a whole model."""

import math
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from small_tokens import write_artifacts

from align import dpo, sft
from configs.quickstart import get_config
from core.artifacts import make_lineage, read_json, write_json
from core.errors import UserError
from data.chat import ask, render_prompt
from data.preferences import Preference, write_preferences
from data.tokenizers.load import load_tokenizer
from eval.respond.loaded import load_model
from model.adapters.lora import Lora, load_lora, merge_lora
from model.config import ModelConfig
from model.directory import load_params, read_description, save_model
from model.execution import Execution
from model.families.registry import init
from train.watch.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's

LORA = Lora(rank=2, alpha=8.0, targets=("wq", "wv", "w_down"))
LETTERS = "abcdefghijklmnop"


def write_lineage(folder):
    write_json(folder / "lineage.json",
               make_lineage(stage=folder.name, config={}, inputs={}, code=""))


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """A base model, questions with answers in a file, and pairs."""
    root = tmp_path_factory.mktemp("parents")
    write_artifacts(root)
    config = ModelConfig(V=read_json(root / "tokenizer" / "tokenizer.json")["vocab_size"], D=32,
                         N=2, H=2, G=1, K=16, F=64)
    save_model(root / "base", jax.jit(partial(init, config))(jax.random.key(0)), config,
               root / "tokenizer", chat=False, context_tokens=64)
    write_lineage(root / "base")
    (root / "mine.jsonl").write_text("".join(
        f'{{"question": "what follows {letter}?", "answer": "yes"}}\n' for letter in LETTERS))
    (root / "pairs").mkdir()
    write_preferences(root / "pairs" / "pairs.jsonl", [
        Preference(ask(f"what follows {letter}?"), ("yes", "no"), (1, 2)) for letter in LETTERS])
    return root


def run_stage(stage, parents, folder, **changes):
    """Builds a stage in `folder`, or goes on there; the loss of each step."""
    folder.mkdir(exist_ok=True)
    write_lineage(folder)
    name = stage.__name__.rpartition(".")[2]
    config = get_config("smoke")
    section = config[name]
    section.update(row_length=32, batch_size=8, num_epochs=3)
    section.lora.update(rank=LORA.rank, alpha=LORA.alpha, targets=LORA.targets)
    section.run.update(checkpoint_every=2, keep_checkpoints=9, log_every=1, diagnostics=True)
    section.optimizer.update(name="adamw", learning_rate=0.05, weight_decay=0.1)
    if name == "sft":
        section.tasks, section.inputs = {}, str(parents / "mine.jsonl")
        section.pretrain_frac = 0.0
    section.update(changes)
    stage.build(config, {"model": parents / "base", "pairs": parents / "pairs"}, folder)
    rows = read_metrics(folder / "metrics.jsonl")
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def tuned(parents, tmp_path_factory):
    """SFT of an adapter: its folder and losses."""
    folder = tmp_path_factory.mktemp("tuned") / "sft"
    return folder, run_stage(sft, parents, folder)


def test_the_result_is_the_merged_model_and_the_adapter_beside_it(tuned, parents):
    folder, losses = tuned
    assert len(losses) == 6 and losses[-1] < losses[0] - 0.4
    described = read_description(folder)
    assert described.chat and described.context_tokens == 64
    adapter, lora = load_lora(folder / "adapter", parents / "base")
    assert lora == LORA
    base, merged = (load_params(path, described.config) for path in (parents / "base", folder))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), merged,
                 merge_lora(base, adapter, lora))
    changed = {name for name, leaf in merged["blocks"].items()
               if np.any(leaf != base["blocks"][name])}
    assert changed == {"wq_DHK", "wv_DGK", "w_down_FD"}
    np.testing.assert_array_equal(merged["embed_VD"], base["embed_VD"])


def test_the_result_is_asked_with_the_template_that_was_taught(parents, tmp_path):
    run_stage(sft, parents, tmp_path / "sft", template="plain", num_epochs=1)
    model = load_model(tmp_path / "sft", Execution())
    prompt = render_prompt(ask("a?"), model.tokenizer)
    assert model.tokenizer.decode(prompt) == "<|bos|>a?\n\n"
    base = load_tokenizer(parents / "base")
    assert prompt == render_prompt(ask("a?"), base, template="plain") != render_prompt(
        ask("a?"), base)
    assert model.tokenizer.fingerprint == base.fingerprint


def test_a_checkpoint_holds_the_adapter_and_its_moments_alone(tuned):
    folder, _ = tuned
    record = next((folder / "checkpoints" / "6").rglob("record/metadata"))
    names = read_json(record)["leaves"]
    of_params = {name.split("/")[-1] for name in names if "blocks" in name}
    assert of_params == {"wq_a_DI", "wq_b_IHK", "wv_a_DI", "wv_b_IGK", "w_down_a_FI",
                         "w_down_b_ID"}
    assert not any("embed" in name or "norm_D" in name for name in names)


def test_diagnostics_are_of_what_is_trained(tuned):
    folder, _ = tuned
    last = [row for row in read_metrics(folder / "metrics.jsonl") if "loss" in row][-1]
    assert "gradient_norm/blocks/wq_a_DI/0" in last and "weight_norm/blocks/wq_DHK/0" not in last
    squares = [last[name] ** 2 for name in last if name.startswith("weight_norm/")]
    assert last["param_norm"] > 0 and math.isfinite(sum(squares))


def test_a_run_that_stopped_ends_bit_for_bit_as_one_that_did_not(tuned, parents, tmp_path):
    folder, losses = tuned
    shutil.copytree(folder / "checkpoints", tmp_path / "sft" / "checkpoints")
    shutil.copy(folder / "metrics.jsonl", tmp_path / "sft")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "sft" / "checkpoints" / str(step))
    assert run_stage(sft, parents, tmp_path / "sft") == losses
    for name in ("model.json", "adapter/adapter.json"):
        again, first = (read_json(path / name)["arrays"] for path in (tmp_path / "sft", folder))
        assert again == first, "digests of all arrays"


@pytest.mark.full
@pytest.mark.parametrize("optimizer, ema_decay", [("muon", 0.9), ("schedule_free", 0.0)])
def test_averages_are_of_the_adapter(parents, tmp_path, optimizer, ema_decay):
    section = dict(ema_decay=ema_decay, num_epochs=1)
    changes = dict(name=optimizer, schedule="constant", learning_rate=0.05)
    run_stage(sft, parents, tmp_path / "sft", **section, optimizer=dict(
        get_config("smoke").sft.optimizer, **changes))
    load_lora(tmp_path / "sft" / "adapter", parents / "base")
    assert (tmp_path / "sft" / "raw" / "adapter").exists() == (ema_decay > 0)
    if ema_decay:
        read_description(tmp_path / "sft" / "raw")
        averaged, raw = (load_lora(tmp_path / "sft" / place, parents / "base")[0]["blocks"]
                         for place in ("adapter", "raw/adapter"))
        assert np.any(averaged["wq_a_DI"] != raw["wq_a_DI"])


def test_dpo_of_an_adapter_starts_at_the_reference_and_prefers(parents, tmp_path):
    """The reference is the model without the adapter, which changes nothing at first."""
    losses = run_stage(dpo, parents, tmp_path / "dpo", nll_coef=0.0)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0] - 0.1
    load_lora(tmp_path / "dpo" / "adapter", parents / "base")


@pytest.mark.full
def test_rates_of_the_two_factors_may_differ(parents, tmp_path):
    """As in LoRA+ (arXiv 2402.12354), by the names that all rules go by."""
    optimizer = dict(get_config("smoke").dpo.optimizer, lr_multipliers={"*_a_*": 0.0},
                     weight_decay=0.0)
    run_stage(dpo, parents, tmp_path / "dpo", optimizer=optimizer, num_epochs=1)
    adapter, _ = load_lora(tmp_path / "dpo" / "adapter", parents / "base")
    assert np.any(adapter["blocks"]["wq_b_IHK"]), "trained"
    with pytest.raises(UserError, match=r"lr_multipliers='embed\*': matches no parameter"):
        run_stage(dpo, parents, tmp_path / "other",
                  optimizer=dict(optimizer, lr_multipliers={"embed*": 0.5}))


@pytest.mark.parametrize("stage", [sft, dpo])
def test_an_unknown_projection_is_refused_before_anything_is_read(parents, tmp_path, stage):
    lora = dict(rank=2, alpha=8.0, targets=("wz",))
    with pytest.raises(UserError, match=r"^lora.targets='wz': names no dense projection of the "
                                        r"blocks: choose among w_down, w_gate, w_up, wk, wo"):
        run_stage(stage, parents, tmp_path / "out", lora=lora)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["lineage.json"]
