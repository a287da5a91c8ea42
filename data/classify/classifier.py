"""Classifier of documents: a linear model over hashed n-grams, run in numpy.

A document is a sparse vector over n-grams. Its entries are the square roots of the n-grams' shares
of the document, so every vector has length 1 (the Hellinger kernel). fastText (arXiv:1607.01759)
applies a linear layer to averaged embeddings; that too is linear in the n-grams, so the table here
holds the products, one column per n-gram. N-grams of characters, as fastText's subwords
(arXiv:1607.04606), recognise misspelt words in short posts. `data.train_classifier` trains it.

A folder holds `weights.npy` and `classifier.json`, which describes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core.artifacts import read_json, write_json
from core.errors import UserError
from data.dedup.shingles import hash_grams
from data.dedup.words import hash_chars, hash_words
from data.tables import write_array

KINDS = ("reference", "regression", "classes")
MAX_CHARS = 500_000         # a longer text is truncated
CHUNK_CHARS = 1 << 20       # text per batch; memory is about 30 bytes per character, and
                            # 20 more per length of n-grams of characters

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


@dataclasses.dataclass(frozen=True)
class Grams:
    """Which n-grams are features.

    Attributes:
        max_words: 1 to so many words.
        min_chars, max_chars: of the characters of the words, a blank between and around them;
            0 and 0 for none.
    """

    max_words: int
    min_chars: int = 0
    max_chars: int = 0


def featurise(texts: Sequence[str], num_buckets: int, grams: Grams) -> Features:
    """Turns texts into vectors of their n-grams.

    Args:
        num_buckets: a power of two; n-grams with one bucket are not distinguished.
    """
    texts = [text[:MAX_CHARS] for text in texts]
    lengths = [(hash_words, range(1, grams.max_words + 1))]
    if grams.max_chars:
        lengths.append((hash_chars, range(grams.min_chars, grams.max_chars + 1)))
    keys = np.sort(np.concatenate([keys for hash_units, wanted in lengths
                                   for keys in _keys(*hash_units(texts), wanted, num_buckets)]))
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[:len(keys)])
    counts = np.diff(begins, append=len(keys))
    distinct = keys[begins]
    owners = (distinct >> _OWNER_SHIFT).astype(np.int64)
    offsets = np.searchsorted(owners, np.arange(len(texts) + 1))
    totals = np.bincount(owners, counts, len(texts))
    buckets = (distinct & np.uint64(0xFFFFFFFF)).astype(np.int32)
    return Features(buckets, np.sqrt(counts / totals[owners]).astype(np.float32), offsets)


def _keys(units: np.ndarray, offsets: np.ndarray, lengths: Iterable[int],
          num_buckets: int) -> Iterator[np.ndarray]:
    """For each length, document and bucket of every n-gram within a document, as one uint64.

    Args:
        units, offsets: as `hash_words` gives them.
    """
    owners = np.repeat(np.arange(len(offsets) - 1, dtype=np.uint64), np.diff(offsets))
    shift = np.uint64(64 - (num_buckets.bit_length() - 1))
    for length in lengths:
        grams = hash_grams(units, length)
        first, last = owners[:len(grams)], owners[length - 1:]
        yield ((first << _OWNER_SHIFT) | (grams >> shift))[first == last]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Linear classifier of texts.

    Attributes:
        kind: "reference" (reference documents against random ones), "regression" (a number)
            or "classes".
        labels: names of the classes; none for a regression.
        positive: the label whose probability is the score; "" where `negative` is given, or to
            score the confidence, which is the probability of the most probable label.
        grams: the features.
        weights: [num_outputs, num_buckets] float32. The first label's logit is 0 and has no row.
        bias: [num_outputs] float32.
        negative: the label such that the score is 1 minus its probability, or "".
        limits: what a user has to know about its judgements, a paragraph; may be empty.
    """

    kind: str
    labels: tuple[str, ...]
    positive: str
    grams: Grams
    weights: np.ndarray
    bias: np.ndarray
    negative: str = ""
    limits: str = ""

    def score(self, texts: Sequence[str]) -> np.ndarray:
        """Probability of the positive class, or the value of a regression: [num_texts] float64."""
        if self.kind == "regression":
            return self.outputs(texts)[:, 0]
        return scores_of(self.probabilities(texts), self.labels, self.positive, self.negative)

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
        features = featurise(texts, self.weights.shape[1], self.grams)
        owners = features.owners
        return np.stack([np.bincount(owners, row[features.buckets] * features.values, len(texts))
                         for row in self.weights], axis=1) + self.bias

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the model, 16 hex digits."""
        state = hashlib.sha256(json.dumps(self._description()).encode())
        state.update(np.ascontiguousarray(self.weights, "<f4"))
        return state.hexdigest()[:16]

    def _description(self) -> dict[str, Any]:
        """What is written beside the weights; a field at its default is left out, so that the
        fingerprint of a classifier does not depend on fields that came after it."""
        later = {"min_chars": self.grams.min_chars, "max_chars": self.grams.max_chars,
                 "negative": self.negative, "limits": self.limits}
        return {"kind": self.kind, "labels": list(self.labels), "positive": self.positive,
                "max_words": self.grams.max_words, "num_buckets": self.weights.shape[1],
                "bias": self.bias.tolist(), **{name: value for name, value in later.items()
                                               if value}}

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
            Grams(described["max_words"], described.get("min_chars", 0),
                  described.get("max_chars", 0)),
            weights, np.array(described["bias"], np.float32),
            described.get("negative", ""), described.get("limits", ""))
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


def scores_of(probabilities: np.ndarray, labels: Sequence[str], positive: str,
              negative: str) -> np.ndarray:
    """Scores from the probabilities of the labels, see `Classifier`: [n, num_labels] -> [n]."""
    if positive:
        return probabilities[:, list(labels).index(positive)]
    if negative:
        return 1 - probabilities[:, list(labels).index(negative)]
    return probabilities.max(axis=1)


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
