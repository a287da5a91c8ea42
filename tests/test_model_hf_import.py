"""What is imported and exported, and what is refused, without the libraries of other programs."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest

from core.artifacts import read_json
from core.errors import UserError
from data.tokenizers.bpe import BytePairTokenizer
from model.config import ModelConfig
from model.directory import load_params, read_description, save_model
from model.families.registry import init
from model.hf import import_model as importing
from model.hf.export_model import choose_layout, export_model
from model.hf.families import gpt, llama
from model.hf.families.table import LAYOUTS, find_layout
from model.hf.fields import Fields
from model.hf.gguf_layouts import GGUF_LAYOUTS
from model.hf.import_model import import_model
from model.hf.rope_fields import read_rope, write_rope
from model.hf.safetensors_files import open_safetensors, write_safetensors
from model.hf.tables import load_params as load_theirs
from model.hf.tables import write_params
from model.hf.tensor_files import LazyTensor
from model.presets import PRESETS

TOKENIZER = BytePairTokenizer({bytes([i]): i for i in range(256)})
V = TOKENIZER.vocab_size
OURS = ModelConfig(V=V, D=16, N=2, H=4, G=2, K=4, F=24)
LLAMA = {"model_type": "llama", "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
         "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "hidden_act": "silu",
         "max_position_embeddings": 64, "tie_word_embeddings": False}
GPT2 = {"model_type": "gpt2", "vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 4,
        "n_positions": 64, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new"}
NEOX = {"model_type": "gpt_neox", "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 24, "layer_norm_eps": 1e-5,
        "use_parallel_residual": True, "hidden_act": "gelu", "rotary_pct": 0.5,
        "rotary_emb_base": 10_000, "max_position_embeddings": 64}
OPT = {"model_type": "opt", "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2,
       "num_attention_heads": 2, "ffn_dim": 24, "max_position_embeddings": 64,
       "activation_function": "relu", "do_layer_norm_before": True}
GEMMA2 = LLAMA | {"model_type": "gemma2", "head_dim": 4, "hidden_activation": "gelu_pytorch_tanh",
                  "sliding_window": 8, "query_pre_attn_scalar": 4, "tie_word_embeddings": True,
                  "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA3 = GEMMA2 | {"model_type": "gemma3_text", "rope_local_base_freq": 10_000.0,
                   "attn_logit_softcapping": None, "final_logit_softcapping": None}
QWEN3_MOE = LLAMA | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2,
                     "moe_intermediate_size": 8, "norm_topk_prob": True}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.fixture(autouse=True)
def own_tokenizer(monkeypatch):
    """Imports take a tokenizer of ours: those of the hub need another library."""
    monkeypatch.setattr(importing, "load_tokenizer", lambda source: TOKENIZER)


@pytest.fixture
def folder(tmp_path):
    """A Llama in a folder of the hub, and its arrays by name."""
    config = read(LLAMA)
    params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
    arrays = {name: to_read() for name, _, _, to_read in write_params(
        llama.LLAMA, params, config, np.dtype(ml_dtypes.bfloat16))}
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(LLAMA))
    write(source, arrays)
    return source, arrays


def write(source, arrays):
    for path in source.glob("*.safetensors"):
        path.unlink()
    write_safetensors(source, [LazyTensor(name, array.shape, array.dtype, lambda a=array: a)
                               for name, array in arrays.items()])


def read(fields, **changes):
    hf = Fields(fields | changes)
    return find_layout(hf).read_config(hf)


def refusal(fields, **changes):
    with pytest.raises(UserError) as caught:
        read(fields, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_import_then_export_gives_the_same_bytes(folder, tmp_path):
    source, arrays = folder
    result = import_model(source, tmp_path / "model")
    assert result["context_tokens"] == 64 and result["stored_as"] == ["BF16"]
    described = read_description(tmp_path / "model")
    assert described.config == read(LLAMA) and not described.chat
    assert read_json(tmp_path / "model" / "lineage.json")["inputs"].keys() == {
        "config.json", "model.safetensors"}
    assert import_model(source, tmp_path / "model")["skipped"], "from the same files"
    export_model(tmp_path / "model", tmp_path / "out", dtype="bfloat16")
    again = open_safetensors(tmp_path / "out")
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert again[name].read().tobytes() == array.tobytes(), name
    written = read_json(tmp_path / "out" / "config.json")
    assert read(written) == described.config and written["max_position_embeddings"] == 64
    assert written["eos_token_id"] == TOKENIZER.end
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json"}
    with pytest.raises(UserError, match="is there already"):
        export_model(tmp_path / "model", tmp_path / "out")


def test_each_device_reads_its_own_part(folder):
    from model.parallel.sharding import make_mesh

    source, _ = folder
    tensors, config = open_safetensors(source), read(LLAMA)
    alone = load_theirs(llama.LLAMA, tensors, config)
    shared = load_theirs(llama.LLAMA, tensors, config, make_mesh({"fsdp": 4, "tensor": 2}))
    for one, many in zip(jax.tree.leaves(alone), jax.tree.leaves(shared)):
        np.testing.assert_array_equal(one, many)
    assert max(many.addressable_shards[0].data.size / many.size
               for many in jax.tree.leaves(shared["blocks"]) if many.ndim > 2) <= 1 / 4


def spoil_shape(arrays):
    arrays["model.layers.1.mlp.up_proj.weight"] = np.ones((24, 17), np.float32)


@pytest.mark.parametrize("spoil, message", [
    (lambda arrays: arrays.pop("model.layers.1.self_attn.k_proj.weight"),
     "model.layers.1.self_attn.k_proj.weight: is missing"),
    (lambda arrays: arrays.update({"score.weight": np.ones(3, np.float32)}),
     "score.weight: is no tensor of a llama"),
    (spoil_shape, r"model.layers.1.mlp.up_proj.weight: has shape \(24, 17\), and .* \(24, 16\)"),
])
def test_tensors_that_do_not_fit_are_named_and_nothing_is_written(spoil, message, folder,
                                                                   tmp_path):
    source, arrays = folder
    spoil(arrays)
    write(source, arrays)
    with pytest.raises(UserError, match=message) as caught:
        import_model(source, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("model")]


def test_a_tied_head_that_disagrees_is_refused(folder, tmp_path):
    source, _ = folder
    (source / "config.json").write_text(json.dumps(LLAMA | {"tie_word_embeddings": True}))
    with pytest.raises(UserError, match=r"lm_head.weight: differs from model.embed_tokens.weight"):
        import_model(source, tmp_path / "model")


def test_a_file_that_was_cut_is_refused(folder, tmp_path):
    source, _ = folder
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="bytes of data"):
        import_model(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_source_that_is_no_model_is_refused(tmp_path):
    for source, message in ((tmp_path / "none", "no such file"), (tmp_path, "is neither a GGUF")):
        with pytest.raises(UserError, match=message):
            import_model(source, tmp_path / "model")


@pytest.mark.parametrize("fields", [LLAMA, GPT2, NEOX, OPT, GEMMA2, QWEN3_MOE, GEMMA3 | {
    "sliding_window_pattern": 6}, LLAMA | {"model_type": "mistral", "sliding_window": 8},
    LLAMA | {"model_type": "qwen3", "rope_scaling": YARN}], ids=lambda fields: fields["model_type"])
def test_what_is_written_is_read_as_the_same_model(fields):
    config = read(fields)
    layout = find_layout(Fields(fields))
    assert layout.read_config(Fields(layout.write_config(config))) == config
    assert choose_layout(config)[0] is layout


@pytest.mark.parametrize("fields, changes, message", [
    (LLAMA, {"model_type": "mamba"}, "model_type='mamba': is none of llama, qwen3"),
    (LLAMA, {"vocab_size": None}, "config.json, vocab_size: is missing"),
    (LLAMA, {"hidden_size": "16"}, "hidden_size='16': must be a whole number"),
    (LLAMA, {"rms_norm_eps": None}, "rms_norm_eps: is missing"),
    (LLAMA, {"rope_theta": None}, "rope_theta: is missing"),
    (LLAMA, {"hidden_act": "gelu"}, "hidden_act='gelu': is not 'silu'"),
    (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config={.*: weights that"),
    (LLAMA, {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
     "rope_type='longrope': is none of default, linear"),
    (LLAMA, {"rope_scaling": YARN | {"factor": None}}, "rope_scaling, factor: is missing"),
    (LLAMA, {"rope_scaling": YARN | {"attention_factor": 2.0}}, "attention_factor=2.0: is not 1.1"),
    (LLAMA, {"rope_scaling": YARN | {"mscale": 1.0}}, "mscale=1.0: is no field of rope_type"),
    (LLAMA, {"rope_parameters": {"rope_theta": 5.0}}, "rope_theta=10000.0: differs"),
    (LLAMA, {"partial_rotary_factor": 0.3}, "rotated numbers"),
    (LLAMA, {"num_attention_heads": 3}, "num_attention_heads=3: does not divide"),
    (LLAMA | {"model_type": "qwen3"}, {"use_sliding_window": True, "sliding_window": 8,
                                       "max_window_layers": 1}, "max_window_layers=1: is not 0"),
    (LLAMA | {"model_type": "mistral"}, {"sliding_window": 8, "layer_types": [
        "full_attention", "sliding_attention"]}, "layer_types=.*: has a layer without a window"),
    (QWEN3_MOE, {"mlp_only_layers": [0]}, r"mlp_only_layers=\[0\]: is not \[\]"),
    (QWEN3_MOE, {"norm_topk_prob": None}, "norm_topk_prob: is missing"),
    (GEMMA2, {"query_pre_attn_scalar": None}, "query_pre_attn_scalar: is missing"),
    (GEMMA2, {"layer_types": ["full_attention", "sliding_attention"]}, "is no pattern in which"),
    (GEMMA3, {}, "sliding_window_pattern: is missing"),
    (GPT2, {"add_cross_attention": True}, "add_cross_attention=True: is not False"),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    (GPT2, {"activation_function": "quick_gelu"}, "activation_function='quick_gelu': is none of"),
    (OPT, {"do_layer_norm_before": False}, "do_layer_norm_before=False: is not True"),
    (OPT, {"word_embed_proj_dim": 8}, "word_embed_proj_dim=8: is not 16"),
    (NEOX, {"rotary_pct": None}, "rotary_pct: is missing"),
])
def test_fields_that_we_have_no_part_for_are_refused_by_name(fields, changes, message):
    import re

    line = refusal(fields, **changes)
    assert re.search(message, line), line


def test_fields_that_nobody_reads_are_announced(folder, tmp_path, capsys):
    source, _ = folder
    (source / "config.json").write_text(json.dumps(LLAMA | {"clip_qkv": 8.0, "use_cache": True}))
    import_model(source, tmp_path / "model")
    assert "fields that have no meaning here: clip_qkv\n" in capsys.readouterr().err


def test_both_spellings_of_rope_are_read_and_written():
    new = {"rope_parameters": YARN | {"rope_theta": 5e5}}
    old = {"rope_scaling": {"type": "yarn"} | {k: v for k, v in YARN.items() if k != "rope_type"},
           "rope_theta": 5e5}
    fields = read_rope(Fields(new))
    assert fields == read_rope(Fields(old)) and fields["rope_high"] == 32.0
    written = write_rope(dataclasses.replace(OURS, **fields))
    for name in ("rope_parameters", "rope_scaling"):
        assert read_rope(Fields({name: written[name], "rope_theta": 5e5})) == fields


def test_attention_is_divided_among_the_places_of_a_fused_tensor():
    config = dataclasses.replace(read(GPT2), N=1)
    params = init(config, jax.random.key(0))
    written = {name: to_read() for name, _, _, to_read in write_params(
        gpt.GPT2, params, config, np.dtype("float32"))}
    fused = written["transformer.h.0.attn.c_attn.weight"]
    for place, name in enumerate(("wq_DHK", "wk_DGK", "wv_DGK")):
        np.testing.assert_array_equal(fused[:, 16 * place:16 * (place + 1)],
                                      params["blocks"][name][0].reshape(16, 16))


def test_gguf_has_the_rotated_pairs_as_neighbours():
    config = dataclasses.replace(OURS, qk_norm=False)
    params = init(config, jax.random.key(0))
    written = {name: to_read() for name, _, _, to_read in write_params(
        GGUF_LAYOUTS[0], params, config, np.dtype("float32"))}
    query = written["blk.0.attn_q.weight"].reshape(4, 4, 16)     # heads, numbers, width
    own_DHK = np.asarray(params["blocks"]["wq_DHK"][0])
    np.testing.assert_array_equal(query[1], own_DHK[:, 1, [0, 2, 1, 3]].T)
    tensors = {name: LazyTensor(name, array.shape, array.dtype, lambda a=array: a)
               for name, array in written.items()}
    again = load_theirs(GGUF_LAYOUTS[0], tensors, config)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("changes, name", [
    ({}, "qwen3"), ({"qk_norm": False}, "llama"), ({"E": 4}, "qwen3_moe"),
    ({"E": 4, "qk_norm": False}, "mixtral"), ({"window": 8, "qk_norm": False}, "mistral"),
    ({"D": 18, "qk_norm": False}, "mistral")])   # heads that do not divide the width
def test_our_models_have_a_counterpart(changes, name):
    assert choose_layout(dataclasses.replace(OURS, **changes))[0].model_type == name


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items()
                                  if preset.family == "decoder"])
def test_every_preset_of_a_decoder_has_its_family(name):
    layout, fields = choose_layout(PRESETS[name])
    assert layout.read_config(Fields(fields)) == PRESETS[name]


@pytest.mark.parametrize("layouts", [LAYOUTS, GGUF_LAYOUTS], ids=["hub", "gguf"])
@pytest.mark.parametrize("changes", [
    {"embed_previous": True}, {"shared_experts": 1, "E": 4}, {"sinks": True},
    {"expert_capacity": 1.5, "E": 4}, {"logit_scale": 0.5}, {"residual_scale": 0.5},
    {"embed_scale": 4.0, "tied": True}], ids=lambda changes: next(iter(changes)))
def test_what_has_no_counterpart_is_refused_by_name(changes, layouts):
    name = next(iter(changes))
    with pytest.raises(UserError, match=f"model.{name}=.*: has no counterpart in .*, the nearest"):
        choose_layout(dataclasses.replace(OURS, **changes), layouts)


def test_an_export_that_is_refused_leaves_nothing(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer")
    config = dataclasses.replace(OURS, qk_norm=False)
    params = init(config, jax.random.key(0))
    params["embed_VD"] = params["embed_VD"].at[3, 3].set(1e6)
    save_model(tmp_path / "model", params, config, tmp_path / "tokenizer", chat=True,
               context_tokens=64)
    with pytest.raises(UserError, match=r"tensor model.embed_tokens.weight: has numbers that"):
        export_model(tmp_path / "model", tmp_path / "out", dtype="float16")
    with pytest.raises(UserError, match="--dtype=q8_0: safetensors files are written as float32"):
        export_model(tmp_path / "model", tmp_path / "out", dtype="q8_0")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "tokenizer"}
    export_model(tmp_path / "model", tmp_path / "out", dtype="bfloat16")
    assert "<|assistant|>" in (tmp_path / "out" / "chat_template.jinja").read_text()
    assert load_params(tmp_path / "model", config)["embed_VD"][3, 3] == 1e6
