"""Compares tokenizers on the same texts: a table, `report.json`, and a page without a server.

    python -m data.tokenizer_report --out=runs/tokenizers \\
        --tokenizers=runs/quickstart/tokenizer,other=path/to/tokenizer.json
    python -m data.tokenizer_report --out=runs/tokenizers --tokenizers=a=A,b=B \\
        --text=news=news.jsonl,code=repo:path/to/source --corpus=runs/quickstart/corpus \\
        --languages=translations --width=768

A tokenizer is a folder or file that `data.tokenizers.load` reads. Texts are files, folders or globs
by their names; a corpus gives one domain for each of its own and one for its held-out documents;
without either, pages and source of the standard library are read. Of each domain about 1 MB is
sampled, the same on every run. `--languages` is a folder of translations of one text, each in a
file ``LANGUAGE.txt``, among them ``eng.txt``. Costs are those of a model of `--width`.
Speeds are measured on one core of this machine; everything else is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from core import entry
from core.artifacts import write_json
from core.errors import UserError, require_file
from core.page.markup import visible
from core.pairs import parse_pairs
from core.progress import log
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from data.vocabularies.compression import (
    join_domains,
    measure_cost,
    measure_domain,
    measure_evenness,
    measure_languages,
)
from data.vocabularies.page import DECIDING, render_report
from data.vocabularies.probes import run_probes
from data.vocabularies.sample import (
    Domain,
    read_corpus,
    read_domain,
    read_embedded,
    read_languages,
)
from data.vocabularies.speed import in_turns, measure_speed
from data.vocabularies.views import SAMPLES, view_text
from data.vocabularies.vocabulary import describe_vocabulary

FILE_NAMES = ("tokenizer", "tokenizer.json")    # which tell nothing about a tokenizer


def read_tokenizers(entries: Sequence[str]) -> dict[str, tuple[Path, Tokenizer]]:
    """Reads tokenizers given as ``NAME=PATH`` or ``PATH``, by their names.

    Raises:
        UserError: none is given, a path does not exist or holds no tokenizer, or two have one name.
    """
    if not entries:
        raise UserError("--tokenizers", "is missing", "try --tokenizers=runs/quickstart/tokenizer")
    found: dict[str, tuple[Path, Tokenizer]] = {}
    for text in entries:
        name, equals, place = text.partition("=")
        if not equals or "/" in name:
            name, place = "", text
        path = require_file("--tokenizers", place, "name a folder or file of a tokenizer")
        name = name or name_of(path)
        if name in found:
            raise UserError(f"--tokenizers={text!r}", f"is the second one with the name {name!r}",
                            "write NAME=PATH with another name")
        found[name] = path, load_tokenizer(path)
    return found


def name_of(path: Path) -> str:
    """The last part of a path that is not what all tokenizers are called."""
    parts = [part for part in path.resolve().parts if part not in FILE_NAMES]
    return parts[-1] if parts else str(path)


def read_domains(texts: Mapping[str, str], corpus: Path | None) -> list[Domain]:
    """The samples of all texts that are named, or those that need no download.

    Raises:
        UserError: a text or the corpus is missing or empty, or two domains have one name.
    """
    domains = [read_domain(name, pattern) for name, pattern in texts.items()]
    domains += read_corpus(corpus) if corpus else []
    names = [domain.name for domain in domains]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--text={name}=", "is the name of a domain of the corpus as well",
                            "choose another name")
    return domains or read_embedded()


def measure(tokenizer: Tokenizer, domains: Sequence[Domain], languages: Mapping[str, str],
            width: int) -> dict[str, Any]:
    """All measurements of one tokenizer; see the functions of `data.vocabularies`."""
    parts, counts_V = [], np.zeros(tokenizer.vocab_size, np.int64)
    for domain in domains:
        own, own_counts_V = measure_domain(tokenizer, domain)
        parts.append((domain, own))
        counts_V += own_counts_V
    vocabulary, together = describe_vocabulary(tokenizer, counts_V), join_domains(parts)
    return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint,
            "together": together, "domains": {domain.name: own for domain, own in parts},
            "evenness": measure_evenness(counts_V, vocabulary["ordinary"]),
            "languages": measure_languages(tokenizer, languages) if languages else None,
            "vocabulary": vocabulary, "probes": run_probes(tokenizer),
            "cost": measure_cost(width, tokenizer.vocab_size, together["bytes_per_token"]),
            "views": {name: view_text(tokenizer, text) for name, text in SAMPLES.items()}}


def make_report(tokenizers: Mapping[str, tuple[Path, Tokenizer]], domains: Sequence[Domain],
                languages: Mapping[str, str], width: int) -> dict[str, Any]:
    """The report as plain data.

    Returns:
        `width`, `texts` (sizes of the samples by domain), `languages` (their number), `tokenizers`
        (see `measure`, in the given order, with costs relative to the first) and `speeds`, the one
        part that differs between runs.
    """
    measured, speeds = {}, {}
    texts = in_turns([domain.texts for domain in domains])
    for name, (path, tokenizer) in tokenizers.items():
        log(f"{name}: {tokenizer.vocab_size:,} ids, {path}")
        measured[name] = {"path": str(path), **measure(tokenizer, domains, languages, width)}
        speeds[name] = measure_speed(tokenizer, texts)
    first = next(iter(measured.values()))["cost"]
    for own in measured.values():
        own["cost"] |= {f"{part}_ratio": own["cost"][part] / first[part]
                        for part in ("head_flops_per_byte", "tokens_per_byte")}
    return {"width": width, "texts": {domain.name: domain.describe() for domain in domains},
            "languages": len(languages), "tokenizers": measured, "speeds": speeds}


def format_table(report: Mapping[str, Any]) -> str:
    """The columns that decide, as a table in Markdown."""
    rows = [[name, *(form(report, name) for form in DECIDING.values())]
            for name in report["tokenizers"]]
    shown = [[visible(cell).replace("|", "\\|") for cell in row]
             for row in [["tokenizer", *DECIDING], *rows]]
    widths = [max(map(len, column)) for column in zip(*shown)]
    lines = [" | ".join(cell.ljust(width) if not place else cell.rjust(width) for place, (
        cell, width) in enumerate(zip(row, widths))) for row in shown]
    rule = " | ".join("-" * width if not place else "-" * (width - 1) + ":"
                      for place, width in enumerate(widths))
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def main() -> dict[str, Any]:
    """Reads the flags, measures, writes the report and prints the table."""
    values = flags.FLAGS
    if not values.out:
        raise UserError("--out", "is missing", "name a folder for the report: --out=DIR")
    tokenizers = read_tokenizers(values.tokenizers)
    corpus = Path(values.corpus) if values.corpus else None
    languages = read_languages(Path(values.languages)) if values.languages else {}
    domains = read_domains(parse_pairs("text", values.text), corpus)
    report, out = make_report(tokenizers, domains, languages, values.width), Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", report)
    (out / "report.html").write_text(render_report(report), encoding="utf-8")
    print(format_table(report))
    return {"report": str(out / "report.html"), "bytes": sum(d.num_bytes for d in domains),
            "bytes_per_token": {name: round(own["together"]["bytes_per_token"], 4)
                                for name, own in report["tokenizers"].items()}}


if __name__ == "__main__":
    flags.DEFINE_list("tokenizers", [], "NAME=PATH or PATH of each tokenizer, with commas.")
    flags.DEFINE_list("text", [], "NAME=PATH of each domain of text: a file, a folder or a glob.")
    flags.DEFINE_string("corpus", None, "Output folder of `python -m data.curate`.")
    flags.DEFINE_string("languages", None, "Folder of translations of one text.")
    flags.DEFINE_integer("width", 768, "Width of the model whose costs are computed.",
                         lower_bound=1)
    flags.DEFINE_string("out", None, "Folder for report.json and report.html.")
    entry.run(main)
