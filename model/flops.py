"""Analytic FLOP counts and model FLOPs utilisation (MFU).

XLA's own cost analysis counts the body of a scan once, so it is wrong for stacked layers.
"""

from __future__ import annotations

import re

from model.config import ModelConfig

ATTENTION_COUNTS = {"causal": 0.5, "full": 1.0}     # the share of query-key pairs counted

# Dense peaks of one device as JAX counts devices, in FLOP/s: bfloat16, and fp8 where the chip has
# it. From the vendors' data sheets; figures "with sparsity" are halved.
PEAKS = (
    (r"NVIDIA H100 PCIe", 756e12, 1513e12),
    (r"NVIDIA H[12]00 NVL", 835e12, 1671e12),
    (r"NVIDIA (H100|H200|GH200)( \d+GB)?( HBM3e?)?", 989e12, 1979e12),
    (r"NVIDIA B200", 2250e12, 4500e12),
    (r"NVIDIA A100-\w+-\d+GB|NVIDIA A100 \d+GB PCIe", 312e12, None),
    (r"NVIDIA L40S", 362e12, 733e12),
    (r"NVIDIA L4", 121e12, 242e12),
    (r"NVIDIA GeForce RTX 4090", 165e12, 330e12),
    (r"TPU v4", 275e12, None),
    (r"TPU v5 lite|TPU v5e", 197e12, None),
    (r"TPU v5|TPU v5p", 459e12, None),
    (r"TPU v6 lite|TPU v6e", 918e12, None),
)


def matmul_params(config: ModelConfig) -> int:
    """Parameters that each token is multiplied with: N_matmul of the formulas below.

    The head counts, tied or not; embedding look-ups and norms do not. Of a mixture of experts, the
    router and the experts that a token is routed to count.
    """
    c = config
    attention = 2 * c.D * c.H * c.K + 2 * c.D * c.G * c.K
    mlp = 3 * c.D * c.F
    if c.E:
        mlp = c.experts_per_token * mlp + c.D * c.E
    return c.N * (attention + mlp) + c.D * c.V


def forward_flops_per_token(config: ModelConfig, row_length: float,
                            attention: str = "causal") -> float:
    """FLOPs of the forward pass per token: 2 N_matmul + 4 N H K L, half the latter if causal.

    A multiply-add is two FLOPs. Scores and weighted values take 2 H K each for every key of a
    layer; a causal query attends to half of the row's keys on average.

    Args:
        row_length: L, positions of a row. For packed documents this counts pairs that no backend
            needs to compute; use the mean document length over *tokens*, sum(l^2) / sum(l),
            to count their own.
        attention: which pairs count: `causal` or `full`.

    Source: PaLM, arXiv 2204.02311, appendix B (full); causal as Megatron-LM and MaxText count.
    """
    pairs = 4 * config.N * config.H * config.K * row_length
    return 2 * matmul_params(config) + ATTENTION_COUNTS[attention] * pairs


def train_flops_per_token(config: ModelConfig, row_length: float,
                          attention: str = "causal") -> float:
    """FLOPs of a training step per token: 6 N_matmul + 12 N H K L, half the latter if causal.

    Three times the forward pass, since the backward pass has two multiplications for each of the
    forward pass. Recomputation by remat is not counted. See `forward_flops_per_token`.
    """
    return 3 * forward_flops_per_token(config, row_length, attention)


def peak_flops(device_kind: str, dtype: str = "bfloat16") -> float | None:
    """Dense peak of one device in FLOP/s; None if unknown.

    Args:
        device_kind: as `jax.Device.device_kind` spells it, e.g. ``NVIDIA H200``, ``TPU v5 lite``.
        dtype: ``bfloat16`` or ``fp8``. Float32 has none: its speed depends on settings (TF32,
            several bfloat16 passes).
    """
    column = {"bfloat16": 0, "fp8": 1}.get(dtype)
    for pattern, *peaks in PEAKS:
        if column is not None and re.fullmatch(pattern, device_kind):
            return peaks[column]
    return None


def mfu(tokens_per_sec: float, config: ModelConfig, row_length: float, *, compute_dtype: str,
        device_kind: str, num_devices: int) -> dict[str, float]:
    """Model FLOPs utilisation under both conventions; empty if the peak is unknown.

    Relative to the peak of the compute dtype, even if blocks multiply in fp8 or int8, as other
    systems report it.

    Args:
        tokens_per_sec: of all devices together.

    Returns:
        ``{"mfu_causal": ..., "mfu_full": ...}`` as fractions, or ``{}``.
    """
    peak = peak_flops(device_kind, compute_dtype)
    if peak is None:
        return {}
    per_flop = tokens_per_sec / (peak * num_devices)
    return {f"mfu_{attention}": per_flop * train_flops_per_token(config, row_length, attention)
            for attention in ATTENTION_COUNTS}
