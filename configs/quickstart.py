"""The whole road on the embedded corpus: from raw pages to a model to chat with.

    bash scripts/quickstart.sh                # cpu: two cores, no GPU
    bash scripts/quickstart.sh accelerator    # one GPU: a 124M model in bfloat16
    bash scripts/quickstart.sh portable       # cpu, and its model as transformers loads it
    bash scripts/quickstart.sh smoke          # everything tiny: does the road hold?

cpu takes 8 to 15 minutes on two cores, by their speed, and 2.2 GB, and ends near: 35 MB of curated
text, 1.61 bits per byte (xz -9e 1.71, unigram 3.57), verifiable accuracy 0.00, 0.51, 0.52 and 0.55
for base, SFT, DPO and RL, second questions 0.60, reward accuracy 0.65, DPO winning 54 % over SFT.
accelerator has not been timed yet. portable gives up the embedding of the previous token, which no
other program has, and exports its last model to `exported`. smoke takes a minute.

One section per stage. A stage reads its own section (and `model`, `mesh` where it trains); names
like "corpus" are folders under --workdir. What a subsection `run` holds, and `mesh`, decides
nothing in the result and may change at any restart.
"""

from ml_collections import ConfigDict

from configs.common import (
    make_curate,
    make_eval,
    make_inference_run,
    make_learning,
    make_lora,
    make_mesh,
    make_model,
    make_optimizer,
    make_pairs,
    make_preference,
    make_pretrain,
    make_reward,
    make_rl,
    make_rl_run,
    make_sft,
    make_tokens,
    make_training,
    make_training_run,
    parse_variant,
    scale_by_depth,
)


def get_config(arg: str | None = None) -> ConfigDict:
    variant = parse_variant(arg, ("cpu", "accelerator", "portable", "smoke"))
    c = ConfigDict()

    c.curate = make_curate()
    c.curate.unit_bytes = 16_000_000
    c.curate.presets.default = ("technical",)
    c.curate.heldout.update(frac=0.02, domain="pages")

    scale = scale_by_depth(4, "cpu")
    c.update(make_tokens(vocab_size=scale.vocab_size, tokenizer_bytes=20_000_000,
                         best_domains=("pages",)))
    c.mesh = make_mesh()
    c.model = make_model(**scale.model)
    c.pretrain = make_pretrain(
        row_length=scale.row_length, batch_size=scale.batch_size, num_steps=scale.num_steps,
        # Annealing costs 0.008 bits per byte at this size, docs/benchmarks.md.
        mixture=dict(pages=1.0, code=0.0), anneal_mixture=dict(best=0.5, pages=0.5),
        optimizer=make_optimizer(
            name="muon", learning_rate=scale.learning_rate,
            adam_learning_rate=scale.learning_rate, weight_decay=scale.weight_decay,
            schedule="wsd", warmup_steps=20, decay_frac=0.8),
        run=make_training_run(scan_unroll=4, loss_chunks=4, tasks=dict(documentation=0),
                              evaluate_every=scale.num_steps))

    c.sft = ConfigDict(make_training(
        out="sft", model="base", corpus="corpus", tokens="tokens",
        tasks=dict(documentation=1500, verifiable=6000, turns=3000),
        **make_sft(heldout_frac=0.02, pretrain_frac=0.1, mixture=dict(pages=1.0, code=0.0)),
        num_epochs=1, row_length=256, batch_size=8, lora=make_lora(),
        optimizer=make_optimizer(name="muon", learning_rate=5e-3, adam_learning_rate=5e-3),
        run=make_training_run(scan_unroll=4, loss_chunks=4, log_every=5, evaluate_every=100,
                              checkpoint_every=50, samples=3)))

    c.pairs = make_pairs(corpus="corpus", tasks=dict(documentation=500, verifiable=1300),
                         run=make_inference_run(batch_size=256))

    c.dpo = ConfigDict(make_training(
        out="dpo", model="sft", pairs="pairs", **make_preference(nll_coef=1.0), **make_learning(),
        num_epochs=1, row_length=96, batch_size=16, lora=make_lora(),
        optimizer=make_optimizer(learning_rate=3e-4),
        run=make_training_run(scan_unroll=4, loss_chunks=4, log_every=5, checkpoint_every=50)))

    c.reward = make_reward(
        model="sft", pairs="pairs", heldout_frac=0.1, row_length=96, batch_size=8,
        optimizer=make_optimizer(learning_rate=1e-3),
        run=make_training_run(scan_unroll=4, log_every=5, evaluate_every=0, checkpoint_every=50))

    c.rl = make_rl(
        model="dpo", corpus="corpus", tasks=dict(verifiable=8000), kl_coef=0.01,
        num_iterations=20, num_prompts=128, num_samples=4, oversampling=2, num_minibatches=2,
        max_new_tokens=12, row_length=40,
        optimizer=make_optimizer(name="muon", learning_rate=1.5e-3, adam_learning_rate=1.5e-3,
                                 schedule="linear", warmup_steps=2),
        run=make_rl_run(scan_unroll=4, num_slots=256, checkpoint_every=7,
                        tasks=dict(verifiable=1000)))

    c.eval = make_eval(
        out="eval_base", model="base", corpus="corpus", tokens="tokens", row_length=256,
        # Scored by choices or by exact answers; turns: by the answer to a second question.
        tasks=dict(documentation=400, verifiable=400, turns=400),
        open_tasks=dict(documentation=500, verifiable=500),
        run=make_inference_run(batch_size=64, scan_unroll=4, loss_chunks=4))

    c.report = ConfigDict(dict(
        out="report", corpus="corpus", tokenizer="tokenizer", tokens="tokens", base="base",
        sft="sft", pairs="pairs", reward="reward", dpo="dpo", rl="rl", eval_base="eval_base",
        eval_sft="eval_sft", eval_dpo="eval_dpo", eval_rl="eval_rl"))

    {"cpu": lambda c: None, "accelerator": _accelerator, "portable": _portable,
     "smoke": _smoke}[variant](c)
    return c


