"""datatrove's and Heartwood's filters on the same texts, for the parity test and the benchmark.

A *judge* maps texts to the reason of each removal, or None. Both sides use their own reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.filters.fineweb2 import FINEWEB2
from data.filters.lines import clean_lines
from data.filters.presets import line_rules, thresholds
from data.filters.rules import decide
from data.filters.signals import measure_batch

Judge = Callable[[Sequence[str]], list[str | None]]


def datatrove_judge(filters: Sequence[Any]) -> Judge:
    """Judges a document by datatrove filters, up to the first that drops it; they may edit it."""
    from datatrove.data import Document

    def judge(text: str) -> str | None:
        document = Document(text=text, id="")
        for step in filters:
            if not document.text:
                return "empty"  # the filters divide by its length
            outcome = step.filter(document)
            if outcome is not True:
                return outcome[1]
        return None

    return lambda texts: list(map(judge, texts))


def rule_judge(bounds: Mapping[str, float], language: str = "en") -> Judge:
    """Judges by all signals and `bounds`."""

    def judge(texts: Sequence[str]) -> list[str | None]:
        measured = measure_batch(texts, ["prose"] * len(texts), [(language, 1.0)] * len(texts))
        removals = [decide(signals, bounds) for signals in measured]
        return [removal and removal.reason for removal in removals]

    return judge


def line_judge(rules: Mapping[str, Any]) -> Judge:
    """Judges by line rules."""

    def judge(texts: Sequence[str]) -> list[str | None]:
        removals = [clean_lines(text, rules).removal for text in texts]
        return [removal and removal.reason for removal in removals]

    return judge


def fineweb_judge() -> Judge:
    """Judges by the whole English chain: Gopher's rules, C4's on lines, then FineWeb's."""
    bounds = thresholds("fineweb", "en")
    gopher = {rule: bound for rule, bound in bounds.items() if rule.startswith("gopher")}
    fineweb = {rule: bound for rule, bound in bounds.items() if rule.startswith("fineweb")}
    rules = line_rules("fineweb")

    def judge(texts: Sequence[str]) -> list[str | None]:
        measured = measure_batch(texts, ["prose"] * len(texts), [("en", 1.0)] * len(texts))
        reasons = []
        for text, signals in zip(texts, measured):
            removal = (decide(signals, gopher) or clean_lines(text, rules).removal
                       or decide(signals, fineweb))
            reasons.append(removal and removal.reason)
        return reasons

    return judge


def make_pairs() -> dict[str, tuple[Judge, Judge]]:
    """Filters by name: datatrove's with its defaults, and Heartwood's with the matching preset."""
    from datatrove.pipeline import filters

    gopher, fineweb = thresholds("gopher", "en"), thresholds("fineweb", "en")
    is_quality = list(gopher).index("gopher_min_words")
    quality = dict(list(gopher.items())[is_quality:])
    repetition = dict(list(gopher.items())[:is_quality])
    alone = {rule.replace("fineweb_", "fineweb2_"): bound for rule, bound in fineweb.items()
             if rule.startswith("fineweb_")}
    paper = filters.C4QualityFilter()
    code = filters.C4QualityFilter(min_num_sentences=3, min_words_per_line=5)
    without_marks = filters.C4QualityFilter(filter_no_terminal_punct=False)
    chain = [filters.GopherRepetitionFilter(), filters.GopherQualityFilter(), without_marks,
             filters.FineWebQualityFilter()]
    return {
        "gopher repetition": (datatrove_judge(chain[:1]), rule_judge(repetition)),
        "gopher quality": (datatrove_judge(chain[1:2]), rule_judge(quality)),
        "c4 paper": (datatrove_judge([paper]), line_judge(line_rules("c4-paper"))),
        "c4 code": (datatrove_judge([code]), line_judge(line_rules("c4-code"))),
        "c4 without end marks": (datatrove_judge([without_marks]),
                                 line_judge(line_rules("fineweb"))),
        "fineweb": (datatrove_judge(chain[3:]), rule_judge(alone)),
        "fineweb chain": (datatrove_judge(chain), fineweb_judge())}


def make_fineweb2_pair(language: str) -> tuple[Judge, Judge]:
    """The chain of `fineweb-2-pipeline.py` for a language, on both sides."""
    from datatrove.pipeline import filters

    known = FINEWEB2[language]
    chain = [
        filters.GopherRepetitionFilter(
            language=known.name, dup_para_frac=0, dup_line_char_frac=0, dup_para_char_frac=0,
            dup_line_frac=known.lines[0], top_n_grams=list(zip((2, 3, 4), known.top)),
            dup_n_grams=list(zip(range(5, 11), known.duplicate))),
        filters.FineWebQualityFilter(
            language=known.name, short_line_thr=999, char_duplicates_ratio=0.1,
            line_punct_thr=known.lines[1], new_line_ratio=known.lines[2]),
        filters.GopherQualityFilter(
            language=known.name, min_avg_word_length=known.words[0],
            max_avg_word_length=known.words[1], max_non_alpha_words_ratio=known.words[2],
            stop_words=list(known.stop_words), min_stop_words=2)]
    return datatrove_judge(chain), rule_judge(thresholds("fineweb2", language), language)
