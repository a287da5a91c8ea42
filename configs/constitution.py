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

from configs.common import make_constitution, parse_variant

VARIANTS = ("rule", "endpoint", "self")


def get_config(arg: str | None = None) -> ConfigDict:
    variant = parse_variant(arg, VARIANTS)
    c = ConfigDict()
    c.constitution = make_constitution()
    section = c.constitution
    if variant == "rule":
        section.update(model="sft", corpus="corpus", tasks=dict(documentation=200, verifiable=100),
                       critic_rule="length")
        section.rules.truncated = "keep"    # a small model often does not end its answer
        section.answer.max_new_tokens = 32
    if variant == "self":
        section.update(model="sft", critic="sft", labels="probability", disagreement="soft")
    return c
