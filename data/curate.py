"""Curation: raw pages in, documents to train on out, with a record of everything that went.

    python -m data.curate --config=configs/quickstart.py --workdir=runs/quickstart

Writes `documents/`, `heldout/`, `removed/` (Parquet), `manifest.json`, and for the embedded corpus
`questions.parquet` and `sources.json`. Units are read and cleaned on Daft; what compares documents
with each other runs between, over ids, hashes and signatures.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from ml_collections import ConfigDict

from core.artifacts import digest, write_json
from core.entry import run_stage
from core.errors import UserError
from core.progress import log
from data import curate_units, dedup, embedded, readers
from data.curate_units import CODE_DOMAIN
from data.documents import Document, write_documents
from data.engine import run_units
from data.filters.lines import find_repeated_blocks
from data.filters.rules import check_thresholds, decide
from data.filters.signals import measure_code, measure_prose
from data.ledger import Entry, Ledger

REMOVED_COLUMNS = {"stage": pa.string(), "reason": pa.string(), "score": pa.float64(),
                   "representative": pa.string()}


class Stopwatch:
    """Seconds per stage."""

    def __init__(self):
        self.secs: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        log(f"curate: {stage}")
        began = time.monotonic()
        yield
        self.secs[stage] = round(time.monotonic() - began, 2)


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path, *,
          num_workers: int | None = None) -> dict[str, Any]:
    """Builds the corpus in `folder` from ``config.curate``; see the module's first lines.

    Returns:
        documents, bytes, heldout_documents, heldout_bytes, documents_in, bytes_in, removed,
        redacted, corrupt, stage_secs.

    Raises:
        UserError: a rule names no signal, there is no document, too many records are damaged, or
            nothing is kept.
    """
    section, work, stage = config.curate, folder / "work", Stopwatch()
    _check(section)
    with stage("find"):
        paths = _find_inputs(section, work)
    with stage("read"):
        prepared, counts = _prepare(section, paths, work, num_workers)
        ledger = Ledger(prepared)
        _check_read(section, ledger, counts)
    with stage("decide"):
        _remove_exact(ledger)
        _remove_by_rules(ledger, section)
    with stage("clean"):
        cleaned, redacted = _clean(section, ledger, prepared, work, num_workers)
    with stage("near_dedup"):
        near = _remove_near(ledger, cleaned, section.dedup)
    with stage("split"):
        _hold_out(ledger, cleaned, section)
    if not any(not entry.is_heldout for entry in ledger.staying()):
        raise UserError("curate", f"every document was removed: {ledger.removed_by_reason()}",
                        "loosen the rules in config.curate, or give other inputs")
    with stage("write"):
        written = _write(folder, ledger, prepared, cleaned)
    manifest = written | {
        "documents_in": len(ledger.entries),
        "bytes_in": sum(entry.bytes for entry in ledger.entries),
        "removed": ledger.removed_by_reason(), "redacted": dict(sorted(redacted.items())),
        "corrupt": counts["corrupt"], "stage_secs": stage.secs}
    write_json(folder / "manifest.json", manifest | {
        "skipped": counts["skipped"], "funnel": ledger.funnel(),
        "kept_by_domain": ledger.kept_by_domain(), "near_dedup": near})
    _pass_through(work / "embedded", folder)
    shutil.rmtree(work)
    return manifest


def fingerprint_inputs(config: ConfigDict) -> dict[str, str]:
    """What decides the raw input: the installed packages, or the content of the input files."""
    section = config.curate
    if section.inputs == "embedded":
        return {"embedded": digest(embedded.fingerprint(section.packages))}
    return {str(path): readers.content_fingerprint(path)
            for path in readers.find_inputs(section.inputs)}


def _check(section: ConfigDict) -> None:
    prose, code = measure_prose(""), measure_code("")
    check_thresholds("curate.gopher", section.gopher, prose)
    check_thresholds("curate.c4", section.c4, prose)
    check_thresholds("curate.code", section.code, code)
    if section.lines.min_block_lines < 1:
        raise UserError(f"curate.lines.min_block_lines={section.lines.min_block_lines}",
                        "a block has at least one line", "set it to 3")


def _find_inputs(section: ConfigDict, work: Path) -> list[Path]:
    if section.inputs != "embedded":
        return readers.find_inputs(section.inputs)
    final, partial = work / "embedded", work / "embedded.partial"
    if not final.exists():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        embedded.build(partial, packages=section.packages, code_max_bytes=section.code_max_bytes,
                       seed=section.seed)
        partial.rename(final)
    return sorted([*final.glob("*.warc*"), *final.glob("*.jsonl*")])


def _prepare(section: ConfigDict, paths: list[Path], work: Path,
             num_workers: int | None) -> tuple[list[Path], dict[str, Counter]]:
    """Reads all units; returns their Parquet files, and corrupt and skipped records by reason."""
    units = readers.plan(paths, section.unit_bytes)
    tasks = [{"path": str(unit.path), "start": unit.start, "stop": unit.stop,
              "domain": section.domain} for unit in units]
    results = run_units(curate_units.prepare, tasks, work / "read", key="",
                        num_workers=num_workers)
    counts = {"corrupt": Counter(), "skipped": Counter()}
    for result in results:
        for kind, counter in counts.items():
            counter.update(result[kind])
    return [work / "read" / f"{unit:05d}.parquet" for unit in range(len(units))], counts


def _check_read(section: ConfigDict, ledger: Ledger, counts: Mapping[str, Counter]) -> None:
    num_corrupt = counts["corrupt"].total()
    total = num_corrupt + len(ledger.entries)
    if total and num_corrupt / total > section.max_corrupt_frac:
        raise UserError(f"curate.inputs={section.inputs!r}",
                        f"{num_corrupt} of {total} records are damaged "
                        f"({dict(counts['corrupt'].most_common(3))})",
                        "mend the files, or raise --config.curate.max_corrupt_frac "
                        f"above {section.max_corrupt_frac}")
    if not ledger.entries:
        raise UserError(f"curate.inputs={section.inputs!r}", "holds no document",
                        "give WARC, JSONL, Parquet or text files that hold text")


def _remove_exact(ledger: Ledger) -> None:
    """Removes empty documents, and all but the first of those that share their normalised text."""
    first: dict[str, Entry] = {}
    for entry in ledger.entries:
        if not entry.signals["words"]:
            entry.remove("extract", "empty", 0.0)
            continue
        holder = first.setdefault(entry.exact_key, entry)
        if holder is not entry:
            entry.remove("exact_dedup", "exact_duplicate", 1.0, holder.id)


def _remove_by_rules(ledger: Ledger, section: ConfigDict) -> None:
    thresholds = {family: section[family].to_dict() for family in ("gopher", "c4", "code")}
    for entry in ledger.staying():
        families = ("code",) if entry.domain == CODE_DOMAIN else ("gopher", "c4")
        for family in families:
            removal = decide(entry.signals, thresholds[family], family)
            if removal is not None:
                entry.remove("rules", removal.reason, removal.score)
                break


def _clean(section: ConfigDict, ledger: Ledger, prepared: list[Path], work: Path,
           num_workers: int | None) -> tuple[list[Path], Counter]:
    """Drops lines, redacts, hashes; returns the cleaned units and redacted spans by kind."""
    decisions = _decide_lines(ledger, prepared, section.lines.min_block_lines, work / "lines")
    rules = {"line_rules": section.lines.to_dict(), "dedup_rules": section.dedup.to_dict()}
    tasks = [{"prepared": str(path), "decisions": str(decision), "seed": section.seed, **rules}
             for path, decision in zip(prepared, decisions)]
    key = digest([readers.content_fingerprint(path) for path in decisions])
    results = run_units(curate_units.clean, tasks, work / "clean", key=key,
                        num_workers=num_workers)
    cleaned = [work / "clean" / f"{unit:05d}.parquet" for unit in range(len(prepared))]
    for unit, path in enumerate(cleaned):
        entries, end = ledger.units[unit], 0
        for row in pq.read_table(path, columns=["row", "bytes", "words", "trimmed",
                                                "num_shingles"]).to_pylist():
            entry = entries[row["row"]]
            entry.clean_bytes, entry.trimmed = row["bytes"], json.loads(row["trimmed"])
            entry.shingles_at, end = (end, end + row["num_shingles"]), end + row["num_shingles"]
            if entry.domain != CODE_DOMAIN and row["words"] < section.lines.min_words:
                entry.remove("lines", "lines_min_words", row["words"])
    return cleaned, sum((Counter(result["redacted"]) for result in results), Counter())


def _decide_lines(ledger: Ledger, prepared: list[Path], min_block_lines: int,
                  folder: Path) -> list[Path]:
    """Writes per unit the rows that stay and their lines that an earlier document holds."""
    folder.mkdir(exist_ok=True)
    staying, hashes = ledger.staying(), []
    for unit, entries in itertools.groupby(staying, key=lambda entry: entry.unit):
        column = pq.read_table(prepared[unit], columns=["line_hashes"])["line_hashes"]
        hashes += [column[entry.row].values.to_numpy() for entry in entries]
    marks = find_repeated_blocks(hashes, min_block_lines)
    rows: list[list[dict]] = [[] for _ in prepared]
    for entry, mark in zip(staying, marks):
        rows[entry.unit].append({"row": entry.row, "lines": np.flatnonzero(mark).tolist()})
    schema = pa.schema([("row", pa.int32()), ("lines", pa.list_(pa.int32()))])
    paths = [folder / f"{unit:05d}.parquet" for unit in range(len(prepared))]
    for path, unit_rows in zip(paths, rows):
        pq.write_table(pa.Table.from_pylist(unit_rows, schema=schema), path)
    return paths


class _Shingles:
    """Shingles of any document, from memory-mapped files."""

    def __init__(self, cleaned: list[Path]):
        self._files = [np.load(path.with_suffix(".npy"), mmap_mode="r") for path in cleaned]

    def of(self, entry: Entry) -> np.ndarray:
        start, stop = entry.shingles_at
        return np.asarray(self._files[entry.unit][start:stop])


def _read_signatures(entries: list[Entry], cleaned: list[Path], num_hashes: int) -> np.ndarray:
    """MinHash signatures: [num_documents, num_hashes] uint32."""
    found = []
    for unit, members in itertools.groupby(entries, key=lambda entry: entry.unit):
        table = pq.read_table(cleaned[unit], columns=["row", "signature"])
        by_row = dict(zip(table["row"].to_pylist(), table["signature"].to_pylist()))
        found += [np.frombuffer(by_row[entry.row], np.uint32) for entry in members]
    return np.array(found, np.uint32).reshape(-1, num_hashes)


def _remove_near(ledger: Ledger, cleaned: list[Path], rules: ConfigDict) -> dict[str, Any]:
    """Removes near duplicates of longer documents (of smaller ids among equals)."""
    shingles, staying = _Shingles(cleaned), ledger.staying()
    signatures = _read_signatures(staying, cleaned, rules.num_bands * rules.rows_per_band)

    def shingles_of(index: int) -> np.ndarray:
        return shingles.of(staying[index])

    found = dedup.cluster(
        dedup.candidate_groups(signatures, rules.num_bands, rules.rows_per_band),
        len(staying), shingles_of, rules.min_jaccard)
    members: dict[int, list[int]] = {}
    for index, root in enumerate(found.root.tolist()):
        members.setdefault(root, []).append(index)
    clusters = [cluster for cluster in members.values() if len(cluster) > 1]
    for cluster in clusters:
        cluster.sort(key=lambda index: (-staying[index].clean_bytes, staying[index].id))
        for index in cluster:
            staying[index].cluster_size = len(cluster)
        for index, kept, similarity in dedup.choose_representatives(cluster, shingles_of,
                                                                    rules.min_jaccard):
            staying[index].remove("near_dedup", "near_duplicate", similarity, staying[kept].id)
    sizes = Counter(map(len, clusters))
    return {"candidates": found.num_candidates, "accepted": found.num_accepted,
            "acceptance_rate": round(found.num_accepted / max(found.num_candidates, 1), 4),
            "clusters": len(clusters), "largest_cluster": max(sizes, default=0),
            "clusters_by_size": {str(size): sizes[size] for size in sorted(sizes)}}


def _hold_out(ledger: Ledger, cleaned: list[Path], section: ConfigDict) -> None:
    """Sets pages aside, and removes what resembles them from the rest, whatever its domain."""
    rules, shingles = section.heldout, _Shingles(cleaned)
    pages = [entry for entry in ledger.staying() if entry.domain == rules.domain]
    places = {entry.id: xxhash.xxh3_64_intdigest(entry.id.encode(), section.seed) / 2**64
              for entry in pages}
    num_bytes, heldout = 0, []
    for entry in sorted(pages, key=lambda page: places[page.id]):
        if places[entry.id] < rules.frac and num_bytes + entry.clean_bytes <= rules.max_bytes:
            num_bytes += entry.clean_bytes
            entry.is_heldout = True
            heldout.append(entry)
    if not heldout and rules.frac:
        log(f"curate: nothing is held out of {len(pages)} documents of domain {rules.domain!r}; "
            "see config.curate.heldout")
    index = dedup.HeldoutIndex([shingles.of(entry) for entry in heldout])
    for entry in ledger.staying():
        if entry.is_heldout:
            continue
        nearest, similarity, contained = index.overlap(shingles.of(entry))
        if similarity >= rules.max_jaccard or contained >= rules.max_containment:
            entry.remove("split", "near_heldout", max(similarity, contained), heldout[nearest].id)


def _write(folder: Path, ledger: Ledger, prepared: list[Path],
           cleaned: list[Path]) -> dict[str, Any]:
    """Writes the Parquet parts, one per unit and kind; returns documents, bytes and the hash."""
    totals, corpus = Counter(), xxhash.xxh3_128()
    for name in ("documents", "heldout", "removed"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    for unit in range(len(prepared)):
        kinds: dict[str, list[Document]] = {"documents": [], "heldout": [], "removed": []}
        for entry, document in _assemble(ledger.units[unit], prepared[unit], cleaned[unit]):
            kind = "removed" if entry.stage else "heldout" if entry.is_heldout else "documents"
            kinds[kind].append(document)
        for document in kinds["documents"]:
            corpus.update(f"{document.id}\n{document.text}".encode())
        for kind, documents in kinds.items():
            if documents:
                extra = REMOVED_COLUMNS if kind == "removed" else None
                path = folder / kind / f"part-{unit:05d}.parquet"
                num_documents, num_bytes = write_documents(path, documents, extra)
                totals.update({f"{kind}": num_documents, f"{kind}_bytes": num_bytes})
    return {"documents": totals["documents"], "bytes": totals["documents_bytes"],
            "heldout_documents": totals["heldout"], "heldout_bytes": totals["heldout_bytes"],
            "corpus_hash": corpus.hexdigest()}


def _assemble(entries: list[Entry], prepared: Path,
              cleaned: Path) -> Iterator[tuple[Entry, Document]]:
    """A unit's documents, with the cleaned text of those that came so far."""
    clean_rows = {row["row"]: row for row in pq.read_table(
        cleaned, columns=["row", "text", "quality", "redacted"]).to_pylist()}
    columns = ["text", "source", "language"]
    for entry, raw in zip(entries, pq.read_table(prepared, columns=columns).to_pylist()):
        clean = clean_rows.get(entry.row)
        meta: dict[str, Any] = {name: round(value, 4) for name, value in entry.signals.items()}
        if clean is not None:
            meta |= {"quality": clean["quality"], "cluster_size": entry.cluster_size,
                     "redacted": json.loads(clean["redacted"]), "trimmed": entry.trimmed}
        if entry.stage:
            meta |= {name: getattr(entry, name) for name in REMOVED_COLUMNS}
        yield entry, Document(entry.id, clean["text"] if clean else raw["text"], raw["source"],
                              entry.domain, raw["language"], meta)


def _pass_through(source: Path, folder: Path) -> None:
    for name in ("questions.parquet", "sources.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


if __name__ == "__main__":
    run_stage("curate", build, inputs=fingerprint_inputs)
