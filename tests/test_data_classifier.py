"""The classifier: features against their definition, training on data whose answer is known,
measures against hand counts, folders that are refused when damaged."""

import gzip
import itertools
import json
import math
import os
import random
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict

from core.errors import UserError
from data import train_classifier
from data.classify import classifier as classifiers
from data.classify import labelled
from data.classify import metrics as measures
from data.classify.calibration import calibrate
from data.classify.classifier import (
    Classifier,
    Grams,
    featurise,
    load_classifier,
    to_probabilities,
)
from data.classify.labelled import Example
from data.dedup.words import normalise_words
from data.documents import Document, write_documents

DATASETS = Path(os.environ.get("HEARTWOOD_DATASETS", "/nonexistent"))
TEXTS = ["The cat sat on the mat; the cat sat.", "", "Ünïcode: ΑΒΓ 猫 12 99!", "one", "?!"]


@pytest.mark.parametrize("max_words", [1, 2, 3])
def test_features_are_root_shares_of_ngrams(max_words):
    features = featurise(TEXTS, 2**30, Grams(max_words))
    for i, text in enumerate(TEXTS):
        words = normalise_words(text)
        grams = Counter(tuple(words[k:k + n]) for n in range(1, max_words + 1)
                        for k in range(len(words) - n + 1))
        values = features.values[features.offsets[i]:features.offsets[i + 1]]
        expected = sorted(math.sqrt(count / grams.total()) for count in grams.values())
        assert np.allclose(sorted(values.tolist()), expected)
    assert features.offsets[-1] == len(features.buckets) == len(features.values)
    lengths = np.bincount(features.owners, features.values.astype(float) ** 2)
    assert np.allclose(lengths, [1, 0, 1, 1])


def test_buckets_do_not_depend_on_position():
    def buckets(*texts):
        return set(featurise(texts, 2**20, Grams(2)).buckets.tolist())

    assert buckets("a b", "c") == buckets("a b") | buckets("c"), "no n-gram crosses documents"
    assert buckets("a b") < buckets("x a b")
    assert buckets("a b") != buckets("b a") and len(buckets("a b") & buckets("b a")) == 2
    assert max(featurise(["many words of all kinds " * 9], 8, Grams(2)).buckets) < 8


def _random_classifier(labels=("random", "reference"), positive="reference", num_buckets=2**12):
    key = np.random.default_rng(0)
    num_outputs = max(len(labels) - 1, 1)
    return Classifier("classes" if labels else "regression", tuple(labels), positive, Grams(2),
                      key.normal(size=(num_outputs, num_buckets)).astype(np.float32),
                      key.normal(size=num_outputs).astype(np.float32))


def test_scores_equal_hand_computed_ones_and_do_not_depend_on_the_batch():
    model = _random_classifier()
    scores = model.score(TEXTS)
    for text, score in zip(TEXTS, scores):
        features = featurise([text], 2**12, Grams(2))
        logit = model.weights[0, features.buckets] @ features.values + model.bias[0]
        assert np.isclose(score, 1 / (1 + np.exp(-logit)))
        assert score == model.score([text])[0], "the texts beside it do not matter"
    assert np.isclose(scores[1], 1 / (1 + np.exp(-model.bias[0]))), "nothing but the bias"


def test_chunk_size_does_not_affect_scores(monkeypatch):
    model = _random_classifier()
    texts = [" ".join(random.Random(i).choices("abcdefg", k=i % 50)) for i in range(200)]
    whole = model.score(texts)
    monkeypatch.setattr(classifiers, "CHUNK_CHARS", 100)
    assert (model.score(texts) == whole).all()
    assert model.score([]).shape == (0,)
    monkeypatch.setattr(classifiers, "MAX_CHARS", 10)
    assert model.score(["a b c d e f g h i"]) == model.score(["a b c d e "])


def test_many_labels_and_regressions():
    model = _random_classifier(("a", "b", "c"), "")
    probabilities = model.probabilities(TEXTS)
    assert probabilities.shape == (5, 3) and np.allclose(probabilities.sum(axis=1), 1)
    assert (model.score(TEXTS) == probabilities.max(axis=1)).all()
    assert model.classify(TEXTS) == [model.labels[i] for i in probabilities.argmax(axis=1)]
    regression = _random_classifier((), "")
    assert (regression.score(TEXTS) == regression.outputs(TEXTS)[:, 0]).all()
    with pytest.raises(UserError, match="has no labels"):
        regression.classify(TEXTS)
    assert np.isfinite(to_probabilities(np.array([[1e4, -1e4]]))).all()


