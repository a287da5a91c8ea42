"""Architectures by the name under which their weights are published.

Numbers are those of the published `config.json`. Where a model has parts that we leave out (the
vision tower of Gemma 3), the preset is its language model.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from model.config import ModelConfig


def _gpt2(N: int, D: int) -> ModelConfig:
    """The GPT-2 report (2019), section 2.3; the first model with its parts was GPT (2018)."""
    return ModelConfig(V=50_257, D=D, N=N, H=D // 64, G=D // 64, K=64, F=4 * D, norm="layer",
                       norm_eps=1e-5, positions="learned", max_positions=1024, qk_norm=False,
                       attention_bias=True, attention_out_bias=True, mlp="gelu_tanh",
                       mlp_bias=True, tied=True)


def _llama(V: int, D: int, N: int, H: int, G: int, K: int, F: int, **fields: Any) -> ModelConfig:
    """arXiv 2302.13971, section 2.2; with the fields in which others of its kind differ."""
    return ModelConfig(**dict(V=V, D=D, N=N, H=H, G=G, K=K, F=F, norm_eps=1e-5, qk_norm=False)
                       | fields)


def _llama3(D: int, N: int, H: int, K: int, F: int, *, factor: float = 1.0,
            tied: bool = False) -> ModelConfig:
    """arXiv 2407.21783, table 3. Those of 3.1 and 3.2 extend the context by `factor`."""
    is_extended = factor > 1
    return _llama(128_256, D, N, H, 8, K, F, rope_theta=500_000.0, tied=tied, rope_factor=factor,
                  rope_scaling="llama3" if is_extended else "none",
                  rope_context=8192 if is_extended else 0)


def _smollm2(D: int, N: int, H: int, G: int, F: int, rope_theta: float) -> ModelConfig:
    """arXiv 2502.02737; Llama's parts."""
    return _llama(49_152, D, N, H, G, 64, F, rope_theta=rope_theta, tied=True)


def _qwen3(D: int, N: int, H: int, G: int, F: int, **fields: Any) -> ModelConfig:
    """arXiv 2505.09388, tables 1 and 2."""
    return _llama(151_936, D, N, H, G, 128, F, norm_eps=1e-6, rope_theta=1_000_000.0, qk_norm=True,
                  **fields)


def _gemma(V: int, D: int, N: int, H: int, G: int, K: int, F: int, **fields: Any) -> ModelConfig:
    """What Gemma 2 and 3 share."""
    return ModelConfig(**dict(
        V=V, D=D, N=N, H=H, G=G, K=K, F=F, norm="rms_plus_one", residual="sandwich", mlp="geglu",
        tied=True, embed_scale=D**0.5) | fields)


def _gemma2(D: int, N: int, H: int, G: int, K: int, F: int, *, scored: int) -> ModelConfig:
    """arXiv 2408.00118, table 1; `scored` is the size whose root divides the scores."""
    return _gemma(256_000, D, N, H, G, K, F, qk_norm=False, window=4096, global_every=2,
                  attention_scale=scored**-0.5, attention_softcap=50.0, logit_softcap=30.0)


def _gemma3(D: int, N: int, H: int, G: int, K: int, F: int, *, scored: int,
            rows: int = 262_208) -> ModelConfig:
    """arXiv 2503.19786, section 2; the 1B model alone has a short context. See `_gemma2`."""
    is_long = D > 1152
    return _gemma(rows, D, N, H, G, K, F, qk_norm=True, window=1024 if is_long else 512,
                  global_every=6, attention_scale=scored**-0.5, rope_theta=1_000_000.0,
                  rope_local_theta=10_000.0, rope_scaling="linear" if is_long else "none",
                  rope_factor=8.0 if is_long else 1.0)


def _bert(D: int, N: int, H: int, K: int, **fields: Any) -> ModelConfig:
    """arXiv 1810.04805, section 3."""
    return ModelConfig(**dict(
        V=30_522, D=D, N=N, H=H, G=H, K=K, F=4 * D, family="encoder", norm="layer",
        norm_eps=1e-12, residual="post", positions="learned", max_positions=512, qk_norm=False,
        attention_bias=True, attention_out_bias=True, mlp="gelu", mlp_bias=True, tied=True,
        embed_norm=True, token_types=2) | fields)


def _t5(D: int, N: int, H: int, F: int) -> ModelConfig:
    """arXiv 1910.10683 in the form of version 1.1 (arXiv 2002.05202): GeGLU, an untied head."""
    return ModelConfig(V=32_128, D=D, N=N, H=H, G=H, K=64, F=F, family="encoder_decoder",
                       encoder_layers=N, positions="relative", qk_norm=False, attention_scale=1.0,
                       mlp="geglu")


