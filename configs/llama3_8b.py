"""Llama 3's 8B shape on eight 80 GB GPUs, sharded as FSDP: where continued work on it starts.

    for stage in data.curate data.train_tokenizer data.pack train.pretrain; do
      python -m $stage --config=configs/llama3_8b.py --workdir=runs/8b --config.curate.inputs=PAGES
    done
    python -m train.fit --config=configs/llama3_8b.py --devices=8 --memory_gb=80    # does it fit?

Sizes, rope_theta, learning rate, warmup and the batch of 4M tokens are those of arXiv 2407.21783
(table 3 and section 3.4.1). Parameters, gradient and AdamW's moments take 16 bytes a parameter,
16 GB on each of eight devices; only each layer's input is kept for the backward pass. By the last
command the peak is 65.9 GB with 8 rows at a time, most of it the scores of a CPU's attention, which
cuDNN never holds.

Cost: 5.1e10 FLOPs a token at rows of 8,192; eight H100 at 40 % of their peak see 61,000 tokens a
second, 5.3B a day. The 20B tokens of this config are a start and not Meta's 15T. Not run yet.
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
    c.curate.heldout.frac = 0.0001
    c.update(make_tokens(vocab_size=128_256, tokenizer_bytes=10_000_000_000))
    c.mesh = make_mesh(data=1, fsdp=-1)
    c.model = make_model(D=4096, N=32, H=32, G=8, K=128, F=14_336, rope_theta=500_000.0,
                         qk_norm=False)
    c.pretrain = make_pretrain(
        row_length=8192, batch_size=512, num_steps=5_000, compute_dtype="bfloat16",
        packing="best_fit",
        optimizer=make_optimizer(learning_rate=3e-4, weight_decay=0.1, b2=0.95, final_frac=0.1,
                                 warmup_steps=2000),
        run=make_training_run(num_microbatches=64, remat="full", loss_chunks=0,
                              evaluate_every=500, checkpoint_every=250))
    return c
