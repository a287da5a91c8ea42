"""A classifier of documents: quality, domain, toxicity, from examples.

    python -m data.train_classifier --config=configs/classifier.py --workdir=runs/quality \\
        --config.classifier.positives=wiki/ --config.classifier.negatives='crawl/*.jsonl.zst'
    python -m data.train_classifier --config=configs/classifier.py:scores --workdir=runs/quality \\
        --config.classifier.labelled=scored.jsonl
    python -m data.curate ... --config.curate.classifiers.quality.model=runs/quality/classifier \\
        --config.curate.keep_top_frac=0.3

reference tells documents of reference (pages that Wikipedia cites, books) from random ones, as
GPT-3, CCNet and DCLM do (arXiv:2406.11794). scores fits what a language model gave each document,
0 to 5, as FineWeb-Edu does (arXiv:2406.17557). labels takes any set of labels: domains, toxic or
not. On one core it reads about 10 MB of text a second; weights take 4 MB.
"""

from ml_collections import ConfigDict

from configs.common import parse_variant


def get_config(arg: str | None = None) -> ConfigDict:
    variant = parse_variant(arg, ("reference", "scores", "labels"))
    c = ConfigDict()
    c.classifier = ConfigDict(dict(
        out="classifier",
        kind={"reference": "reference", "scores": "regression", "labels": "classes"}[variant],
        positives="", negatives="",     # reference: files or folders of documents, by commas
        labelled="",                    # scores, labels: JSONL or Parquet with the target field
        target_field="score" if variant == "scores" else "label",
        positive_label="",              # labels: the one whose probability is the score
        min_positive_score=3.0,         # scores: what counts as positive when it is measured
        max_documents=100_000,          # of each side; 0 takes all
        split_by="host",                # or document: what may not lie on both sides of a split
        calibration_frac=0.1, heldout_frac=0.1,
        max_words=2, num_buckets=2**20, num_epochs=10, batch_size=64, learning_rate=0.1, seed=0))
    return c
