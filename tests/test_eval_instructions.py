"""Verifiable instructions: each kind followed and not, strict and loose, generated prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from eval.measures.instructions import (
    KINDS,
    accuracies,
    check_arguments,
    count_sentences,
    grade_instructions,
    judge,
)
from eval.tasks.instructions import DRAWN, Instructions
from eval.tasks.task import answer_of, split_of

ENGLISH = "This is a plain sentence about the weather in the north"

# kind, arguments, texts that follow, texts that do not; as the published checks decide.
CASES = [
    ("keywords:existence", {"keywords": ["cat", "dog"]}, ["Dogs and CATS"], ["a cat", "c at dog"]),
    ("keywords:frequency", {"keyword": "art", "frequency": 2, "relation": "at least"},
     ["Art, party"], ["art"]),
    ("keywords:frequency", {"keyword": "art", "frequency": 2, "relation": "less than"},
     ["art", "none"], ["art art"]),
    ("keywords:forbidden_words", {"forbidden_words": ["rock", "c++"]}, ["rocks"], ["a Rock!"]),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"},
     ["#a #b"], ["#a"]),
    ("language:response_language", {"language": "ru"}, ["Это простой русский текст о погоде."],
     [ENGLISH, "123"]),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"},
     ["One. Two.", "Yes! No"], ["One.", "Mr. Smith has 3.5 cats, e.g. two."]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2},
     ["a\n***\nb", "***\na *** b\n***"], ["a", "a\n\nb", "a *** *** b", "a***b***c"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"},
     ["two words", "don't"], ["now three words", "it isn't"]),
    ("length_constraints:nth_paragraph_first_word",
     {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Once"},
     ["A.\n\n\"Once, upon", "A\n\nonce"], ["Once\n\nA", "A\n\nOnce\n\nB", "A\n\n\n\nOnce", "Once"]),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b c]"], ["[a] (b)"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["x\np. s. y"], ["x PS y"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["P. P. S bye"], ["P.S."]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n- b", " * a\n\n* b"],
     ["* a", "* a\n* b\n* c", "** a\n* b"]),
    ("detectable_format:constrained_response", {}, ["I say: My answer is maybe."], ["Maybe."]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2},
     ["*a* and *b*", "**a** and **b**"], ["**a**", "* *, **", "*a\nb* *c*"]),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2},
     ["SECTION 1\na\nSECTION 2\nb"], ["Section 1\na\nSection 2\nb", "SECTION 1"]),
    ("detectable_format:json_format", {}, ['{"a": [1]}', '```json\n{"a": 1}\n```', "3"],
     ["{'a': 1}", 'Here: {"a": 1}', "[" * 100_000]),
    ("detectable_format:title", {}, ["<<joy>>\nx"], ["<joy>", "<< >>", "<<a\nb>>"]),
    ("combination:two_responses", {}, ["a\n******\nb", "******a******b******"],
     ["a ****** a", "a", "a ****** b ****** c", "a ****** ****** b"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, [" say it. Well"], ["Well"]),
    ("startend:end_checker", {"end_phrase": "The END."}, ['"So. the end."\n'], ["The end. Bye"]),
    ("startend:quotation", {}, [' "a" '], ['"a', '"', "“a”"]),
    ("change_case:capital_word_frequency",
     {"capital_frequency": 2, "capital_relation": "at least"}, ["NASA and I", "A-B C"], ["Nasa I"]),
    ("change_case:english_capital", {}, [ENGLISH.upper()],
     [ENGLISH, "ЭТО ПРОСТОЙ РУССКИЙ ТЕКСТ", "123"]),
    ("change_case:english_lowercase", {}, [ENGLISH.lower()],
     [ENGLISH, "это простой русский текст"]),
    ("punctuation:no_comma", {}, ["a; b、c"], ["a, b"]),
]


@pytest.mark.parametrize("kind, arguments, good, bad", CASES)
def test_each_kind(kind, arguments, good, bad):
    assert check_arguments(kind, arguments, "row") == arguments
    for texts, expected in ((good, True), (bad, False)):
        for text in texts:
            [verdict] = judge(text, [(kind, arguments)])
            assert verdict.strict == expected, text


def test_all_25_kinds_have_a_case():
    assert {case[0] for case in CASES} == set(KINDS) and len(KINDS) == 25


@pytest.mark.parametrize("kind, arguments", [(kind, arguments) for kind, arguments, *_ in CASES])
def test_an_answer_without_text_follows_nothing(kind, arguments):
    assert [judge(text, [(kind, arguments)])[0][1:] for text in ("", " \n")] == [(False, False)] * 2


@given(st.text(max_size=60), st.sampled_from(CASES))
def test_whatever_is_strict_is_loose(text, case):
    [verdict] = judge(text, [case[:2]])
    assert verdict.loose or not verdict.strict


@pytest.mark.parametrize("text, loose", [
    ("Sure, here it is:\n\"a\"", True), ('"a"\nI hope that helps.', True),
    ('Sure:\n"a"\nDone.', True), ('*"a"*', True), ("Sure: \"a\"", False)])
def test_loose_forgives_a_frame(text, loose):
    assert judge(text, [("startend:quotation", {})])[0] == ("startend:quotation", False, loose)


@pytest.mark.parametrize("text, num", [
    ("", 0), ("...", 0), ("One", 1), ("One. Two! Three?", 3), ("Wait... what?!", 2),
    ("Dr. No met Mr. J. Bond at 3 p.m. today.", 1), ("It is 3.14. Good.", 2),
    ("1. First one.\n2. Second one.", 2), ('He said "Go." Then he left.', 2),
    ("これは猫です。犬ではない。", 2), ("Это кот. Это пёс", 2), ("यह बिल्ली है। वह कुत्ता है।", 2)])
def test_sentences(text, num):
    assert count_sentences(text) == num


@pytest.mark.parametrize("kind, arguments, fault", [
    ("keywords:existence", {}, "needs keywords, and has none"),
    ("keywords:existence", {"keywords": []}, r"keywords of .* cannot be \[\]"),
    ("keywords:existence", {"keywords": "cat"}, "cannot be 'cat'"),
    ("punctuation:no_comma", {"num_words": 3}, "needs no arguments, and has num_words"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at most"}, "'at most'"),
    ("length_constraints:number_words", {"num_words": "3", "relation": "at least"}, "'3'"),
    ("length_constraints:number_words", {"num_words": True, "relation": "at least"}, "True"),
    ("startend:end_checker", {"end_phrase": " "}, "cannot be ' '")])
def test_arguments_that_do_not_fit_are_refused(kind, arguments, fault):
    with pytest.raises(UserError, match=f"^row 7: .*{fault}"):
        check_arguments(kind, arguments, "row 7")


def test_generated_prompts_are_distinct_split_and_followed_by_their_answers():
    task = Instructions()
    train, test = task.conversations("train", 300, 0), task.conversations("test", 60, 0)
    assert train == task.conversations("train", 300, 0) != task.conversations("train", 300, 1)
    prompts = {c.messages[0].content for c in (*train, *test)}
    assert len(prompts) == 360
    assert all(split_of(c.messages[0].content) == "test" for c in test)
    assert all(task.score(c, answer_of(c)) == 1 for c in (*train, *test))
    assert {kind for c in train for kind, _ in c.meta["instructions"]} == set(DRAWN)


def test_an_answer_to_another_prompt_mostly_fails():
    solved = Instructions().conversations("train", 200, 3)
    task = Instructions()
    scores = [task.score(c, answer_of(other)) for c, other in zip(solved, [*solved[1:], solved[0]])]
    assert 0 < sum(scores) < 60


def test_accuracies_of_prompts_and_of_instructions():
    """Two prompts by hand: of three instructions two are followed strictly, of another one none."""
    both = Instructions().conversations("train", 2, 0)
    three = [["punctuation:no_comma", {}], ["startend:quotation", {}],
             ["detectable_format:title", {}]]
    both[0].meta["instructions"] = three
    both[1].meta["instructions"] = three[:1]
    grades = [grade_instructions(c, text) for c, text in zip(both, ("<<a>> *b*", "Well,\nx"))]
    assert accuracies(grades) == {
        "prompt_strict": 0, "prompt_loose": 1 / 2, "instruction_strict": 2 / 4,
        "instruction_loose": 3 / 4}
    assert accuracies([]) == dict.fromkeys(accuracies(grades), 0)
    assert grades[0].measures["followed_strict"] == 2 and grades[0].score == 0
    empty = grade_instructions(both[0], " ")
    assert empty.extracted is None and empty.measures["unparsed"] == 1 and empty.score == 0
