"""A small finished corpus in the format of `data.curate`, with every field of its manifest."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

ATTACK = "</pre><script>alert('x')</script><img src=http://evil.example onerror=alert(1)>"
SHORT, ALIKE, KEPT = "aa" * 16, "bb" * 16, "cc" * 16
STAGES = ["extract", "rules", "lines", "privacy", "classifiers", "contamination", "near_dedup",
          "split"]
HIT = {"task": "arc", "item": 7, "kind": "ngram", "overlap": 0.9, "text": ATTACK}


def document(name, text, domain="web", **meta):
    """A row of `documents/` or `heldout/`."""
    return {"id": name, "text": text, "source": f"https://{name[:4]}.example/{ATTACK}",
            "domain": domain, "language": "en", "meta": json.dumps({"gopher_words": 9} | meta)}


def removal(name, text, stage, reason, score, representative="", **meta):
    """A row of `removed/`."""
    return document(name, text, **meta) | {"stage": stage, "reason": reason, "score": score,
                                           "representative": representative}


def write_corpus(folder, documents, heldout=(), removed=(), *, part_rows=2, **changes):
    """Writes Parquet parts, and a manifest that agrees with them."""
    for kind, rows in {"documents": documents, "heldout": heldout, "removed": removed}.items():
        (folder / kind).mkdir(parents=True)
        for part in range(0, len(rows), part_rows):
            pq.write_table(pa.Table.from_pylist(list(rows[part:part + part_rows])),
                           folder / kind / f"part-{part:05d}.parquet", row_group_size=7)
    (folder / "lost").mkdir()
    pq.write_table(pa.table({"source": ["a.warc@9", "b.warc@7"], "kind": ["skipped", "skipped"],
                             "reason": ["empty", "empty"]}), folder / "lost" / "part.parquet")
    manifest = plain_manifest(documents, heldout, removed) | details() | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "lineage.json").write_text(json.dumps({
        "stage": "curate", "fingerprint": "f" * 16, "inputs": {"pages.warc": "e" * 16},
        "config": {"curate": {"inputs": ATTACK}}, "command": f"python -m data.curate {ATTACK}",
        "commit": None, "uncommitted_changes": True, "python": "3.11", "platform": "Linux",
        "versions": {"pyarrow": "25"}, "started": "2026-01-01T00:00:00Z"}))
    return folder


def plain_manifest(documents, heldout, removed):
    """The fields that every manifest has."""
    def tally(rows, field):
        counts = {}
        for row in rows:
            count = counts.setdefault(row[field], {"documents": 0, "bytes": 0})
            count["documents"] += 1
            count["bytes"] += len(row["text"].encode())
        return counts

    def size(rows):
        return sum(len(row["text"].encode()) for row in rows)

    staying, funnel = [*documents, *heldout, *removed], []
    total = {"documents_in": len(staying), "bytes_in": size(staying)}
    for stage in STAGES:
        lost = [row for row in staying if row.get("stage") == stage]
        before, staying = staying, [row for row in staying if row.get("stage") != stage]
        funnel.append({
            "stage": stage, "documents_in": len(before), "bytes_in": size(before),
            "removed": tally(lost, "reason"), "removed_by_domain": tally(lost, "domain"),
            "trimmed_bytes": {"repeated_block": 70} if stage == "lines" else {},
            "documents_out": len(staying), "bytes_out": size(staying)})
    return total | {
        "documents": len(documents), "bytes": size(documents), "funnel": funnel,
        "heldout_documents": len(heldout), "heldout_bytes": size(heldout),
        "removed": {reason: count["documents"]
                    for reason, count in tally(removed, "reason").items()},
        "corrupt": {}, "kept_by_domain": tally(documents, "domain"), "redacted": {}}


def details():
    """The fields of stages that are optional."""
    return {
        "tokens": 20, "bytes_per_token": {"web": 4.0}, "corpus_hash": "ab" * 16,
        "kept_by_language": {"en": {"documents": 2, "bytes": 80}},
        "redacted": {"email": 3}, "corrupt": {f"damaged {ATTACK}": 2}, "skipped": {"empty": 5},
        "left_out": [{"reason": "unknown format", "suffix": f".{ATTACK}", "files": 4, "bytes": 9,
                      "examples": ["a"]}],
        "histograms": [
            {"signal": "gopher_words", "domain": "web", "edges": [0, 1, 10, 100, 1000],
             "counts": [1, 2, 3, 0], "min": 10, "max": None, "rule": "gopher"},
            {"signal": "gopher_digit_frac", "domain": "web", "edges": [0.0, 0.5, 1.0],
             "counts": [4, 2], "min": None, "max": 0.6, "rule": "gopher"}],
        "near_dedup": {
            "candidates": 10, "accepted": 4, "acceptance_rate": 0.4, "clusters": 2,
            "largest_cluster": 3, "clusters_by_size": {"2": 1, "3": 1},
            "examples": [{"size": 3, "id": KEPT, "source": ATTACK, "text": f"{ATTACK}\nmore",
                          "members": [{"id": ALIKE, "source": ATTACK, "similarity": 0.91}]}]},
        "alarms": [{"source": f"alarming {ATTACK}", "documents_in": 9, "removed_frac": 0.89,
                    "reason": "deduplication"},
                   {"source": "b.jsonl.gz", "lost_bytes": 20_000, "removed_frac": 0.5,
                    "reason": "jsonl: file is cut off"}],
        "contamination": {"tasks": {"arc": {"items": 100, "hits": 1}}, "examples": [
            {"id": KEPT, "source": ATTACK, **HIT}]},
        "classifiers": [{"name": "quality", "kind": "logistic", "threshold": 0.4,
                         "metrics": {"precision": 0.9, "recall": 0.8},
                         "calibration": [{"predicted": 0.2, "observed": 0.1, "documents": 5},
                                         {"predicted": 0.8, "observed": 0.9, "documents": 5}]}],
        "stages": [{"name": "measure", "secs": 2.0, "bytes": 8_000_000}], "workers": 2,
        "peak_memory_bytes": 1e9}


def write_planted(folder, **changes):
    """The corpus of the tests: two documents are kept, one is held out, two are removed."""
    return write_corpus(
        folder,
        [document(KEPT, f"kept\n{ATTACK}\n\x1b[31mred", trimmed={"repeated_block": 70},
                  redacted={"email": 3}, quality=0.7, cluster_size=3, cluster_id=KEPT,
                  scores={"quality": 0.7, "domain": "web", "bad_words": 2}, hits=[HIT]),
         document("dd" * 16, "also kept", gopher_words=20, cluster_size=1)],
        [document("ee" * 16, "held out text", gopher_words=30)],
        [removal(SHORT, f"short\n{ATTACK}", "rules", "gopher_min_words", 3.0, gopher_words=3),
         removal(ALIKE, "alike", "near_dedup", "near_duplicate", 0.91, KEPT, gopher_words=40)],
        **changes)
