"""Stage: generates synthetic documents: rephrasings of a corpus, and questions with answers.

    python -m align.synthesize --config=configs/synthesize.py --workdir=runs/x

Reads `documents/` of a corpus. Writes `documents/` of domain "synthetic", which `data.curate` can
read as an input, and `removed/`, the answers that were filtered out, with the reason of each.
Processing is by chunk: a run that was killed repeats at most one.
"""

from __future__ import annotations

import dataclasses
import heapq
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash
from ml_collections import ConfigDict

from align.synthetic.filters import Verdict, judge
from align.synthetic.prompts import STYLES, Style, split_passages
from core.artifacts import digest, read_json, write_json
from core.bounds import check_numbers
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import format_count, log
from data.dedup.shingles import exact_key
from data.documents import Document, read_documents, write_documents
from data.filters.language import identify
from eval.respond.asked import add_cost, check_model, count_usage, make_responder
from eval.respond.responder import Reply, Responder

DOMAIN = "synthetic"
REMOVED_COLUMNS = {"reason": pa.string(), "score": pa.float64()}


class Task(NamedTuple):
    """One prompt: a passage of a document, and the requested style."""

    document: Document
    number: int         # of the passage in the document
    passage: str
    style: Style


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Writes synthetic documents by ``config.synthesize``; see the module's docstring.

    Returns:
        documents, bytes, frac (bytes over those of the corpus), prompts sent, documents by
        style, removed answers by reason, passages skipped as too short; usage and cost, see
        `add_cost`.

    Raises:
        UserError: the config is contradictory, no document is chosen, no answer is accepted, or
            the endpoint fails.
    """
    section = config.synthesize
    _check(section)
    documents, corpus_bytes = choose_documents(parents["corpus"] / "documents", section.domains,
                                               section.num_documents, section.seed)
    tasks, num_short = make_tasks(documents, section)
    if not tasks:
        raise UserError(f"synthesize.domains={tuple(section.domains)}", "no document has a passage "
                        f"of {section.min_passage_words} words", "choose other domains")
    max_bytes = int(section.max_frac * corpus_bytes)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    usage = _write_chunks(tasks, make_responder(section, parents), section, work, max_bytes)
    metrics = _join(folder, work, max_bytes)
    if not metrics["documents"]:
        raise UserError("synthesize", f"no answer is good enough: {metrics['removed']}",
                        "use a better model, or loosen config.synthesize.filters")
    shutil.rmtree(work)
    return metrics | {"asked": usage["requests"], "frac": metrics["bytes"] / corpus_bytes,
                      "short_passages": num_short, **add_cost(usage, section)}


def choose_documents(folder: Path, domains: Sequence[str], num_documents: int,
                     seed: int) -> tuple[list[Document], int]:
    """Samples documents by a hash of their ids; they are held in memory.

    Args:
        domains: those to sample from; empty means all.
        num_documents: how many; 0 means all.

    Returns:
        The documents in the order of their hashes, and the bytes of the whole corpus.
    """
    corpus_bytes = 0

    def candidates() -> Iterator[Document]:
        nonlocal corpus_bytes
        for document in read_documents(folder):
            corpus_bytes += len(document.text.encode())
            if not domains or document.domain in domains:
                yield document

    def place(document: Document) -> tuple[int, str]:
        return xxhash.xxh3_64_intdigest(document.id.encode(), seed), document.id

    if num_documents:
        return heapq.nsmallest(num_documents, candidates(), key=place), corpus_bytes
    return sorted(candidates(), key=place), corpus_bytes


def make_tasks(documents: Sequence[Document], section: ConfigDict) -> tuple[list[Task], int]:
    """Every passage of every document in every style, and the number of passages too short."""
    tasks, num_short = [], 0
    for document in documents:
        for number, passage in enumerate(split_passages(document.text, section.passage_words)):
            if len(passage.split()) < section.min_passage_words:
                num_short += 1
                continue
            tasks += [Task(document, number, passage, STYLES[style]) for style in section.styles]
    return tasks, num_short


def _write_chunks(tasks: Sequence[Task], responder: Responder, section: ConfigDict, work: Path,
                  max_bytes: int) -> Counter[str]:
    """Generates chunks until there are `max_bytes`; returns the counts of `count_usage`."""
    usage, num_bytes = Counter(), 0
    num_chunks = -(-len(tasks) // section.chunk_prompts)
    for chunk in range(num_chunks):
        record = work / f"{chunk:05d}.json"
        if not record.exists():
            picked = tasks[chunk * section.chunk_prompts:(chunk + 1) * section.chunk_prompts]
            seed = int(digest([section.seed, chunk]), 16) >> 33
            replies = responder.respond([task.style.prompt(task.passage) for task in picked], seed)
            _check_replies(replies, section)
            write_json(record, _write_chunk(work, record.stem, picked, replies, responder.name,
                                            section))
        done = read_json(record)
        usage.update(done["usage"])
        num_bytes += done["bytes"]
        log(f"synthesize: chunk {chunk + 1} of {num_chunks}, {done['documents']} of "
            f"{done['usage']['requests']} answers kept, {format_count(num_bytes)} of "
            f"{format_count(max_bytes)} bytes")
        if num_bytes >= max_bytes:
            break
    return usage


def _write_chunk(work: Path, name: str, tasks: Sequence[Task], replies: Sequence[Reply],
                 model: str, section: ConfigDict) -> dict[str, Any]:
    kept, removed = [], []
    for task, reply in zip(tasks, replies, strict=True):
        verdict = (Verdict(reply.text, reply.fault, 0.0) if reply.fault else
                   judge(reply.text, task.passage, task.style, section.filters, identify))
        (removed if verdict.reason else kept).append(_make_document(task, verdict, model))
    num_documents, num_bytes = write_documents(work / "kept" / f"{name}.parquet", kept)
    write_documents(work / "removed" / f"{name}.parquet", removed)
    return {"usage": count_usage(replies), "documents": num_documents, "bytes": num_bytes}


def _make_document(task: Task, verdict: Verdict, model: str) -> Document:
    source, style = task.document.id, task.style
    meta = {"style": style.name, "prompt": style.prompt_id, "model": model, "passage": task.number}
    if verdict.reason:
        meta |= {"reason": verdict.reason, "score": verdict.score}
    mark = f"{source}\n{style.prompt_id}\n{task.number}\n{verdict.text}"
    return Document(xxhash.xxh3_128_hexdigest(mark.encode()), verdict.text, source, DOMAIN,
                    task.document.language, meta)


def _join(folder: Path, work: Path, max_bytes: int) -> dict[str, Any]:
    """Joins the chunks; also removes duplicates and what exceeds `max_bytes`."""
    late: list[Document] = []
    seen: set[str] = set()
    by_style, reasons = Counter(), Counter()
    num_left = max_bytes

    def keep() -> Iterator[Document]:
        nonlocal num_left
        for document in read_documents(work / "kept"):
            key, size = exact_key(document.text), len(document.text.encode())
            if key in seen or size > num_left:
                reason = "duplicate" if key in seen else "over_cap"
                meta = document.meta | {"reason": reason, "score": 1.0}
                late.append(dataclasses.replace(document, meta=meta))
                continue
            seen.add(key)
            num_left -= size
            by_style[document.meta["style"]] += 1
            yield document

    def remove() -> Iterator[Document]:
        for document in (*read_documents(work / "removed"), *late):
            reasons[document.meta["reason"]] += 1
            yield document

    num_documents, num_bytes = write_documents(folder / "documents" / "00000.parquet", keep())
    write_documents(folder / "removed" / "00000.parquet", remove(), REMOVED_COLUMNS)
    return {"documents": num_documents, "bytes": num_bytes,
            "by_style": dict(sorted(by_style.items())), "removed": dict(reasons.most_common())}


def _check(section: ConfigDict) -> None:
    check_model(section, "synthesize")
    for style in section.styles:
        if style not in STYLES:
            raise UserError(f"synthesize.styles: {style!r}", "no such style",
                            f"choose among {', '.join(STYLES)}")
    check_numbers(section, "synthesize")


def _check_replies(replies: Sequence[Reply], section: ConfigDict) -> None:
    """Raises `UserError` if the endpoint rejects every prompt of a chunk."""
    faults = {reply.fault for reply in replies}
    if all(fault.startswith("rejected_") for fault in faults):
        raise UserError(f"synthesize.endpoint={section.endpoint!r}",
                        f"rejects every prompt ({', '.join(sorted(faults))})",
                        "check endpoint_model, and max_new_tokens and passage_words against "
                        "the model's context")


STAGE = Stage("synthesize", build, parents=("corpus", "model"))

if __name__ == "__main__":
    run_stage(STAGE)
