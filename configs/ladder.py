"""A ladder of small pretraining runs, to know a large one's loss before it is paid for.

    ladder="python -m train.scaling ladder --config=configs/ladder.py:cpu --count=with_head
      --parents=runs/quickstart-cpu --out=runs/ladder"
    $ladder --dry_run       # a table of the runs: sizes, tokens, FLOPs, hours
    $ladder --figures       # trains them, fits the law, writes forecast.json; goes on if killed
    $ladder --run_target    # trains the target too, and compares it with its forecast

Five depths, each with three numbers of tokens for each parameter in matrix products. Everything
else follows by `configs.common.scale_by_depth`, learning rate and weight decay included. One run is
configs/ladder.py:PLATFORM,DEPTH,TOKENS_PER_PARAM. The tokens are those that `data.pack` wrote into
`--parents`, of the quickstart or of configs/pretrain.py; losses are measured once, at the end.

cpu: 2.3e13 FLOPs (6 N D), 2.4M tokens for the largest run; the target, the next depth with 4 tokens
for each parameter, is 1.8e13. At this size a ladder shows the method and saves nothing. On two
cores the runs took 20 minutes and the target 10; docs/planning.md has how well it was forecast.

cpu-transformer, cpu-lstm, cpu-experts: three architectures of equal width, depth and tokens, and
nearly equal parameters in products. They forecast nothing, and are compared:

    for name in transformer lstm experts; do
      python -m train.scaling ladder --config=configs/ladder.py:cpu-$name --count=products \\
        --parents=runs/quickstart-cpu --out=runs/architectures/$name
    done
    python -m train.scaling compare --runs=runs/architectures/transformer/runs --count=products \\
      --against=runs/architectures/lstm/runs --against=runs/architectures/experts/runs \\
      --law=overtraining --figures --out=runs/architectures/compared

Each takes 8.3e12 to 8.8e12 FLOPs: 13 minutes on one core of a CPU for the Transformer and the LSTM,
35 for the experts, whose small products a CPU does slowly. Learning rates are those of the
Transformer; an LSTM or experts may be better with their own. docs/planning.md has what came out.

accelerator: 4.2e18 FLOPs, 2.2B tokens for the largest run; the target, depth 26 with 20 tokens for
each of 0.92B parameters, is 1.0e20, so the ladder costs 4 % of it. At 45 % of an H100's peak 2.6
and 64 hours on one GPU, not run yet; small models reach less.
"""

from ml_collections import ConfigDict

from configs.common import (
    make_mesh,
    make_model,
    make_optimizer,
    make_pretrain,
    make_tokens,
    make_training_run,
    scale_by_depth,
)

LADDERS = {
    "cpu": dict(depths=(1, 2, 3, 4, 5), tokens_per_param=(1.0, 2.0, 4.0),
                target=dict(depth=6, tokens_per_param=4.0)),
    "accelerator": dict(depths=(4, 6, 8, 10, 12), tokens_per_param=(5.0, 10.0, 20.0),
                        target=dict(depth=26, tokens_per_param=20.0))}
COMPARED = dict(depths=(2, 3, 4), tokens_per_param=(1.0, 2.0, 4.0),
                target=dict(depth=0, tokens_per_param=1.0))     # no forecast
# What differs from the Transformer. With half of its F each has nearly its parameters in products:
# 9 D F in an LSTM's layer, for 4 D^2 + 3 D F with F = 8/3 D; two of eight experts, for one MLP.
ARCHITECTURES = {"transformer": dict(F_frac=1.0), "lstm": dict(F_frac=0.5, family="lstm"),
                 "experts": dict(F_frac=0.5, E=8, experts_per_token=2)}
LADDERS |= {f"cpu-{name}": COMPARED for name in ARCHITECTURES}


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of a platform's target, or of one run.

    Raises:
        ValueError: the part behind the colon is neither.
    """
    platform, *size = (arg or "cpu").split(",")
    if platform not in LADDERS or len(size) not in (0, 2):
        raise _fault(arg)
    ladder = ConfigDict(dict(
        platform=platform, **LADDERS[platform],
        repeats="refuse"))          # or allow: runs that read a domain more than once
    try:
        depth, tokens_per_param = (int(size[0]), float(size[1])) if size else _largest(ladder)
    except ValueError:
        raise _fault(arg) from None
    if depth < 1 or not 0 < tokens_per_param < float("inf"):
        raise _fault(arg)
    return make_run(ladder, depth, tokens_per_param)


def make_run(ladder: ConfigDict, depth: int, tokens_per_param: float) -> ConfigDict:
    """The config of one run of the ladder."""
    platform, _, architecture = ladder.platform.partition("-")
    on_cpu = platform == "cpu"
    scale = scale_by_depth(depth, "cpu_ladder" if on_cpu else platform, tokens_per_param)
    c = ConfigDict()
    c.ladder = ladder
    c.update(make_tokens(vocab_size=scale.vocab_size,
                         tokenizer_bytes=20_000_000 if on_cpu else 1_000_000_000))
    c.mesh = make_mesh(data=1, fsdp=-1)
    c.model = make_model(**scale.model)
    if architecture:
        c.model.update(change_model(architecture, scale.model["F"]))
    c.pretrain = make_pretrain(
        corpus="",                  # only tasks asked while training need it
        row_length=scale.row_length, batch_size=scale.batch_size, num_steps=scale.num_steps,
        compute_dtype="float32" if on_cpu else "bfloat16",
        optimizer=make_optimizer(
            name="muon", learning_rate=scale.learning_rate,
            adam_learning_rate=scale.learning_rate, weight_decay=scale.weight_decay,
            schedule="wsd", decay_frac=0.65, warmup_steps=min(40, scale.num_steps // 10)),
        run=make_training_run(scan_unroll=depth, loss_chunks=4 if on_cpu else 0, evaluate_every=0,
                              checkpoint_every=250, keep_checkpoints=1))
    return c


def _largest(ladder: ConfigDict) -> tuple[int, float]:
    """The target's size or, without a target, that of the largest run."""
    if ladder.target.depth:
        return ladder.target.depth, ladder.target.tokens_per_param
    return max(ladder.depths), max(ladder.tokens_per_param)


def change_model(architecture: str, mlp_width: int) -> dict:
    """The fields of a model that make it one of `ARCHITECTURES`.

    Args:
        mlp_width: F of the Transformer of its depth.
    """
    changes = dict(ARCHITECTURES[architecture])
    # An LSTM has no such embedding, so none of them has.
    return dict(F=int(mlp_width * changes.pop("F_frac")), embed_previous=False) | changes


def _fault(arg: str | None) -> ValueError:
    return ValueError(f"config variant {arg!r}: is no platform with a size: write "
                      "--config=configs/ladder.py:cpu or, for one run, "
                      "--config=configs/ladder.py:cpu,4,1.0")