def test_classifiers_are_saved_and_damaged_ones_refused(tmp_path):
    model = _random_classifier()
    model.save(tmp_path)
    again = load_classifier(tmp_path)
    assert (again.score(TEXTS) == model.score(TEXTS)).all()
    assert (again.labels, again.kind, again.positive) == (model.labels, model.kind, model.positive)
    content = (tmp_path / "weights.npy").read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1]), b"", b"\x80\x04K\x01."):
        (tmp_path / "weights.npy").write_bytes(damaged)
        with pytest.raises(UserError, match="retrain it"):
            load_classifier(tmp_path)
    (tmp_path / "weights.npy").write_bytes(content)
    described = json.loads((tmp_path / "classifier.json").read_text())
    for change in ({"labels": ["x", "y"]}, {"bias": [0.5]}, {"max_words": 1}, {"bias": None}):
        (tmp_path / "classifier.json").write_text(json.dumps(described | change))
        with pytest.raises(UserError, match="retrain it"):
            load_classifier(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load_classifier(tmp_path / "nowhere")


def test_measures_against_hand_counts():
    scores, actual = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0
             for p, n in itertools.product(scores[actual], scores[~actual])]
    assert measures.area_under_curve(scores, actual) == np.mean(pairs) == 0.875
    assert measures.area_under_curve(scores, actual & False) is None
    result = measures.decisions(scores >= 0.4, actual)
    assert result == {"precision": pytest.approx(2 / 3), "recall": 1.0, "f1": pytest.approx(0.8)}
    assert measures.decisions(scores > 1, actual) == {"precision": 0, "recall": 0, "f1": 0}
    table = measures.reliability(np.array([0.0, 0.04, 0.95, 1.0]), np.array([0, 1, 1, 1]), 0, 1)
    assert table[0] == {"predicted": 0.02, "observed": 0.5, "documents": 2}
    assert table[9] == {"predicted": 0.975, "observed": 1.0, "documents": 2}
    assert table[4]["documents"] == 0 and sum(row["documents"] for row in table) == 4
    assert measures.calibration_error(table) == pytest.approx((2 * 0.48 + 2 * 0.025) / 4)


def test_thresholds_keep_their_share():
    scores = np.random.default_rng(0).permutation(1000) / 1000
    thresholds = measures.percentile_thresholds(scores)
    for frac, threshold in thresholds.items():
        assert (scores >= threshold).mean() == float(frac)
    assert measures.percentile_thresholds(np.zeros(0)) == {}


def test_measures_of_many_labels():
    outputs = np.array([[5.0, 0], [0, 5.0], [-5.0, -5], [5.0, 0], [0, 5.0]])  # predicts 1 2 0 1 2
    result = measures.evaluate_classes(outputs, np.array([1, 2, 0, 2, 2]), ("a", "b", "c"), "")
    assert result["metrics"]["accuracy"] == 0.8
    assert result["labels"]["b"] == {"documents": 1, "precision": 0.5, "recall": 1.0,
                                     "f1": pytest.approx(2 / 3)}
    assert result["labels"]["c"]["recall"] == pytest.approx(2 / 3)
    one = measures.evaluate_classes(outputs, np.array([1, 2, 0, 2, 2]), ("a", "b", "c"), "c")
    assert one["metrics"]["precision"] == 1 and one["metrics"]["auc"] == pytest.approx(2.5 / 3)


NOUNS = ("river", "stone", "cloud", "engine", "lantern")


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _text(key, favourite, share=0.5, length=40):
    return " ".join(favourite if key.random() < share else f"{key.choice(NOUNS)}{key.randrange(50)}"
                    for _ in range(length))


def _section(**changes):
    return ConfigDict({"classifier": dict(
        out="classifier", kind="reference", positives="", negatives="", labelled="",
        target_field="label", positive_label="", negative_label="", min_positive_score=3.0,
        max_documents=0, split_by="host", calibration_frac=0.2, heldout_frac=0.2, max_words=2,
        min_chars=0, max_chars=0, num_buckets=2**14, num_epochs=8, batch_size=16,
        learning_rate=0.1, eps=1e-8, seed=0, limits="", dialect_markers=()) | changes})


