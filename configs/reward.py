"""A reward model, from anyone's pairs or rankings of answers.

    python -m align.reward --config=configs/reward.py --workdir=runs/mine \\
        --config.reward.model=MODEL --config.reward.inputs=preferences.jsonl
    python -m align.reward --config=configs/reward.py:lora ...

MODEL is a model directory, ours or imported, of a decoder or an encoder. `lora` trains the scalar
head beside an adapter, in rows that two CPU cores can pay for.
"""

from ml_collections import ConfigDict

from configs.common import (
    make_lora,
    make_mesh,
    make_optimizer,
    make_reward,
    make_training_run,
    parse_variant,
)

VARIANTS = ("full", "lora")


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of a variant."""
    variant = parse_variant(arg, VARIANTS)
    c = ConfigDict()
    c.mesh = make_mesh()
    c.reward = make_reward(
        overlong="cut", row_length=1024, batch_size=64, compute_dtype="bfloat16",
        # InstructGPT's 6B reward model: 9e-6, one epoch, 64 prompts a batch.
        optimizer=make_optimizer(learning_rate=9e-6, final_frac=0.1),
        run=make_training_run(remat="names:qkv,attention", evaluate_every=0))
    if variant == "lora":
        c.reward.update(row_length=256, batch_size=8, compute_dtype="float32")
        c.reward.lora = make_lora(rank=8)
        c.reward.optimizer.learning_rate = 3e-4
        c.reward.run.update(log_every=5, remat="none")
    return c
