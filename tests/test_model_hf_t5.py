"""T5 beside transformers: logits, gradients and greedy answers, padded and packed; files both ways.
"""

import json
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peer_models import as_entries, assert_same_bytes, open_peer, save_random_peer

from core.errors import UserError
from data.batch import Batch, Source
from model.execution import Execution
from model.families.encoder_decoder import extend, forward_with_stats, make_cache
from model.heads.language import logits
from model.hf.families.t5 import T5, read_t5, write_t5
from model.hf.fields import Fields
from train.loss import next_token_loss

EXECUTION = Execution()
FIELDS = {"vocab_size": 67, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 3,
          "num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8,
          "relative_attention_max_distance": 20, "decoder_start_token_id": 0}
VERSIONS = {"1.0": {"feed_forward_proj": "relu"},
            "1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}}
NUM_SOURCE, NUM_TARGET = [9, 31, 23, 1], [14, 5, 20, 17]
NEW = 64
pytestmark = pytest.mark.filterwarnings("default")      # of the other library


class Rows(NamedTuple):
    """Pairs of texts, padded: one pair a row."""

    source: Source
    tokens_BL: np.ndarray
    segment_ids_BL: np.ndarray

    @property
    def positions_BL(self) -> np.ndarray:
        return np.broadcast_to(np.arange(self.tokens_BL.shape[1]), self.tokens_BL.shape)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)

    def pad(lengths):
        segment_ids = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(int)
        return rng.integers(1, 67, segment_ids.shape) * segment_ids, segment_ids

    source_BM, source_segments_BM = pad(NUM_SOURCE)
    positions_BM = np.broadcast_to(np.arange(source_BM.shape[1]), source_BM.shape)
    tokens_BL, segment_ids_BL = pad(NUM_TARGET)
    tokens_BL[:, 0] = 0
    return Rows(Source(source_BM, source_segments_BM, positions_BM), tokens_BL, segment_ids_BL)


@pytest.fixture(scope="module", params=VERSIONS)
def peer(request, tmp_path_factory):
    """A random model: its folder, itself, our config and parameters."""
    transformers = pytest.importorskip("transformers")
    import torch

    folder = tmp_path_factory.mktemp("t5")
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(
        **FIELDS | VERSIONS[request.param]))
    if request.param == "1.1":      # transformers 5 ties a new model's head in any case
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model = save_random_peer(model, folder)
    model.config._attn_implementation = "eager"
    return folder, model, *open_peer(folder, T5)


def _run(params, source, tokens_BL, positions_BL, segment_ids_BL, *, config):
    x_BLD, _ = forward_with_stats(params, tokens_BL, positions_BL, segment_ids_BL, source,
                                  config=config, execution=EXECUTION)
    return logits(params, x_BLD, config=config, execution=EXECUTION)


def _their_inputs(rows):
    import torch

    return {"input_ids": torch.tensor(rows.source.tokens_BM),
            "attention_mask": torch.tensor(rows.source.segment_ids_BM)}


@pytest.mark.full
def test_logits_equal_those_of_transformers_padded_and_packed(peer, rows):
    import torch

    _, model, config, params = peer
    run = jax.jit(partial(_run, config=config))
    with torch.no_grad():
        theirs_BLV = model(**_their_inputs(rows),
                           decoder_input_ids=torch.tensor(rows.tokens_BL)).logits.numpy()
    ours_BLV = np.asarray(run(params, rows.source, rows.tokens_BL, rows.positions_BL,
                              rows.segment_ids_BL))
    is_token_BL = rows.segment_ids_BL > 0
    np.testing.assert_allclose(ours_BLV[is_token_BL], theirs_BLV[is_token_BL], atol=2e-4)

    def pack(array, lengths):
        return np.concatenate([row[:n] for row, n in zip(array, lengths)])[None]

    source = Source(pack(rows.source.tokens_BM, NUM_SOURCE),
                    np.repeat(np.arange(1, 5), NUM_SOURCE)[None],
                    pack(rows.source.positions_BM, NUM_SOURCE))
    packed_BLV = run(params, source, pack(rows.tokens_BL, NUM_TARGET),
                     pack(rows.positions_BL, NUM_TARGET),
                     np.repeat(np.arange(1, 5), NUM_TARGET)[None])
    np.testing.assert_allclose(packed_BLV[0], ours_BLV[is_token_BL], atol=1e-4)