def _accelerator(c: ConfigDict) -> None:
    """One GPU: 124M parameters in bfloat16."""
    c.tokenizer.vocab_size = 32_768
    c.tokenizer.max_bytes = 200_000_000
    c.curate.code_max_bytes = 200_000_000
    c.model.update(D=768, N=12, H=12, G=12, K=64, F=2048, embed_previous=False)
    for section in (c.pretrain, c.sft, c.pairs, c.reward, c.dpo, c.rl, c.eval):
        section.compute_dtype = "bfloat16"
        section.run.update(scan_unroll=12, loss_chunks=8)
    c.pretrain.update(row_length=1024, batch_size=64, num_steps=2000, anneal_frac=0.3)
    c.pretrain.optimizer.update(learning_rate=3e-3, adam_learning_rate=3e-3, warmup_steps=100)
    c.pretrain.run.update(tasks=dict(documentation=500), evaluate_every=250, checkpoint_every=250)
    c.sft.update(row_length=512, batch_size=32,
                 tasks=dict(documentation=10_000, verifiable=20_000, turns=10_000))
    c.sft.optimizer.update(learning_rate=5e-4, adam_learning_rate=5e-4)
    c.dpo.optimizer.learning_rate = 2e-5
    c.rl.num_iterations = 100
    c.rl.optimizer.update(learning_rate=2e-4, adam_learning_rate=2e-4)
    c.rl.run.num_slots = 2048
    c.eval.update(row_length=1024, tasks=dict(documentation=2000, verifiable=2000, turns=2000),
                  open_tasks=dict(documentation=1000, verifiable=1000))


def _portable(c: ConfigDict) -> None:
    """The parts that other programs have too: Qwen3's."""
    c.model.embed_previous = False


def _smoke(c: ConfigDict) -> None:
    """Everything tiny: a minute from end to end, to see whether the road holds."""
    c.curate.update(packages="json,logging,email,http,click,absl", code_max_bytes=500_000)
    c.curate.heldout.frac = 0.1
    c.tokenizer.vocab_size = 512
    c.model.update(D=32, N=2, H=2, G=1, K=16, F=64)
    for section in (c.pretrain, c.sft, c.reward, c.dpo, c.rl, c.eval):
        section.run.update(scan_unroll=1)
    c.pretrain.update(row_length=128, batch_size=8, num_steps=20, anneal_frac=0.3)
    c.pretrain.optimizer.warmup_steps = 2
    c.pretrain.run.update(tasks=dict(documentation=20), evaluate_every=10, checkpoint_every=10)
    c.sft.update(row_length=128, batch_size=8,
                 tasks=dict(documentation=50, verifiable=200, turns=50))
    c.pairs.update(tasks=dict(documentation=40, verifiable=40), min_margin=0.01)
    c.pairs.run.batch_size = 32
    c.dpo.update(row_length=128, batch_size=8, num_epochs=1)
    c.reward.batch_size = 4
    c.rl.update(tasks=dict(verifiable=40), num_iterations=2, num_prompts=4, num_samples=4,
                oversampling=2, num_minibatches=1, row_length=64, pattern=".*e.*")
    c.rl.rewards.format = 1.0
    c.rl.run.update(num_slots=32, tasks=dict(verifiable=20))
    for section in (c.sft, c.reward, c.dpo, c.rl):
        section.optimizer.warmup_steps = 1
    c.eval.update(row_length=128, tasks=dict(documentation=40, verifiable=40, turns=40),
                  open_tasks=dict(documentation=20, verifiable=20))
    c.eval.run.batch_size = 16
