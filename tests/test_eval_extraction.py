"""What of a generated answer is compared: numbers of GSM8K, letters of options."""

import gzip
import json
import os
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.measures.extraction import (
    equal_numbers,
    extract_letter,
    flexible_number,
    parse_number,
    strict_number,
)

DATASETS = Path(os.environ.get("HEARTWOOD_DATASETS", "/nonexistent"))
needs_files = pytest.mark.skipif(not DATASETS.exists(), reason="HEARTWOOD_DATASETS is not set")

WAYS = ("{0}", "{0:,}", "${0:,}", "{0}.", "{0}.0", "{0:,}.00", " {0} ", "$ {0}.", "€{0}")


@given(st.integers(0, 10**9), st.booleans(), st.sampled_from(WAYS))
def test_a_number_is_read_however_it_is_written(value, negative, way):
    text = "-" * negative + way.format(value).strip() if negative else way.format(value)
    assert parse_number(text) == (-value if negative else value)


@given(st.integers(0, 10**11), st.sampled_from(["{:.2f}", "{:,.2f}", "${:,.2f}", "{:.3f}."]))
def test_fractions_are_read(cents, way):
    value = Decimal(cents) / 100
    assert parse_number(way.format(value)) == value
    assert equal_numbers(flexible_number(f"It costs {way.format(value)}"), str(value))


@given(st.integers(-10**9, 10**9), st.sampled_from(WAYS[:6]),
       st.sampled_from(["So {} it is ...", "6 * 3 = {}", "\\boxed{{{}}}", "#### {}", "{}\n\n"]))
def test_the_last_number_of_a_text_is_found(value, way, frame):
    text = way.format(abs(value))
    found = flexible_number("First 7, then 12. " + frame.format("-" * (value < 0) + text))
    assert equal_numbers(found, str(value))


@pytest.mark.parametrize("text", ["", ".", "...", "$", "1.2.3", "NaN", "Infinity", "1_000", "1e5",
                                  "eight", "²", "--3", "3 4"])
def test_what_is_no_number_is_none(text):
    assert parse_number(text) is None
    assert not equal_numbers(text, text)
    assert not equal_numbers(None, "3")


@pytest.mark.parametrize("text, value", [("１８", "18"), ("１，２３４．５", "1234.5"), ("٣٤", "34"),
                                         ("−7", "-7"), ("+7", "7"), (".5", "0.5")])
def test_numbers_of_any_script(text, value):
    assert parse_number(text) == Decimal(value)
    assert equal_numbers(flexible_number(f"x = 4; y = {text}"), value) or text == "+7"


@pytest.mark.parametrize("text, strict, flexible", [
    ("She makes $18.\n#### 18", "18", "18"),
    ("#### 1,234.", "1,234.", "1,234."),
    ("#### $18", None, "$18"),                              # the official expression has no $
    ("#### 4\n\nQuestion: 3 + 4?\n#### 7", "4", "7"),       # the first, and the last
    ("Eighteen.", None, None), ("#### .", None, None),
    ("It is 18 ...", None, "18"),       # lm-eval takes the ellipsis
    ("an area of 18 m²", None, "18")])
def test_strict_and_flexible(text, strict, flexible):
    assert (strict_number(text, "#### "), flexible_number(text)) == (strict, flexible)


@needs_files
@pytest.mark.parametrize("column, accuracy", [("6b_finetuning", 0.2168309),
                                              ("6b_verification", 0.3904473)])
def test_the_verdicts_on_the_example_solutions_are_reproduced(column, accuracy):
    """openai/grade-school-math@3101c7d, whose solutions end in "A: N"."""
    with gzip.open(DATASETS / "gsm8k" / "example_model_solutions_6b.jsonl.gz") as file:
        rows = [json.loads(line) for line in file]
    for rule in (lambda text: strict_number(text, "A: "), flexible_number):
        verdicts = [equal_numbers(rule(row[column]["solution"]),
                                  strict_number(row["ground_truth"], "A: ")) for row in rows]
        assert sum(verdicts) / len(rows) == pytest.approx(accuracy, abs=5e-8)
        if rule is not flexible_number:
            assert verdicts == [row[column]["is_correct"] for row in rows]
            assert len(rows) == 1319


@pytest.mark.parametrize("text, letter", [
    ("B", "B"), ("(B)", "B"), ("B) Paris", "B"), ("**B.** Paris", "B"), ("B: Paris", "B"),
    ("The answer is A.", "A"), ("the correct answer is (C)", "C"), ("Answer: **D**", "D"),
    ("The answer is A because it is.", "A"), ("Final answer: option C", "C"),
    ("The final answer is $\\boxed{D}$.", "D"), ("\\boxed{\\text{B}}", "B"),
    ("答案是B。", "B"), ("Antwort: C", "C"), ("Ответ: D", "D"), ("Ｂ", "B"),
    ("Let us see.\nSo it must be:\nC", "C"),
    ("The answer is not A. The answer is B", "B"),
    ("The answer is A. No, wait: the answer is C.", "C"),           # the last verdict
    ("A. cat\nB. dog\nC. cow\nAnswer: C", "C"),
    # No verdict, or an unclear one.
    ("", None), ("Paris", None), ("A cat sat.", None), ("Answer: A cat", None),
    ("Answer: A or B", None), ("The answer is B and C.", None), ("A. cat\nB. dog", None),
    ("I think A is wrong", None), ("The answer is not A.", None), ("The answer is Boston", None),
    ("INCORRECT", None), ("The answer is E.", None), ("unanswered: A lot", None),
    ("BANSWER is C", None)])
def test_letters(text, letter):
    assert extract_letter(text) == letter


def test_letters_of_other_sets():
    assert extract_letter("The answer is G.", "ABCDEFG") == "G"
    assert extract_letter("The answer is Y.", "YN") == "Y"
