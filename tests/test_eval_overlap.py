"""ROUGE, BLEU and chrF: values computed by hand, and those that the peers' own tests state."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from eval.measures.overlap import bleu, chrf, rouge, rouge_l, rouge_n, tokenize_13a

VOCABULARY = ("the", "cat", "sat", "on", "a", "mat", "and", "dog")
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)


@pytest.mark.parametrize("measure, answer, expected", [
    (lambda a, r: rouge_n(a, r, 1), "testing", (1, 1 / 3, 1 / 2)),
    (lambda a, r: rouge_n(a, r, 2), "testing one", (1, 1 / 2, 2 / 3)),
    (rouge_l, "testing one", (1, 2 / 3, 4 / 5)), (rouge_l, "testing two", (1, 2 / 3, 4 / 5)),
    (lambda a, r: rouge_n(a, r, 2), "testing", (0, 0, 0)), (rouge_l, "", (0, 0, 0)),
    (rouge_l, "two one testing", (1 / 3, 1 / 3, 1 / 3)), (rouge_l, "/", (0, 0, 0)),
    (lambda a, r: rouge_n(a, r, 1), "one, one ONE!", (1 / 3, 1 / 3, 1 / 3))])
def test_rouge_by_hand(measure, answer, expected):
    """The first four are those of google-research@066e6a1, rouge/rouge_scorer_test.py."""
    assert measure(answer, "testing one two") == pytest.approx(expected)


def test_rouge_of_lin_2004():
    """Section 3.1: S2 is like S1 in order, S3 is not; S2 scores 3/4 and S3 2/4 by ROUGE-L."""
    reference = "police killed the gunman"
    scores = [rouge_l(text, reference).f1
              for text in ("police kill the gunman", "the gunman kill police")]
    assert scores == [3 / 4, 2 / 4]
    assert len({rouge_n(text, reference, 2).f1 for text in
                ("police kill the gunman", "the gunman kill police")}) == 1


@given(WORDS, WORDS)
def test_rouge_l_agrees_with_a_recursive_definition(first, second):
    def common(a, b):
        if not a or not b:
            return 0
        return (1 + common(a[1:], b[1:]) if a[0] == b[0]
                else max(common(a[1:], b), common(a, b[1:])))

    a, b = first.split()[:7], second.split()[:7]
    shared = common(tuple(a), tuple(b))
    found = rouge_l(" ".join(a), " ".join(b))
    assert found.precision * len(a) == pytest.approx(shared)
    assert found.recall * len(b) == pytest.approx(shared)


@given(WORDS.filter(bool), WORDS)
def test_of_a_text_with_itself_all_are_whole(text, other):
    assert rouge_l(text, text) == rouge_n(text, text, 1) == (1, 1, 1)
    assert rouge_l(text, other).precision == pytest.approx(rouge_l(other, text).recall)
    assert chrf([text], [[other, text]]) == pytest.approx(100)


@pytest.mark.parametrize("text", ["Мама мыла раму на кухне", "東京は日本の首都です", "ที่นี่มีแมวห้าตัว"])
def test_a_perfect_summary_scores_1_in_any_script(text):
    assert rouge(text, ["other", text]) == {"rouge1": 1, "rouge2": 1, "rougeL": 1}
    assert chrf([text], [[text]]) == pytest.approx(100)


# mjpost/sacrebleu@2ae1366, test/test_bleu.py: its README's example.
ANSWERS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [["The dog bit the man.", "The dog had bit the man."],
              ["It was not unexpected.", "No one was surprised."],
              ["The man bit him first.", "The man had bitten the dog."]]


def test_the_values_of_sacrebleu():
    assert bleu(ANSWERS, REFERENCES) == pytest.approx(48.530827, abs=1e-6)
    assert bleu(["", "", ""], REFERENCES) == 0


def test_bleu_by_hand():
    """Precisions 4/5, 2/4, 1/3, and none of 2: counted as 1/2; the answer is long enough."""
    answer, reference = "the cat sat on mats", "the cat sat by on"
    expected = 100 * (4 / 5 * 2 / 4 * 1 / 3 * 0.5 / 2) ** (1 / 4)
    assert bleu([answer], [[reference]]) == pytest.approx(expected)
    # Twice as many words in the reference: the brevity penalty is exp(1 - 10/5).
    longer = f"{reference} x y z u v"
    assert bleu([answer], [[longer]]) == pytest.approx(expected * math.exp(-1))
    # A word counts as often as the reference that has it most often: 1 of 4, then 1/2, 1/4 and 1/8.
    assert bleu(["a a a a"], [["a b c d", "e a f g"]]) == pytest.approx(
        100 * (1 / 4 * 0.5 / 3 * 0.25 / 2 * 0.125 / 1) ** (1 / 4))
    # Of references with 4 and 6 words, the shorter one is as close to 5.
    assert bleu([answer], [[reference + " x", "u v w z"]]) == pytest.approx(expected)


@pytest.mark.parametrize("text, tokens", [
    ("It's 3.5, not 1,000-2.", ["It's", "3.5", ",", "not", "1,000", "-", "2", "."]),
    ("\"a&quot;b\" &amp; (c)", ['"', "a", '"', "b", '"', "&", "(", "c", ")"]),
    ("well-known e.g. $5", ["well-known", "e", ".", "g", ".", "$", "5"]),
    ("so-\ncalled<skipped>\nend", ["socalled", "end"]), ("", [])])
def test_the_tokens_of_13a(text, tokens):
    assert tokenize_13a(text) == tokens


@pytest.mark.parametrize("answers, references, score", [
    (["a"], ["a"], 100.0), ([""], ["reference"], 0.0), (["a b c"], ["abc"], 100.0),
    (["a", "b"], ["a", "c"], 50.0), (["aa"], ["ab"], 25.0), (["abcdefg"], ["hijklmnop"], 0.0),
    ([" Die    Beziehung zwischen  Obama und Netanjahu ist nicht gerade  freundlich. "],
     ["Das Verhältnis zwischen Obama und Netanyahu ist nicht gerade freundschaftlich."],
     64.1302698)])
def test_the_chrf_of_sacrebleu(answers, references, score):
    """mjpost/sacrebleu@0dca9d4, test/test_chrf.py, with its beta of 3."""
    found = chrf(answers, [[text] for text in references], beta=3)
    assert found == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("measure", [bleu, chrf])
def test_unlike_numbers_of_answers_and_references_are_refused(measure):
    with pytest.raises(UserError, match="there are 1 answers"):
        measure(["a"], [["a"], ["b"]])
    with pytest.raises(UserError, match="each needs one or more"):
        measure(["a"], [[]])


@pytest.mark.full
def test_bleu_agrees_with_nltk():
    """On longer random texts, where no smoothing is needed."""
    nltk = pytest.importorskip("nltk.translate")
    rng = random.Random(0)
    pairs = [(rng.choices(VOCABULARY, k=30), rng.choices(VOCABULARY[:4], k=25))
             for _ in range(20)]
    answers = [" ".join(a[:15] + b[:15]) for a, b in pairs]
    references = [[" ".join(b), " ".join(a)] for a, b in pairs]
    theirs = nltk.bleu_score.corpus_bleu([[r.split() for r in texts] for texts in references],
                                         [a.split() for a in answers])
    assert bleu(answers, references) == pytest.approx(100 * theirs)
