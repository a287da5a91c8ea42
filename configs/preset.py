"""Pretraining of a published architecture from its first parameters, by name.

    config=configs/preset.py:qwen3-0.6b         # a name of model/presets.py that is a decoder
    for stage in data.curate data.train_tokenizer data.pack train.pretrain; do
      python -m $stage --config=$config --workdir=runs/qwen --config.curate.inputs=PAGES
    done
    python -m model.summary --config=$config

All sizes and parts are those of the preset; the vocabulary is that of our own tokenizer. What shall
differ is named in a config of your own: make_preset("qwen3-0.6b", N=12).

The default is SmolLM2-135M with 32,768 tokens, on 2.5B tokens, 20 for each parameter. Cost: 2.2e18
FLOPs, 90 minutes on one H100 at 40 % of its peak. Not run yet.
"""

from ml_collections import ConfigDict

from configs.common import (
    make_curate,
    make_mesh,
    make_optimizer,
    make_preset,
    make_pretrain,
    make_tokens,
    make_training_run,
)


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of a preset."""
    c = ConfigDict()
    c.curate = make_curate()
    c.curate.presets.default = ("fineweb",)
    c.curate.heldout.frac = 0.001
    c.update(make_tokens(vocab_size=32_768, tokenizer_bytes=1_000_000_000))
    c.mesh = make_mesh(data=1, fsdp=-1)
    c.model = make_preset(arg or "smollm2-135m")
    c.pretrain = make_pretrain(
        row_length=1024, batch_size=256, num_steps=9_600, compute_dtype="bfloat16",
        optimizer=make_optimizer(learning_rate=1e-3, weight_decay=0.1, warmup_steps=500,
                                 final_frac=0.1),
        run=make_training_run(num_microbatches=8, remat="names:qkv,attention", loss_chunks=0,
                              evaluate_every=500, checkpoint_every=250))
    return c
