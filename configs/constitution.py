"""Constitutional AI: answers criticised and revised by principles, and AI preferences.

    python -m align.constitution --config=configs/constitution.py --workdir=runs/quickstart-cpu
    python -m align.constitution --config=configs/constitution.py:endpoint --workdir=runs/mine \\
        --config.constitution.model=MODEL --config.constitution.inputs=prompts.jsonl \\
        --config.constitution.critic_endpoint=http://127.0.0.1:8000/v1 \\
        --config.constitution.critic_endpoint_model=NAME

After arXiv:2212.08073. MODEL answers; the critic writes critiques and revisions, and chooses
between two answers, which it is shown in both orders. What comes out trains further models:
--config.sft.inputs=runs/mine/constitution/revisions.jsonl, --config.dpo.pairs=constitution.
Variants:

    rule      no critic's model and no network: the quickstart's SFT model answers questions about
              documentation, and the rule `length` cuts and compares. A minute on two cores.
    endpoint  an OpenAI-compatible server criticises. A prompt is answered twice, and costs four
              requests for two rounds and two for the choice; its speed decides the time. Not run.
    self      MODEL criticises itself, and its probabilities of (A) and (B) are compared.
"""

from ml_collections import ConfigDict

from configs.common import make_inference, make_inference_run, parse_variant

VARIANTS = ("rule", "endpoint", "self")


def get_config(arg: str | None = None) -> ConfigDict:
    variant = parse_variant(arg, VARIANTS)
    c = ConfigDict()
    c.constitution = ConfigDict(dict(
        out="constitution",
        makes=("revisions", "pairs"),       # or one of them
        tasks=dict(), corpus="",            # built-in questions, and what some are drawn from
        inputs="",                  # files of prompts or conversations; PATH@1000: a part of one
        faulty="drop",              # or fail: rows that cannot be read
        # Files of principles and examples by commas, "" = our own; align/synthetic/principles.py.
        principles="", num_examples=2,      # at most so many examples are shown
        model="",                   # a chat model's folder that answers; or
        endpoint="", endpoint_model="", key_variable="",    # URL, model, environment variable; or
                                    # none of them: the answers of `inputs` are revised
        critic="",                  # a chat model's folder that criticises and chooses; or
        critic_endpoint="", critic_endpoint_model="", critic_key_variable="",
        critic_rule="",             # or length, word_list, or a class of yours: module.Class
        rule=dict(max_words=12, words=()),
        num_rounds=2,
        labels="letter",            # or probability, of a critic in a folder
        disagreement="drop",        # of both orders; or tie, soft, fail
        # What becomes of a reply: drop (the conversation), keep (go on with it), fail. Of a choice
        # without a letter: keep takes that of the other order alone.
        rules=dict(unanswered="drop", empty="drop", truncated="drop", unchanged="keep",
                   refusal="keep", no_letter="drop"),
        answer=dict(max_new_tokens=256, temperature=1.0, top_p=1.0),
        critique=dict(max_new_tokens=512, temperature=0.7, top_p=0.95),     # and revisions
        judge=dict(max_new_tokens=16, temperature=0.0, top_p=1.0),          # of choices
        seed=0, **make_inference(),
        run=make_inference_run(
            batch_size=16, num_connections=8, timeout_secs=120.0, max_retries=5, backoff_secs=1.0,
            chunk_prompts=64,       # sent at once; where all are rejected, the run ends
            prompt_price=0.0, answer_price=0.0)))   # of a million tokens of endpoints
    section = c.constitution
    if variant == "rule":
        section.update(model="sft", corpus="corpus", tasks=dict(documentation=200, verifiable=100),
                       critic_rule="length")
        section.rules.truncated = "keep"    # a small model often does not end its answer
        section.answer.max_new_tokens = 32
    if variant == "self":
        section.update(model="sft", critic="sft", labels="probability", disagreement="soft")
    return c
