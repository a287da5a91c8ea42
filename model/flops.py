"""Analytic FLOP counts and model FLOPs utilisation (MFU).

XLA's own cost analysis counts the body of a scan once, so it is wrong for stacked layers.
"""

from __future__ import annotations

import re

from model.config import ModelConfig
from model.layers.mlps import MLPS, gated

# Which pairs of query and key count: those that a causal mask leaves, or all of a row.
ATTENTION_COUNTS = ("causal", "full")

# Dense peaks of one device as JAX counts devices, in FLOP/s: bfloat16, and fp8 where the chip has
# it. From the vendors' data sheets; figures "with sparsity" are halved.
PEAKS = (
    (r"NVIDIA H100 PCIe", 756e12, 1513e12),
    (r"NVIDIA H[12]00 NVL", 835e12, 1671e12),
    (r"NVIDIA (H100|H200|H800|GH200)( \d+GB)?( HBM3e?)?", 989e12, 1979e12),
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

    The head counts, tied or not; embedding look-ups, norms and biases do not. Of a mixture of
    experts, the router, the shared experts and those that a token is routed to count. Of an
    encoder-decoder, those that a token of the decoder meets and those that one of the source does.
    """
    return _own_params(config) + _source_params(config)


def _own_params(c: ModelConfig) -> int:
    """Of `matmul_params`, those that a token of the rows meets: all but those of a source."""
    # A score is read from one token of a row.
    head = 0 if c.score_head else c.D * c.V + (c.D**2 if c.masked_head else 0)
    if c.family == "lstm":      # gates from input and from state, and the projection back
        return c.N * (2 * 4 * c.D * c.F + c.F * c.D) + head
    cross = 2 * c.D * c.H * c.K if c.family == "encoder_decoder" else 0
    return c.N * (_layer_params(c) + cross) + head


def _source_params(c: ModelConfig) -> int:
    """The encoder's layers, and what gives each layer of the decoder its keys and values."""
    if c.family != "encoder_decoder":
        return 0
    return c.encoder_layers * _layer_params(c) + c.N * 2 * c.D * c.G * c.K


def _layer_params(c: ModelConfig) -> int:
    """The projections of attention and MLP that a token meets in one layer."""
    attention = 2 * c.D * c.H * c.K + 2 * c.D * c.G * c.K
    mlp = (3 if MLPS[c.mlp].func is gated else 2) * c.D * c.F
    if c.E:
        mlp = (c.experts_per_token + c.shared_experts) * mlp + c.D * c.E
    return attention + mlp


def forward_flops_per_token(config: ModelConfig, row_length: float, attention: str = "causal", *,
                            target_length: float | None = None) -> float:
    """FLOPs of the forward pass per token: 2 N_matmul + 4 N H K L, half the latter if causal.

    A multiply-add is two FLOPs. Scores and weighted values take 2 H K each for every key of a
    layer; a causal query attends to half of the row's keys on average, one with a window to those
    of its window, and one of an encoder to all. An LSTM has no pairs.

    Args:
        row_length: L, positions of a row. For packed documents this counts pairs that no backend
            needs to compute; use the mean document length over *tokens*, sum(l^2) / sum(l),
            to count their own.
        attention: which pairs count: `causal` or `full`.
        target_length: of an encoder-decoder, positions of the decoder's row; None is `row_length`.
            The count is that of both rows over the tokens of the encoder's, `row_length`.

    Source: PaLM, arXiv 2204.02311, appendix B (full); causal as Megatron-LM and MaxText count.
    """
    c = config
    if c.family == "lstm":
        return 2 * _own_params(c)
    if c.family != "encoder_decoder":
        keys = _sum_of_keys(c, c.N, row_length, attention, is_causal=c.family == "decoder")
        return 2 * _own_params(c) + 4 * c.H * c.K * keys
    target_length = row_length if target_length is None else target_length
    num_targets = target_length / row_length    # tokens of the decoder for each of the encoder
    keys = (_sum_of_keys(c, c.encoder_layers, row_length, attention, is_causal=False)
            + num_targets * (_sum_of_keys(c, c.N, target_length, attention, is_causal=True)
                             + c.N * row_length))
    return 2 * (_source_params(c) + num_targets * _own_params(c)) + 4 * c.H * c.K * keys


def _sum_of_keys(c: ModelConfig, num_layers: int, row_length: float, attention: str, *,
                 is_causal: bool) -> float:
    """Keys that a query sees on average, summed over layers, as a convention counts them."""
    def mean_keys(window: float) -> float:
        missing = window**2 / (2 * row_length)      # of the first queries, which have fewer before
        if not is_causal:
            return 2 * (window - missing)
        return {"causal": window - missing, "full": window}[attention]

    num_global = num_global_layers(c, num_layers)
    return (num_global * mean_keys(row_length)
            + (num_layers - num_global) * mean_keys(min(c.window, row_length)))


def num_global_layers(config: ModelConfig, num_layers: int) -> int:
    """Those of the layers of a stack that see all keys; the others have a window."""
    if not config.window:
        return num_layers
    return num_layers // config.global_every if config.global_every else 0


def train_flops_per_token(config: ModelConfig, row_length: float, attention: str = "causal", *,
                          target_length: float | None = None, is_frozen: bool = False) -> float:
    """FLOPs of a training step per token: 6 N_matmul + 12 N H K L, half the latter if causal.

    Three times the forward pass, since the backward pass has two multiplications for each of the
    forward pass: for the gradients of its two operands. Where the weights are frozen they have
    none, and 4 N_matmul remain; an adapter's own FLOPs are not counted. Neither is recomputation
    by remat. See `forward_flops_per_token`.
    """
    total = 3 * forward_flops_per_token(config, row_length, attention,
                                        target_length=target_length)
    if is_frozen:
        num_targets = 1 if target_length is None else target_length / row_length
        total -= 2 * (_source_params(config) + num_targets * _own_params(config))
    return total


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
        device_kind: str, num_devices: int,
        target_length: float | None = None, is_frozen: bool = False) -> dict[str, float]:
    """Model FLOPs utilisation under both conventions; empty if the peak is unknown.

    Relative to the peak of the compute dtype, even if blocks multiply in fp8 or int8, as other
    systems report it.

    Args:
        tokens_per_sec: of all devices together; of an encoder-decoder, the encoder's.
        row_length, target_length, is_frozen: see `train_flops_per_token`.

    Returns:
        ``{"mfu_causal": ..., "mfu_full": ...}`` as fractions, or ``{}``.
    """
    peak = peak_flops(device_kind, compute_dtype)
    if peak is None:
        return {}
    per_flop = tokens_per_sec / (peak * num_devices)
    return {f"mfu_{attention}": per_flop * train_flops_per_token(
        config, row_length, attention, target_length=target_length, is_frozen=is_frozen)
            for attention in ATTENTION_COUNTS}
