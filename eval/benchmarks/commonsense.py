"""HellaSwag, PIQA, SIQA, CommonsenseQA, COPA, WinoGrande, WSC273.

Rows have the columns of the Hugging Face datasets Rowan/hellaswag, baber/piqa, lighteval/siqa,
tau/commonsense_qa, aps/super_glue (copa), allenai/winogrande and lighteval/winograd_wsc, or those
of LLM-Foundry, whose SIQA and CommonsenseQA have fewer options, and are asked in `core` alone.
Forms: `harness` is lm-evaluation-harness@4e7e0d4; `cloze` and `letter` are OLMES (arXiv
2406.08446); `core` is `eval.benchmarks.core`.
"""

from __future__ import annotations

import re

from eval.benchmarks.core import core_form
from eval.benchmarks.form import Form, Item, Layout
from eval.benchmarks.multiple_choice import Benchmark
from eval.benchmarks.olmes import LINE
from eval.benchmarks.readers import (
    SCHEMA,
    Row,
    foundry,
    index_of,
    read_labelled,
    text_of,
    texts_of,
    with_fields,
)

CONNECTORS = {"cause": "because", "effect": "therefore"}
# Words of WSC273's options that are written small inside a sentence, and pronouns of owners.
SMALL_WORDS = ("A", "An", "The", "She", "He", "It", "They", "My", "His", "Her", "Their")
OWNERS = ("my", "his", "her", "our", "their")


def _clean(text: str) -> str:
    """HellaSwag's marks of WikiHow, removed in lm-evaluation-harness' order."""
    return re.sub(r"\[.*?\]", "", text.replace(" [title]", ". ")).replace("  ", " ")


def _read_hellaswag(row: Row) -> Item:
    context = f"{row['activity_label']}: {row['ctx_a']} {text_of(row['ctx_b']).capitalize()}"
    return Item({"query": _clean(context.strip()), "spaced": _clean(context)},
                tuple(_clean(ending.strip()) for ending in texts_of(row["endings"])),
                (index_of(row["label"]),))


def _add_spaced(row: Row) -> dict[str, str]:
    """A clean context with the space that ends it where its second part is empty.

    That is so where the context is whole sentences.
    """
    query = text_of(row["query"])
    return {"spaced": query + " " * query.endswith((".", "?", "!"))}


def _read_piqa(row: Row) -> Item:
    return Item({"goal": text_of(row["goal"])}, texts_of([row["sol1"], row["sol2"]]),
                (index_of(row["label"]),))


def _read_siqa(row: Row) -> Item:
    return Item({"context": text_of(row["context"]), "question": text_of(row["question"])},
                tuple(text_of(row[f"answer{letter}"]) for letter in "ABC"),
                (index_of(row["label"]) - 1,))


def _read_commonsense(row: Row) -> Item:
    question = text_of(row["question"])
    return read_labelled(row, question=question, stripped=question.strip())


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]


def _read_copa(row: Row) -> Item:
    premise = text_of(row["premise"]).strip()[:-1]
    return Item({"premise": f"{premise} {CONNECTORS[row['question']]}"},
                (_small(text_of(row["choice1"])), _small(text_of(row["choice2"]))),
                (index_of(row["label"]),))


def _copa_premise(row: Row) -> dict[str, str]:
    start, comma, connector = text_of(row["query"]).rpartition(", ")
    return {"premise": f"{start} {connector}" if comma else connector}


def _read_winogrande(row: Row) -> Item:
    before, blank, after = text_of(row["sentence"]).partition("_")
    if not blank:
        raise ValueError("no _ in the sentence")
    options = texts_of([row["option1"], row["option2"]])
    return Item({"continuation": after.strip(), "blank": f"{before}___{after}"}, options,
                (index_of(row["answer"]) - 1,), tuple(before + option for option in options))


