"""The funnel of a corpus as markup: documents kept per stage, removed per domain and reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from core.page.charts import draw_bar, draw_stack
from core.page.layout import table
from core.page.markup import Markup, count, join, percent, size, tag
from core.progress import format_count
from data.corpus import Corpus

STAGE_NOTES = {
    "extract": "text found in the record", "exact_dedup": "same text as an earlier document",
    "language": "identified, with a score", "rules": "signals against thresholds",
    "harm": "URLs on lists", "harm_words": "words on lists", "classifiers": "scored by models",
    "filters": "functions of your own",
    "lines": "repeated blocks cut", "privacy": "personal data found",
    "near_dedup": "MinHash neighbours, verified",
    "substrings": "long repeated passages cut", "quality": "the best by score",
    "contamination": "holds benchmark items", "split": "resembles a held-out page"}
NUM_SAMPLES = 3                 # removed documents shown per reason
NUM_LINES, NUM_CHARS = 12, 160  # size of an excerpt
NUM_TINTS = 6                   # tints of the colour that distinguishes domains
NOTHING = {"documents": 0, "bytes": 0}


def draw_funnel(corpus: Corpus) -> Markup:
    """One row per stage: bars of documents by domain and of bytes, and the counts."""
    manifest, tints, stages = corpus.manifest, _tints(corpus), corpus.domains_by_stage()
    total, bytes_in = manifest["documents_in"], manifest["bytes_in"]
    per_token = corpus.bytes_per_token()

    def row(name: str, note: str, domains: Mapping[str, int], num_bytes: float,
            lost: int) -> Markup:
        parts = [(domain if domains[domain] > 0.1 * total else "", domains[domain], tint)
                 for domain, tint in tints.items() if domain in domains]
        parts.append(("", lost, "gone"))
        left = tag("span", style=f"width:{100 * num_bytes / max(bytes_in, 1):.2f}%", class_="left")
        return tag("div", tag("span", tag("b", name.replace("_", " ")), tag("small", note),
                              class_="what"),
                   tag("span", draw_stack(parts, total), left, class_="drawn"),
                   tag("span", count(sum(domains.values())), class_="num"),
                   tag("span", f"−{count(lost)}" if lost else "", class_="num lost"),
                   tag("span", size(num_bytes), class_="num"),
                   tag("span", format_count(num_bytes / per_token), class_="num tokens")
                   if per_token else None, class_="funnel-row")

    rows = [row("raw", "as read", stages[0], bytes_in, 0)]
    for stage, domains in zip(manifest.get("funnel", ()), stages[1:]):
        lost = stage["documents_in"] - stage["documents_out"]
        rows.append(row(stage["stage"], STAGE_NOTES.get(stage["stage"], ""), domains,
                        stage["bytes_out"], lost))
    kept = {domain: counts["documents"]
            for domain, counts in manifest.get("kept_by_domain", {}).items()}
    rows.append(row("training set", "held-out pages set aside", kept, manifest["bytes"],
                    manifest.get("heldout_documents", 0)))
    names = ["documents", "lost", "text", *(["tokens"] if per_token else [])]
    head = tag("div", tag("span"), tag("span"), [tag("span", name, class_="num")
                                                 for name in names], class_="funnel-row head")
    return tag("div", head, rows, class_="funnel with-tokens" if per_token else "funnel")


def domain_table(corpus: Corpus) -> Markup:
    """Removed documents of each domain at each stage."""
    manifest, tints, before = corpus.manifest, _tints(corpus), corpus.domains_by_stage()[0]
    heldout, kept_by_domain = corpus.heldout_by_domain(), manifest.get("kept_by_domain", {})
    stages = [stage for stage in manifest.get("funnel", ()) if stage["removed_by_domain"]]
    head = ["domain", "read", *(stage["stage"].replace("_", " ") for stage in stages), "held out",
            "kept", "kept text"]
    rows = []
    for domain, tint in tints.items():
        lost = [stage["removed_by_domain"].get(domain, NOTHING) for stage in stages]
        kept = kept_by_domain.get(domain, NOTHING)
        rows.append([
            join(tag("span", class_=f"swatch {tint}"), domain), count(before[domain]),
            *(tag("span", f"−{count(cell['documents'])}", title=size(cell["bytes"]))
              if cell["documents"] else "·" for cell in lost),
            f"−{count(heldout[domain])}" if heldout[domain] else "·",
            tag("b", count(kept["documents"])), size(kept["bytes"])])
    return table(head, rows, "numbers")


def trim_note(corpus: Corpus) -> str:
    """Bytes cut and spans redacted in kept documents, and the number of unreadable records."""
    manifest = corpus.manifest
    trimmed = sum((Counter(stage["trimmed_bytes"]) for stage in manifest.get("funnel", ())),
                  Counter())
    cut = [f"{size(num_bytes)} of {rule.replace('_', ' ')}" for rule, num_bytes in trimmed.items()]
    redacted = [f"{count(number)} × {kind}"
                for kind, number in manifest.get("redacted", {}).items()]
    return (f"Cut inside kept documents: {', '.join(cut) or 'nothing'}. Redacted: "
            f"{', '.join(redacted) or 'nothing'}. Unreadable records: "
            f"{count(sum(manifest.get('corrupt', {}).values()))}.")


def reasons(corpus: Corpus) -> Markup:
    """Every reason with its documents, bytes and tokens, and samples of what it removed."""
    removals = sorted(corpus.removals(), key=lambda row: -row[2]["documents"])
    if not removals:
        return tag("p", "No document was removed.", class_="note")
    manifest, samples = corpus.manifest, corpus.sample_removed(NUM_SAMPLES)
    longest, per_token = removals[0][2]["documents"], corpus.bytes_per_token()
    names = ["of documents", "text", *(["tokens"] if per_token else [])]
    head = tag("div", tag("span", "reason"), tag("span", "documents"),
               [tag("span", name, class_="num") for name in names], class_="reason-row head")

    def summary(stage: str, reason: str, counts: Mapping[str, int]) -> Markup:
        documents, num_bytes = counts["documents"], counts["bytes"]
        share = documents / max(manifest["documents_in"], 1)
        return tag("summary", tag("code", reason, tag("small", stage.replace("_", " "))),
                   draw_bar(documents, longest, count(documents), "wood"),
                   tag("span", percent(share, 2), class_="num"),
                   tag("span", size(num_bytes), class_="num", title=percent(
                       num_bytes / max(manifest["bytes_in"], 1), 2)),
                   tag("span", format_count(num_bytes / per_token), class_="num")
                   if per_token else None, class_="reason-row")

    return tag("div", head, [
        tag("details", summary(stage, reason, counts),
            [_sample(corpus, row) for row in samples.get(reason, ())],
            open="open" if rank == 0 else None)
        for rank, (stage, reason, counts) in enumerate(removals)],
        class_="reasons with-tokens" if per_token else "reasons")


def excerpt(text: str) -> str:
    """The first non-blank lines of a text, and the number of those omitted."""
    lines = [line[:NUM_CHARS] for line in text.splitlines() if line.strip()]
    more = f"\n… {count(len(lines) - NUM_LINES)} more lines" if len(lines) > NUM_LINES else ""
    return "\n".join(lines[:NUM_LINES]) + more


def _sample(corpus: Corpus, row: Mapping[str, Any]) -> Markup:
    bound = corpus.threshold(row)
    limit = "" if bound is None else f", the threshold is {bound:,.4g}"
    alike = f" · resembles {row['representative'][:12]}" if row.get("representative") else ""
    return tag("div", tag("p", tag("code", row["source"]),
                          f" · measured {row['score']:,.4g}{limit}{alike} · ",
                          tag("code", row["id"][:12])),
               tag("pre", excerpt(row["text"])), class_="sample")


def _tints(corpus: Corpus) -> dict[str, str]:
    """A tint per domain; the largest domain has the darkest."""
    first = corpus.domains_by_stage()[0]
    order = sorted(first, key=lambda domain: (-first[domain], domain))
    return {domain: f"tint{min(i, NUM_TINTS - 1)}" for i, domain in enumerate(order)}
