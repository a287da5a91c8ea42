"""Overlap of a generated summary or translation with references: ROUGE, BLEU, chrF.

Words of ROUGE are those of `eval.measures.matching.split_words`: on ASCII text the tokens of
`rouge_score` without its stemmer, and letters of all scripts besides, of which `rouge_score` keeps
only a to z, so that a perfect Russian summary scores 1 and not 0. BLEU and chrF have sacrebleu's
defaults.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.errors import UserError
from eval.measures.matching import split_words

BLEU_ORDER = 4
CHRF_ORDER = 6

# Of sacrebleu's tokenisation "13a", that of mteval-v13a.pl: signs that stand alone wherever they
# are; points and commas do, unless a digit is on that side; a hyphen does after a digit.
_SIGNS = "".join(sorted(set(string.punctuation) - set("'-.,")))
_13A = tuple((re.compile(pattern), spaced) for pattern, spaced in (
    (f"([{re.escape(_SIGNS)}])", r" \1 "), (r"([^0-9])([.,])", r"\1 \2 "),
    (r"([.,])([^0-9])", r" \1 \2"), (r"([0-9])(-)", r"\1 \2 ")))
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


class Overlap(NamedTuple):
    """Shares of what two texts have in common, from 0 to 1."""

    precision: float
    recall: float
    f1: float


def rouge_n(answer: str, reference: str, n: int) -> Overlap:
    """ROUGE-N (Lin 2004, section 2): n-grams in common, each as often as both have it."""
    given, expected = (_ngrams(split_words(text), n) for text in (answer, reference))
    return _overlap(sum((given & expected).values()), given.total(), expected.total())


def rouge_l(answer: str, reference: str) -> Overlap:
    """ROUGE-L (Lin 2004, section 3.1): the longest common subsequence of the whole texts' words.

    Line ends do not matter; the union over sentences (ROUGE-Lsum) is another measure.
    """
    given, expected = split_words(answer), split_words(reference)
    return _overlap(_longest_common_subsequence(given, expected), len(given), len(expected))


def rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L, each against the reference that is best in it."""
    measured = {"rouge1": lambda text: rouge_n(answer, text, 1),
                "rouge2": lambda text: rouge_n(answer, text, 2),
                "rougeL": lambda text: rouge_l(answer, text)}
    return {name: max((measure(text).f1 for text in references), default=0.0)
            for name, measure in measured.items()}


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of a corpus, from 0 to 100 (Papineni et al. 2002), with sacrebleu's defaults.

    Case counts; tokenisation 13a; where an order has no match, its count is 1/2, 1/4 ... in turn
    ("exp" smoothing); the reference length of an answer is the one closest to its own.

    Args:
        references: one or more for each answer.

    Raises:
        UserError: the numbers of answers and of sets of references differ, or a set is empty.
    """
    _check_sizes(answers, references)
    shared, total = np.zeros(BLEU_ORDER), np.zeros(BLEU_ORDER)
    num_given = num_expected = 0
    for answer, texts in zip(answers, references):
        given, expected = tokenize_13a(answer), [tokenize_13a(text) for text in texts]
        num_given += len(given)
        num_expected += min((len(words) for words in expected),
                            key=lambda size: (abs(size - len(given)), size))
        for n in range(1, BLEU_ORDER + 1):
            most = Counter()
            for words in expected:
                most |= _ngrams(words, n)
            counts = _ngrams(given, n)
            shared[n - 1] += (counts & most).total()
            total[n - 1] += counts.total()
    if not shared.any() or not total.all():
        return 0.0
    num_missing = np.cumsum(shared == 0)
    precisions = np.where(shared > 0, shared, 0.5 ** num_missing) / total
    brevity = min(1.0, math.exp(1 - num_expected / num_given))
    return float(100 * brevity * math.exp(np.mean(np.log(precisions))))


def tokenize_13a(text: str) -> list[str]:
    """The tokens of sacrebleu's "13a": of mteval-v13a.pl, for languages of the West."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, sign in _ENTITIES:
        text = text.replace(entity, sign)
    text = f" {text} "
    for pattern, spaced in _13A:
        text = pattern.sub(spaced, text)
    return text.split()


def chrf(answers: Sequence[str], references: Sequence[Sequence[str]], *, beta: float = 2.0
         ) -> float:
    """chrF of a corpus, from 0 to 100 (Popovic 2015; `beta` 2 by Popovic 2016).

    The F-score of mean precision and mean recall of n-grams of 1 to 6 characters, white space
    aside; orders that answers or references lack are left out of the means, as sacrebleu does. Of
    several references the one with the best score of its own counts.

    Raises:
        UserError: see `bleu`.
    """
    _check_sizes(answers, references)
    sums = np.zeros((CHRF_ORDER, 3))
    for answer, texts in zip(answers, references):
        sums += max((_chrf_counts(answer, text) for text in texts),
                    key=lambda counts: _chrf_score(counts, beta))
    return _chrf_score(sums, beta)


def _chrf_counts(answer: str, reference: str) -> np.ndarray:
    """(n-grams in common, of the answer, of the reference) of each order: [6, 3]."""
    given, expected = ("".join(text.split()) for text in (answer, reference))
    counts = []
    for n in range(1, CHRF_ORDER + 1):
        ours, theirs = _ngrams(given, n), _ngrams(expected, n)
        counts.append(((ours & theirs).total(), ours.total(), theirs.total()))
    return np.array(counts, np.float64)


def _chrf_score(counts: np.ndarray, beta: float) -> float:
    has_both = (counts[:, 1:] > 0).all(axis=1)
    if not has_both.any():
        return 0.0
    precision, recall = (counts[has_both, :1] / counts[has_both, 1:]).mean(axis=0)
    if not precision + recall:
        return 0.0
    return float(100 * (1 + beta**2) * precision * recall / (beta**2 * precision + recall))


def _ngrams(words: Sequence[str], n: int) -> Counter:
    return Counter(zip(*(words[start:] for start in range(n))))


def _overlap(shared: int, num_given: int, num_expected: int) -> Overlap:
    if not shared:
        return Overlap(0.0, 0.0, 0.0)
    return Overlap(shared / num_given, shared / num_expected,
                   2 * shared / (num_given + num_expected))


def _longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    longest = [0] * (len(second) + 1)       # of the words of `first` so far, by words of `second`
    for word in first:
        before = 0
        for place, other in enumerate(second, start=1):
            above = longest[place]
            longest[place] = before + 1 if word == other else max(above, longest[place - 1])
            before = above
    return longest[-1]


def _check_sizes(answers: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(answers) != len(references) or not all(references):
        raise UserError(f"references of {len(references)} answers",
                        f"there are {len(answers)} answers, and each needs one or more",
                        "give a list of references for each answer")
