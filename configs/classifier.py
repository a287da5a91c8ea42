"""A classifier of documents: quality, domain, toxicity, from examples.

    python -m data.train_classifier --config=configs/classifier.py --workdir=runs/quality \\
        --config.classifier.positives=wiki/ --config.classifier.negatives='crawl/*.jsonl.zst'
    python -m data.train_classifier --config=configs/classifier.py:scores --workdir=runs/quality \\
        --config.classifier.labelled=scored.jsonl
    python -m data.curate ... --config.curate.classifiers.quality.model=runs/quality/classifier \\
        --config.curate.keep_top_frac=0.3
    python -m data.train_classifier --config=configs/classifier.py:toxicity \\
        --workdir=runs/toxicity --config.classifier.labelled=posts.jsonl.gz
    python -m data.curate ... --config.curate.classifiers.toxicity.model=runs/toxicity/classifier \\
        --config.curate.classifiers.toxicity.max_score=0.4

reference tells documents of reference (pages that Wikipedia cites, books) from random ones, as
GPT-3, CCNet and DCLM do (arXiv:2406.11794). scores fits what a language model gave each document,
0 to 5, as FineWeb-Edu does (arXiv:2406.17557). labels takes any set of labels, e.g. domains. On one
core it reads about 10 MB of text a second; weights take 4 MB for each label but one.

toxicity suits short posts whose label is hate, offensive or neither (`text` and `label`, as of
Davidson et al., arXiv:1703.04009). The score is 1 minus the probability of `neither`; curation
removes documents above `max_score`. N-grams of characters recognise misspelt words.

Known bias: classifiers trained on such labels call posts in African-American English abusive at
substantially higher rates than others (arXiv:1905.12516). The metrics compare false positives of
held-out harmless posts with and without spellings of that dialect (`dialect`; the list is ours,
of the kind that Blodgett et al., arXiv:1608.08868, study). Read them before you remove anything by
this score.
"""

from ml_collections import ConfigDict

from configs.common import parse_variant

TOXICITY_LIMITS = (
    "Classifiers trained on posts that raters labelled as hateful or offensive call posts in "
    "African-American English abusive at substantially higher rates than others "
    "(arXiv:1905.12516). They judge words more than meaning: quoted, reclaimed and counter speech "
    "is flagged too, insults without such words are missed, and texts unlike short English posts "
    "are out of their range. Compare the false positives under `dialect` in metrics.json, and "
    "let people check a sample of what is removed.")
DIALECT_MARKERS = (     # spelt as African-American English is spoken
    "ain", "aint", "bouta", "boutta", "dat", "dem", "dese", "dey", "dis", "finna", "gon", "ima",
    "imma", "ion", "iont", "nuffin", "sholl", "talmbout", "tryna", "wit")
# Chosen among 20 settings by cross-validation outside the held-out documents of Davidson et al.:
# an area under the ROC curve of 0.980; the best of words alone with Adam's usual eps has 0.975.
TOXICITY = dict(kind="classes", negative_label="neither", split_by="document", heldout_frac=0.2,
                min_chars=2, max_chars=5, num_epochs=5, eps=1e-3,
                limits=TOXICITY_LIMITS, dialect_markers=DIALECT_MARKERS)


def get_config(arg: str | None = None) -> ConfigDict:
    variant = parse_variant(arg, ("reference", "scores", "labels", "toxicity"))
    c = ConfigDict()
    c.classifier = ConfigDict(dict(
        out="classifier",
        kind={"reference": "reference", "scores": "regression"}.get(variant, "classes"),
        positives="", negatives="",     # reference: files or folders of documents, by commas
        labelled="",                    # scores, labels: JSONL or Parquet with the target field
        target_field="score" if variant == "scores" else "label",
        positive_label="",              # labels: the one whose probability is the score, or
        negative_label="",              # the one such that the score is 1 - its probability
        min_positive_score=3.0,         # scores: what counts as positive when it is measured
        max_documents=100_000,          # of each side; 0 takes all
        split_by="host",                # or document: what may not lie on both sides of a split
        calibration_frac=0.1, heldout_frac=0.1,
        max_words=2,                    # n-grams of 1 to so many words
        min_chars=0, max_chars=0,       # and of so many characters; 0 takes none
        num_buckets=2**20, num_epochs=10, batch_size=64, learning_rate=0.1,
        eps=1e-8,                       # of Adam; more keeps the weights of rare n-grams small
        seed=0,
        limits="",                      # what users have to know about its judgements
        dialect_markers=()))            # words by which false positives are compared
    if variant == "toxicity":
        c.classifier.update(TOXICITY)
    return c
