"""Presets: parameters to the unit, and the published configs that they restate."""

import pytest

from core.errors import UserError
from model.families.registry import num_params
from model.presets import PRESETS, find_preset

# Parameters of the `transformers` model of the published config: the test below makes each of them,
# on the meta device, and compares. A tied head is counted once.
COUNTS = {
    "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "opt-125m": 125_239_296, "gpt-neox-20b": 20_554_567_680,
    "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248, "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400, "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384,
    "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360, "qwen3-14b": 14_768_307_200, "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2-2b": 2_614_341_888, "gemma-2-9b": 9_241_705_984, "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952, "gemma-3-4b": 3_880_263_168, "gemma-3-12b": 11_766_034_176,
    "gemma-3-27b": 27_009_346_304,
    "mixtral-8x7b": 46_702_792_704,
    "bert-base-uncased": 109_514_298,       # with the head of its pretraining, without the pooler
    "minilm-l6": 22_713_216,
    "t5-v1.1-small": 76_961_152, "t5-v1.1-base": 247_577_856, "t5-v1.1-large": 783_150_080,
}


def _llama(**fields):
    return "LlamaForCausalLM", dict(rms_norm_eps=1e-5) | fields


def _llama3(factor=None, **fields):
    rope = dict(rope_theta=500_000.0, rope_type="default")
    if factor:
        rope |= dict(rope_type="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0,
                     original_max_position_embeddings=8192)
    return _llama(vocab_size=128_256, num_key_value_heads=8, rope_parameters=rope, **fields)


def _smollm2(**fields):
    return _llama(vocab_size=49_152, tie_word_embeddings=True, **fields)


def _qwen3(name="Qwen3ForCausalLM", tied=False, **fields):
    return name, dict(vocab_size=151_936, head_dim=128, num_key_value_heads=8, rms_norm_eps=1e-6,
                      tie_word_embeddings=tied) | fields


def _gemma2(**fields):
    return "Gemma2ForCausalLM", dict(vocab_size=256_000, sliding_window=4096) | fields


def _gemma3(**fields):
    return "Gemma3ForCausalLM", dict(vocab_size=262_208, sliding_window=1024) | fields


def _sizes(D, N, H, F, **fields):
    return dict(hidden_size=D, num_hidden_layers=N, num_attention_heads=H,
                intermediate_size=F) | fields


