"""Instructions whose fulfilment a program can check: the 25 kinds of IFEval (arXiv 2311.07911).

A kind is a pure function of the answer and the instruction's arguments. What it decides is what
google-research@3f357bd (instruction_following_eval/instructions.py) decides, with three exceptions,
where that asks libraries:
    - sentences end at a terminal mark before white space, except after common abbreviations,
      initials and numbers of lists; there, nltk's trained Punkt model divides them;
    - a word in capitals is a run of letters, digits and signs within them; there, nltk divides
      contractions ("DON'T") in two;
    - the language is that of fastText (`data.filters.language`); there, langdetect's. A text
      without letters is in no language; there, in any.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from core.errors import UserError
from core.json_text import parse_json
from data.chat import Conversation
from data.filters.language import identify
from eval.tasks.task import Grade

RELATIONS = ("less than", "at least")
CONSTRAINED_RESPONSES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

_ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "gen", "col", "sgt", "vs",
                  "etc", "inc", "ltd", "co", "no", "fig", "e.g", "i.e", "a.m", "p.m", "u.s"}
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]»*_]*(?=\s|$)|[。！？｡।॥؟۔]+[」』”’)]*")
_FENCES = re.compile(r"^```(?:json|Json|JSON)?|```$")


def _compare(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


def contains_keywords(text: str, keywords: Sequence[str]) -> bool:
    """All keywords are there, in any case, within words too."""
    return all(word.lower() in text.lower() for word in keywords)


def has_keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    """A keyword is there a number of times, in any case, within words too."""
    return _compare(text.lower().count(keyword.strip().lower()), relation, frequency)


def avoids_words(text: str, forbidden_words: Sequence[str]) -> bool:
    """None of these words is there as a whole word, in any case."""
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)
                   for word in forbidden_words)


def has_letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    """A letter, or another sign, is there a number of times, in any case."""
    return _compare(Counter(text.lower())[letter.strip().lower()], let_relation, let_frequency)


def is_in_language(text: str, language: str) -> bool:
    """The text is in a language, given by its code of two letters."""
    return identify(text)[0] == language.partition("-")[0]


def has_number_of_sentences(text: str, num_sentences: int, relation: str) -> bool:
    """It has a number of sentences."""
    return _compare(count_sentences(text), relation, num_sentences)


def has_number_of_paragraphs(text: str, num_paragraphs: int) -> bool:
    """It has exactly so many paragraphs, divided by ``***``, none of them empty."""
    parts = [bool(part.strip()) for part in re.split(r"\s?\*\*\*\s?", text)]
    if len(parts) > 1:
        parts = parts[not parts[0]:len(parts) - (not parts[-1])]
    return all(parts) and len(parts) == num_paragraphs


def has_number_of_words(text: str, num_words: int, relation: str) -> bool:
    """It has a number of words: runs of letters, digits and low lines."""
    return _compare(len(re.findall(r"\w+", text)), relation, num_words)


def has_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """It has exactly so many paragraphs, divided by blank lines; one begins with a word."""
    parts = text.split("\n\n")
    num_filled = sum(bool(part.strip()) for part in parts)
    if not 1 <= nth_paragraph <= num_filled == num_paragraphs:
        return False
    words = parts[nth_paragraph - 1].split()
    first = re.match(r"""[^.,?!'"]*""", words[0].lstrip("'").lstrip('"'))[0] if words else ""
    return bool(words) and first.lower() == first_word.lower()


def has_placeholders(text: str, num_placeholders: int) -> bool:
    """It has at least so many placeholders in square brackets."""
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def has_postscript(text: str, postscript_marker: str) -> bool:
    """It has a postscript with a marker, in any case; of P.S. and P.P.S inner spaces are allowed.
    """
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    marker = postscript_marker.strip()
    return bool(re.search(patterns.get(marker, re.escape(marker.lower())), text.lower()))


def has_bullets(text: str, num_bullets: int) -> bool:
    """It has exactly so many bullet points, lines that begin with ``*`` or ``-``."""
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == num_bullets


def has_constrained_response(text: str) -> bool:
    """It holds one of `CONSTRAINED_RESPONSES`."""
    return any(response in text for response in CONSTRAINED_RESPONSES)


def has_highlights(text: str, num_highlights: int) -> bool:
    """It has at least so many parts between asterisks, one or two on each side."""
    single = re.findall(r"\*[^\n\*]*\*", text)
    double = re.findall(r"\*\*[^\n\*]*\*\*", text)
    return sum(bool(part.strip("*").strip()) for part in (*single, *double)) >= num_highlights


def has_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """It has at least so many numbered sections: the word that begins them, and a number."""
    marks = re.findall(rf"\s?{re.escape(section_spliter.strip())}\s?\d+\s?", text)
    return len(marks) >= num_sections


def is_json(text: str) -> bool:
    """The whole is JSON, between fences or without."""
    try:
        parse_json(_FENCES.sub("", text.strip()).strip())
    except ValueError:
        return False
    return True


def has_title(text: str) -> bool:
    """It has a title in double angular brackets, in one line."""
    return any(title.lstrip("<").rstrip(">").strip()
               for title in re.findall(r"<<[^\n]+>>", text))


def has_two_responses(text: str) -> bool:
    """It has exactly two parts, which differ, divided by six asterisks."""
    parts = [part.strip() for part in text.split("******")]
    filled = [part for part in parts if part]
    return all(parts[1:-1]) and len(filled) == 2 and filled[0] != filled[1]


def repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    """It begins with the prompt, in any case."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(text: str, end_phrase: str) -> bool:
    """It ends with a phrase, in any case, quotation marks after it aside."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def is_quoted(text: str) -> bool:
    """The whole is between double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def has_capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    """It has a number of words in capitals, "I" among them."""
    words = re.findall(r"\w+(?:[-'’./&]\w+)*", text)
    return _compare(sum(map(str.isupper, words)), capital_relation, capital_frequency)


def is_english_capital(text: str) -> bool:
    """It is in English, and has no small letter."""
    return text.isupper() and is_in_language(text, "en")


def is_english_lowercase(text: str) -> bool:
    """It is in English, and has no capital."""
    return text.islower() and is_in_language(text, "en")


def has_no_comma(text: str) -> bool:
    """It has no comma."""
    return "," not in text


# By the names of the published file; a function's further parameters are the kind's arguments.
KINDS: dict[str, Callable[..., bool]] = {
    "keywords:existence": contains_keywords,
    "keywords:frequency": has_keyword_frequency,
    "keywords:forbidden_words": avoids_words,
    "keywords:letter_frequency": has_letter_frequency,
    "language:response_language": is_in_language,
    "length_constraints:number_sentences": has_number_of_sentences,
    "length_constraints:number_paragraphs": has_number_of_paragraphs,
    "length_constraints:number_words": has_number_of_words,
    "length_constraints:nth_paragraph_first_word": has_first_word,
    "detectable_content:number_placeholders": has_placeholders,
    "detectable_content:postscript": has_postscript,
    "detectable_format:number_bullet_lists": has_bullets,
    "detectable_format:constrained_response": has_constrained_response,
    "detectable_format:number_highlighted_sections": has_highlights,
    "detectable_format:multiple_sections": has_sections,
    "detectable_format:json_format": is_json,
    "detectable_format:title": has_title,
    "combination:two_responses": has_two_responses,
    "combination:repeat_prompt": repeats_prompt,
    "startend:end_checker": ends_with,
    "startend:quotation": is_quoted,
    "change_case:capital_word_frequency": has_capital_words,
    "change_case:english_capital": is_english_capital,
    "change_case:english_lowercase": is_english_lowercase,
    "punctuation:no_comma": has_no_comma,
}


class Verdict(NamedTuple):
    """Whether an answer follows one instruction."""

    kind: str
    strict: bool
    loose: bool


def count_sentences(text: str) -> int:
    """Number of sentences; a last one need not have an end."""
    num, last = 0, 0
    for end in _SENTENCE_END.finditer(text):
        sentence = text[last:end.start()].strip()
        word = sentence.rsplit(maxsplit=1)[-1].lower().lstrip("(\"'“") if sentence else ""
        is_short = end[0] == "." and (word in _ABBREVIATIONS or re.fullmatch(r"[^\W\d_]", word)
                                      or re.search(r"(?:^|\n)\s*\d+$", text[last:end.start()]))
        if re.search(r"\w", sentence) and not is_short:
            num, last = num + 1, end.end()
    return num + bool(re.search(r"\w", text[last:]))


def check_arguments(kind: str, arguments: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The arguments of an instruction, without those that are null.

    Raises:
        UserError: one is missing, unknown, or not of its type.
    """
    expected = {name: parameter.annotation for name, parameter in
                inspect.signature(KINDS[kind]).parameters.items() if name != "text"}
    given = {name: value for name, value in arguments.items() if value is not None}
    if set(given) != set(expected):
        raise UserError(place, f"{kind} needs {', '.join(expected) or 'no arguments'}, and has "
                        f"{', '.join(given) or 'none'}", "correct this row, or remove it")
    for name, value in given.items():
        is_list = isinstance(value, list) and value and all(isinstance(v, str) for v in value)
        fits = {"int": type(value) is int, "str": isinstance(value, str) and bool(value.strip()),
                "Sequence[str]": is_list}[expected[name]]
        if not fits or (name.endswith("relation") and value not in RELATIONS):
            raise UserError(place, f"{name} of {kind} cannot be {value!r}",
                            "correct this row, or remove it")
    return given


def judge(text: str, instructions: Sequence[Sequence[Any]]) -> list[Verdict]:
    """Verdicts on an answer; one without text follows nothing.

    Loose is an instruction followed by the answer or by one of its variants: without its first
    line, its last one, or both, each with asterisks or without (arXiv 2311.07911, section 2.2).

    Args:
        instructions: (kind, arguments) of each.
    """
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    variants = [*cut, *(variant.replace("*", "") for variant in cut)]
    verdicts = []
    for kind, arguments in instructions:
        follows = [bool(variant.strip()) and KINDS[kind](variant, **arguments)
                   for variant in variants]
        verdicts.append(Verdict(kind, follows[0], any(follows)))
    return verdicts


def grade_instructions(conversation: Conversation, completion: str) -> Grade:
    """Judges an answer by the instructions in its conversation's `meta["instructions"]`.

    The score is 1 if all of them are followed strictly, else 0. Its measures: `prompt_strict`,
    that score, and `prompt_loose`; `instructions`, their number, and of them `followed_strict` and
    `followed_loose`, see `accuracies`; `unparsed`, 1 for an answer without text.
    """
    verdicts = judge(completion, conversation.meta["instructions"])
    strict, loose = ([getattr(verdict, name) for verdict in verdicts]
                     for name in ("strict", "loose"))
    is_empty = not completion.strip()
    return Grade(float(all(strict)), None if is_empty else completion.strip(), {
        "prompt_strict": float(all(strict)), "prompt_loose": float(all(loose)),
        "instructions": float(len(verdicts)), "followed_strict": float(sum(strict)),
        "followed_loose": float(sum(loose)), "unparsed": float(is_empty)})


def accuracies(grades: Sequence[Grade]) -> dict[str, float]:
    """The four published accuracies: of prompts and of instructions, strict and loose.

    That of instructions is over all instructions of all prompts (arXiv 2311.07911, section 2.2).
    """
    sums = Counter()
    for grade in grades:
        sums.update(grade.measures)
    num_prompts, num = max(len(grades), 1), max(sums["instructions"], 1)
    return {"prompt_strict": sums["prompt_strict"] / num_prompts,
            "prompt_loose": sums["prompt_loose"] / num_prompts,
            "instruction_strict": sums["followed_strict"] / num,
            "instruction_loose": sums["followed_loose"] / num}