def _build(folder, **changes):
    return train_classifier.build(_section(**changes), {}, folder)


def test_reference_against_random(tmp_path):
    """Positives in a corpus folder and negatives in JSONL; the result is reproducible."""
    key = random.Random(0)
    positives = [_text(key, "theorem", 0.1) for _ in range(240)]
    write_documents(tmp_path / "corpus" / "documents" / "0.parquet",
                    (Document(str(i), text, f"https://h{i % 40}.org/{i}", "web")
                     for i, text in enumerate(positives)))
    negatives = [{"text": _text(key, "discount", 0.1), "url": f"https://s{i % 60}.com/{i}"}
                 for i in range(400)]
    rows = [*negatives, negatives[0], {"text": positives[0]}, {"text": "  "}, {"no": "text"}]
    path = _write(tmp_path / "random.jsonl", rows)
    with open(path, "a") as file:
        file.write("{not json\n")
    given = dict(positives=str(tmp_path / "corpus"), negatives=path)
    measured = _build(tmp_path / "a", **given)
    assert measured["kind"] == "reference"
    assert sum(measured["documents"].values()) == 2 * 239, "as many of one as of the other"
    assert measured["left_out"] == {
        "both reference and random": 2, "empty": 1, "exact duplicate": 1,
        "not sampled": 400 - 239, "row is damaged or holds no `text`": 2}
    assert measured["metrics"]["auc"] > 0.97 and measured["metrics"]["f1"] > 0.9
    assert measured["metrics"]["calibration_error"] < 0.1
    assert len(measured["calibration"]) == 10 and measured["thresholds"]["0.1"] < 0.5
    model = load_classifier(tmp_path / "a")
    good, bad = model.score([_text(key, "theorem", 0.3), _text(key, "discount", 0.3)])
    assert good > 0.9 and bad < 0.1
    assert model.fingerprint == measured["fingerprint"]
    rows.reverse()
    _write(tmp_path / "random.jsonl", [row for row in rows if "text" in row])
    assert _build(tmp_path / "b", **given)["fingerprint"] == measured["fingerprint"], \
        "the order of the documents does not matter"
    assert _build(tmp_path / "c", seed=1, **given)["fingerprint"] != measured["fingerprint"]


def test_regression_on_scores(tmp_path):
    key = random.Random(0)
    rows = []
    for _ in range(600):
        score = key.uniform(0, 5)
        rows.append({"text": _text(key, "lesson", score / 10), "score": score})
    rows += [{"text": "no score"}, {"text": "nan", "score": float("nan")},
             {"text": "true", "score": True}]
    pq.write_table(pa.table({"text": [row["text"] for row in rows],
                             "score": pa.array([float(row.get("score", "nan")) for row in rows])}),
                   tmp_path / "scored.parquet")
    measured = _build(tmp_path / "p", kind="regression", labelled=str(tmp_path / "*.parquet"),
                   target_field="score", num_epochs=30)
    assert measured["left_out"] == {"`score` is missing": 2}
    jsonl = _write(tmp_path / "scored.jsonl", rows)
    measured = _build(tmp_path / "j", kind="regression", labelled=jsonl, target_field="score",
                   num_epochs=30)
    assert measured["left_out"] == {"`score` is missing": 2, "`score` is no number, e.g. True": 1}
    assert measured["metrics"]["r2"] > 0.6 and measured["metrics"]["auc"] > 0.9
    assert measured["metrics"]["f1"] > 0.75
    low, high = load_classifier(tmp_path / "j").score(
        [_text(key, "lesson", 0.05, 200), _text(key, "lesson", 0.45, 200)])
    assert low < 1.5 and high > 3.5


def test_classes(tmp_path):
    key = random.Random(0)
    rows = [{"text": _text(key, word, 0.2), "label": word}
            for word in ("maths", "sports", "recipes") for _ in range(100)]
    path = _write(tmp_path / "labelled.jsonl", rows)
    measured = _build(tmp_path / "m", kind="classes", labelled=path)
    assert measured["metrics"]["accuracy"] > 0.95 and measured["metrics"]["macro_f1"] > 0.95
    assert list(measured["labels"]) == ["maths", "recipes", "sports"]
    model = load_classifier(tmp_path / "m")
    assert model.classify([_text(key, "sports"), _text(key, "maths")]) == ["sports", "maths"]
    positive = _build(tmp_path / "p", kind="classes", labelled=path, positive_label="recipes")
    assert positive["metrics"]["auc"] > 0.95
    texts = [_text(key, "recipes"), _text(key, "maths")]
    assert load_classifier(tmp_path / "p").score(texts)[0] > 0.8
    assert load_classifier(tmp_path / "p").score(texts)[1] < 0.2


