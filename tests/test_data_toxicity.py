"""The toxicity classifier: its features, score and measures against their definitions, its limits
wherever it is used, and the removal of documents in curation."""

import itertools
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import classifier as config_file
from configs import quickstart
from core.artifacts import write_json
from core.errors import UserError
from data import curate, train_classifier
from data.classify import labelled
from data.classify import metrics as measures
from data.classify.classifier import Classifier, Grams, featurise, load_classifier
from data.classify.dialect import compare_false_positives
from data.classify.roc import area_difference, area_interval
from data.dedup.words import hash_chars, normalise_words
from scripts.bench import classifier as bench

DATASETS = Path(os.environ.get("HEARTWOOD_DATASETS", "/nonexistent"))
POSTS = DATASETS / "hate_offensive" / "labelled.jsonl.gz"
INSULTS = ("grubble", "snarkwit", "vogonish")
WORDS = ("river", "stone", "cloud", "engine", "lantern", "copper", "meadow", "winter", "harbour")


def test_ngrams_of_characters_are_those_of_the_normalised_text():
    texts = ["Hé,  you!", "", "a  b", "?!", "猫好 a1"]
    chars, offsets = hash_chars(texts)
    names: dict[int, str] = {}
    for text, start, stop in zip(texts, offsets, offsets[1:]):
        words = normalise_words(text)
        spelt = f" {' '.join(words)} " if words else ""
        assert stop - start == len(spelt)
        for char, value in zip(spelt, chars[start:stop].tolist()):
            assert names.setdefault(value, char) == char
    assert len(set(names.values())) == len(names)
    features = featurise(texts, 2**30, Grams(1, 2, 3))
    for i, text in enumerate(texts):
        words = normalise_words(text)
        spelt = f" {' '.join(words)} " if words else ""
        grams = words + [spelt[k:k + n] for n in (2, 3) for k in range(len(spelt) - n + 1)]
        values = features.values[features.offsets[i]:features.offsets[i + 1]]
        distinct = {("word", word) for word in words} | set(grams[len(words):])
        assert len(values) == len(distinct)
        assert np.isclose((values.astype(float) ** 2).sum(), 1 if words else 0)


def test_misspelt_words_share_ngrams_with_their_like():
    def shared(grams):
        first, second = (set(featurise([text], 2**30, grams).buckets.tolist())
                         for text in ("snarkwit", "snarkwitt"))
        return len(first & second) / len(first)

    assert shared(Grams(1)) == 0 and shared(Grams(1, 2, 5)) > 0.7


def _model(**changes):
    key = np.random.default_rng(0)
    return Classifier(**dict(
        kind="classes", labels=("hate", "neither", "offensive"), positive="",
        grams=Grams(1, 2, 4), weights=key.normal(size=(2, 2**10)).astype(np.float32),
        bias=key.normal(size=2).astype(np.float32), negative="neither",
        limits="It judges words.") | changes)


def test_the_score_is_one_minus_the_probability_of_the_harmless_label(tmp_path):
    model, texts = _model(), ["a river", "", "grubble!"]
    probabilities = model.probabilities(texts)
    assert np.allclose(model.score(texts), probabilities[:, 0] + probabilities[:, 2])
    model.save(tmp_path)
    again = load_classifier(tmp_path)
    assert (again.score(texts) == model.score(texts)).all()
    assert again.limits == "It judges words." and again.grams == model.grams
    described = json.loads((tmp_path / "classifier.json").read_text())
    for change in ({"limits": ""}, {"negative": "hate"}, {"max_chars": 3}):
        (tmp_path / "classifier.json").write_text(json.dumps(described | change))
        with pytest.raises(UserError, match="retrain it"):
            load_classifier(tmp_path)


def test_classifiers_without_these_fields_are_still_read(tmp_path):
    """A folder as it was written before there were n-grams of characters and a harmless label."""
    np.save(tmp_path / "weights.npy", np.arange(8, dtype="<f4").reshape(2, 4))
    (tmp_path / "classifier.json").write_text(json.dumps({
        "kind": "classes", "labels": ["a", "b", "c"], "positive": "b", "max_words": 2,
        "num_buckets": 4, "bias": [0.5, -1.0], "fingerprint": "e98da720430591a4"}))
    model = load_classifier(tmp_path)
    assert (model.grams, model.negative, model.limits) == (Grams(2), "", "")
    assert model.score(["one text"]) == model.probabilities(["one text"])[:, 1]


