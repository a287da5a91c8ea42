"""GPT-2's smallest size, trained as nanoGPT and llm.c reproduce it: 10B tokens of web text.

    for stage in data.curate data.train_tokenizer data.pack train.pretrain; do
      python -m $stage --config=configs/gpt2_124m.py --workdir=runs/a --config.curate.inputs=PAGES
    done

The sizes, batch (2^19 tokens), steps and learning rate are theirs (github.com/karpathy/llm.c,
discussion 481); rotary positions, RMSNorm and SwiGLU instead of GPT-2's own parts. On one 80 GB GPU
`num_microbatches` is 8: as many tokens at a time held 43 GB on an H200.

Cost: 8e18 FLOPs, 6 hours on one H100 at 40 % of its peak, 45 minutes on eight. Expected: llm.c's
GPT-2 ends at 3.28 nats per token on FineWeb with GPT-2's tokenizer, whose loss cannot be compared
with that of another: look at bits per byte. Not run yet.
"""

from ml_collections import ConfigDict

from configs.common import (
    make_curate,
    make_mesh,
    make_model,
    make_optimizer,
    make_pretrain,
    make_tokens,
    make_training_run,
    parse_variant,
)


def get_config(arg: str | None = None) -> ConfigDict:
    """The config; it has one variant."""
    parse_variant(arg, ("default",))
    c = ConfigDict()
    c.curate = make_curate()
    c.curate.presets.default = ("fineweb",)
    c.curate.heldout.frac = 0.001
    c.update(make_tokens(vocab_size=50_304, tokenizer_bytes=1_000_000_000))
    c.mesh = make_mesh()
    c.model = make_model(D=768, N=12, H=12, G=12, K=64, F=2048, qk_norm=False)
    c.pretrain = make_pretrain(
        row_length=1024, batch_size=512, num_steps=19_073, compute_dtype="bfloat16",
        optimizer=make_optimizer(learning_rate=6e-4, weight_decay=0.1, warmup_steps=700),
        run=make_training_run(num_microbatches=8, scan_unroll=12, loss_chunks=0,
                              evaluate_every=500, checkpoint_every=500))
    return c
