"""Classifier of documents: a linear model over hashed word n-grams, run in numpy.

A document is a sparse vector over n-grams. Its entries are the square roots of the n-grams' shares
of the document, so every vector has length 1 (the Hellinger kernel). fastText (arXiv:1607.01759)
applies a linear layer to averaged embeddings; that too is linear in the n-grams, so the table here
holds the products, one column per n-gram. It is trained by `data.train_classifier`.

A folder holds `weights.npy` and `classifier.json`, which describes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from core.artifacts import read_json, write_json
from core.errors import UserError
from data.dedup.shingles import hash_grams
from data.dedup.words import hash_words
from data.tables import write_array

KINDS = ("reference", "regression", "classes")
MAX_CHARS = 500_000         # a longer text is truncated
CHUNK_CHARS = 1 << 20       # text per batch; memory is about 30 bytes a character

_OWNER_SHIFT = np.uint64(32)


@dataclasses.dataclass(frozen=True)
class Features:
    """Sparse vectors of documents, document after document.

    Attributes:
        buckets: [n] int32, bucket of the n-gram; ascending and distinct within a document.
        values: [n] float32, the square root of its share of the document's n-grams.
        offsets: [num_documents + 1] int64; document i has ``offsets[i]:offsets[i + 1]``.
    """

    buckets: np.ndarray
    values: np.ndarray
    offsets: np.ndarray

    @property
    def owners(self) -> np.ndarray:
        """[n] int64, the document of each n-gram."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def featurise(texts: Sequence[str], num_buckets: int, max_words: int) -> Features:
    """Turns texts into vectors of their n-grams of 1 to `max_words` words.

    Args:
        num_buckets: a power of two; n-grams with one bucket are not distinguished.
    """
    words, word_offsets = hash_words([text[:MAX_CHARS] for text in texts])
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff(word_offsets))
    shift = np.uint64(64 - (num_buckets.bit_length() - 1))
    keys_by_length = []
    for length in range(1, max_words + 1):
        grams = hash_grams(words, length)
        first, last = owners[:len(grams)], owners[length - 1:]
        keys = (first << _OWNER_SHIFT) | (grams >> shift)
        keys_by_length.append(keys[first == last])
    keys = np.sort(np.concatenate(keys_by_length))
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[:len(keys)])
    counts = np.diff(begins, append=len(keys))
    distinct = keys[begins]
    owners = (distinct >> _OWNER_SHIFT).astype(np.int64)
    offsets = np.searchsorted(owners, np.arange(len(texts) + 1))
    totals = np.bincount(owners, counts, len(texts))
    buckets = (distinct & np.uint64(0xFFFFFFFF)).astype(np.int32)
    return Features(buckets, np.sqrt(counts / totals[owners]).astype(np.float32), offsets)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Linear classifier of texts.

    Attributes:
        kind: "reference" (reference documents against random ones), "regression" (a number)
            or "classes".
        labels: names of the classes; none for a regression.
        positive: the label whose probability is the score; "" scores the confidence, which is
            the probability of the most probable label.
        max_words: longest n-gram.
        weights: [num_outputs, num_buckets] float32. The first label's logit is 0 and has no row.
        bias: [num_outputs] float32.
    """

    kind: str
    labels: tuple[str, ...]
    positive: str
    max_words: int
    weights: np.ndarray
    bias: np.ndarray

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Probability of the positive class, or the value of a regression: [num_texts] float64."""
        if self.kind == "regression":
            return self.outputs(texts)[:, 0]
        probabilities = self.probabilities(texts)
        if not self.positive:
            return probabilities.max(axis=1)
        return probabilities[:, self.labels.index(self.positive)]

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Probability of each label: [num_texts, num_labels] float64.

        Raises:
            UserError: the classifier is a regression.
        """
        if self.kind == "regression":
            raise UserError("a classifier of kind 'regression'", "has no labels",
                            "use its score, or train one of kind 'classes'")
        return to_probabilities(self.outputs(texts))

    def classify(self, texts: Sequence[str]) -> list[str]:
        """The most probable label of each text."""
        return [self.labels[i] for i in self.probabilities(texts).argmax(axis=1).tolist()]

    def outputs(self, texts: Sequence[str]) -> np.ndarray:
        """Outputs of the linear model: [num_texts, num_outputs] float64.

        The outputs of a text do not depend on the other texts.
        """
        chunks = [self._outputs(chunk) for chunk in _chunks(texts)]
        return np.concatenate([np.zeros((0, len(self.bias))), *chunks])

    def _outputs(self, texts: Sequence[str]) -> np.ndarray:
        features = featurise(texts, self.weights.shape[1], self.max_words)
        owners = features.owners
        return np.stack([np.bincount(owners, row[features.buckets] * features.values, len(texts))
                         for row in self.weights], axis=1) + self.bias

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the model, 16 hex digits."""
        state = hashlib.sha256(json.dumps(self._description()).encode())
        state.update(np.ascontiguousarray(self.weights, "<f4"))
        return state.hexdigest()[:16]

    def _description(self) -> dict:
        return {"kind": self.kind, "labels": list(self.labels), "positive": self.positive,
                "max_words": self.max_words, "num_buckets": self.weights.shape[1],
                "bias": self.bias.tolist()}

    def save(self, folder: Path) -> None:
        """Writes the classifier's two files into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        write_array(folder / "weights.npy", self.weights.astype("<f4"))
        write_json(folder / "classifier.json",
                   self._description() | {"fingerprint": self.fingerprint})


def load_classifier(folder: Path) -> Classifier:
    """Reads a classifier folder.

    Raises:
        UserError: a file is missing, damaged, or changed since it was written.
    """
    described = read_json(Path(folder) / "classifier.json")
    try:
        weights = np.load(Path(folder) / "weights.npy", allow_pickle=False)
        classifier = Classifier(
            described["kind"], tuple(described["labels"]), described["positive"],
            described["max_words"], weights, np.array(described["bias"], np.float32))
        intact = classifier.fingerprint == described["fingerprint"]
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise UserError(str(folder), f"is not a readable classifier ({error})",
                        "retrain it with `python -m data.train_classifier`") from None
    if not intact:
        raise UserError(str(folder), "classifier.json and weights.npy do not belong together",
                        "retrain it with `python -m data.train_classifier`")
    return classifier


def to_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Softmax over outputs, the first label's being 0: [n, num_labels - 1] -> [n, num_labels]."""
    logits = np.pad(outputs, ((0, 0), (1, 0)))
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Neighbouring texts of about `CHUNK_CHARS` characters."""
    start = num_chars = 0
    for place, text in enumerate(texts):
        num_chars += min(len(text), MAX_CHARS)
        if num_chars >= CHUNK_CHARS:
            yield texts[start:place + 1]
            start, num_chars = place + 1, 0
    if start < len(texts):
        yield texts[start:]
