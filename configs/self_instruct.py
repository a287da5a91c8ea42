"""Synthetic instructions: a model writes tasks like those of people, with their answers.

    python -m align.self_instruct --config=configs/self_instruct.py --workdir=runs/mine \\
        --config.self_instruct.inputs=seed_tasks.jsonl \\
        --config.self_instruct.endpoint=http://127.0.0.1:8000/v1 \\
        --config.self_instruct.endpoint_model=NAME
    python -m align.sft --config=configs/align.py --workdir=runs/mine --config.sft.model=MODEL \\
        --config.sft.inputs=people.jsonl,runs/mine/self_instruct/instructions.jsonl@0.5

After Self-Instruct (arXiv:2212.10560), in the form of Alpaca: one request asks for several tasks
with their answers. An endpoint's speed decides the time; 1,000 instructions are about 200 requests
of which each shows three tasks and asks for eight. Not run with an endpoint.
"""

from ml_collections import ConfigDict

from configs.common import make_inference, make_inference_run, parse_variant


def get_config(arg: str | None = None) -> ConfigDict:
    parse_variant(arg, ("default",))
    c = ConfigDict()
    c.self_instruct = ConfigDict(dict(
        out="self_instruct",
        inputs="",                  # files of seed tasks in the layout alpaca; PATH@100: some
        faulty="drop",              # or fail: rows that cannot be read
        model="",                   # a chat model's folder; or
        endpoint="", endpoint_model="", key_variable="",    # URL, model, environment variable
        num_instructions=1000, max_prompts=2000,    # ends at the first that is reached
        round_prompts=16,           # sent at once; what they give is shown from the next round on
        tasks_per_prompt=8, seed_shots=2, own_shots=1,      # asked for, and shown
        max_shown_words=150,        # of a task that is shown
        max_new_tokens=2048, temperature=0.8, top_p=0.95,
        filters=dict(
            min_words=4, max_words=150,             # of an instruction
            max_output_words=1000, max_repeated_frac=0.3,
            max_similarity=0.7,     # ROUGE-L to any instruction that is kept, below it
            # Words of tasks that a model of texts cannot do.
            blocked_words=("image", "images", "picture", "pictures", "photo", "video", "audio",
                           "music", "graph", "graphs", "plot", "draw", "map", "maps", "file",
                           "files", "flowchart", "diagram")),
        seed=0, **make_inference(),
        run=make_inference_run(batch_size=16, num_connections=8, timeout_secs=120.0,
                               max_retries=5, backoff_secs=1.0,
                               prompt_price=0.0, answer_price=0.0)))    # of a million tokens
    return c
