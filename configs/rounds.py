"""Iterated alignment: in each round a model is trained on labels of its own new answers.

    python -m align.rounds --config=configs/rounds.py --workdir=runs/quickstart-cpu
    python -m align.rounds --config=configs/rounds.py:judge --workdir=runs/mine \\
        --config.rounds.model=MODEL --config.constitution.inputs=prompts.jsonl \\
        --config.constitution.critic_endpoint=http://127.0.0.1:8000/v1 \\
        --config.constitution.critic_endpoint_model=NAME --config.measure.inputs=heldout.jsonl

The first model is the quickstart's `sft`, in float32 on two CPU cores; three rounds take some
minutes. Variants say who labels, and what trains:

    task    the task's score; DPO on the best and the worst answer to each question
    reward  the scores of the quickstart's reward model; DPO
    judge   a chat model, behind an endpoint or in a folder, which chooses between two answers; DPO
    rule    the rule `length`, by which the shorter answer is better; DPO
    votes   people, who fill in a file in each round; DPO
    ppo     the task's score; a reward model on the rankings, then PPO on its scores
    rl      no labels: GRPO on the task's score
"""

from ml_collections import ConfigDict

from configs.common import (
    make_constitution,
    make_inference_run,
    make_learning,
    make_lora,
    make_mesh,
    make_optimizer,
    make_pairs,
    make_precision,
    make_preference,
    make_reward,
    make_rewards,
    make_rl,
    make_training,
    make_training_run,
    parse_variant,
)

VARIANTS = ("task", "reward", "judge", "rule", "votes", "ppo", "rl")


def get_config(arg: str | None = None) -> ConfigDict:
    variant = parse_variant(arg, VARIANTS)
    c = ConfigDict()
    c.mesh = make_mesh()
    c.rounds = ConfigDict(dict(
        out="rounds",               # folder of the rounds' artifacts and of the page
        model="sft",                # the first model, a chat model
        corpus="",                  # that some tasks are drawn from
        reward="",                  # an artifact of align.reward, for labels, rl and measure
        num_rounds=3,
        labels="task",              # or reward, judge, rule, votes; none where rl has no need
        training="dpo",             # or reward_rl: a reward model and then rl; or rl alone
        num_shown=12))              # held-out prompts whose answers the page shows
    _labelling(c)
    _training(c)
    # Each round's model on held-out prompts: num_prompts of those of tasks and inputs.
    c.measure = ConfigDict(make_precision() | dict(
        out="measured", model="", first="", against="", corpus="", tasks=dict(arithmetic=300),
        inputs="", template="", num_prompts=300, max_new_tokens=16, temperature=1.0, row_length=64,
        **make_rewards(overlong_tokens=4), seed=0,
        run=dict(num_slots=256, attention="auto", scan_unroll=4, loss_chunks=1)))
    # The choices of labels=judge and labels=rule between answers of the first model and of a round.
    c.chosen = ConfigDict(dict(out="chosen", ours="", theirs="", critic=""))
    {"task": lambda c: None, "reward": _reward, "judge": _judge, "rule": _rule, "votes": _votes,
     "ppo": _ppo, "rl": _rl}[variant](c)
    return c


def _labelling(c: ConfigDict) -> None:
    """Sections of the stages that sample answers and label them; the labels decide which run."""
    c.pairs = make_pairs(           # labels=task, labels=reward
        model="", tasks=dict(arithmetic=600), max_new_tokens=16,
        run=make_inference_run(batch_size=256, scan_unroll=4))
    c.candidates = ConfigDict(make_precision() | dict(      # labels=votes
        out="candidates", model="", corpus="", tasks=dict(arithmetic=3000), inputs="", template="",
        round=0,                    # whose prompts are taken: the next num_prompts of all
        num_prompts=600, num_samples=4, max_new_tokens=16, temperature=1.0, row_length=64, seed=1,
        run=dict(num_slots=256, attention="auto", scan_unroll=4, loss_chunks=1)))
    c.label = ConfigDict(dict(out="pairs", candidates="candidates", votes=""))
    c.constitution = make_constitution(     # labels=judge, labels=rule
        out="pairs", makes=("pairs",), tasks=dict(arithmetic=600), seed=1)
    c.constitution.answer.max_new_tokens = 16
    c.constitution.rules.truncated = "keep"
    c.constitution.run.update(batch_size=256, scan_unroll=4)


def _training(c: ConfigDict) -> None:
    """Sections of the stages that train; `rounds.training` decides which run."""
    sizes = dict(row_length=64, batch_size=16)
    run = make_training_run(scan_unroll=4, loss_chunks=4, log_every=5, checkpoint_every=50)
    c.dpo = ConfigDict(make_training(
        out="dpo", model="", pairs="pairs", **make_preference(nll_coef=1.0), **make_learning(),
        num_epochs=1, lora=make_lora(), run=run,
        optimizer=make_optimizer(learning_rate=3e-4, warmup_steps=2), **sizes))
    c.reward = make_reward(
        model="", pairs="pairs", heldout_frac=0.1,
        optimizer=make_optimizer(learning_rate=1e-3, warmup_steps=2), run=run, **sizes)
    c.rl = make_rl(
        out="rl", model="", algorithm="ppo", tasks=dict(arithmetic=3000), num_iterations=10,
        num_prompts=32, num_samples=8, num_epochs=2, num_minibatches=4, max_new_tokens=16,
        row_length=64, overlong_tokens=4,
        optimizer=make_optimizer(learning_rate=1e-4, schedule="constant", warmup_steps=5,
                                 lr_multipliers=dict(score_DY=10.0)),
        run=make_training_run(scan_unroll=4, num_slots=256, evaluate_every=0, checkpoint_every=5))


def _reward(c: ConfigDict) -> None:
    c.rounds.update(labels="reward", reward="reward")
    c.pairs.rewards.update(task=0.0, model=1.0)
    c.measure.rewards.update(task=0.0, model=1.0)


def _judge(c: ConfigDict) -> None:
    c.rounds.labels = "judge"


def _rule(c: ConfigDict) -> None:
    c.rounds.labels = "rule"
    c.constitution.critic_rule = "length"


def _votes(c: ConfigDict) -> None:
    """Two answers to each of a hundred questions, that people get through in an hour."""
    c.rounds.labels = "votes"
    c.candidates.update(num_prompts=100, num_samples=2)


def _ppo(c: ConfigDict) -> None:
    c.rounds.training = "reward_rl"
    c.rl.rewards.update(task=0.0, model=1.0)


def _rl(c: ConfigDict) -> None:
    c.rounds.update(labels="none", training="rl")
    c.rl.update(algorithm="grpo", num_epochs=1, num_minibatches=2)
    c.rl.optimizer.lr_multipliers = dict()
