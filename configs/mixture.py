"""Shares of domains found by small runs: RegMix, DoReMi, and the gain of annealing on a domain.

    mixture="python -m train.mixture"
    with="--config=configs/mixture.py:cpu --parents=runs/quickstart-cpu"
    $mixture regmix $with --out=runs/regmix --dry_run   # a table of the runs, and what they cost
    $mixture regmix $with --out=runs/regmix             # trains them; goes on if killed
    $mixture doremi $with --out=runs/doremi
    $mixture anneal $with --out=runs/anneal --config.anneal.base=base

Each ends with `flags`, the arguments that give its shares to a run of train.pretrain. The section
`pretrain` is that of one small run, by `configs.common.scale_by_depth`; the tokens are those that
`data.pack` wrote into `--parents`, of the quickstart or of configs/pretrain.py.

cpu: one layer, 0.2M tokens a run. regmix trains 12 mixtures and checks its result with 4 runs,
doremi trains 2 and checks with 4, anneal trains one model and, for four domains and the best pages,
14 short runs on it. smoke is for tests.

accelerator: 4 layers of width 256, 236M tokens a run, 1.6e16 FLOPs (6 N D); regmix trains 64
mixtures, 1.1e18 FLOPs with its checks, 3 hours on one H100 at a tenth of its peak; not run yet.
"""

from ml_collections import ConfigDict

from configs.common import (
    make_mesh,
    make_model,
    make_optimizer,
    make_pretrain,
    make_tokens,
    make_training_run,
    parse_variant,
    scale_by_depth,
)

VARIANTS = ("cpu", "accelerator", "smoke")


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of a platform's small runs, and of what is searched with them."""
    variant = parse_variant(arg, VARIANTS)
    on_cpu = variant != "accelerator"
    scale = scale_by_depth(1, "cpu", 1.0) if on_cpu else scale_by_depth(4, "accelerator", 20.0)
    c = ConfigDict()
    c.regmix = dict(
        domains=(),                 # that get a share; () = all but the pool `best`
        num_mixtures=12 if on_cpu else 64,
        temperature=0.5,            # of the centre of the sampled mixtures, over natural shares
        max_ratio=15.0,             # of a share to the natural one
        seed=0)                     # of the sampling
    c.doremi = dict(
        out="doremi", tokens="tokens", reference="base",
        domains=(),
        reference_mixture="natural",    # or uniform
        step_size=1.0, smoothing=1e-3)  # of the weights' update
    c.anneal = dict(
        domains=(),                 # () = all, `best` too
        base="",                    # a model in --parents; "" trains one first
        share=0.3,                  # of the domain whose gain is measured
        num_steps=40 if on_cpu else 200,
        learning_rate=scale.learning_rate,  # at the first step; the last ends at 0
        num_seeds=2)                # runs of each domain, with other data
    c.checks = dict(num_seeds=2)    # runs on the result of regmix or doremi, and on natural shares
    c.update(make_tokens(vocab_size=scale.vocab_size,
                         tokenizer_bytes=20_000_000 if on_cpu else 1_000_000_000))
    c.mesh = make_mesh(data=1, fsdp=-1)
    c.model = make_model(**scale.model)
    c.pretrain = make_pretrain(
        corpus="",                  # only tasks asked while training need it
        row_length=scale.row_length, batch_size=scale.batch_size, num_steps=scale.num_steps,
        max_epochs=4.0,             # a run that would read a domain more often is refused
        compute_dtype="float32" if on_cpu else "bfloat16",
        optimizer=make_optimizer(
            name="muon", learning_rate=scale.learning_rate,
            adam_learning_rate=scale.learning_rate, weight_decay=scale.weight_decay,
            schedule="wsd", decay_frac=0.65, warmup_steps=min(40, scale.num_steps // 10)),
        run=make_training_run(scan_unroll=scale.model["N"], loss_chunks=4 if on_cpu else 0,
                              evaluate_every=0, checkpoint_every=250, keep_checkpoints=1))
    if variant == "smoke":
        _smoke(c)
    return c


def _smoke(c: ConfigDict) -> None:
    """A few steps of a tiny model."""
    c.tokenizer.vocab_size = 512
    c.model.update(D=32, H=2, G=1, K=16, F=64)
    c.regmix.num_mixtures = 4
    c.pretrain.update(row_length=64, batch_size=8, num_steps=4)
    c.pretrain.optimizer.warmup_steps = 1
    c.anneal.update(num_steps=2, num_seeds=1)
    c.checks.num_seeds = 1