def test_calibration_corrects_an_overconfident_classifier():
    key = np.random.default_rng(0)
    logits = key.normal(0, 2, 4000)
    targets = (key.random(4000) < 1 / (1 + np.exp(-(logits + 1)))).astype(np.int32)
    model = Classifier("classes", ("no", "yes"), "yes", Grams(1), np.ones((1, 2), np.float32),
                       np.array([2.0], np.float32))
    calibrated = calibrate(model, 8 * logits[:, None], targets)     # eight times too steep, shifted
    scale = float(calibrated.weights[0, 0])
    assert scale == pytest.approx(1 / 8, rel=0.1)
    assert float(calibrated.bias[0]) - 2 * scale == pytest.approx(1, abs=0.15)
    apart = calibrate(model, np.array([[-9.0], [9.0]] * 20), np.arange(40) % 2)
    logit = np.log(21)      # of Platt's target 21 / 22
    assert apart.weights[0, 0] == pytest.approx(logit / 9, rel=1e-4)


def test_calibration_of_many_labels():
    key = np.random.default_rng(0)
    logits = np.pad(key.normal(0, 2, (20_000, 3)), ((0, 0), (1, 0)))
    logits += [0, 0, 0.5, -1]
    targets = (logits + key.gumbel(size=logits.shape)).argmax(axis=1)
    labels = ("a", "b", "c", "d")
    model = Classifier("classes", labels, "", Grams(1), np.ones((3, 2), np.float32), np.zeros(3))
    calibrated = calibrate(model, 3 * (logits[:, 1:] - [0, 0.5, -1]), targets)
    assert calibrated.weights[0, 0] == pytest.approx(1 / 3, rel=0.05)
    assert np.allclose(calibrated.bias, [0, 0.5, -1], atol=0.1)


def test_splits_keep_hosts_together_and_ignore_order():
    examples = [Example(f"text {i}", "x", f"{i:032x}", f"h{i % 50}.org" if i % 2 else None)
                for i in range(4000)]
    how = dict(calibration_frac=0.1, heldout_frac=0.2, seed=0)
    parts = labelled.split(examples, by="host", **how)
    hosts = [{one.host for one in part} - {None} for part in parts.values()]
    assert not any(a & b for a, b in itertools.combinations(hosts, 2))
    by_document = labelled.split(examples, by="document", **how)
    assert abs(len(by_document["heldout"]) - 800) < 80
    assert abs(len(by_document["calibration"]) - 400) < 60
    backwards = labelled.split(examples[::-1], by="host", **how)
    assert {name: part[::-1] for name, part in backwards.items()} == parts


def test_samples_do_not_depend_on_order():
    examples = [Example(f"text {i}", "x", f"{i:032x}", None) for i in range(500)]

    def sample(given):
        taken = labelled.Sample(100, seed=3)
        for one in given:
            taken.add(one)
        return taken

    first, second = sample([*examples, *examples[:9]]), sample(examples[::-1])
    assert first.examples() == second.examples() and len(first.examples()) == 100
    assert second.left_out == {"not sampled": 400}


@pytest.mark.parametrize(("changes", "message"), [
    (dict(kind="stars"), r"classifier\.kind='stars'.*reference, regression, classes"),
    (dict(split_by="moon"), r"split_by='moon'"),
    (dict(num_buckets=1000), r"num_buckets=1000: must be a power of two"),
    (dict(max_words=0), r"max_words=0: must be a whole number, at least 1 and at most 5"),
    (dict(heldout_frac=0.0), r"heldout_frac=0\.0"),
    (dict(positives=""), r"classifier\.positives='': names no file"),
    (dict(positives="/nowhere/*.jsonl"), "matches no file"),
    (dict(positives="{folder}/page.txt"), r"page\.txt has another format"),
    (dict(kind="classes", labelled="{folder}/one.jsonl"), r"holds the labels \['a'\] in `label`"),
    (dict(kind="classes", labelled="{folder}/two.jsonl", positive_label="c"), "not one of the"),
    (dict(kind="classes", labelled="{folder}/two.jsonl"), "split of the documents: holds none"),
    (dict(kind="regression", labelled="{folder}/two.jsonl", target_field="stars"),
     r"target_field='stars'.*2 x `stars` is missing\); its fields are label, text: set "),
    (dict(kind="regression", labelled="{folder}/two.jsonl", target_field="label"),
     r"target_field='label'.*2 x `label` is no number, e\.g\. 'a'\)"),
    (dict(kind="classes", labelled="{folder}/mixed.jsonl"),
     r"split of the documents: holds none.*\(left out: 1 x `label` is no label, e\.g\. \['x'\]\)")])