PRESETS: Mapping[str, ModelConfig] = {
    "gpt2": _gpt2(12, 768), "gpt2-medium": _gpt2(24, 1024), "gpt2-large": _gpt2(36, 1280),
    "gpt2-xl": _gpt2(48, 1600),
    # arXiv 2205.01068, table 1
    "opt-125m": ModelConfig(
        V=50_272, D=768, N=12, H=12, G=12, K=64, F=3072, norm="layer", norm_eps=1e-5,
        positions="learned", max_positions=2048, position_offset=2, qk_norm=False,
        attention_bias=True, attention_out_bias=True, mlp="relu", mlp_bias=True, tied=True),
    # arXiv 2204.06745, section 2
    "gpt-neox-20b": ModelConfig(
        V=50_432, D=6144, N=44, H=64, G=64, K=96, F=24_576, norm="layer", norm_eps=1e-5,
        residual="parallel", rope_frac=0.25, qk_norm=False, attention_bias=True,
        attention_out_bias=True, mlp="gelu_tanh", mlp_bias=True),
    "llama-3-8b": _llama3(4096, 32, 32, 128, 14_336),
    "llama-3-70b": _llama3(8192, 80, 64, 128, 28_672),
    "llama-3.1-8b": _llama3(4096, 32, 32, 128, 14_336, factor=8.0),
    "llama-3.1-70b": _llama3(8192, 80, 64, 128, 28_672, factor=8.0),
    "llama-3.1-405b": _llama3(16_384, 126, 128, 128, 53_248, factor=8.0),
    "llama-3.2-1b": _llama3(2048, 16, 32, 64, 8192, factor=32.0, tied=True),
    "llama-3.2-3b": _llama3(3072, 28, 24, 128, 8192, factor=32.0, tied=True),
    "smollm2-135m": _smollm2(576, 30, 9, 3, 1536, 100_000.0),
    "smollm2-360m": _smollm2(960, 32, 15, 5, 2560, 100_000.0),
    "smollm2-1.7b": _smollm2(2048, 24, 32, 32, 8192, 130_000.0),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 8, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 8, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 8, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 8, 12_288),
    "qwen3-14b": _qwen3(5120, 40, 40, 8, 17_408),
    "qwen3-32b": _qwen3(5120, 64, 64, 8, 25_600),
    "qwen3-30b-a3b": _qwen3(2048, 48, 32, 4, 768, E=128, experts_per_token=8),
    "gemma-2-2b": _gemma2(2304, 26, 8, 4, 256, 9216, scored=256),
    "gemma-2-9b": _gemma2(3584, 42, 16, 8, 256, 14_336, scored=256),
    "gemma-2-27b": _gemma2(4608, 46, 32, 16, 128, 36_864, scored=144),
    "gemma-3-1b": _gemma3(1152, 26, 4, 1, 256, 6912, scored=256, rows=262_144),
    "gemma-3-4b": _gemma3(2560, 34, 8, 4, 256, 10_240, scored=256),
    "gemma-3-12b": _gemma3(3840, 48, 16, 8, 256, 15_360, scored=256),
    "gemma-3-27b": _gemma3(5376, 62, 32, 16, 128, 21_504, scored=168),
    # arXiv 2401.04088, table 1
    "mixtral-8x7b": _llama(32_000, 4096, 32, 32, 8, 128, 14_336, rope_theta=1_000_000.0, E=8,
                           experts_per_token=2),
    "bert-base-uncased": _bert(768, 12, 12, 64, masked_head=True, head_bias=True),
    # all-MiniLM-L6-v2, for embeddings: no head of its own
    "minilm-l6": _bert(384, 6, 12, 32, pooler=True),
    "t5-v1.1-small": _t5(512, 8, 6, 1024),
    "t5-v1.1-base": _t5(768, 12, 12, 2048),
    "t5-v1.1-large": _t5(1024, 24, 16, 2816),
}


def find_preset(name: str, field: str = "--preset") -> ModelConfig:
    """The preset of a name.

    Args:
        field: that gave the name, for the message.

    Raises:
        UserError: there is none; it names those that are spelled alike.
    """
    if name not in PRESETS:
        near = ([known for known in PRESETS if name and name.lower() in known]
                or difflib.get_close_matches(name.lower(), PRESETS, n=4, cutoff=0.5) or PRESETS)
        raise UserError(f"{field}={name!r}", "is no preset", f"name one of {', '.join(near)}")
    return PRESETS[name]
