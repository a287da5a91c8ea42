"""How pretraining begins: from a model's parameters, or with the whole state of another run."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_tokens import write_artifacts

from configs.quickstart import get_config
from core.artifacts import make_lineage, open_partial, write_json
from core.errors import UserError
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.load import load_tokenizer
from model.directory import load_params, read_description
from scripts.chaos.process import differences, final_bits
from train import pretrain
from train.reading import read_reading
from train.watch.metrics import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("road")
    write_artifacts(folder)
    return folder


def build(workdir, out, *, optimizer=None, model=None, tokens=None, **changes):
    """Trains in this process, in `workdir/out`; the metrics of the stage."""
    config = get_config("smoke")
    section = config.pretrain
    section.update(row_length=32, batch_size=8, num_steps=12, anneal_frac=0.0,
                   mixture=dict(pages=0.75, code=0.25))
    section.optimizer.update(dict(warmup_steps=2, decay_frac=0.5) | (optimizer or {}))
    section.run.update(tasks=dict(documentation=0), log_every=1, evaluate_every=100,
                       checkpoint_every=3, keep_every=3)
    section.update(changes)
    config.model.update(model or {})
    parents = {"tokens": tokens or workdir / "tokens"} | {
        field: workdir / section[field] for field in ("init_from", "resume_from") if section[field]}
    folder = workdir / out
    open_partial(folder, make_lineage(stage="pretrain", inputs={}, code="", config={}))
    metrics = pretrain.build(config, parents, folder)
    write_json(folder / "metrics.json", metrics)
    return metrics


def bits(folder):
    return final_bits(SimpleNamespace(final=folder))


def losses(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def base(workdir):
    """A run of 12 steps whose second half decays, with its checkpoints of every third step."""
    build(workdir, "base")
    return workdir / "base"


LONGER = dict(num_steps=20, optimizer=dict(decay_frac=0.25))


@pytest.fixture(scope="module")
def longer(workdir, base):
    """A run of 20 steps that goes on from step 6 of the shorter one, before that one decayed."""
    metrics = build(workdir, "longer", resume_from="base", resume_step=6, **LONGER)
    assert metrics["tokens"] == 20 * 8 * 32
    return workdir / "longer"


def test_going_on_in_the_stable_phase_equals_the_longer_run_to_the_bit(workdir, base, longer):
    build(workdir, "undisturbed", **LONGER)
    found, expected = bits(longer), bits(workdir / "undisturbed")
    assert any("mu" in name for name in expected), "optimizer state is part of the comparison"
    lines = expected.pop("metrics").splitlines()
    assert found.pop("metrics").splitlines() == lines[6:], "the metrics of steps 7 to 20"
    assert not differences(expected, found)
    assert losses(base)[6] == losses(workdir / "undisturbed")[6]
    assert losses(base)[12] != losses(workdir / "undisturbed")[12]


def test_a_killed_run_that_went_on_needs_the_other_ones_checkpoint_no_more(workdir, base, longer):
    other, killed = workdir / "other", workdir / "killed"
    shutil.copytree(base, other)
    shutil.copytree(longer, killed)
    for step in (20, 18, 15, 12):
        shutil.rmtree(killed / "checkpoints" / str(step))
    shutil.rmtree(other / "checkpoints")
    build(workdir, "killed", resume_from="other", resume_step=6, **LONGER)
    assert not differences(bits(longer), bits(killed))


def test_a_decay_with_other_batches_branches_off(workdir, base):
    build(workdir, "branch", resume_from="base", resume_step=6, num_steps=10, batch_size=16,
          optimizer=dict(decay_frac=0.4))
    reading = read_reading(workdir / "branch")
    assert reading.first_step == 6 and reading.tokens_before == 6 * 8 * 32
    assert {name: entry["rows"] for name, entry in reading.drawn["mixture"].items()} == {
        "code": 12, "pages": 36}
    assert {name: entry["rows"] for name, entry in reading.drawn_at(10)["mixture"].items()} == {
        "code": 28, "pages": 84}
    assert [*losses(workdir / "branch")] == [7, 8, 9, 10]


def test_without_a_step_a_finished_run_goes_on_from_its_end(workdir, base, capfd):
    build(workdir, "end", resume_from="base", num_steps=13)
    assert [*losses(workdir / "end")] == [13]
    said = capfd.readouterr().err
    assert f"goes on from step 12 of {base} with its optimizer state; the data is read on" in said
    build(workdir, "row", resume_from="base", num_steps=13, row_length=16)
    assert "its row_length differ, so the data is read from its first row" in capfd.readouterr().err
    assert read_reading(workdir / "row").drawn == {}


def test_parameters_of_a_model_are_the_first(workdir, base, capfd):
    start = jax.device_get(load_params(base, read_description(base).config))
    # The first step of a warmup is small: what comes out is near what went in.
    build(workdir, "adapted", init_from="base", num_steps=1, mixture=dict(pages=0.0, code=1.0),
          model=dict(D=64, N=3), optimizer=dict(
              warmup_steps=0, decay_frac=0.0, learning_rate=1e-6, adam_learning_rate=1e-6))
    described = read_description(workdir / "adapted")
    assert described.config == read_description(base).config
    found = jax.device_get(load_params(workdir / "adapted", described.config))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, start)
    said = capfd.readouterr().err
    assert f"the architecture is that of {base}; the config's differs in D, N" in said
    assert "optimizer, schedule and data begin anew" in said
    assert losses(workdir / "adapted").keys() == {1}


@pytest.mark.parametrize("changes, line", [
    (dict(resume_from="base", resume_step=4), "pretrain.resume_step=4: .* has no checkpoint of "
     "this step: name one of 3, 6, 9, 12"),
    (dict(resume_from="base", num_steps=12), "pretrain.num_steps=12: counts from the other run's "
     "start, and this one goes on at step 12: set --config.pretrain.num_steps above 12"),
    (dict(resume_from="base", init_from="base"), "pretrain.init_from='base': excludes resume_from"),
    (dict(resume_step=3), "pretrain.resume_step=3: needs resume_from"),
    (dict(resume_from="base", num_steps=20, optimizer=dict(name="adamw")),
     "checkpoints/12: .*opt_state.*: take the parameters alone, with --config.pretrain.init_from"),
], ids=["step", "num_steps", "both", "step alone", "optimizer"])
def test_what_cannot_go_on_is_refused_before_anything_is_written(workdir, base, changes, line):
    with pytest.raises(UserError, match=line):
        build(workdir, "refused", **changes)
    assert [path.name for path in (workdir / "refused").iterdir()] == ["lineage.json"]


def test_an_unfinished_run_goes_on_from_a_step_that_is_named(workdir, base):
    shutil.copytree(base, workdir / "unfinished")
    (workdir / "unfinished" / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"is not finished, and its newest checkpoint may change: "
                                        r"name one of 3, 6, 9, 12"):
        build(workdir, "refused", resume_from="unfinished", num_steps=20)


@pytest.mark.parametrize("field", ["init_from", "resume_from"])
def test_tokens_of_another_tokenizer_are_refused_in_one_line(workdir, base, field, tmp_path):
    tokens = tmp_path / "tokens"
    shutil.copytree(workdir / "tokens", tokens)
    own = load_tokenizer(base / "tokenizer")
    first, second = list(own.ranks)[-2:]
    other = BytePairTokenizer(own.ranks | {first: own.ranks[second], second: own.ranks[first]})
    other.save(tokens / "tokenizer")
    with pytest.raises(UserError) as raised:
        build(workdir, "refused", tokens=tokens, num_steps=20, **{field: "base"})
    assert str(raised.value) == (
        f"pretrain.{field}='base': was trained with the tokenizer {own.fingerprint}, and "
        f"pretrain.tokens='tokens' are of {other.fingerprint}: data.pack with "
        f"--config.pack.tokenizer={base} encodes the corpus with the model's own")
    assert load_tokenizer(base) == own, "as the remedy says"


def test_a_model_that_is_scaled_from_a_base_is_stored_with_its_factors(workdir):
    """The smoke model, 32 wide and 2 deep; what goes on from it must be scaled alike."""
    adamw = dict(name="adamw", schedule="constant")
    build(workdir, "scaled", optimizer=adamw, num_steps=3,
          model=dict(mup=dict(base_width=16, base_depth=1)))
    config = read_description(workdir / "scaled").config
    assert (config.residual_scale, config.logit_scale) == (0.5**0.5, 0.5)
    with pytest.raises(UserError, match=r"model.mup=.*: scales another architecture than that of "
                                        r".*, which differs in logit_scale: give the same"):
        build(workdir, "other", optimizer=adamw, init_from="scaled",
              model=dict(mup=dict(base_width=8, base_depth=1)))
