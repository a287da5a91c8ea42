"""Synthetic data: documents of a corpus, rephrased by a model.

    python -m align.synthesize --config=configs/synthesize.py --workdir=runs/mine \\
        --config.synthesize.corpus=runs/quickstart-cpu/corpus \\
        --config.synthesize.endpoint=http://127.0.0.1:8000/v1 \\
        --config.synthesize.endpoint_model=NAME

Rephrasings after WRAP (arXiv:2401.16380) and question-answer pairs, by a local model directory or
an OpenAI-compatible endpoint. What comes out is an input of data.curate like any other:
--config.curate.inputs='raw/*.warc.gz,runs/mine/synthetic/documents'. An endpoint's speed decides
the time; 1,000 documents are about 2,000 requests.
"""

from ml_collections import ConfigDict

from configs.common import make_inference, make_inference_run, parse_variant


def get_config(arg: str | None = None) -> ConfigDict:
    parse_variant(arg, ("default",))
    c = ConfigDict()
    c.synthesize = ConfigDict(dict(
        out="synthetic", corpus="corpus",
        model="",                   # a chat model's folder; or
        endpoint="", endpoint_model="", key_variable="",    # URL, model, environment variable
        domains=(), num_documents=1000,             # () = all domains, 0 = all documents
        styles=("encyclopedic", "pairs"),           # also simple, question_answer, dialogue
        passage_words=300, min_passage_words=30,
        max_frac=0.2,               # of the corpus' bytes
        max_new_tokens=512, temperature=0.7, top_p=0.95, chunk_prompts=64,
        filters=dict(min_words=20, max_repeated_frac=0.3, max_copied_frac=0.5), seed=0,
        **make_inference(),
        run=make_inference_run(batch_size=16, num_connections=8, timeout_secs=120.0,
                               max_retries=5, backoff_secs=1.0,
                               prompt_price=0.0, answer_price=0.0)))    # of a million tokens
    return c
