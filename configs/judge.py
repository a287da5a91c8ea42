"""Judging answers: by a chat endpoint, a chat model of one's own, or a reward model.

    python -m eval.judge --config=configs/judge.py --workdir=runs/mine \\
        --config.judge.answers=mine=mine.jsonl,theirs=theirs.jsonl \\
        --config.judge.endpoint=http://127.0.0.1:8000/v1 --config.judge.endpoint_model=NAME
    python -m eval.judge --config=configs/judge.py --workdir=runs/mine \\
        --config.judge.votes=votes.jsonl --config.judge.reward=runs/quickstart-cpu/reward

Two answers in both orders are two requests, so that 805 of AlpacaEval are 1,610; an endpoint's
speed decides the time.
"""

from ml_collections import ConfigDict

from configs.common import make_inference, make_inference_run, parse_variant


def get_config(arg: str | None = None) -> ConfigDict:
    parse_variant(arg, ("default",))
    c = ConfigDict()
    c.judge = ConfigDict(dict(
        out="judge",
        form="pairwise",            # or single, rubric
        verdict="written",          # or likelihood: that of the letters A and B, of a local model
        answers="",                 # files of conversations by candidate: NAME=FILE,NAME=FILE
        baseline="",                # the candidate that the others are compared with; "" = the last
        votes="",                   # file of people's preferences, whose responses are judged
                                    # where `answers` is empty
        references="",              # file of conversations that end with right answers
        rubric="",                  # file of criteria
        questions="", prompts="",   # MT-Bench's, whose files of answers are then read
        faulty="drop",              # or fail: rows that cannot be read
        model="",                   # a chat model's folder; or
        endpoint="", endpoint_model="", key_variable="",    # URL, model, environment variable; or
        reward="",                  # a reward model's folder
        own="",                     # the candidate that the judge wrote; "" = the one of its name
        experiments=(),             # verbose, concise, injected
        max_new_tokens=1024, temperature=0.0, top_p=1.0, seed=0,
        max_requests=0, max_cost=0.0,       # of an endpoint; 0 sets no limit
        num_shown=20,               # verdicts on the page
        **make_inference(),
        run=make_inference_run(
            batch_size=16,          # prompts that are answered at once
            batch_tokens=4096,      # of prompts, that are read at once for likelihoods
            num_connections=8, timeout_secs=120.0, max_retries=5, backoff_secs=1.0,
            chunk_prompts=64,       # sent at once; where all are rejected, the run ends
            prompt_price=0.0, answer_price=0.0)))    # of a million tokens of endpoints
    return c