def test_area_interval_and_difference_against_their_definition():
    key = np.random.default_rng(0)
    actual = key.random(60) < 0.4
    ours = np.round(key.normal(size=60) + actual, 1)        # with ties
    theirs = np.round(ours + key.normal(size=60), 1)

    def components(scores):
        wins = np.array([[1.0 if p > n else 0.5 if p == n else 0.0 for n in scores[~actual]]
                         for p in scores[actual]])
        return wins.mean(axis=1), wins.mean(axis=0), wins.mean()

    (v10, v01, area), (w10, w01, other) = components(ours), components(theirs)
    stderr = np.sqrt(v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01))
    assert np.allclose(area_interval(ours, actual), (area - 1.96 * stderr, area + 1.96 * stderr),
                       atol=1e-4)
    covariance = np.cov(v10, w10) / len(v10) + np.cov(v01, w01) / len(v01)
    half = 1.96 * np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference, interval = area_difference(ours, theirs, actual)
    assert difference == pytest.approx(area - other)
    assert np.allclose(interval, (difference - half, difference + half), atol=1e-4)
    assert area_difference(ours, ours, actual) == (0, (0, 0))
    assert area_interval(ours, np.arange(60) == 3) is None, "of one positive"


def test_area_intervals_hold_the_true_area_in_95_of_100_samples():
    key, true_area, held = np.random.default_rng(1), 0.76025, 0     # of normals 1 apart
    for _ in range(400):
        actual = np.arange(200) < 80
        low, high = area_interval(key.normal(size=200) + actual, actual)
        held += low < true_area < high
    assert 0.92 < held / 400 < 0.98


def test_table_of_thresholds_against_hand_counts():
    scores = np.array([0.95, 0.8, 0.8, 0.6, 0.4, 0.2])
    actual = np.array([True, True, False, True, False, True])
    rows = measures.decision_table(scores, actual)
    assert [row["threshold"] for row in rows[:9]] == [i / 10 for i in range(1, 10)]
    assert rows[4] == {"min_precision": None, "threshold": 0.5, "precision": 0.75, "recall": 0.75,
                       "f1": pytest.approx(0.75), "flagged_frac": pytest.approx(4 / 6),
                       "false_positive_frac": 0.5}
    assert rows[9]["min_precision"] == 0.9 and rows[9]["threshold"] == 0.95
    assert rows[9]["recall"] == 0.25 and rows[9]["false_positive_frac"] == 0
    none = measures.decision_table(scores, ~actual)
    assert none[9] == {"min_precision": 0.9, "threshold": None}
    everything = measures.decision_table(scores, actual | True)
    assert everything[10]["threshold"] == 0.2, "the lowest that is precise enough"


def test_measures_of_a_harmless_label_against_hand_counts():
    """Six posts with probabilities of neither 0.9, 0.2, 0.6, 0.1, 0.3, 0.8; labels a, n, z."""
    neither = np.array([0.9, 0.2, 0.6, 0.1, 0.3, 0.8])
    first = (1 - neither) * 0.75
    outputs = np.log(np.stack([neither, 1 - neither - first], axis=1)) - np.log(first)[:, None]
    targets = np.array([1, 0, 0, 2, 1, 1])
    found = measures.evaluate_classes(outputs, targets, ("a", "n", "z"), "", "n")
    assert found["confusion"] == {"a": {"a": 1, "n": 1, "z": 0}, "n": {"a": 1, "n": 2, "z": 0},
                                  "z": {"a": 1, "n": 0, "z": 0}}
    flagged = {label: row["flagged_frac"] for label, row in found["labels"].items()}
    assert flagged == {"a": 0.5, "n": pytest.approx(1 / 3), "z": 1}
    metrics = found["metrics"]
    assert metrics["precision"] == metrics["recall"] == pytest.approx(2 / 3)
    assert metrics["auc"] == pytest.approx(8 / 9) and metrics["auc_low"] < 8 / 9
    errors = np.array([0.1, 0.2, 0.6, 0.1, 0.7, 0.2])
    assert metrics["brier"] == pytest.approx((errors ** 2).mean())
    assert metrics["calibration_error"] == pytest.approx(errors.sum() / 6), "each in its own bin"
    assert metrics["calibration_bins"] == len(found["calibration"]) == 10
    opposite = measures.evaluate_classes(outputs, targets, ("a", "n", "z"), "n")
    assert opposite["metrics"]["auc"] == metrics["auc"], "the same ranking, read backwards"


def test_false_positives_of_a_dialect_against_hand_counts():
    texts = ["Tryna sleep", "we finna go", "dat dog", "that dog", "a river", "no", "data", "so"]
    flagged = np.array([True, True, False, True, False, False, False, False])
    found = compare_false_positives(texts, flagged, ("tryna", "finna", "dat"))
    marked, others = found["with_markers"], found["without_markers"]
    assert (marked["documents"], marked["flagged"]) == (3, 2)
    assert (others["documents"], others["flagged"]) == (5, 1), "a part of a word is no marker"
    assert (marked["low"], marked["high"]) == pytest.approx((0.2077, 0.9385), abs=1e-4)
    difference = found["difference"]        # Newcombe: 7/15 -+ the hypotenuses
    assert difference["value"] == pytest.approx(7 / 15)
    assert difference["low"] == pytest.approx(7 / 15 - np.hypot(2 / 3 - 0.2077, 0.6245 - 0.2),
                                              abs=1e-4)
    assert difference["high"] == pytest.approx(7 / 15 + np.hypot(0.9385 - 2 / 3, 0.2 - 0.0362),
                                               abs=1e-4)
    alone = compare_false_positives(texts[3:], flagged[3:], ("tryna",))
    assert alone["with_markers"]["low"] is None and alone["difference"] is None


