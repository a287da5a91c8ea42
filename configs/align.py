"""Alignment on your own conversations and preferences: SFT, a reward model, a preference loss.

    python -m align.sft --config=configs/align.py --workdir=runs/mine \\
        --config.sft.model=MODEL --config.sft.inputs=chats.jsonl
    python -m align.reward --config=configs/align.py --workdir=runs/mine \\
        --config.reward.inputs=preferences.jsonl
    python -m align.dpo --config=configs/align.py --workdir=runs/mine \\
        --config.dpo.inputs=preferences.jsonl

MODEL is a model directory, ours or imported; the later stages start from the first one's `sft`.
Variants, of which `full` has not been run:

    full          all parameters in bfloat16 on one GPU or more, rows of 2,048 tokens: Tulu 3's
                  rates (arXiv 2411.15124): SFT 5e-6 with 128 rows a step, DPO (`dpo_norm`, beta 5)
                  5e-7. For models of billions of parameters.
    smollm2_lora  SmolLM2-135M-Instruct, which `bash scripts/real_model.sh` leaves in runs/smollm2,
                  with adapters of rank 16, in float32 on two CPU cores: minutes a stage;
                  docs/alignment.md has its numbers.
    rejection     rejection sampling (arXiv 2307.09288, section 3.2.3): the quickstart's `sft` draws
                  8 answers to each of 1,000 sums, and learns from a right one to each. Of 300 such
                  questions one answer was right in 39 %, one of 8 in 68 %; what is then learned has
                  not been measured at this size.
    lima          how many examples suffice (arXiv 2305.11206)? SFT of the quickstart's base model
                  on 50 to 4,000 solved questions, and a figure of what they give, which
                  docs/alignment.md shows:

    python -m align.pairs --config=configs/align.py:rejection --workdir=runs/quickstart-cpu
    python -m align.sft --config=configs/align.py:rejection --workdir=runs/quickstart-cpu \\
        --config.sft.inputs=runs/quickstart-cpu/sampled/best.jsonl

    python -m scripts.sweep.run --config=configs/align.py:lima --workdir=runs/lima \\
        --parents=runs/quickstart-cpu --stages=align.sft,eval.run --metric=verifiable_acc \\
        --best=highest --grid=sft.tasks.verifiable=50,200,1000,4000 --figure=runs/lima.png
"""

from ml_collections import ConfigDict

from configs.common import (
    make_eval,
    make_inference_run,
    make_learning,
    make_lora,
    make_mesh,
    make_optimizer,
    make_pairs,
    make_preference,
    make_reward,
    make_sft,
    make_training,
    make_training_run,
    parse_variant,
)

VARIANTS = ("full", "smollm2_lora", "rejection", "lima")


def get_config(arg: str | None = None) -> ConfigDict:
    variant = parse_variant(arg, VARIANTS)
    c = ConfigDict()
    c.mesh = make_mesh()
    sizes = dict(row_length=2048, batch_size=128, compute_dtype="bfloat16", num_epochs=1,
                 lora=make_lora(), overlong="cut", heldout_frac=0.02,
                 run=make_training_run(remat="names:qkv,attention", loss_chunks=0,
                                       evaluate_every=100, checkpoint_every=100))
    c.sft = ConfigDict(make_training(
        out="sft", model="base", corpus="", tokens="", tasks=dict()) | make_sft() | sizes)
    c.sft.num_epochs, c.sft.run.samples = 2, 3
    c.pairs = make_pairs(compute_dtype="bfloat16", num_samples=8, max_new_tokens=512)
    c.reward = make_reward(**sizes)
    c.dpo = ConfigDict(make_training(out="dpo", model="sft", pairs="")
                       | make_learning() | make_preference(loss="dpo_norm", beta=5.0) | sizes)
    for section, rate in ((c.sft, 5e-6), (c.reward, 9e-6), (c.dpo, 5e-7)):
        section.optimizer = make_optimizer(learning_rate=rate, schedule="linear", warmup_steps=30)
    {"full": lambda c: None, "smollm2_lora": _smollm2, "rejection": _rejection,
     "lima": _lima}[variant](c)
    return c


def _smollm2(c: ConfigDict) -> None:
    """An adapter on two CPU cores."""
    for section in (c.sft, c.reward, c.dpo):
        section.update(row_length=512, batch_size=8, compute_dtype="float32", heldout_frac=0.1,
                       model="runs/smollm2")
        section.lora.rank = 16
        section.run.update(remat="none", loss_chunks=4, log_every=1, evaluate_every=20,
                           checkpoint_every=20)
        section.optimizer.update(learning_rate=1e-3, warmup_steps=5)
    c.sft.num_epochs = 1
    c.pairs.update(model="runs/smollm2", compute_dtype="float32", max_new_tokens=64)
    c.reward.row_length = 256
    c.dpo.update(loss="dpo", beta=0.1)


def _rejection(c: ConfigDict) -> None:
    """One round on sums, of which the quickstart's model gets some right: it learns what it
    already finds by sampling."""
    c.pairs.update(out="sampled", corpus="corpus", tasks=dict(arithmetic=1000), num_samples=8,
                   min_score=1.0, max_new_tokens=16, compute_dtype="float32")
    c.pairs.run.update(batch_size=256, scan_unroll=4)
    c.sft.update(out="sft_best", model="sft", row_length=256, batch_size=4, num_epochs=2,
                 compute_dtype="float32")
    c.sft.run.update(remat="none", loss_chunks=4, scan_unroll=4, log_every=5)
    c.sft.optimizer = make_optimizer(learning_rate=3e-4, schedule="constant", warmup_steps=5)
    c.eval = make_eval(model="sft_best", row_length=256, tasks=dict(arithmetic=320),
                       run=make_inference_run(scan_unroll=4, loss_chunks=4))


def _lima(c: ConfigDict) -> None:
    """The quickstart's base model, as its SFT trains it, but several times on few questions."""
    # 50 questions fill four rows.
    c.sft.update(row_length=256, batch_size=4, compute_dtype="float32", num_epochs=4,
                 heldout_frac=0.0, corpus="corpus", tasks=dict(verifiable=1000))
    c.sft.run.update(remat="none", loss_chunks=4, scan_unroll=4, log_every=5)
    c.sft.optimizer = make_optimizer(name="muon", learning_rate=5e-3, adam_learning_rate=5e-3,
                                     warmup_steps=0)
    c.eval = make_eval(model="sft", corpus="corpus", tokens="tokens", row_length=256,
                       tasks=dict(verifiable=400),
                       run=make_inference_run(scan_unroll=4, loss_chunks=4))
