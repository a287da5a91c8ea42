"""Decoders beside transformers: logits, padding, packing, decoding, gradients, files both ways."""

import dataclasses
import json
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peer_models import as_entries, save_random_peer

from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.export import hub_files
from model.execution import Execution
from model.families.registry import forward
from model.generation.engine import Engine
from model.generation.requests import Request
from model.generation.sampling import Sampling
from model.generation.weights import unstack
from model.heads.language import logits, token_logps
from model.hf.export_model import choose_layout, export_model
from model.hf.families.table import LAYOUTS, find_layout
from model.hf.fields import Fields
from model.hf.import_model import import_model
from model.hf.safetensors_files import open_safetensors
from model.hf.tables import load_params
from model.parallel.sharding import make_mesh

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("default")]   # of the other library

V, LENGTH, WINDOW = 270, 40, 7
SIZES = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 128}
FEW = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers",
                                      "num_attention_heads", "max_position_embeddings")}
NEOX = FEW | {"intermediate_size": 48}
PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0,
        "original_max_position_embeddings": 16}
GEMMA3 = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
          "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}}
THIRD = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]

# Class of the model, of its config, its fields.
CASES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", SIZES | {"rope_parameters": LLAMA3}),
    "llama-biases": ("LlamaForCausalLM", "LlamaConfig", SIZES | {
        "rope_parameters": YARN, "head_dim": 12, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", SIZES | PLAIN | {"sliding_window": WINDOW}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", SIZES | PLAIN | {"head_dim": 12}),
    "qwen3-window": ("Qwen3ForCausalLM", "Qwen3Config", SIZES | PLAIN | {
        "head_dim": 12, "use_sliding_window": True, "max_window_layers": 0,
        "sliding_window": WINDOW}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", SIZES | PLAIN | {
        "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", SIZES | PLAIN | {
        "head_dim": 12, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "norm_topk_prob": True}),
    "qwen3-moe-raw-gates": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", SIZES | PLAIN | {
        "head_dim": 12, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
        "norm_topk_prob": False}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", SIZES | PLAIN | {"head_dim": 12}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", SIZES | PLAIN | {
        "head_dim": 12, "sliding_window": WINDOW, "query_pre_attn_scalar": 10}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", SIZES | {
        "head_dim": 12, "sliding_window": WINDOW, "query_pre_attn_scalar": 10,
        "layer_types": THIRD, "rope_parameters": GEMMA3}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {
        "vocab_size": V, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}),
    "opt": ("OPTForCausalLM", "OPTConfig", FEW | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX | {
        "rope_parameters": PLAIN["rope_parameters"] | {"partial_rotary_factor": 0.25}}),
    "gpt-neox-sequential": ("GPTNeoXForCausalLM", "GPTNeoXConfig", NEOX | {
        "use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_fast",
        "rope_parameters": PLAIN["rope_parameters"] | {"partial_rotary_factor": 0.5}}),
}
EXECUTION = Execution()
TOKENIZER = BytePairTokenizer({bytes([i]): i for i in range(256)})
each_family = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """A family's random model: its folder, itself, our config and parameters; made once."""
    @cache
    def make(name):
        import transformers

        made_by, config_class, fields = CASES[name]
        folder = tmp_path_factory.mktemp(name)
        theirs = getattr(transformers, config_class)(
            **fields, bos_token_id=0, eos_token_id=1, pad_token_id=None,
            attn_implementation="eager")
        model = save_random_peer(getattr(transformers, made_by)(theirs), folder, std=0.25,
                                 norm_mean=0.0 if name.startswith("gemma") else 1.0)
        for file, text in hub_files(TOKENIZER, chat=True, context_tokens=128).items():
            (folder / file).write_text(text)
        hf = Fields(json.loads((folder / "config.json").read_text()))
        layout = find_layout(hf)
        config = layout.read_config(hf)
        assert not hf.unread()
        params = load_params(layout, open_safetensors(folder), config)
        return SimpleNamespace(folder=folder, model=model, config=config, params=params,
                               layout=layout)
    return make


