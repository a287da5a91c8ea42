"""Inspects a corpus: the trace of one document, documents removed by a rule, two corpora compared.
Shows what a stage trains on: its rows, each token in the colour of its loss weight.

    python -m data.inspect rules --corpus=runs/quickstart/corpus
    python -m data.inspect rule NAME --corpus=runs/quickstart/corpus [--num=5]
    python -m data.inspect doc ID --corpus=runs/quickstart/corpus
    python -m data.inspect diff A B [--num=2]
    python -m data.inspect row DOMAIN NUMBER --tokens=runs/quickstart/tokens [--row_length=256]
    python -m data.inspect card --corpus=runs/quickstart/corpus
    python -m data.inspect batch --config=configs/quickstart.py --workdir=runs/quickstart \\
        [--stage=sft] [--num=5] [--html=batch.html]

`rules` lists every reason of removal, `rule` shows documents removed for one reason, `doc` takes an
id or a prefix of it, `diff` takes two corpora, `row` shows the inputs and loss weights of a row of
tokens, `card` rewrites `report.html`. `batch` shows the first rows that a stage of a config will
train on, and needs the artifacts that the stage reads; without a terminal, or with the variable
NO_COLOR set, brackets take the place of colours.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.errors import UserError
from core.overrides import define_config_flag
from core.page.markup import visible
from data.card.page import write_card
from data.corpus import Corpus
from data.inspection.diff import compare
from data.inspection.trace import beginning, trace

COMMANDS = ("`rules`, `rule NAME`, `doc ID`, `diff A B`, `row DOMAIN NUMBER`, "
            "`card` or `batch`")


def rules(corpus: Corpus) -> dict[str, Any]:
    """Prints every reason with its stage, documents and bytes; returns the counts by reason."""
    removed, lost = corpus.removals(), _lost(corpus)
    print(f"{'stage':<14}{'reason':<40}{'documents':>10}{'bytes':>14}")
    for reason, records in lost.items():
        print(f"{'read':<14}{visible(reason):<40}{records:>10,}{'':>14}")
    for stage, reason, counts in removed:
        print(f"{stage:<14}{reason:<40}{counts['documents']:>10,}{counts['bytes']:>14,}")
    return {"lost": lost,
            "removed": {reason: counts["documents"] for _, reason, counts in removed}}


def rule(corpus: Corpus, reason: str, num: int) -> dict[str, Any]:
    """Prints `num` documents that one rule removed, those with the smallest ids.

    For a reason of records without a document it prints the sources of the first records.

    Returns:
        Documents and bytes of the rule, and id, score and threshold of those shown.

    Raises:
        UserError: the rule removed no document.
    """
    counts, lost = {name: (stage, row) for stage, name, row in corpus.removals()}, _lost(corpus)
    if reason in lost:
        return _lost_records(corpus, reason, lost[reason], num)
    if reason not in counts:
        known = ", ".join(sorted({*counts, *lost})) or "(nothing was removed)"
        raise UserError(f"rule {reason!r}", "removed no document", f"choose one of {known}")
    stage, row = counts[reason]
    shown = []
    for document in corpus.sample_removed(num, reason).get(reason, ()):
        bound = corpus.threshold(document)
        limit = "" if bound is None else f"  threshold {bound:.4g}"
        alike = f"  resembles {document['representative']}" if document["representative"] else ""
        print(f"{document['id']}  {reason} = {document['score']:.4g}{limit}{alike}")
        print(f"{document['domain']}  {visible(document['source'])}\n"
              f"{beginning(document['text'])}\n")
        shown.append({"id": document["id"], "score": document["score"], "threshold": bound})
    return {"rule": reason, "stage": stage, **row, "shown": shown}


def _lost(corpus: Corpus) -> dict[str, int]:
    """Number of records without a document, by reason."""
    return corpus.manifest.get("corrupt", {}) | corpus.manifest.get("skipped", {})


def _lost_records(corpus: Corpus, reason: str, records: int, num: int) -> dict[str, Any]:
    sources = (row["source"] for _, row in corpus.rows("lost", ["source", "reason"])
             if row["reason"] == reason)
    shown = list(itertools.islice(sources, num))
    for source in shown:
        print(visible(source))
    return {"rule": reason, "stage": "read", "documents": records, "shown": shown}


def row_of(folder: Path, domain: str, number: int, row_length: int) -> dict[str, Any]:
    """Prints tokens, targets and loss weights of one row of a token folder.

    Raises:
        UserError: the domain or row does not exist.
    """
    from data.tokenizers.load import load_tokenizer
    from data.tokens.rows import TokenRows, show  # imports Grain and jax, which is slow

    source = TokenRows(folder, domain, row_length)
    if number >= len(source):
        raise UserError(f"row {number}", f"{domain} has {len(source)} rows of {row_length}",
                        f"give a number below {len(source)}")
    print(visible(show(source[number], load_tokenizer(folder / "tokenizer"))))
    return {"domain": domain, "row": number, "rows": len(source)}


def batch() -> dict[str, Any]:
    """Prints the first rows of the stage that the command line names, and counts their tokens."""
    from data.inspection.batch import inspect_batch  # imports jax, which is slow

    values = flags.FLAGS
    return inspect_batch(
        values.stage, values.num, page=None if values.html is None else Path(values.html),
        in_colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))


def main(words: list[str]) -> dict[str, Any]:
    """Runs the command given by `words`."""
    match words:
        case ["rules"]:
            return rules(_corpus())
        case ["rule", name]:
            return rule(_corpus(), name, flags.FLAGS.num)
        case ["doc", document_id]:
            return trace(_corpus(), document_id)
        case ["diff", first, second]:
            return compare(Corpus(Path(first)), Corpus(Path(second)), flags.FLAGS.num)
        case ["row", domain, number] if number.isdigit():
            return row_of(_tokens(), domain, int(number), flags.FLAGS.row_length)
        case ["card"]:
            folder = _corpus().folder
            write_card(folder)
            return {"card": str(folder / "report.html")}
        case ["batch"]:
            return batch()
    raise UserError(" ".join(words) or "no command", "is not a command of data.inspect",
                    f"write {COMMANDS}")


def _tokens() -> Path:
    if flags.FLAGS.tokens is None:
        raise UserError("--tokens", "is missing", "try --tokens=runs/quickstart/tokens")
    return Path(flags.FLAGS.tokens)


def _corpus() -> Corpus:
    if flags.FLAGS.corpus is None:
        raise UserError("--corpus", "is missing", "try --corpus=runs/quickstart/corpus")
    return Corpus(Path(flags.FLAGS.corpus))


if __name__ == "__main__":
    flags.DEFINE_string("corpus", None, "Output folder of `python -m data.curate`.")
    flags.DEFINE_string("tokens", None, "row: output folder of `python -m data.pack`.")
    flags.DEFINE_integer("row_length", 256, "row: inputs in a row.", lower_bound=1)
    flags.DEFINE_integer("num", 5, "rule, diff: documents to print; batch: examples.",
                         lower_bound=1)
    flags.DEFINE_string("stage", "sft", "batch: pretrain, sft, dpo or reward.")
    flags.DEFINE_string("html", None, "batch: a page to write as well.")
    flags.DEFINE_string("workdir", None, "batch: folder that holds the experiment's artifacts.")
    define_config_flag()
    command = list(sys.argv[1:])
    positional = [word for word in command if not word.startswith("-")]
    sys.argv[1:] = [word for word in command if word.startswith("-")]
    entry.run(lambda: main(positional))