def _post(key, label):
    words = key.choices(WORDS, k=9)
    if label != "neither":
        words[key.randrange(9)] = key.choice(INSULTS)
        words.append("begone" if label == "hate" else "lol")
    elif key.random() < 0.3:
        words.append("tryna")
    return " ".join(words)


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _config(path, **changes):
    config = config_file.get_config("toxicity")
    config.classifier.update(dict(labelled=str(path), num_buckets=2**14, num_epochs=20,
                                  batch_size=16, learning_rate=0.1) | changes)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a classifier of planted insults, and its metrics."""
    key, folder = random.Random(0), tmp_path_factory.mktemp("toxicity")
    labels = [key.choice(("hate", "neither", "offensive")) for _ in range(600)]
    path = _write(folder / "posts.jsonl", [{"text": _post(key, label), "label": label}
                                           for label in labels])
    found = train_classifier.build(_config(path), {}, folder / "classifier")
    write_json(folder / "classifier" / "metrics.json", found)
    return folder / "classifier", found


def test_a_classifier_of_planted_insults_is_measured_and_carries_its_limits(trained):
    folder, found = trained
    assert found["metrics"]["auc"] > 0.99 and found["negative_label"] == "neither"
    assert [*found["labels"]] == ["hate", "neither", "offensive"]
    assert all(row["documents"] > 20 for row in found["labels"].values())
    model = load_classifier(folder)
    assert "African-American English" in model.limits and "1905.12516" in model.limits
    assert found["known_limits"] == model.limits
    dialect = found["dialect"]
    assert dialect["with_markers"]["documents"] > 5 and "proxy" in dialect["note"]
    assert dialect["with_markers"]["documents"] + dialect["without_markers"]["documents"] == (
        found["labels"]["neither"]["documents"])
    bad, good = model.score(["you grubblee lol", "the river of stone"])
    assert bad > 0.5 > good, "an insult is recognised where it is misspelt"


def test_curation_removes_what_is_above_the_bound_and_shows_the_limits(trained, tmp_path, capsys):
    key = random.Random(1)
    pages = {name: "\n".join(f"The {' '.join(key.choices(WORDS, k=9))} was there {i}{name}."
                             for i in range(12)) for name in ("fine", "calm", "rude")}
    pages["rude"] += "\nyou are grubble snarkwit vogonish begone" * 8
    inputs = _write(tmp_path / "pages.jsonl", [
        {"text": text, "source": name} for name, text in pages.items()])
    config = quickstart.get_config()
    config.curate.update(inputs=inputs, max_corrupt_frac=0.5)
    config.curate.presets = dict(default=(), code=())
    config.curate.heldout.frac = 0.0
    config.curate.classifiers.toxicity.update(model=str(trained[0]), max_score=0.4)
    folder = tmp_path / "corpus"
    folder.mkdir()
    metrics = curate.build(config, {}, folder, num_workers=1)
    assert metrics["removed"] == {"classifier_toxicity": 1} and metrics["documents"] == 2
    assert "known limits of the classifier toxicity: Classifiers" in capsys.readouterr().err
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "1905.12516" in manifest["classifiers"][0]["known_limits"]
    assert "Known limits: Classifiers" in (folder / "report.html").read_text()
    config.curate.classifiers.toxicity.max_score = 1.0
    (tmp_path / "again").mkdir()
    assert curate.build(config, {}, tmp_path / "again", num_workers=1)["documents"] == 3


def test_equal_texts_are_never_on_both_sides(tmp_path):
    key = random.Random(0)
    texts = [_post(key, "neither") for _ in range(200)]
    rows = [{"text": form(text), "label": label} for label, text in zip(
        itertools.cycle(("neither", "hate")), texts) for form in (str, str.upper, "  {} ".format)]
    contested = rows[0] | {"label": "hate"}
    path = _write(tmp_path / "posts.jsonl", [*rows, contested])
    examples, left_out = labelled.read_targets([path], "label", False, 0, 0)
    assert left_out == {"exact duplicate": 400, "exact duplicate with another target": 1}
    parts = labelled.split(examples, by="document", calibration_frac=0.2, heldout_frac=0.2, seed=0)
    sides = [{" ".join(one.text.lower().split()) for one in part} for part in parts.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 200
    doubled = labelled.split(examples * 2, by="document", calibration_frac=0.2, heldout_frac=0.2,
                             seed=0)
    assert {name: len(part) // 2 for name, part in doubled.items()} == {
        name: len(part) for name, part in parts.items()}, "their hash decides alone"


@pytest.mark.parametrize(("changes", "message"), [
    (dict(labelled="{folder}/none.jsonl"),
     r"target_field='label'.*9 x `label` is missing\); its fields are text: set "),
    (dict(labelled="{folder}/one.jsonl"), r"holds the labels \['neither'\] in `label`"),
    (dict(labelled="{folder}/empty.jsonl"), r"can be used \(left out: 9 x empty\)"),
    (dict(labelled="{folder}/two.jsonl"), "negative_label='neither': is not one of the labels"),
    (dict(positive_label="hate"), "positive_label and negative_label: both name a label"),
    (dict(min_chars=6), "min_chars=6 and max_chars=5: bound no length"),
    (dict(max_chars=0), "min_chars=2 and max_chars=0: bound no length"),
    (dict(max_chars=99), "max_chars=99: must be a whole number, at least 0 and at most 16"),
    (dict(negative_label=""), "dialect_markers: needs documents of which a label says")])
def test_bad_input_is_a_user_error(tmp_path, changes, message):
    rows = {"none": {"text": "a post"}, "one": {"text": "a post", "label": "neither"},
            "empty": {"text": " ", "label": "neither"}}
    for name, row in rows.items():
        _write(tmp_path / f"{name}.jsonl", [row | {"text": row["text"] + f" {i}" * (
            name != "empty")} for i in range(9)])
    _write(tmp_path / "two.jsonl", [{"text": f"a {i}", "label": "ab"[i % 2]} for i in range(90)])
    given = {name: value.format(folder=tmp_path) if isinstance(value, str) else value
             for name, value in changes.items()}
    with pytest.raises(UserError, match=message):
        train_classifier.build(_config(**dict(path=tmp_path / "two.jsonl") | given), {},
                              tmp_path / "out")


def test_the_benchmark_compares_pairs_and_refuses_a_missing_peer(tmp_path):
    key = np.random.default_rng(0)
    actual = np.arange(300) < 200
    scores = key.normal(size=300) + 2 * actual
    sides = {"ours": {"scores": scores, "train_secs": 1.0, "score_secs": 0.5},
             "worse": {"scores": scores + key.normal(size=300), "train_secs": 2.0,
                       "score_secs": 1.0}}
    rows = bench.compare(sides, actual)
    worse = rows["worse"]
    assert worse["difference"] == pytest.approx(rows["ours"]["auc"] - worse["auc"])
    assert 0 < worse["difference_low"] < worse["difference_high"] and worse["ratio"] == 2
    with pytest.raises(UserError, match=r"nowhere.*cannot be run.*--peer_python"):
        bench.run_peers(str(tmp_path / "nowhere"), {}, "neither", 1)


@pytest.mark.full
def test_the_peers_of_the_benchmark_learn_the_planted_insults(tmp_path):
    pytest.importorskip("sklearn")
    key = random.Random(0)
    rows = [{"text": _post(key, label), "label": label} for label in (
        key.choice(("hate", "neither", "offensive")) for _ in range(300))]
    examples, _ = labelled.read_targets([_write(tmp_path / "a.jsonl", rows)], "label", False, 0, 0)
    parts = labelled.split(examples, by="document", calibration_frac=0.2, heldout_frac=0.2, seed=0)
    actual = np.array([one.target != "neither" for one in parts["heldout"]])
    found = bench.run_peers(sys.executable, parts, "neither", 1)
    assert {*found} == {"TF-IDF words", "TF-IDF chars"}
    for side in found.values():
        assert side["train_secs"] <= side["search_secs"]
        assert measures.area_under_curve(side["scores"], actual) > 0.95


@pytest.mark.full
@pytest.mark.skipif(not POSTS.exists(), reason="HEARTWOOD_DATASETS is not set")
def test_labelled_posts(tmp_path):
    """Harmless posts against hateful and offensive ones, on a held-out fifth."""
    config = config_file.get_config("toxicity")
    config.classifier.labelled = str(POSTS)
    found = train_classifier.build(config, {}, tmp_path / "classifier")
    assert 3700 < found["documents"]["heldout"] < 3950
    metrics = found["metrics"]
    assert metrics["auc"] >= 0.97 and metrics["auc_high"] - metrics["auc_low"] < 0.015
    assert metrics["calibration_error"] < 0.03 and metrics["brier"] < 0.05
    assert found["labels"]["offensive"]["flagged_frac"] > 0.95
    assert found["labels"]["hate"]["flagged_frac"] > 0.8