def _read_wsc(row: Row) -> Item:
    text, place = text_of(row["text"]).replace("  ", " "), index_of(row["pronoun_loc"])
    pronoun, options = text_of(row["pronoun"]), []
    for option in texts_of(row["options"]):
        option += "'s" if pronoun.lower() in OWNERS else ""
        word = option.split()[0]
        is_inside = text[place - 2] != "." and word in SMALL_WORDS
        options.append(option.replace(word, word.lower()) if is_inside else option)
    after = text[place + len(pronoun):]
    return Item({"continuation": after}, tuple(options), (index_of(row["label"]),),
                tuple(text[:place] + option for option in options))


def _cloze(text: str) -> dict[str, Form]:
    return {"cloze": Form(text, num_shots=5, fixed=True, baseline="Answer:", normalisation="char")}


def _letter(text: str, line: str = LINE) -> dict[str, Form]:
    return {"letter": Form(text, " {letter}", line, num_shots=5, fixed=True)}


open_hellaswag = Benchmark(
    "hellaswag", ("hellaswag", "hellaswag_val", "hellaswag_val_1000"),
    (Layout(("activity_label", "ctx_a", "ctx_b", "endings", "label"), _read_hellaswag),
     foundry(with_fields(_add_spaced))),
    {"harness": Form("{query}", baseline="Answer:"), **_cloze("{query}"),
     **_letter("{spaced}\nChoose the best continuation:\n{options}Answer:",
               " {letter}. {bare}\n"),
     **core_form("hellaswag")})
open_piqa = Benchmark(
    "piqa", ("piqa",),
    (Layout(("goal", "sol1", "sol2", "label"), _read_piqa), foundry(with_fields(
        lambda row: {"goal": row["query"].removeprefix("Question: ").removesuffix("\n")}))),
    {"harness": Form("Question: {goal}\nAnswer:", baseline="Answer:"),
     **_cloze("Goal: {goal}\nAnswer:"),
     **_letter("Goal: {goal}\n{options}Answer:"), **core_form("piqa")})
open_siqa = Benchmark(
    "siqa", ("siqa", "social_iqa"),
    (Layout(("context", "question", "answerA", "answerB", "answerC", "label"), _read_siqa),
     foundry()),
    {"harness": Form("Q: {context} {question}\nA:", baseline="A:"),
     **_cloze("Question: {context} {question}\nAnswer:"),
     **_letter("Question: {context} {question}\n{options}Answer:"), **core_form("siqa")})
open_commonsense_qa = Benchmark(
    "commonsense_qa", ("commonsense_qa", "csqa"),
    (Layout(("question", "choices", "answerKey"), _read_commonsense), foundry()),
    {"harness": Form("Question: {stripped}\n{options}Answer:", " {letter}"),
     **_cloze("Question: {question}\nAnswer:"),
     **_letter("Question: {question}\n{options}Answer:"),
     **core_form("commonsense_qa")})
# Two spaces, as lm-evaluation-harness' options begin with one, and so does its delimiter.
open_copa = Benchmark(
    "copa", ("copa",),
    (Layout(("premise", "choice1", "choice2", "question", "label"), _read_copa),
     foundry(with_fields(_copa_premise))),
    {"harness": Form("{premise}", "  {choice}", baseline="Answer:"),
     "cloze": Form("{premise}", baseline="Answer:"), **core_form("copa")})
open_winogrande = Benchmark(
    "winogrande", ("winogrande",),
    (Layout(("sentence", "option1", "option2", "answer"), _read_winogrande), SCHEMA),
    {"harness": Form("{start}", " {continuation}"),
     "cloze": Form("{start}", " {continuation}", num_shots=5, fixed=True),
     **_letter("Fill in the blank: {blank}\n{options}Answer:"),
     **core_form("winogrande")})
open_wsc273 = Benchmark(
    "wsc273", ("wsc273", "winograd_wsc"),
    (Layout(("text", "pronoun", "pronoun_loc", "options", "label"), _read_wsc), SCHEMA),
    {"harness": Form("{start}", " {continuation}"), **core_form("winograd")})
