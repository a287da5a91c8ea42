"""Pretraining with one number: the depth of the model decides the rest.

    config=configs/pretrain.py:12           # 12 layers, on accelerators
    config=configs/pretrain.py:4,cpu        # 4 layers, on a CPU: the quickstart's model
    for stage in data.curate data.train_tokenizer data.pack train.pretrain; do
      python -m $stage --config=$config --workdir=runs/d12 --config.curate.inputs=PAGES
    done

Each size follows from the depth by a formula of `configs.common.scale_by_depth`, which names its
source, around a reference whose numbers were measured: nanochat's at depth 12 on accelerators, the
quickstart's at depth 4 on a CPU. Any field may still be set beside it.

Cost and result on accelerators, by the formulas and 45 % of an H100's peak, not run yet: depth 12
(110M parameters in products, 1.3B tokens) 40 minutes on one GPU, 20 (0.44B, 5.3B) 10 hours,
24 (0.73B, 8.8B) 26 hours. Depth 4 on two CPU cores takes 6 minutes and ends near 1.50 bits per
byte of the embedded corpus.
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
    scale_by_depth,
)

PLATFORMS = ("accelerator", "cpu")


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of a depth.

    Raises:
        ValueError: the part behind the colon is no depth with a platform.
    """
    depth, _, platform = (arg or "12").partition(",")
    platform = platform or PLATFORMS[0]
    if not depth.isdecimal() or int(depth) < 1 or platform not in PLATFORMS:
        raise ValueError(f"config variant {arg!r}: is no depth with a platform: write "
                         "--config=configs/pretrain.py:12 or --config=configs/pretrain.py:4,cpu")
    on_cpu, scale = platform == "cpu", scale_by_depth(int(depth), platform)
    c = ConfigDict()
    c.curate = make_curate()
    c.curate.heldout.frac = 0.04 if on_cpu else 0.001
    c.update(make_tokens(vocab_size=scale.vocab_size,
                         tokenizer_bytes=20_000_000 if on_cpu else 1_000_000_000))
    c.mesh = make_mesh(data=1, fsdp=-1)
    c.model = make_model(**scale.model)
    c.pretrain = make_pretrain(
        row_length=scale.row_length, batch_size=scale.batch_size, num_steps=scale.num_steps,
        compute_dtype="float32" if on_cpu else "bfloat16", max_epochs=4.0,
        optimizer=make_optimizer(
            name="muon", learning_rate=scale.learning_rate,
            adam_learning_rate=scale.learning_rate, weight_decay=scale.weight_decay,
            schedule="wsd", decay_frac=0.65, warmup_steps=min(40, scale.num_steps // 10)),
        # Unrolled layers are a third faster on a GPU than scanned ones (docs/benchmarks.md).
        run=make_training_run(scan_unroll=int(depth), loss_chunks=0, evaluate_every=250,
                              checkpoint_every=250))
    return c
