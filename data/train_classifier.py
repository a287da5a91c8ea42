"""Stage: trains a classifier of documents and measures it on held-out ones.

    python -m data.train_classifier --config=configs/classifier.py --workdir=runs/classifier

Three kinds of training data: reference documents against random ones, documents with scores
of a language model, documents with labels. The classifier is calibrated on a separate split and
measured on another; `metrics.json` has the results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from core.bounds import check_numbers
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import Progress, log
from data.classify import labelled
from data.classify.calibration import calibrate
from data.classify.classifier import KINDS, Classifier, Features, Grams, featurise
from data.classify.dialect import compare_false_positives
from data.classify.labelled import Example
from data.classify.metrics import evaluate_classes, evaluate_regression
from data.readers.storage import fingerprint

FEATURISE_DOCUMENTS = 1024      # per batch


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Reads, splits, trains, calibrates and measures."""
    section = config.classifier
    _check(section)
    examples, left_out = _read(section)
    labels = _labels(section, examples)
    parts = labelled.split(examples, by=section.split_by, seed=section.seed,
                           calibration_frac=section.calibration_frac,
                           heldout_frac=section.heldout_frac)
    _check_parts(parts, labels, left_out)
    if left_out:
        log(f"classifier: {len(examples)} documents{labelled.describe_left_out(left_out)}")
    classifier = fit(parts, labels, section)
    classifier.save(folder)
    if section.limits:
        log(f"classifier: known limits: {section.limits}")
    return {"kind": section.kind, "positive_label": classifier.positive,
            "negative_label": classifier.negative, "fingerprint": classifier.fingerprint,
            "known_limits": section.limits,
            "documents": {name: len(part) for name, part in parts.items()},
            "left_out": dict(sorted(left_out.items())),
            **_measure(classifier, parts["heldout"], section)}


def fit(parts: Mapping[str, list[Example]], labels: tuple[str, ...],
        section: ConfigDict) -> Classifier:
    """Trains a classifier on one part of the documents and calibrates it on another.

    Args:
        parts: `train` and `calibration`, see `data.classify.labelled.split`.
        labels: names of the classes; none for a regression.
        section: ``config.classifier``.
    """
    positive, negative = (("reference", "") if section.kind == "reference" else
                          (section.positive_label, section.negative_label))
    targets = {name: labelled.targets_of(parts[name], labels) for name in ("train", "calibration")}
    weights, bias = train(_featurise(parts["train"], section), targets["train"], section,
                          num_outputs=max(len(labels) - 1, 1))
    raw = Classifier(section.kind, labels, positive, _grams(section), weights, bias, negative,
                     section.limits)
    return calibrate(raw, raw.outputs(_texts(parts["calibration"])), targets["calibration"])


def _measure(classifier: Classifier, examples: list[Example],
             section: ConfigDict) -> dict[str, Any]:
    """Metrics on held-out documents, see `data.classify.metrics` and `data.classify.dialect`."""
    labels, texts = classifier.labels, _texts(examples)
    outputs, targets = classifier.outputs(texts), labelled.targets_of(examples, labels)
    if not labels:
        return evaluate_regression(outputs[:, 0], targets, section.min_positive_score)
    measured = evaluate_classes(outputs, targets, labels, classifier.positive, classifier.negative)
    if section.dialect_markers:
        is_scored = targets == labels.index(classifier.positive or classifier.negative)
        harmless = np.flatnonzero(is_scored if classifier.negative else ~is_scored)
        harmless_texts = [texts[i] for i in harmless]
        measured["dialect"] = compare_false_positives(
            harmless_texts, classifier.score(harmless_texts) >= 0.5, section.dialect_markers)
    return measured


def fingerprint_inputs(config: ConfigDict) -> dict[str, str]:
    """Fingerprint of every training file, by its path."""
    section = config.classifier
    _check(section)
    return {file: fingerprint(file) for files in _files(section).values() for file in files}