@partial(jax.jit, static_argnames="config")
def _logits(params, tokens_BL, positions_BL, segment_ids_BL, config):
    x_BLD = forward(params, tokens_BL, positions_BL, segment_ids_BL, config=config,
                    execution=EXECUTION)
    return logits(params, x_BLD, config=config, execution=EXECUTION)


def _theirs(model, tokens_BL, **arguments):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens_BL), **{name: torch.tensor(value) for name, value in
                                                 arguments.items()}).logits.float().numpy()


def _rows(num_rows=2, length=LENGTH, seed=0):
    tokens_BL = np.random.default_rng(seed).integers(0, V, (num_rows, length))
    positions_BL = np.tile(np.arange(length), (num_rows, 1))
    return tokens_BL, positions_BL, np.ones_like(tokens_BL)


@each_family
def test_logits_equal_those_of_transformers(name, peer, record_property):
    own = peer(name)
    tokens_BL, positions_BL, segment_ids_BL = _rows()
    ours_BLV = np.asarray(_logits(own.params, tokens_BL, positions_BL, segment_ids_BL, own.config))
    theirs_BLV = _theirs(own.model, tokens_BL)
    difference = np.abs(ours_BLV - theirs_BLV).max()
    record_property("difference", float(difference))
    print(f"{name}: {difference:.1e} of {np.abs(theirs_BLV).max():.1f}")
    assert difference <= 2e-4
    if own.config.window:   # the row is longer than the window, which matters
        wide = dataclasses.replace(own.config, window=LENGTH)
        assert np.abs(_logits(own.params, tokens_BL, positions_BL, segment_ids_BL, wide)
                      - theirs_BLV).max() > 1e-2


@each_family
def test_padding_on_either_side_and_packing_change_nothing(name, peer):
    own, lengths, width = peer(name), (11, 29), 33
    tokens_BL, _, _ = _rows(length=width, seed=1)
    wanted = [_theirs(own.model, tokens_BL[i:i + 1, :n])[0] for i, n in enumerate(lengths)]
    for left in (False, True):
        mask_BL, positions_BL = np.zeros((2, width), int), np.zeros((2, width), int)
        places = [slice(width - n, width) if left else slice(0, n) for n in lengths]
        padded_BL = np.zeros_like(tokens_BL)
        for i, (n, place) in enumerate(zip(lengths, places)):
            padded_BL[i, place], mask_BL[i, place] = tokens_BL[i, :n], 1
            positions_BL[i, place] = np.arange(n)
        ours_BLV = _logits(own.params, padded_BL, positions_BL, mask_BL, own.config)
        theirs_BLV = _theirs(own.model, padded_BL, attention_mask=mask_BL,
                             position_ids=positions_BL)
        for i, place in enumerate(places):
            np.testing.assert_allclose(ours_BLV[i, place], wanted[i], atol=2e-4)
            np.testing.assert_allclose(ours_BLV[i, place], theirs_BLV[i, place], atol=2e-4)
    packed_BL = np.concatenate([tokens_BL[i, :n] for i, n in enumerate(lengths)])[None]
    positions_BL = np.concatenate([np.arange(n) for n in lengths])[None]
    segment_ids_BL = np.repeat([1, 2], lengths)[None]
    packed_BLV = _logits(own.params, packed_BL, positions_BL, segment_ids_BL, own.config)
    np.testing.assert_allclose(packed_BLV[0], np.concatenate(wanted), atol=2e-4)


@each_family
def test_decoding_equals_the_full_forward_and_the_greedy_tokens_of_transformers(name, peer):
    import torch

    own, num_new = peer(name), 64
    prompt_BL, _, _ = _rows(num_rows=1, length=5, seed=2)
    with torch.no_grad():
        theirs_L = own.model.generate(
            torch.tensor(prompt_BL), attention_mask=torch.ones_like(torch.tensor(prompt_BL)),
            do_sample=False, max_new_tokens=num_new, eos_token_id=None, pad_token_id=0)[0].numpy()
    engine = Engine(unstack(own.params, EXECUTION), own.config, EXECUTION, num_slots=1,
                    capacity=len(theirs_L))
    done, = engine.run([Request(tuple(prompt_BL[0].tolist()), Sampling(num_new, temperature=0))])
    np.testing.assert_array_equal(done.tokens, theirs_L[5:])
    full_BLV = _logits(own.params, theirs_L[None], np.arange(len(theirs_L))[None],
                       np.ones((1, len(theirs_L)), int), own.config)
    logps_LV = np.asarray(jax.nn.log_softmax(full_BLV[0]))[4:-1]
    np.testing.assert_allclose(done.logps, logps_LV[range(num_new), theirs_L[5:]], atol=1e-4)


