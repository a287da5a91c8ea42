"""The peer of `scripts.bench.train`: `transformers`' LlamaForCausalLM under torch.compile.

    PYTHON -m scripts.bench.peer_llama WORKLOAD   # JSON of `scripts.bench.train_workload.Workload`
    PYTHON -m scripts.bench.peer_llama -          # the same from stdin, read after importing torch
    PYTHON -m scripts.bench.peer_llama roofline   # matrix product and copy in torch
    PYTHON -m scripts.bench.peer_llama FOLDER     # loss of given weights, for the parity test

Runs in any environment with torch and transformers, so it imports nothing of Heartwood that needs
a package. SDPA, fused AdamW, float32 master weights under autocast; head and loss are compiled
together, which avoids a float32 copy of the logits.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.train_workload import (
    ADAMW,
    NUM_BATCHES,
    NUM_WARMUP_STEPS,
    OUT_OF_MEMORY,
    Workload,
    fastest_secs,
    make_rows,
    roofline_sizes,
    summarise,
)

IGNORED = -100  # target that torch's cross-entropy ignores


def make_model(shape: dict[str, int], row_length: int, attention: str) -> Any:
    """A float32 Llama of the given sizes, by Heartwood's letters.

    Args:
        attention: sdpa, or causal: SDPA with its causal flag and no mask. Under torch.compile
            transformers cannot tell that positions are those of one document and builds a mask, and
            SDPA with a mask has no flash kernel; the flag is what a careful user would choose.
    """
    from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("causal", sdpa_attention_forward)   # no mask function
    config = LlamaConfig(
        vocab_size=shape["V"], hidden_size=shape["D"], num_hidden_layers=shape["N"],
        num_attention_heads=shape["H"], num_key_value_heads=shape["G"], head_dim=shape["K"],
        intermediate_size=shape["F"], max_position_embeddings=row_length, rms_norm_eps=1e-6,
        tie_word_embeddings=False, use_cache=False)
    config._attn_implementation = attention
    return LlamaForCausalLM(config)


def make_loss(model: Any, device: str, bf16: bool) -> Callable[..., Any]:
    """`loss(tokens_BL, targets_BL, positions_BL)`: mean cross-entropy in float32."""
    import torch

    def loss(tokens_BL, targets_BL, positions_BL):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
            logits_BLV = model(input_ids=tokens_BL, position_ids=positions_BL).logits
        return torch.nn.functional.cross_entropy(
            logits_BLV.float().flatten(0, 1), targets_BL.flatten(), ignore_index=IGNORED)

    return loss


def to_tensors(rows: tuple[np.ndarray, np.ndarray], device: str, packed: bool) -> tuple:
    """Tokens, targets and, if a row holds several documents, positions (else None)."""
    import torch

    tokens_BM, segments_BM = rows
    is_same_BL = segments_BM[:, 1:] == segments_BM[:, :-1]
    targets_BL = np.where(is_same_BL, tokens_BM[:, 1:], IGNORED)
    index_BL = np.broadcast_to(np.arange(targets_BL.shape[1]), targets_BL.shape)
    is_first_BL = np.c_[np.ones(len(tokens_BM), bool), ~is_same_BL[:, :-1]]
    starts_BL = np.maximum.accumulate(np.where(is_first_BL, index_BL, 0), axis=1)

    def place(array):
        return torch.from_numpy(np.ascontiguousarray(array, np.int64)).to(device)

    return (place(tokens_BM[:, :-1]), place(targets_BL),
            place(index_BL - starts_BL) if packed else None)


def measure(work: Workload) -> dict[str, Any]:
    """Trains on synthetic batches; returns `summarise`'s figures.

    On a GPU the device's clock is used, so that the host need not wait for a step before it starts
    the next; nothing is fetched.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as XLA does
    packed = work.documents_per_row > 1
    attention = work.fields.get("attention", "sdpa" if packed else "causal")
    model = make_model(work.shape, work.row_length, attention).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=ADAMW["learning_rate"], betas=(ADAMW["b1"], ADAMW["b2"]),
        eps=ADAMW["eps"], weight_decay=ADAMW["weight_decay"], fused=True)
    loss_fn = torch.compile(make_loss(model, device, work.dtype == "bfloat16"))
    batches = [to_tensors(rows, device, packed) for rows in make_rows(work)]

    def step(number):
        loss = loss_fn(*batches[number % NUM_BATCHES])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    began = time.perf_counter()
    first_loss = float(step(0))
    first_step_secs, start_secs = time.perf_counter() - began, time.time() - work.started
    marks = []
    for number in range(1, 1 + NUM_WARMUP_STEPS + work.num_steps):
        last_loss = step(number)
        if number >= NUM_WARMUP_STEPS:
            marks.append(torch.cuda.Event(enable_timing=True) if on_gpu else time.perf_counter())
            if on_gpu:
                marks[-1].record()
    last_loss = float(last_loss)    # waits for the device
    ends = [marks[0].elapsed_time(mark) / 1000 for mark in marks] if on_gpu else marks
    return summarise(work, ends, first_step_secs, {
        "start_secs": start_secs, "num_params": sum(p.numel() for p in model.parameters()),
        "first_loss": first_loss, "last_loss": last_loss, "attention": attention,
        "peak_memory_bytes": (torch.cuda.max_memory_allocated() if on_gpu
                              else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
        "versions": versions()})


def roofline() -> dict[str, Any]:
    """FLOP/s of a square matrix product of random numbers, bytes/s of a copy, on this device."""
    import torch

    on_cpu = not torch.cuda.is_available()
    device = "cpu" if on_cpu else "cuda"
    torch.set_float32_matmul_precision("high")
    side, num_bytes = roofline_sizes(on_cpu)

    def timed(run):
        def wait():
            run()
            if not on_cpu:
                torch.cuda.synchronize()

        return fastest_secs(wait)

    # A CPU without bfloat16 instructions does less than 1 GFLOP/s: its product is a smaller one.
    sides = {"float32": side, "bfloat16": side // 4 if on_cpu else side}
    rates = {}
    for dtype, side in sides.items():
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in "ab")
        rates[f"{dtype}_matmul_flops_per_sec"] = 2 * side**3 / timed(lambda a=a, b=b: a @ b)
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    rates["copy_bytes_per_sec"] = 2 * num_bytes / timed(lambda: target.copy_(source))
    return rates | {"threads": torch.get_num_threads()}


def score(folder: Path) -> dict[str, float]:
    """Loss and norm of the gradient in float32 for `weights.npz` and `rows.npz` of a folder."""
    import torch

    work = Workload(**json.loads((folder / "workload.json").read_text()))
    packed = work.documents_per_row > 1
    model = make_model(work.shape, work.row_length, "sdpa" if packed else "causal")
    weights = np.load(folder / "weights.npz")
    model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    loss = make_loss(model, "cpu", bf16=False)(*to_tensors(make_rows(work)[0], "cpu", packed))
    loss.backward()
    norms = [param.grad.norm() for param in model.parameters()]
    return {"loss": float(loss), "gradient_norm": float(torch.stack(norms).norm())}


def versions() -> dict[str, str]:
    """Versions of the peer's packages."""
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def main(argument: str) -> dict[str, Any]:
    """Runs the mode that the argument selects."""
    if argument == "-":
        versions()      # imports torch and transformers, before the workload is known
        argument = sys.stdin.readline()
    if argument == "roofline":
        return roofline()
    if not argument.startswith("{"):
        return score(Path(argument))
    try:
        return measure(Workload(**json.loads(argument)))
    except RuntimeError as error:   # by the allocator, possibly during compilation
        if "out of memory" not in str(error).lower():
            raise
        return OUT_OF_MEMORY


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
