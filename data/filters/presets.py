"""Presets: the rules of published corpora by name, as bounds on signals and as line rules.

A rule is named ``<family>_min_<signal>`` or ``<family>_max_<signal>``; its bound is inclusive. The
family determines the definition of the signal (`data.filters.signals`), the preset the bounds and
their order. Named presets are combined: a document must pass the rules of all, and a later bound
replaces an earlier one of the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from core.errors import UserError
from data.filters.fineweb2 import FINEWEB2

# arXiv:2112.11446, table A1, in the order of datatrove's filter.
_GOPHER_REPETITION = {
    "gopher_max_dup_paragraph_frac": 0.3, "gopher_max_dup_paragraph_char_frac": 0.2,
    "gopher_max_dup_line_frac": 0.3, "gopher_max_dup_line_char_frac": 0.2,
    "gopher_max_top_2gram_char_frac": 0.2, "gopher_max_top_3gram_char_frac": 0.18,
    "gopher_max_top_4gram_char_frac": 0.16, "gopher_max_dup_5gram_char_frac": 0.15,
    "gopher_max_dup_6gram_char_frac": 0.14, "gopher_max_dup_7gram_char_frac": 0.13,
    "gopher_max_dup_8gram_char_frac": 0.12, "gopher_max_dup_9gram_char_frac": 0.11,
    "gopher_max_dup_10gram_char_frac": 0.1}

# arXiv:2112.11446, appendix A.1.1.
_GOPHER_QUALITY = {
    "gopher_min_words": 50, "gopher_max_words": 100_000, "gopher_min_mean_word_chars": 3,
    "gopher_max_mean_word_chars": 10, "gopher_max_hash_word_ratio": 0.1,
    "gopher_max_ellipsis_word_ratio": 0.1, "gopher_max_bullet_line_frac": 0.9,
    "gopher_max_ellipsis_line_frac": 0.3, "gopher_min_alphabetic_word_frac": 0.8,
    "gopher_min_stop_words": 2}

# arXiv:2406.17557; .1 for duplicate characters in the paper, .01 in the code that made the corpus.
_FINEWEB = {
    "fineweb_min_lines": 1, "fineweb_min_terminal_line_frac": 0.12,
    "fineweb_max_short_line_frac": 0.67, "fineweb_max_dup_line_char_frac": 0.01,
    "fineweb_max_newline_word_ratio": 0.3}

# For documentation and manuals, which Gopher's bounds would remove as tables. The shortest mean
# word of a known language is 1.9 characters (Vai, a syllabary).
_TECHNICAL = {
    "technical_min_words": 30, "technical_max_words": 100_000,
    "technical_min_mean_word_chars": 1.5, "technical_max_mean_word_chars": 14.0,
    "technical_max_symbol_word_ratio": 0.2, "technical_max_bullet_line_frac": 0.9,
    "technical_max_ellipsis_line_frac": 0.3, "technical_min_alphabetic_word_frac": 0.5,
    "technical_max_garbled_word_frac": 0.1, "technical_min_stop_words": 2,
    "technical_min_letter_pair_ratio": 1.1, "gopher_max_dup_10gram_char_frac": 0.6,
    "technical_max_duplicate_line_frac": 0.7,
    "technical_max_top_2gram_char_frac": 0.2, "technical_max_lorem_ipsum": 5}

# bigcode-project/bigcode-dataset: the basic filters and the comment filter.
_CODE = {"code_max_line_chars": 1000, "code_max_mean_line_chars": 100,
         "code_min_alphanumeric_frac": 0.25}
_CODE_COMMENTS = {"code_min_comment_frac": 0.01, "code_max_comment_frac": 0.8}


def _fineweb2(language: str) -> dict[str, float]:
    """The order and the bounds of huggingface/fineweb-2 `fineweb-2-pipeline.py`."""
    if language not in FINEWEB2:
        raise UserError(f"language={language!r}", "the preset fineweb2 has no thresholds for it",
                        f"choose one of {', '.join(FINEWEB2)}, or give it another preset")
    known = FINEWEB2[language]
    bounds = {"gopher_max_dup_line_frac": known.lines[0]}
    for name, sizes, values in (("top", (2, 3, 4), known.top),
                                ("dup", (5, 6, 7, 8, 9, 10), known.duplicate)):
        bounds |= {f"gopher_max_{name}_{n}gram_char_frac": value
                   for n, value in zip(sizes, values)}
    return bounds | {
        "fineweb2_min_lines": 1, "fineweb2_min_terminal_line_frac": known.lines[1],
        "fineweb2_max_dup_line_char_frac": 0.1,
        "fineweb2_max_newline_word_ratio": known.lines[2],
    } | _GOPHER_QUALITY | {
        "gopher_min_mean_word_chars": known.words[0],
        "gopher_max_mean_word_chars": known.words[1],
        "gopher_min_alphabetic_word_frac": known.words[2]}


# arXiv:1910.10683, section 2.2. The paper and the code that made the corpus
# (tensorflow_datasets/text/c4_utils.py) give different numbers; the single quote
# among the end marks is from datatrove, whose defaults are those of the paper.
_C4_PAPER = {
    "c4_max_word_chars": 1000, "c4_citations": True, "c4_end_marks": ".?!\"'",
    "c4_min_line_words": 3, "c4_lorem_ipsum": True, "c4_javascript": True,
    "c4_curly_bracket": True, "c4_policy": True, "c4_min_sentences": 5}
_C4_CODE = _C4_PAPER | {"c4_max_page_chars": 190_000, "c4_end_marks": ".?!\"",
                        "c4_min_line_words": 5, "c4_min_sentences": 3}

FINEWEB_LINE_RULES = {rule: value for rule, value in _C4_PAPER.items() if rule != "c4_end_marks"}

# arXiv:2306.01116, appendix G, with the numbers of mlfoundations/dclm
# `baselines_configs/dclm_baseline_refinedweb.yaml`.
_REFINEDWEB = {
    "refinedweb_max_uppercase_frac": 0.5, "refinedweb_numeric": True, "refinedweb_counter": True,
    "refinedweb_min_line_words": 2, "refinedweb_phrases": 10,
    "refinedweb_max_removed_word_frac": 0.05}

_TECHNICAL_LINES = {"technical_max_word_chars": 1000, "technical_max_policy_line_words": 10}



def _technical(language: str) -> dict[str, float]:
    """Words are longer in languages that join what others write apart (Greenlandic: 15)."""
    return _TECHNICAL if language == "en" else _TECHNICAL | {"technical_max_mean_word_chars": 20.0}


Bounds = Callable[[str], Mapping[str, float]]  # by language

# Per preset: bounds of the document rules, and line rules.
PRESETS: dict[str, tuple[Bounds, Mapping[str, float | str]]] = {
    "gopher": (lambda _: _GOPHER_REPETITION | _GOPHER_QUALITY, {}),
    "c4-paper": (lambda _: {}, _C4_PAPER),
    "c4-code": (lambda _: {}, _C4_CODE),
    "fineweb": (lambda _: _GOPHER_REPETITION | _GOPHER_QUALITY | _FINEWEB, FINEWEB_LINE_RULES),
    "fineweb2": (_fineweb2, {}),
    "refinedweb": (lambda _: _GOPHER_REPETITION | _GOPHER_QUALITY, _REFINEDWEB),
    "code": (lambda _: _CODE, {}),
    "code-comments": (lambda _: _CODE_COMMENTS, {}),
    "technical": (_technical, _TECHNICAL_LINES)}


def thresholds(names: Sequence[str] | str, language: str) -> dict[str, float]:
    """Bounds of the named presets for documents of `language`, in the order of application.

    Raises:
        UserError: there is no such preset, or it has no bounds for the language.
    """
    bounds: dict[str, float] = {}
    for name in _check(names):
        bounds |= PRESETS[name][0](language)
    return bounds


def line_rules(names: Sequence[str] | str) -> dict[str, float | str]:
    """Line rules of the named presets, for `data.filters.lines.clean_lines`.

    Raises:
        UserError: there is no such preset.
    """
    rules: dict[str, float | str] = {}
    for name in _check(names):
        rules |= PRESETS[name][1]
    return rules


def _check(names: Sequence[str] | str) -> Sequence[str]:
    names = [names] if isinstance(names, str) else names
    for name in names:
        if name not in PRESETS:
            raise UserError(f"preset={name!r}", "there is no such preset",
                            f"choose among {', '.join(PRESETS)}")
    return names
