"""Reinforcement learning of a chat model on tasks that a program scores.

    python -m align.rl --config=configs/rl.py:grpo --workdir=runs/quickstart-cpu
    python -m align.rl --config=configs/rl.py:ppo --workdir=runs/quickstart-cpu \\
        --config.rl.model=MODEL --config.rl.tasks.arithmetic=2000

Each variant is an algorithm, and writes an artifact of its name. They start from the quickstart's
`sft`, in float32 on two CPU cores; the reward is the score of the task `arithmetic`: 1 for a right
answer, else 0. The rates are those of a small model, not of one of billions of parameters.
"""

from ml_collections import ConfigDict

from configs.common import (
    make_mesh,
    make_optimizer,
    make_rl,
    make_rl_run,
    parse_variant,
)

VARIANTS = ("grpo", "ppo", "dr_grpo", "dapo", "rloo", "reinforce_plus_plus", "online_dpo")


def get_config(arg: str | None = None) -> ConfigDict:
    variant = parse_variant(arg, VARIANTS)
    c = ConfigDict()
    c.mesh = make_mesh()
    c.rl = make_rl(
        out=variant, algorithm=variant, corpus="corpus", tasks=dict(arithmetic=8000),
        num_iterations=60, num_prompts=128, num_samples=4, oversampling=3, num_minibatches=2,
        max_new_tokens=12, row_length=40, overlong_tokens=4, kl_coef=0.01,
        optimizer=make_optimizer(name="muon", learning_rate=1.5e-3, adam_learning_rate=1.5e-3,
                                 schedule="linear", warmup_steps=5),
        run=make_rl_run(scan_unroll=4, num_slots=256, tasks=dict(arithmetic=1000),
                        evaluate_every=40, checkpoint_every=5))
    {"ppo": _ppo, "dapo": _dapo, "online_dpo": _online_dpo}.get(variant, lambda c: None)(c)
    return c


def _ppo(c: ConfigDict) -> None:
    """Several passes; the value head, which begins at zero, learns faster than the rest."""
    c.rl.update(num_epochs=2, num_minibatches=4)
    c.rl.optimizer.lr_multipliers = dict(score_DY=10.0)


def _dapo(c: ConfigDict) -> None:
    """Its own clipping, without a KL term (arXiv 2503.14476, section 4.1)."""
    c.rl.update(eps_high=0.28, kl_coef=0.0)


def _online_dpo(c: ConfigDict) -> None:
    """A beta as is usual for DPO."""
    c.rl.kl_coef = 0.1