def _gpt2(D, N):
    return "GPT2LMHeadModel", dict(n_embd=D, n_layer=N, n_head=D // 64)


def _t5(D, N, H, F):
    return "T5ForConditionalGeneration", dict(
        vocab_size=32_128, d_model=D, num_layers=N, num_heads=H, d_ff=F, d_kv=64,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False)


# The class that loads the weights, and the fields of the published config.json in which it differs
# from the defaults of the class.
PUBLISHED = {
    "gpt2": _gpt2(768, 12), "gpt2-medium": _gpt2(1024, 24), "gpt2-large": _gpt2(1280, 36),
    "gpt2-xl": _gpt2(1600, 48),
    "opt-125m": ("OPTForCausalLM", dict(vocab_size=50_272, ffn_dim=3072, word_embed_proj_dim=768)
                 | dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)),
    "gpt-neox-20b": ("GPTNeoXForCausalLM", _sizes(6144, 44, 64, 24_576, vocab_size=50_432)),
    "llama-3-8b": _llama3(**_sizes(4096, 32, 32, 14_336)),
    "llama-3-70b": _llama3(**_sizes(8192, 80, 64, 28_672)),
    "llama-3.1-8b": _llama3(8.0, **_sizes(4096, 32, 32, 14_336)),
    "llama-3.1-70b": _llama3(8.0, **_sizes(8192, 80, 64, 28_672)),
    "llama-3.1-405b": _llama3(8.0, **_sizes(16_384, 126, 128, 53_248)),
    "llama-3.2-1b": _llama3(32.0, **_sizes(2048, 16, 32, 8192), head_dim=64,
                            tie_word_embeddings=True),
    "llama-3.2-3b": _llama3(32.0, **_sizes(3072, 28, 24, 8192), head_dim=128,
                            tie_word_embeddings=True),
    "smollm2-135m": _smollm2(**_sizes(576, 30, 9, 1536), num_key_value_heads=3),
    "smollm2-360m": _smollm2(**_sizes(960, 32, 15, 2560), num_key_value_heads=5),
    "smollm2-1.7b": _smollm2(**_sizes(2048, 24, 32, 8192), num_key_value_heads=32),
    "qwen3-0.6b": _qwen3(tied=True, **_sizes(1024, 28, 16, 3072)),
    "qwen3-1.7b": _qwen3(tied=True, **_sizes(2048, 28, 16, 6144)),
    "qwen3-4b": _qwen3(tied=True, **_sizes(2560, 36, 32, 9728)),
    "qwen3-8b": _qwen3(**_sizes(4096, 36, 32, 12_288)),
    "qwen3-14b": _qwen3(**_sizes(5120, 40, 40, 17_408)),
    "qwen3-32b": _qwen3(**_sizes(5120, 64, 64, 25_600)),
    "qwen3-30b-a3b": _qwen3("Qwen3MoeForCausalLM", **_sizes(
        2048, 48, 32, 6144, num_key_value_heads=4, num_experts=128, num_experts_per_tok=8,
        moe_intermediate_size=768, norm_topk_prob=True)),
    "gemma-2-2b": _gemma2(**_sizes(2304, 26, 8, 9216), num_key_value_heads=4, head_dim=256,
                          query_pre_attn_scalar=256),
    "gemma-2-9b": _gemma2(**_sizes(3584, 42, 16, 14_336), num_key_value_heads=8, head_dim=256,
                          query_pre_attn_scalar=256),
    "gemma-2-27b": _gemma2(**_sizes(4608, 46, 32, 36_864), num_key_value_heads=16, head_dim=128,
                           query_pre_attn_scalar=144),
    "gemma-3-1b": _gemma3(**_sizes(1152, 26, 4, 6912), num_key_value_heads=1, head_dim=256,
                          query_pre_attn_scalar=256, vocab_size=262_144,
                          sliding_window=512),
    "gemma-3-4b": _gemma3(**_sizes(2560, 34, 8, 10_240), num_key_value_heads=4, head_dim=256,
                          query_pre_attn_scalar=256),
    "gemma-3-12b": _gemma3(**_sizes(3840, 48, 16, 15_360), num_key_value_heads=8, head_dim=256,
                           query_pre_attn_scalar=256),
    "gemma-3-27b": _gemma3(**_sizes(5376, 62, 32, 21_504), num_key_value_heads=16, head_dim=128,
                           query_pre_attn_scalar=168),
    "mixtral-8x7b": ("MixtralForCausalLM", _sizes(
        4096, 32, 32, 14_336, vocab_size=32_000, num_key_value_heads=8, num_local_experts=8,
        num_experts_per_tok=2)),
    "bert-base-uncased": ("BertForMaskedLM", _sizes(768, 12, 12, 3072, vocab_size=30_522)),
    "minilm-l6": ("BertModel", _sizes(384, 6, 12, 1536, vocab_size=30_522)),
    "t5-v1.1-small": _t5(512, 8, 6, 1024), "t5-v1.1-base": _t5(768, 12, 12, 2048),
    "t5-v1.1-large": _t5(1024, 24, 16, 2816),
}


def test_every_preset_has_a_count():
    assert set(COUNTS) == set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_equal_the_published_ones(name):
    assert num_params(PRESETS[name]) == COUNTS[name]


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PRESETS)
def test_transformers_counts_the_same_in_the_published_config(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    architecture, fields = PUBLISHED[name]
    kind = getattr(transformers, architecture)
    with torch.device("meta"):
        model = kind(kind.config_class(**fields))
    if architecture == "T5ForConditionalGeneration":    # tied until a file with a head is loaded
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    assert sum(weight.numel() for weight in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name, near", [
    ("qwen3-0.6", "qwen3-0.6b"), ("qwen", "qwen3-0.6b, .*, qwen3-30b-a3b$"),
    ("llama3.1-8b", "llama-3.1-8b"), ("GPT2", "gpt2"),
    ("bert-base", "bert-base-uncased"), ("t5-base", "t5-v1.1-base"), ("zzz", "mixtral-8x7b")])
def test_an_unknown_name_is_one_line_with_near_ones(name, near):
    with pytest.raises(UserError, match=rf"--preset='{name}': is no preset: name one of .*{near}"
                       ) as error:
        find_preset(name)
    assert "\n" not in str(error.value)