def test_bad_input_is_a_user_error(tmp_path, changes, message):
    _write(tmp_path / "one.jsonl", [{"text": f"a {i}", "label": "a"} for i in range(9)])
    _write(tmp_path / "two.jsonl", [{"text": f"a {i}", "label": "ab"[i]} for i in range(2)])
    _write(tmp_path / "mixed.jsonl", [{"text": f"a {i}", "label": label}
                                      for i, label in enumerate(("a", 2, ["x"]))])
    (tmp_path / "page.txt").write_text("a page")
    given = {name: value.format(folder=tmp_path) if isinstance(value, str) else value
             for name, value in changes.items()}
    with pytest.raises(UserError, match=message):
        _build(tmp_path / "out", **given)


def test_numbers_may_be_labels_and_strings_scores(tmp_path):
    values = [4, "4", " 3.5 ", "1e-1", 2.0, "4/5", "nan", "", None, True, [1], 10**400]
    path = _write(tmp_path / "a.jsonl", [{"text": f"page {i}", "y": value}
                                         for i, value in enumerate(values)])

    def targets(is_number):
        examples, left_out = labelled.read_targets([path], "y", is_number, 0, 0)
        return {int(one.text[5:]): one.target for one in examples}, left_out

    scores, left_out = targets(True)
    assert scores == {0: 4.0, 1: 4.0, 2: 3.5, 3: 0.1, 4: 2.0}
    assert left_out == {"`y` is missing": 2, "`y` is no number, e.g. '4/5'": 5}
    labels, left_out = targets(False)
    assert [labels[i] for i in range(5)] == ["4", "4", "3.5", "1e-1", "2"]
    assert labels[9] == "True" and left_out == {"`y` is missing": 2, "`y` is no label, e.g. [1]": 1}


def test_damaged_files_are_counted(tmp_path):
    good = [{"text": f"a good page {i}", "label": "ab"[i % 2]} for i in range(50)]
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in good).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-40])
    (tmp_path / "no.parquet").write_bytes(b"PAR1 nothing PAR1")
    _write(tmp_path / "surrogate.jsonl", [{"text": "half \ud800 a pair", "label": 1},
                                          {"text": "broken", "label": 2, "url": "http://[x"}])
    files = labelled.find_files("labelled", str(tmp_path))
    examples, left_out = labelled.read_targets(files, "label", False, 0, 0)
    assert left_out["rest of a damaged file"] == 2
    assert {"half \ufffd a pair", "broken"} <= {one.text for one in examples}
    with pytest.raises(UserError, match=r"1 x rest of a damaged file.*its fields are none"):
        labelled.read_targets([str(tmp_path / "no.parquet")], "label", False, 0, 0)


@pytest.mark.skipif(not DATASETS.exists(), reason="HEARTWOOD_DATASETS is not set")
def test_sentiment_of_movie_reviews(tmp_path):
    """Bag-of-words classifiers reach 0.83 to 0.88 on this set (Pang and Lee, cs/0409058)."""
    with zipfile.ZipFile(DATASETS / "movie_reviews" / "movie_reviews.zip") as archive:
        rows = [{"text": archive.read(name).decode("latin-1"), "label": name.split("/")[1]}
                for name in sorted(archive.namelist()) if "/cv" in name]
    path = _write(tmp_path / "reviews.jsonl", rows)
    measured = _build(tmp_path / "m", kind="classes", labelled=path, positive_label="pos",
                   num_buckets=2**16, num_epochs=4, calibration_frac=0.1)
    assert measured["metrics"]["accuracy"] > 0.83 and measured["metrics"]["auc"] > 0.9
    assert measured["metrics"]["calibration_error"] < 0.1