@pytest.mark.full
def test_gradients_equal_those_of_autograd(peer, rows):
    import torch

    _, model, config, params = peer
    targets_BL = np.roll(rows.tokens_BL, -1, axis=1)
    weights_BL = np.roll(rows.segment_ids_BL, -1, axis=1) * (rows.positions_BL < 19)

    batch = Batch(rows.tokens_BL, targets_BL, weights_BL.astype("float32"), rows.segment_ids_BL,
                  rows.positions_BL, rows.source)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return next_token_loss(params, batch, config=config, execution=EXECUTION,
                               key=None)[0] / weights_BL.sum()

    model.zero_grad()
    their_loss = model(**_their_inputs(rows), decoder_input_ids=torch.tensor(rows.tokens_BL),
                       labels=torch.tensor(np.where(weights_BL, targets_BL, -100))).loss
    their_loss.backward()
    our_loss, gradient = loss(params)
    np.testing.assert_allclose(our_loss, their_loss.item(), rtol=1e-5)
    theirs = dict(model.named_parameters())
    for name, ours in as_entries(T5, gradient, config).items():
        np.testing.assert_allclose(ours, theirs[name].grad.numpy(), atol=2e-4, err_msg=name)


@pytest.mark.full
def test_cached_decode_equals_the_full_forward_and_greedy_tokens_those_of_transformers(peer, rows):
    _, model, config, params = peer
    run = jax.jit(partial(_run, config=config))

    @jax.jit
    def step(token_B, cache):
        one_B = jnp.ones(4, int)
        x_BLD, cache = extend(params, token_B[:, None], one_B, cache, config=config,
                              execution=EXECUTION)
        return (logits(params, x_BLD, config=config, execution=EXECUTION)[:, 0],
                cache.advance(token_B[:, None], one_B))

    cache = jax.jit(partial(make_cache, config=config, execution=EXECUTION, capacity=NEW + 1))(
        params, rows.source)
    tokens_BL, logits_BLV = [np.zeros(4, int)], []
    for _ in range(NEW):
        logits_BV, cache = step(jnp.asarray(tokens_BL[-1], jnp.int32), cache)
        logits_BLV.append(logits_BV)
        tokens_BL.append(np.argmax(logits_BV, axis=-1))
    tokens_BL, logits_BLV = np.stack(tokens_BL, 1), np.stack(logits_BLV, 1)
    positions_BL = np.broadcast_to(np.arange(NEW), (4, NEW))
    full_BLV = run(params, rows.source, tokens_BL[:, :-1], positions_BL, np.ones((4, NEW), int))
    np.testing.assert_allclose(logits_BLV, full_BLV, atol=1e-4)
    theirs_BL = model.generate(**_their_inputs(rows), do_sample=False, max_new_tokens=NEW,
                               eos_token_id=None).numpy()
    np.testing.assert_array_equal(tokens_BL, theirs_BL)


@pytest.mark.full
def test_import_then_export_returns_the_same_bytes(peer, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder, model, config, params = peer
    assert_same_bytes(T5, params, config, folder)
    (tmp_path / "config.json").write_text(json.dumps(write_t5(config) | {"model_type": "t5"}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    for name, theirs in model.state_dict().items():
        assert (loaded.state_dict()[name] == theirs).all(), name
    assert loaded.config.scale_decoder_outputs == model.config.scale_decoder_outputs


@pytest.mark.parametrize("version", VERSIONS)
def test_a_config_can_be_written_as_it_was_read(version):
    fields = Fields(FIELDS | VERSIONS[version])
    config = read_t5(fields)
    assert not fields.unread()
    assert (config.tied, config.logit_scale != 1) == ((True, True) if version == "1.0"
                                                      else (False, False))
    assert read_t5(Fields(write_t5(config))) == config


@pytest.mark.parametrize("changed, message", [
    ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj='gated-tanh'"),
    ({"feed_forward_proj": "relu", "dense_act_fn": "silu"}, "dense_act_fn='silu'"),
    ({"is_encoder_decoder": False}, "is_encoder_decoder=False")], ids=str)
def test_what_changes_the_computation_and_is_not_ours_is_refused(changed, message):
    with pytest.raises(UserError, match=message):
        read_t5(Fields(FIELDS | changed))