def train(features: Features, targets: np.ndarray, section: ConfigDict,
          num_outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Minimises cross-entropy, or the squared error of a regression, with Adam.

    Args:
        features: of the documents; `targets` as from `data.classify.labelled.targets_of`.
        section: num_buckets, num_epochs, batch_size, learning_rate, eps, seed.

    Returns:
        weights [num_outputs, num_buckets] and bias [num_outputs], float32.
    """
    is_regression = section.kind == "regression"
    batch_size = min(section.batch_size, len(targets))
    num_steps = section.num_epochs * (len(targets) // batch_size)
    optimizer = optax.adam(optax.linear_schedule(section.learning_rate, 0.0, num_steps),
                           eps=section.eps)
    start = float(targets.mean()) if is_regression else 0.0
    params = {"weights": jnp.zeros((num_outputs, section.num_buckets)),
              "bias": jnp.full(num_outputs, start)}
    state = optimizer.init(params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        loss, grads = jax.value_and_grad(
            lambda params: _loss(_apply(params, batch, batch_size), batch["targets"],
                                 is_regression))(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    with Progress("classifier", num_steps) as progress:
        for number, batch in enumerate(_batches(features, targets, section, batch_size), start=1):
            params, state, loss = step(params, state, batch)
            if number % 100 == 0:
                progress.update(number, loss=float(loss))
    return np.asarray(params["weights"]), np.asarray(params["bias"])


def _apply(params: Mapping[str, jax.Array], batch: Mapping[str, jax.Array],
           batch_size: int) -> jax.Array:
    """Outputs of a batch: [batch_size, num_outputs]. Padding belongs to document `batch_size`."""
    terms = params["weights"][:, batch["buckets"]] * batch["values"][None]
    sums = jax.ops.segment_sum(terms.T, batch["owners"], batch_size + 1, indices_are_sorted=True)
    return sums[:batch_size] + params["bias"][None]


def _loss(outputs: jax.Array, targets: jax.Array, is_regression: bool) -> jax.Array:
    if is_regression:
        return jnp.mean((outputs[:, 0] - targets) ** 2)
    rows = jnp.arange(len(targets))
    return -_log_probabilities(outputs)[rows, targets].mean()


def _log_probabilities(outputs: jax.Array) -> jax.Array:
    """Log-softmax over the first label's 0 and the outputs."""
    return jax.nn.log_softmax(jnp.pad(outputs, ((0, 0), (1, 0))))


def _batches(features: Features, targets: np.ndarray, section: ConfigDict,
             batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Minibatches of every epoch in a seeded order, padded to a power of two n-grams to limit
    the number of compilations."""
    order_key = np.random.default_rng(section.seed)
    sizes = np.diff(features.offsets)
    for _ in range(section.num_epochs):
        order = order_key.permutation(len(targets))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            chosen = order[start:start + batch_size]
            places = np.concatenate([np.arange(features.offsets[i], features.offsets[i + 1])
                                     for i in chosen])
            missing = (1 << max(len(places) - 1, 1).bit_length()) - len(places)
            owners = np.repeat(np.arange(batch_size), sizes[chosen])
            yield {"buckets": np.pad(features.buckets[places], (0, missing)),
                   "values": np.pad(features.values[places], (0, missing)),
                   "owners": np.pad(owners, (0, missing), constant_values=batch_size),
                   "targets": targets[chosen]}


def _featurise(examples: list[Example], section: ConfigDict) -> Features:
    texts = _texts(examples)
    parts = [featurise(texts[start:start + FEATURISE_DOCUMENTS], section.num_buckets,
                       _grams(section)) for start in range(0, len(texts), FEATURISE_DOCUMENTS)]
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    return Features(np.concatenate([part.buckets for part in parts]),
                    np.concatenate([part.values for part in parts]),
                    np.concatenate([[0], np.cumsum(sizes)]))


def _grams(section: ConfigDict) -> Grams:
    return Grams(section.max_words, section.min_chars, section.max_chars)


def _texts(examples: list[Example]) -> list[str]:
    return [example.text for example in examples]


def _files(section: ConfigDict) -> dict[str, list[str]]:
    """Training files by the config field that names them."""
    fields = ("positives", "negatives") if section.kind == "reference" else ("labelled",)
    return {field: labelled.find_files(f"classifier.{field}", section[field]) for field in fields}


def _read(section: ConfigDict) -> tuple[list[Example], Counter[str]]:
    files = _files(section)
    if section.kind == "reference":
        return labelled.read_reference(files["positives"], files["negatives"],
                                       section.max_documents, section.seed)
    return labelled.read_targets(files["labelled"], section.target_field,
                                 section.kind == "regression", section.max_documents, section.seed)


def _labels(section: ConfigDict, examples: list[Example]) -> tuple[str, ...]:
    """Names of the classes, sorted; for a reference classifier "random" comes first."""
    if section.kind == "regression":
        return ()
    labels = (("random", "reference") if section.kind == "reference"
              else tuple(sorted({str(example.target) for example in examples})))
    if len(labels) < 2:
        raise UserError(f"classifier.labelled={section.labelled!r}",
                        f"holds the labels {list(labels)} in `{section.target_field}`",
                        "give documents of two labels or more")
    for field in ("positive_label", "negative_label"):
        if section.kind == "classes" and section[field] not in ("", *labels):
            raise UserError(f"classifier.{field}={section[field]!r}",
                            f"is not one of the labels {', '.join(labels)}",
                            f"set --config.classifier.{field} to one of them, or to ''")
    return labels


def _check(section: ConfigDict) -> None:
    """Raises `UserError` for the first invalid field."""
    if section.kind not in KINDS:
        raise UserError(f"classifier.kind={section.kind!r}", "there is no such kind",
                        f"choose one of {', '.join(KINDS)}")
    if section.split_by not in ("host", "document"):
        raise UserError(f"classifier.split_by={section.split_by!r}", "there is no such split",
                        "choose host or document")
    check_numbers(section, "classifier")
    if bool(section.min_chars) != bool(section.max_chars) or section.min_chars > section.max_chars:
        raise UserError(f"classifier.min_chars={section.min_chars} and "
                        f"max_chars={section.max_chars}", "bound no length of n-grams",
                        "set e.g. 2 and 5, or both to 0 for none")
    scored = [field for field in ("positive_label", "negative_label") if section[field]]
    if len(scored) == 2:
        raise UserError("classifier.positive_label and negative_label", "both name a label",
                        "set one of them to ''")
    if section.dialect_markers and not (section.kind == "reference" or (
            section.kind == "classes" and scored)):
        raise UserError("classifier.dialect_markers", "needs documents of which a label says that "
                        "they are harmless", "set --config.classifier.negative_label, or no marker")
    if section.num_buckets.bit_count() != 1:
        raise UserError(f"classifier.num_buckets={section.num_buckets}",
                        "must be a power of two", "set e.g. 1048576")


def _check_parts(parts: Mapping[str, list[Example]], labels: tuple[str, ...],
                 left_out: Mapping[str, int]) -> None:
    """Raises `UserError` when a split is empty, or lacks one of the labels."""
    for name, part in parts.items():
        present = {example.target for example in part}
        missing = [label for label in labels if label not in present]
        if missing or not part:
            of_label = f" labelled {missing[0]!r}" if missing else ""
            raise UserError(f"the {name} split of the documents", f"holds none{of_label}"
                            f"{labelled.describe_left_out(left_out)}",
                            "give more documents, or pages of more hosts, or set "
                            "--config.classifier.split_by=document")


STAGE = Stage("classifier", build, inputs=fingerprint_inputs)

if __name__ == "__main__":
    run_stage(STAGE)
