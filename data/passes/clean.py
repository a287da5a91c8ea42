"""Pass 3, per unit: cleans the text of the remaining documents.

Drops repeated lines and boilerplate, applies line rules, redacts personal data, applies word lists,
classifiers and the user's own filters, and searches for benchmark items. Then it hashes the text
for the comparison of documents.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.classify.classifier import Classifier, load_classifier
from data.contamination.index import TaskIndex, load_tasks
from data.dedup import blocks
from data.dedup.shingles import band_keys, minhash_batch, shingle_batch
from data.documents import Document
from data.filters import harm, own
from data.filters.lines import clean_lines
from data.filters.presets import line_rules
from data.filters.signals import prose_frac
from data.passes.roster import Roster
from data.privacy import redaction
from data.tables import TableWriter, read_rows, write_array
from data.writing import count_words

BATCH_DOCUMENTS = 256
STAGES = ("lines", "privacy", "harm_words", "classifiers", "filters", "contamination")
CLEANED_SCHEMA = pa.schema([
    ("row", pa.int32()), ("id", pa.string()), ("text", pa.string()), ("bytes", pa.int64()),
    ("domain", pa.string()), ("quality", pa.float64()), ("scores", pa.string()),
    ("trimmed", pa.string()), ("redacted", pa.string()), ("hits", pa.string())])
# Documents to compare: row, UTF-8 bytes and number of shingles.
INDEX_DTYPE = np.dtype([("row", "<i4"), ("bytes", "<i8"), ("shingles", "<i8")])


@dataclasses.dataclass
class Draft:
    """A document in processing.

    Attributes:
        signals: JSON of those that `data.passes.measure` found.
        sizes: UTF-8 bytes after the line rules, and after redaction.
        verdict: stage, reason and score when it was removed.
    """

    row: int
    id: str
    source: str
    domain: str
    language: str
    text: str
    signals: str
    is_code: bool
    sizes: list[int] = dataclasses.field(default_factory=list)
    trimmed: dict[str, int] = dataclasses.field(default_factory=dict)
    redacted: dict[str, int] = dataclasses.field(default_factory=dict)
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    hits: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    verdict: tuple[str, str, float] | None = None

    def remove(self, stage: str, reason: str, score: float) -> None:
        """Records a verdict, unless there is one already."""
        self.verdict = self.verdict or (stage, reason, float(score))


def clean(*, output: Path, measured: str, before: str, repeated_blocks: str, boilerplate: str,
          rules: Mapping[str, Any]) -> dict[str, Any]:
    """Cleans and hashes a unit's documents; writes text, roster, removals and, for the remaining
    documents, index, band keys and shingles.

    Args:
        measured: Parquet file written by `data.passes.measure`.
        before: path of the unit's roster, written by `data.passes.decide`.
        repeated_blocks: array of positions, see `data.dedup.blocks.mark_blocks`.
        boilerplate: array of keys, see `data.dedup.blocks.find_boilerplate`.
        rules: the fields lines, presets, code_domains, privacy, harm, classifiers, filters,
            contamination and dedup of the config.

    Returns:
        ``tallies`` of the stages, ``redacted`` spans by kind, ``hits`` by benchmark.
    """
    roster, cleaner = Roster.load(before), _Cleaner(rules)
    verdicts: dict[int, tuple[str, str, float]] = {}
    sizes, trimmed, redacted, hits = {}, {}, Counter(), Counter()
    bands, index = [], []
    shingles_path = f"{output}.shingles.{os.getpid()}.tmp"
    with (TableWriter(f"{output}.parquet", CLEANED_SCHEMA, BATCH_DOCUMENTS) as writer,
          open(shingles_path, "wb") as shingles_file):
        for drafts in _drafts(measured, roster, repeated_blocks, boilerplate, rules):
            cleaner.clean(drafts)
            for draft in drafts:
                sizes[draft.row], trimmed[draft.row] = draft.sizes, draft.trimmed
                redacted.update(draft.redacted)
                hits.update({hit["task"] for hit in draft.hits})
                if draft.verdict is not None:
                    verdicts[draft.row] = draft.verdict
                writer.write(_row(draft))
            remaining = [draft for draft in drafts if draft.verdict is None]
            grams, offsets = shingle_batch([draft.text for draft in remaining],
                                           rules["dedup"]["shingle_words"])
            shingles_file.write(grams.astype("<u8").tobytes())
            bands.append(_band_keys(grams, offsets, rules["dedup"]))
            index.append(np.array([(draft.row, draft.sizes[-1], size) for draft, size in
                                   zip(remaining, np.diff(offsets).tolist())], INDEX_DTYPE))
    os.replace(shingles_path, f"{output}.shingles")
    write_array(f"{output}.bands.npy", np.concatenate([
        np.zeros((0, rules["dedup"]["num_bands"]), np.uint64), *bands]))
    write_array(f"{output}.index.npy", np.concatenate([np.zeros(0, INDEX_DTYPE), *index]))
    for place, stage in enumerate(STAGES):
        roster.begin(stage)
        for row in roster.rows:
            if place < 2 and row in sizes:
                roster.trim(row, sizes[row][place], trimmed[row] if place == 0 else {})
            if row in verdicts and verdicts[row][0] == stage:
                roster.remove(row, *verdicts[row][1:])
    return {"tallies": roster.save(output), "redacted": dict(redacted), "hits": dict(hits)}


def _drafts(measured: str, roster: Roster, repeated_blocks: str, boilerplate: str,
            rules: Mapping[str, Any]) -> Iterator[list[Draft]]:
    """Remaining documents without repeated lines and boilerplate, in batches."""
    common = np.load(boilerplate, mmap_mode="r")
    marks = blocks.mark_blocks(measured, roster.rows, rules["lines"]["min_block_lines"],
                               np.load(repeated_blocks))
    columns = ("id", "text", "source", "site", "domain", "language", "signals", "line_hashes")
    batch = []
    for number, row in read_rows(measured, columns, BATCH_DOCUMENTS):
        if number not in roster:
            continue
        _, mark = next(marks)
        draft = Draft(number, row["id"], row["source"], row["domain"], row["language"],
                      row["text"], row["signals"], row["domain"] in rules["code_domains"])
        if not draft.is_code:
            _drop_lines(draft, {"repeated_block": mark, "site_boilerplate": blocks.mark_edges(
                np.asarray(row["line_hashes"], np.uint64), row["site"], common)})
        batch.append(draft)
        if len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch = []
    if batch:
        yield batch


def _drop_lines(draft: Draft, marks: Mapping[str, np.ndarray]) -> None:
    """Drops the marked lines; each is counted for the first of `marks` that marks it."""
    line_bytes = np.array([len(line.encode()) + 1 for line in draft.text.split("\n")])
    dropped = np.zeros(len(line_bytes), bool)
    for rule, mark in marks.items():
        if num_bytes := int(line_bytes[mark & ~dropped].sum()):
            draft.trimmed[rule] = num_bytes
        dropped |= mark
    draft.text = blocks.drop_lines(draft.text, dropped)


class _Cleaner:
    """The rules of the pass, with their lists and models loaded once."""

    def __init__(self, rules: Mapping[str, Any]):
        self._rules = rules
        self._words = [harm.load_word_list(path) for path in
                        rules["harm"]["word_lists"]]
        self._models: dict[str, Classifier] = {
            name: load_classifier(Path(model["model"]))
            for name, model in rules["classifiers"].items() if model["model"]}
        self._filters = {path: own.load_filter(path) for path in rules["filters"]}
        self._tasks = load_index(rules["contamination"])
        names = rules["privacy"]["name_finder"]
        self._find_names = redaction.load_name_finder(names) if names else None

    def clean(self, drafts: Sequence[Draft]) -> None:
        """Produces the final text, or a verdict, of every draft of a batch."""
        for draft in drafts:
            self._apply_line_rules(draft)
            draft.sizes.append(len(draft.text.encode()))
            self._redact(draft)
            draft.sizes.append(len(draft.text.encode()))
            self._count_bad_words(draft)
        self._classify(drafts)
        for draft in drafts if self._filters else ():
            self._apply_own_filters(draft)
        for draft in drafts if self._tasks else ():
            self._find_benchmarks(draft)

    def _apply_line_rules(self, draft: Draft) -> None:
        presets = self._rules["presets"]
        rules = line_rules(presets.get(draft.domain, presets["default"]))
        if rules:
            result = clean_lines(draft.text, rules)
            draft.text = result.text
            draft.trimmed |= result.trimmed
            if result.removal is not None:
                draft.remove("lines", result.removal.reason, result.removal.score)
        num_words = count_words(draft.text)
        if not draft.is_code and num_words < self._rules["lines"]["min_words"]:
            draft.remove("lines", "lines_min_words", num_words)

    def _redact(self, draft: Draft) -> None:
        actions = self._rules["privacy"]["actions"]
        spans = redaction.find(draft.text, tuple(actions), self._find_names)
        outcome = redaction.apply(draft.text, spans, actions)
        if outcome is None:
            draft.remove("privacy", redaction.drop_reason(spans, actions), len(spans))
        else:
            draft.text, draft.redacted = outcome

    def _count_bad_words(self, draft: Draft) -> None:
        if self._words:
            draft.scores |= harm.measure(draft.text, self._words)
            if draft.scores["bad_words"] > self._rules["harm"]["max_bad_words"]:
                draft.remove("harm_words", "harm_max_bad_words", draft.scores["bad_words"])

    def _classify(self, drafts: Sequence[Draft]) -> None:
        """Scores the drafts; the classifier named `domain` sets their domain."""
        for name, model in self._models.items():
            bounds = self._rules["classifiers"][name]
            if name == "domain":
                for draft, label in zip(drafts, model.classify([d.text for d in drafts])):
                    draft.scores[name] = draft.domain = label
                continue
            for draft, score in zip(drafts, model.score([d.text for d in drafts]).tolist()):
                draft.scores[name] = round(score, 5)
                if not bounds["min_score"] <= score <= bounds["max_score"]:
                    draft.remove("classifiers", f"classifier_{name}", score)

    def _apply_own_filters(self, draft: Draft) -> None:
        """Asks the user's filters about a remaining document, until one removes it."""
        meta = json.loads(draft.signals) | draft.scores
        document = Document(draft.id, draft.text, draft.source, draft.domain, draft.language, meta)
        for path, judge in self._filters.items():
            if draft.verdict is not None:
                return
            if (score := own.apply(path, judge, document)) is not None:
                draft.remove("filters", path.rpartition(".")[2], score)

    def _find_benchmarks(self, draft: Draft) -> None:
        draft.hits = [dataclasses.asdict(hit) for hit in self._tasks.find(draft.text)]
        if draft.hits:
            worst = max(draft.hits, key=lambda hit: hit["overlap"])
            draft.remove("contamination", f"contamination_{worst['task']}", worst["overlap"])


def load_index(rules: Mapping[str, Any]) -> TaskIndex | None:
    """The index of the benchmark files of the section `contamination`; None without files."""
    if not rules["tasks"]:
        return None
    return load_tasks(rules["tasks"], rules["fields"], ngram_words=rules["ngram_words"],
                      near_overlap=rules["near_overlap"])


def _row(draft: Draft) -> dict[str, Any]:
    quality = draft.scores.get("quality")
    if quality is None:
        quality = round(prose_frac(draft.text, draft.language), 4)
    return {
        "row": draft.row, "id": draft.id, "text": draft.text,
        "bytes": draft.sizes[-1], "domain": draft.domain,
        "quality": quality,
        "scores": json.dumps(draft.scores), "trimmed": json.dumps(draft.trimmed),
        "redacted": json.dumps(draft.redacted), "hits": json.dumps(draft.hits)}


def _band_keys(grams: np.ndarray, offsets: np.ndarray, rules: Mapping[str, Any]) -> np.ndarray:
    num_hashes = rules["num_bands"] * rules["rows_per_band"]
    signatures = minhash_batch(grams, offsets, num_hashes, rules["seed"])
    return band_keys(signatures, rules["num_bands"], rules["rows_per_band"])
