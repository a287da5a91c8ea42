"""Objectives: the batches that they train on, what is measured, and what is refused."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tokens import write_artifacts

from configs.common import make_pretrain
from configs.quickstart import get_config
from core.errors import UserError
from data.tokenizers.load import load_tokenizer
from data.tokens.rows import TokenRows
from eval.measures.corrupted import CorruptedPages
from eval.respond.loaded import LoadedModel
from model.families.registry import forward, init
from model.heads.language import logits
from model.parallel.sharding import make_mesh
from train.objective import batch_shapes, check_objective, open_corruption, text_length
from train.pretrain import make_batches, make_evaluate, plan_reading
from train.start import Start
from train.step import accumulate, place_batch

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")     # Daft's

OBJECTIVES = ("masked", "span")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("road")
    write_artifacts(workdir, mask_token=True, num_sentinels=2)
    return workdir / "tokens"


def section_of(objective, **changes):
    section = get_config("smoke").pretrain
    section.update(row_length=32, num_steps=12, batch_size=8, objective=objective, anneal_frac=0.25,
                   mixture=dict(pages=0.75, code=0.25), anneal_mixture=dict(best=0.0, pages=1.0),
                   max_epochs=0.0)
    section.run.tasks.documentation = 0
    section.update(changes)
    return section


def batches_of(tokens, section, config):
    reading = plan_reading(section, tokens, Start(config))
    tokenizer = load_tokenizer(tokens / "tokenizer")
    return make_batches(section, tokens, reading, corruption=open_corruption(section, tokenizer))


def bits(batch):
    return [leaf.tobytes() for leaf in jax.tree.leaves(batch)]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_batches_have_the_shapes_that_a_step_is_compiled_for(tokens, config, objective):
    section = section_of(objective)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch_shapes(section))
    batch = batches_of(tokens, section, config)[0]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch) == shapes
    assert len(batch.inputs) == (4 if objective == "span" else 3)
    assert text_length(section) == (35 if objective == "span" else 32)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_row_is_corrupted_by_its_number(tokens, config, objective):
    section = section_of(objective)
    batches = batches_of(tokens, section, config)
    expected = [bits(batches[i]) for i in range(12)]
    again = batches_of(tokens, section, config)
    assert [bits(again[i]) for i in reversed(range(12))] == expected[::-1]
    iterator = iter(batches.to_iter_dataset())
    for _ in range(5):
        next(iterator)
    resumed = iter(batches_of(tokens, section, config).to_iter_dataset())
    resumed.set_state(iterator.get_state())
    assert [bits(batch) for batch in resumed] == expected[5:]
    longer = batches_of(tokens, section_of(objective, num_steps=16), config)
    assert [bits(longer[i]) for i in range(9)] == expected[:9], "before the annealing"
    other = batches_of(tokens, section_of(objective, seed=1), config)
    assert bits(other[0]) != expected[0]


def test_the_same_text_is_masked_otherwise_in_another_epoch(tokens, config):
    rows = len(TokenRows(tokens, "code", 32))
    section = section_of("masked", anneal_frac=0.0, batch_size=1, num_steps=2 * rows,
                         mixture=dict(pages=0.0, code=1.0))
    batches = batches_of(tokens, section, config)
    seen = {}
    for i in range(2 * rows):
        seen.setdefault(batches[i].targets_BL.tobytes(), []).append(
            batches[i].loss_weights_BL.tobytes())
    assert {len(masks) for masks in seen.values()} == {2}
    assert all(first != second for first, second in seen.values())


def test_a_run_counts_the_text_that_it_reads(tokens, config):
    reading = plan_reading(section_of("span"), tokens, Start(config))
    assert reading.tokens_at(3) == 3 * 8 * 35


@pytest.mark.parametrize("objective", ["causal", *OBJECTIVES])
def test_a_batch_is_sharded_and_cut_into_microbatches(tokens, config, objective):
    mesh = make_mesh(dict(data=2, fsdp=4))
    batch = batches_of(tokens, section_of(objective), config)[0]
    placed = place_batch(batch, mesh)
    assert jax.tree.structure(placed) == jax.tree.structure(batch)
    assert {leaf.sharding.shard_shape(leaf.shape)[0] for leaf in jax.tree.leaves(placed)} == {1}

    def loss(scale, batch, *, key):
        inputs = sum(jnp.sum(leaf.astype(jnp.float32) * batch.loss_weights_BL[:, :1])
                     for leaf in jax.tree.leaves(batch.inputs))
        return scale * inputs, {"loss": (scale * inputs, jnp.sum(batch.loss_weights_BL))}

    gradient_fn, key = jax.grad(loss, has_aux=True), jax.random.key(0)
    with jax.set_mesh(mesh):
        whole = jax.jit(gradient_fn)(2.0, placed, key=key)
        pieces = jax.jit(lambda scale, batch: accumulate(
            partial(gradient_fn, key=key), scale, batch, num_microbatches=4))(2.0, placed)
    assert pieces[0] == whole[0] and pieces[1] == whole[1]


def test_what_is_measured_is_the_loss_of_hidden_tokens(tokens, config, execution):
    config = dataclasses.replace(config, V=300)
    params = jax.jit(partial(init, config))(jax.random.key(0))
    tokenizer, section = load_tokenizer(tokens / "tokenizer"), section_of("masked")
    masking = open_corruption(section, tokenizer)
    pages = CorruptedPages(tokens, masking, batch_size=7)
    model = LoadedModel(params, config, execution, tokenizer, chat=False, context_tokens=32)
    measured = pages.measure(model)
    assert measured == pages.measure(model)

    counts = np.ones(300)
    for name in ("pages", "code"):
        np.add.at(counts, TokenRows(tokens, name, 32).tokens[:], 1)
    counts[tokenizer.token_bytes() == 0] = 0

    @jax.jit
    def all_logps(params, row):
        x_BLD = forward(params, *row.inputs, config=config, execution=execution)
        return jax.nn.log_softmax(logits(params, x_BLD, config=config, execution=execution))

    losses, unigrams, right = [], [], []
    for i in range(len(pages._rows)):
        row = jax.tree.map(lambda leaf: leaf[None], pages._rows[i])
        logp_LV = np.asarray(all_logps(params, row))[0]
        for place in np.flatnonzero(row.loss_weights_BL[0]):
            target = row.targets_BL[0, place]
            losses.append(-logp_LV[place, target])
            unigrams.append(-np.log(counts[target] / counts.sum()))
            right.append(logp_LV[place].argmax() == target)
    assert measured["loss_nats"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert measured["unigram_nats"] == pytest.approx(np.mean(unigrams), rel=1e-5)
    assert measured["acc"] == pytest.approx(np.mean(right), rel=1e-6)

    setup = SimpleNamespace(config=config, execution=execution)
    evaluate = make_evaluate(section, setup, {"tokens": tokens}, masking)
    assert evaluate(params).keys() == {"heldout_loss_nats", "heldout_unigram_nats",
                                       "heldout_masked_acc"}


def setup_of(family, **mesh):
    return SimpleNamespace(config=SimpleNamespace(family=family),
                           mesh=make_mesh(dict(data=-1) | mesh))


@pytest.mark.parametrize("objective, family, message", [
    ("masked", "decoder", r"pretrain\.objective='masked': does not train the family 'decoder': set "
                          r"--config\.model\.family=encoder, or --config\.pretrain\.objective="
                          "causal"),
    ("causal", "encoder", r"--config\.model\.family=decoder or lstm, or --config\.pretrain\."
                          "objective=masked"),
    ("span", "encoder", r"--config\.model\.family=encoder_decoder"),
    ("prefix", "decoder", r"objective='prefix': there is no such objective: choose one of ca"),
])
def test_an_objective_that_the_family_does_not_learn_by_is_refused(objective, family, message):
    with pytest.raises(UserError, match=message):
        check_objective(make_pretrain(objective=objective, row_length=32), setup_of(family))


def test_questions_are_asked_of_causal_models_alone():
    section = section_of("masked")
    check_objective(section, setup_of("encoder"))
    section.run.tasks.documentation = 20
    check_objective(section_of("causal"), setup_of("lstm"))
    with pytest.raises(UserError, match=r"run\.tasks\.documentation=20: asks a model that "
                                        r"continues text, .*: set --config\.pretrain\.run\.tasks\."
                                        "documentation=0"):
        check_objective(section, setup_of("encoder"))


def test_a_mesh_that_does_not_divide_the_decoders_row_is_refused():
    fits = setup_of("encoder_decoder", context=2, tensor=4)
    check_objective(section_of("span"), fits)
    with pytest.raises(UserError, match=r"mesh\.context x mesh\.tensor = 3: does not divide the 16 "
                                        "inputs of the decoder"):
        check_objective(section_of("span"), SimpleNamespace(
            config=fits.config, mesh=SimpleNamespace(shape=dict(context=3, tensor=1))))