@each_family
def test_eight_devices_equal_one(name, peer):
    own = peer(name)
    rows = _rows(num_rows=4)
    mesh = make_mesh({"fsdp": 2, "tensor": 2, "expert" if own.config.E else "data": 2})
    params = load_params(own.layout, open_safetensors(own.folder), own.config, mesh)
    alone_BLV = np.asarray(_logits(own.params, *rows, own.config))
    with jax.set_mesh(mesh):
        shared_BLV = _logits(params, *rows, own.config)
    np.testing.assert_allclose(shared_BLV, alone_BLV, atol=2e-4)


@each_family
def test_import_then_export_gives_the_same_bytes_and_loads_in_transformers(name, peer, tmp_path):
    import transformers

    own = peer(name)
    result = import_model(own.folder, tmp_path / "model")
    assert result["context_tokens"] == 128 and result["chat"] is True
    export_model(tmp_path / "model", tmp_path / "out")
    theirs, ours = open_safetensors(own.folder), open_safetensors(tmp_path / "out")
    assert set(theirs) == set(ours)
    for tensor, original in theirs.items():
        array = original.read()
        assert array.dtype == ours[tensor].dtype and array.shape == ours[tensor].shape, tensor
        assert array.tobytes() == ours[tensor].read().tobytes(), tensor
    tokens_BL, _, _ = _rows()
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out",
                                                              attn_implementation="eager")
    assert type(again).__name__ in (type(own.model).__name__, "LlamaForCausalLM")
    # Not to the bit: three names stand for one approximation of GELU, computed in different ways.
    np.testing.assert_allclose(_theirs(again.eval(), tokens_BL), _theirs(own.model, tokens_BL),
                               atol=1e-5)


@pytest.mark.parametrize("name", ["llama-biases", "gemma2"])
def test_gradients_equal_those_of_transformers(name, peer):
    import torch

    own = peer(name)
    tokens_BL, positions_BL, segment_ids_BL = _rows(length=LENGTH + 1)

    def loss(params):
        x_BLD = forward(params, tokens_BL[:, :-1], positions_BL[:, :-1], segment_ids_BL[:, :-1],
                        config=own.config, execution=EXECUTION)
        return -jnp.mean(token_logps(params, x_BLD, tokens_BL[:, 1:], config=own.config,
                                     execution=EXECUTION))

    ours = as_entries(own.layout, jax.jit(jax.grad(loss))(own.params), own.config)
    own.model.zero_grad()
    found = own.model(torch.tensor(tokens_BL[:, :-1])).logits
    torch.nn.functional.cross_entropy(found.flatten(0, 1),
                                      torch.tensor(tokens_BL[:, 1:]).flatten()).backward()
    theirs = {key: parameter.grad.numpy() for key, parameter in own.model.named_parameters()}
    assert set(ours) == set(theirs)
    for key, gradient in theirs.items():
        np.testing.assert_allclose(ours[key], gradient, atol=2e-5 * max(1, np.abs(gradient).max()),
                                   err_msg=key)


def test_every_family_of_decoders_is_tried(peer):
    tried = {peer(name).layout.model_type for name in CASES}
    decoders = {layout.model_type for layout in LAYOUTS
                if layout.model_type not in ("bert", "t5")}
    assert tried == decoders
    for name in CASES:      # a model goes out as the family that it came from, or as its like
        layout, _ = choose_layout(peer(name).config)
        assert layout.model_type in (peer(name).layout.model_type, "llama")
