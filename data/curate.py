"""Curation: turns raw pages into training documents and records every removal.

    python -m data.curate --config=configs/quickstart.py --workdir=runs/quickstart

Writes `documents/`, `heldout/`, `removed/` (Parquet), `lost/` (records without a document, with
the reason), `manifest.json`, `report.html`, and for the embedded corpus `questions.parquet` and
`sources.json`. Passes over units run on any executor of `data.engine`; comparisons of documents
run between the passes, over keys, in bounded memory. Measurements are kept in `<out>.measured`, so
that a change of thresholds does not read the pages again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from core.artifacts import code_digest, digest, write_json
from core.entry import Stage, run_stage
from core.errors import UserError
from core.functions import defining_file
from core.progress import log
from data import engine
from data.card.page import write_card
from data.corpus import Corpus
from data.dedup.groups import plan_ranges
from data.domains import by_domain
from data.embedded import corpus as embedded
from data.engine import run_units
from data.filters.own import load_filter
from data.passes import (
    clean,
    compare,
    decide,
    measure,
    near,
    reading,
    settle,
    split,
    substrings,
    write,
)
from data.passes.check import check, check_read
from data.passes.losses import check_unchanged, describe_losses, find_losses, log_losses
from data.passes.manifest import (
    describe_classifiers,
    describe_clusters,
    estimate_bytes_per_token,
    find_alarms,
    find_contamination,
    make_funnel,
    merge_histograms,
    peak_memory_bytes,
    removed_by_reason,
)
from data.passes.roster import merge_tallies
from data.readers.units import (
    LeftOut,
    content_fingerprint,
    find_inputs,
    plan,
    search,
    version,
)
from data.tables import concatenate_arrays

QUALITY_BINS = 1 << 16


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
    """Builds the corpus in `folder` from ``config.curate``; see the module's docstring.

    Returns:
        documents, bytes and tokens (an estimate) to train on, heldout_documents, heldout_bytes,
        documents_in, bytes_in, removed, redacted, corrupt, stage_secs.

    Raises:
        UserError: the config is invalid, there is no document, too many records are damaged, or
            every document is removed.
    """
    section = config.curate.to_dict()
    section |= {name: by_domain(section[name]) for name in ("presets", "overrides")}
    check(section)
    if tasks := clean.load_index(section["contamination"]):
        log(f"curate: contamination: {tasks.describe()}")
    run = Curation(section, folder, num_workers)
    with run.stage("find"):
        paths = run.find()
    with run.stage("measure"):
        run.measure(paths)
    with run.stage("decide"):
        run.decide()
    with run.stage("clean"):
        run.clean()
    with run.stage("near_dedup"):
        run.find_near_duplicates()
    with run.stage("settle"):
        run.settle()
    with run.stage("split"):
        run.split()
    with run.stage("substrings"):
        run.find_substrings()
    with run.stage("write"):
        run.write()
    with run.stage("report"):
        metrics = run.report()
    shutil.rmtree(run.work)
    return metrics


class Curation:
    """The passes of one curation, and their results: counters and paths of outputs.

    Args:
        section: ``config.curate`` as plain data.
        folder: the artifact's folder; the passes work in its subfolder ``work``.
    """

    def __init__(self, section: Mapping[str, Any], folder: Path, num_workers: int | None):
        self.section, self.folder, self.num_workers = section, folder, num_workers
        self.work, self.stage = folder / "work", Stopwatch()
        self.kept = folder.with_name(f"{section['out']}.measured")
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.work.mkdir(exist_ok=True)

    def _run(self, function, tasks: Sequence[Mapping[str, Any]], key: Any = "",
             folder: Path | None = None) -> list[Path]:
        """Runs a pass; stores its results and returns the paths of its outputs, without suffix."""
        name = function.__name__
        folder = folder or self.work / name
        self.results[name] = run_units(function, tasks, folder, key=key,
                                       num_workers=self.num_workers)
        return [folder / f"{unit:05d}" for unit in range(len(tasks))]

    def find(self) -> list[str]:
        """The input files; generates the embedded corpus if it is the input."""
        self.left_out: Sequence[LeftOut] = ()
        if self.section["inputs"] != "embedded":
            paths, self.left_out = search(self.section["inputs"])
            reading.log_left_out(self.left_out)
            return paths
        final = self.kept / f"embedded-{digest(_embedded_inputs(self.section))}"
        partial = final.with_suffix(".partial")
        if not final.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            embedded.build(partial, packages=self.section["packages"],
                           code_max_bytes=self.section["code_max_bytes"],
                           seed=self.section["seed"])
            partial.rename(final)
        for name in ("questions.parquet", "sources.json"):
            shutil.copyfile(final / name, self.folder / name)
        return sorted(map(str, [*final.glob("*.warc*"), *final.glob("*.jsonl*")]))

    def measure(self, paths: Sequence[str]) -> None:
        """Pass 1. Its outputs are kept beside the artifact, for later runs."""
        limit = self.section["limit"]
        versions = {path: version(path) for path in paths}
        content = {path: content_fingerprint(path, by_time=limit > 0) for path in paths}
        self.units = plan(paths, self.section["unit_bytes"])
        tasks = [{"path": unit.path, "start": unit.start, "stop": unit.stop,
                  "content": content[unit.path], "extraction": self.section["extraction"],
                  "reading": reading.make_rules(self.section)} for unit in self.units]
        if limit:
            tasks = reading.find_first(self._measure, tasks, limit)
            self.units = self.units[:len(tasks)]
        self._measure(tasks)
        check_unchanged(versions)
        self.losses, lost_frac = find_losses(self.units, self.results["measure"])
        log_losses(self.losses)
        self.fields = reading.check_fields(self.section, self.results["measure"])
        check_read(self.section, self.results["measure"], self.losses, lost_frac)

    def _measure(self, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        self.measured = self._run(measure.measure, tasks, key=code_digest(measure.__file__),
                                  folder=self.kept)
        return self.results["measure"]

    def decide(self) -> None:
        """Finds exact duplicates, then runs pass 2."""
        folder = self.work / "repeats"
        folder.mkdir(exist_ok=True)
        repeats = compare.find_repeats(
            self.measured, folder, by_url=self.section["dedup"]["by_url"],
            seen=[Path(corpus) / "exact.npy" for corpus in self.section["against"]],
            memory_bytes=self.section["run"]["memory_bytes"], bloom=self.section["dedup"]["bloom"])
        rules = {name: self.section[name] for name in ("presets", "overrides", "languages")}
        self.decided = self._run(decide.decide, [
            {"measured": f"{path}.parquet", "repeats": str(repeat), **rules,
             "url_lists": self.section["harm"]["url_lists"],
             "min_block_lines": self.section["lines"]["min_block_lines"]}
            for path, repeat in zip(self.measured, repeats)])

    def clean(self) -> None:
        """Finds repeated lines, then runs pass 3."""
        folder, lines = self.work / "lines", self.section["lines"]
        folder.mkdir(exist_ok=True)
        memory_bytes = self.section["run"]["memory_bytes"]
        repeated = compare.find_repeated_blocks(
            self.decided, folder, min_block_lines=lines["min_block_lines"],
            memory_bytes=memory_bytes)
        boilerplate = compare.find_boilerplate(
            self.decided, folder, min_pages=lines["min_site_pages"],
            min_frac=lines["min_site_frac"], memory_bytes=memory_bytes)
        rules = {name: self.section[name] for name in (
            "lines", "presets", "code_domains", "privacy", "harm", "classifiers", "filters",
            "contamination", "dedup")}
        self.cleaned = self._run(clean.clean, [
            {"measured": f"{measured}.parquet", "before": str(decided), "rules": rules,
             "repeated_blocks": str(blocks), "boilerplate": str(boilerplate)}
            for measured, decided, blocks in zip(self.measured, self.decided, repeated)])

    def find_near_duplicates(self) -> None:
        """Runs pass 4, then forms clusters and chooses representatives."""
        rules = self.section["dedup"]
        parts = [Path(f"{path}.bands.npy") for path in self.cleaned]
        ranges = plan_ranges(parts, memory_bytes=self.section["run"]["memory_bytes"])
        edges = self._run(near.find_edges, [
            {"cleaned": list(map(str, self.cleaned)), "bounds": bounds,
             "num_bands": rules["num_bands"], "min_jaccard": rules["min_jaccard"]}
            for bounds in ranges])
        self.duplicates, clusters = near.cluster(self.cleaned, edges, self.work / "find_edges",
                                                 rules["min_jaccard"])
        self.near_dedup = near.summarise(self.results["find_edges"]) | clusters

    def settle(self) -> None:
        """Pass 5: removes near duplicates and low quality, and holds out pages."""
        rules = self.section["heldout"]
        self.min_quality = self._quality_percentile()
        self.settled = self._run(settle.settle, [
            {"before": str(cleaned), "cleaned": f"{cleaned}.parquet",
             "duplicates": str(duplicates), "min_quality": self.min_quality, "heldout": rules,
             "seed": self.section["seed"]}
            for cleaned, duplicates in zip(self.cleaned, self.duplicates)])
        places = sorted((place, unit, row, position, size)
                        for unit, result in enumerate(self.results["settle"])
                        for place, row, position, size in result["candidates"])
        documents, num_bytes = near.Documents(self.cleaned), 0
        self.heldout_rows: list[list[int]] = [[] for _ in self.cleaned]
        ids, shingles = [], []
        for _, unit, row, position, size in places:
            if num_bytes + size <= rules["max_bytes"]:
                num_bytes += size
                self.heldout_rows[unit].append(row)
                ids.append(self._id(unit, row))
                shingles.append(documents.shingles(documents.first[unit] + position))
        if rules["frac"] and not ids:
            log(f"curate: no document of domain {rules['domain']!r} is held out; "
                "see config.curate.heldout")
        split.save_heldout(self.work / "heldout", ids, shingles)

    def split(self) -> None:
        """Pass 6: removes documents similar to a held-out page."""
        self.apart = self._run(split.split, [
            {"before": str(settled), "cleaned": str(cleaned),
             "heldout": str(self.work / "heldout"), "heldout_rows": rows,
             "rules": self.section["heldout"]}
            for settled, cleaned, rows in zip(self.settled, self.cleaned, self.heldout_rows)])

    def find_substrings(self) -> None:
        """Finds passages that occur in an earlier document, if the config asks to cut them."""
        self.cuts = [""] * len(self.units)
        if num_tokens := self.section["substrings"]["num_tokens"]:
            self.cuts = substrings.find_cuts(
                self._run, self.cleaned, self.apart, self.heldout_rows, num_tokens=num_tokens,
                memory_bytes=self.section["run"]["memory_bytes"])

    def write(self) -> None:
        """Pass 7: writes the corpus into its folders."""
        passes = (self.decided, self.cleaned, self.settled, self.apart)
        outputs = self._run(write.write, [
            {"measured": str(self.measured[unit]),
             "passes": [str(outputs[unit]) for outputs in passes],
             "duplicates": str(self.duplicates[unit]), "heldout_rows": self.heldout_rows[unit],
             "cuts": self.cuts[unit], "columns": self._columns()}
            for unit in range(len(self.units))])
        for kind in ("documents", "heldout", "removed", "lost"):
            (self.folder / kind).mkdir(exist_ok=True)
            for unit, (output, measured) in enumerate(zip(outputs, self.measured)):
                part = self.folder / kind / f"part-{unit:05d}.parquet"
                if kind == "lost":
                    shutil.copyfile(f"{measured}.lost.parquet", part)
                elif os.path.exists(f"{output}.{kind}.parquet"):    # else a killed run moved it
                    os.replace(f"{output}.{kind}.parquet", part)
        concatenate_arrays([Path(f"{output}.exact.npy") for output in outputs],
                           self.folder / "exact.npy")       # for `against`

    def _columns(self) -> dict[str, str]:
        """Columns beside those of every corpus, with the fields that they are taken from."""
        return {name: field for name, field in self.section["columns"].items() if name != "domain"}

    def report(self) -> dict[str, Any]:
        """Writes the manifest and the data card; returns the run's metrics."""
        verdicts = [self.results[name] for name in ("decide", "clean", "settle", "split",
                                                         "write")]
        funnel = make_funnel(verdicts)
        written = self._written()
        if not written["documents"]:
            raise UserError("curate", f"every document was removed: {removed_by_reason(funnel)}",
                            "loosen the rules in config.curate, or give other inputs")
        metrics = written | {
            "documents_in": sum(result["documents"] for result in self.results["measure"]),
            "bytes_in": sum(result["bytes"] for result in self.results["measure"]),
            "removed": removed_by_reason(funnel),
            "redacted": self._sum("clean", "redacted"),
            "corrupt": self._sum("measure", "corrupt"), "stage_secs": self.stage.secs}
        manifest = metrics | {
            "skipped": self._sum("measure", "skipped"), **self.fields,
            "left_out": [dataclasses.asdict(one) for one in self.left_out], "funnel": funnel,
            "histograms": merge_histograms(self.results["decide"]),
            "unapplied_rules": merge_tallies(
                result["unapplied"] for result in self.results["decide"]),
            "near_dedup": self.near_dedup,
            **({} if self.min_quality is None else {"min_quality": self.min_quality}),
            "kept_by_domain": self._counts("domains"),
            "kept_by_language": self._counts("languages"),
            "alarms": [*describe_losses(self.losses), *find_alarms(
                funnel, self.results["measure"], verdicts, [unit.path for unit in self.units],
                self.section["dedup"]["alarm_frac"])],
            "classifiers": describe_classifiers(self.section["classifiers"]),
            "stages": self._speeds(funnel),
            "workers": self.num_workers or engine.executor_from_flags().num_processes,
            "peak_memory_bytes": peak_memory_bytes()}
        write_json(self.folder / "manifest.json", manifest)
        corpus = Corpus(self.folder)
        manifest["near_dedup"] = describe_clusters(corpus, self.near_dedup)
        if self.section["contamination"]["tasks"]:
            manifest["contamination"] = find_contamination(corpus, self.results["clean"],
                                                           self.section)
        write_json(self.folder / "manifest.json", manifest)
        for alarm in manifest["alarms"][len(self.losses):]:
            log(f"curate: ALARM: deduplication removed {alarm['removed_frac']:.0%} of "
                f"{alarm['source']}; see `python -m data.inspect rule near_duplicate`")
        write_card(self.folder)
        return metrics

    def _quality_percentile(self) -> float | None:
        """Minimum quality that keeps ``keep_top_frac`` of the documents, or None."""
        frac = self.section["keep_top_frac"]
        if frac >= 1:
            return None
        counts, edges = np.zeros(QUALITY_BINS, np.int64), np.linspace(0, 1, QUALITY_BINS + 1)
        for path in self.cleaned:
            kept = set(np.load(f"{path}.index.npy")["row"].tolist())
            table = pq.read_table(f"{path}.parquet", columns=["row", "quality"]).to_pylist()
            values = [row["quality"] for row in table if row["row"] in kept]
            counts += np.histogram(np.clip(values, 0, 1), edges)[0]
        above = np.cumsum(counts[::-1])[::-1]
        return float(edges[:-1][above >= frac * counts.sum()].max(initial=0.0))

    def _id(self, unit: int, row: int) -> str:
        column = pq.read_table(f"{self.measured[unit]}.parquet", columns=["id"])["id"]
        return column[row].as_py()

    def _sum(self, name: str, field: str) -> dict[str, int]:
        """A counter of a pass, summed over units, the largest first."""
        return dict(sum((Counter(result[field]) for result in self.results[name]),
                        Counter()).most_common())

    def _counts(self, field: str) -> dict[str, dict[str, int]]:
        """Documents and bytes by domain or language, summed over units."""
        return dict(sorted(merge_tallies(r[field] for r in self.results["write"]).items()))

    def _written(self) -> dict[str, Any]:
        """Size and hash of the written corpus."""
        kept, held_out = self._counts("domains"), self._counts("domains_heldout")
        hashes = [int(result["hash"], 16) for result in self.results["write"]]
        per_token = estimate_bytes_per_token(self.folder / "documents")
        return {
            "documents": sum(count["documents"] for count in kept.values()),
            "bytes": sum(count["bytes"] for count in kept.values()),
            "tokens": round(sum(count["bytes"] / per_token[name]
                                for name, count in kept.items())),
            "bytes_per_token": per_token,
            "heldout_documents": sum(count["documents"] for count in held_out.values()),
            "heldout_bytes": sum(count["bytes"] for count in held_out.values()),
            "corpus_hash": f"{sum(hashes) % 2**128:032x}"}

    def _speeds(self, funnel: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Seconds of each stage of the run, and the bytes that it processed."""
        entered = {stage["stage"]: stage["bytes_in"] for stage in funnel}
        sizes = {"measure": sum(result["raw_bytes"] for result in self.results["measure"]),
                 "decide": entered["extract"], "clean": entered["lines"],
                 "near_dedup": entered["near_dedup"], "settle": entered["near_dedup"],
                 "split": entered["split"], "substrings": entered["substrings"],
                 "write": entered["extract"]}
        return [{"name": name, "secs": secs, "bytes": sizes.get(name)}
                for name, secs in self.stage.secs.items()]


def fingerprint_inputs(config: ConfigDict) -> dict[str, str]:
    """Fingerprints of the raw inputs and of every file that the config names."""
    section = config.curate
    if section.inputs == "embedded":
        raw = {"embedded": digest(_embedded_inputs(section))}
    else:
        raw = {path: content_fingerprint(path, by_time=section.limit > 0)
               for path in find_inputs(section.inputs)}
    models = [model.model for model in section.classifiers.values() if model.model]
    named = (*section.harm.url_lists, *section.harm.word_lists, *section.contamination.tasks,
             *section.against, *models)
    own = {name: _fingerprint(defining_file(load_filter(name))) for name in section.filters}
    return raw | {name: _fingerprint(Path(name)) for name in named} | own


def _fingerprint(path: Path) -> str:
    """Digest of a file, or of all files of a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digests = {str(file): content_fingerprint(str(file)) for file in files if file.is_file()}
    if not digests:
        raise UserError(f"curate: {path}", "is neither a file nor a folder with files",
                        "correct the name in config.curate")
    return digest(digests)


def _embedded_inputs(section: Mapping[str, Any]) -> list[Any]:
    return [embedded.fingerprint(section["packages"]), section["code_max_bytes"],
            section["seed"]]


STAGE = Stage("curate", build, inputs=fingerprint_inputs, assist=engine.assist)

if __name__ == "__main__":
    run_stage(STAGE)
