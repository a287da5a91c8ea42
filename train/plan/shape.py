"""The architecture to count with where only a number of parameters is known."""

from __future__ import annotations

import math

from model.config import ModelConfig

HEAD_SIZE, GROUPS = 128, 8
ASPECT = 115                # width over layers of Llama 3's 8B, 70B and 405B: 128, 102, 130
MAX_ERROR = 0.02            # of the number of parameters
WIDE, SMALL_PARAMS = 2048, 3e9


def stand_in(params: float) -> ModelConfig | None:
    """A dense decoder like Llama 3 (arXiv 2407.21783, table 3) with about so many parameters.

    Its width is a multiple of a head of 128, from 2048 on of eight of them, as meshes need it; its
    MLP is 3.5 times as wide; the vocabulary has 128,256 tokens, below 3e9 parameters 32,768 that
    share the head. Of the shapes within 2 % of `params` it is the one whose aspect is most common.

    Returns:
        None if there is no such shape: the model is too small.
    """
    is_small = params < SMALL_PARAMS
    vocabulary = 32_768 if is_small else 128_256
    best = None
    for width in (*range(HEAD_SIZE, WIDE, HEAD_SIZE), *range(WIDE, 1 << 17, GROUPS * HEAD_SIZE)):
        heads = width // HEAD_SIZE
        groups = GROUPS if heads % GROUPS == 0 else heads
        hidden = HEAD_SIZE * math.ceil(3.5 * width / HEAD_SIZE)
        layer = 2 * width**2 * (1 + groups / heads) + 3 * width * hidden + 2 * width
        rest = width + (1 if is_small else 2) * vocabulary * width
        layers = round((params - rest) / layer)
        if layers < 1 or abs(layers * layer + rest - params) > MAX_ERROR * params:
            continue
        odd = abs(math.log(width / layers / ASPECT))
        if best is None or odd < best[0]:
            best = odd, dict(D=width, N=layers, H=heads, G=groups, F=hidden)
    if best is None:
        return None
    return ModelConfig(V=vocabulary, K=HEAD_SIZE, norm_eps=1e-5, rope_theta=500_000.0,
                       qk_norm=False, tied=is_small, **best[1])
