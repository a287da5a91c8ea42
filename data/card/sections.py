"""The sections of a data card below its funnel, each from a `Corpus` to markup."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from core.page.charts import Line, Panel, draw_bar, draw_panel
from core.page.histograms import Histogram, draw_histogram
from core.page.layout import command, commit, section, table, versions
from core.page.markup import Markup, count, decimal, join, percent, size, tag
from core.progress import format_secs
from data.card.funnel import excerpt
from data.corpus import Corpus

NUM_SIZES = 8       # sizes of duplicate clusters with a bar of their own
NUM_PARTS = 10      # languages, domains, inputs, alarms that are listed singly


def alarms(corpus: Corpus) -> Markup | None:
    """A warning for every source with an unusual share of removals; None without any."""
    raised = sorted(corpus.manifest.get("alarms", ()), key=lambda alarm: -alarm["removed_frac"])
    if not raised:
        return None
    more = len(raised) - NUM_PARTS
    return tag("div", [tag("p", tag("b", alarm["source"]), f" lost {_extent(alarm)}.",
                           class_="warning") for alarm in raised[:NUM_PARTS]],
               tag("p", f"… and {count(more)} more.", class_="note") if more > 0 else None,
               class_="alarms", role="alert")


def _extent(alarm: Mapping[str, Any]) -> str:
    """How much a source lost, and to what: documents to a stage, or bytes to damage."""
    share, reason = percent(alarm["removed_frac"]), alarm["reason"].replace("_", " ")
    if "lost_bytes" in alarm:
        return f"{count(alarm['lost_bytes'])} bytes, {share} of it ({reason})"
    return f"{share} of its {count(alarm['documents_in'])} documents to {reason}"


def signals(corpus: Corpus) -> Markup:
    """Histograms of the signals that have a threshold, by domain, strictest rule first."""
    by_domain: dict[str, list[Histogram]] = defaultdict(list)
    for row in corpus.manifest.get("histograms", ()):
        if sum(row["counts"]):
            by_domain[row["domain"]].append(Histogram(
                row["signal"].replace("_", " "), row["edges"], row["counts"], row["min"],
                row["max"]))
    if not by_domain:
        return _not_run("Signals and thresholds", "No rule measured a document.")
    order = sorted(by_domain, key=lambda name: (-max(sum(h.counts) for h in by_domain[name]),
                                                name))
    return section(
        "Signals and thresholds", "Histograms over the documents that reached the rules. A "
        "line is a threshold; values beyond it are red. Bins of counts and sizes grow by a "
        "constant factor.", [_domain_signals(name, by_domain[name], rank == 0)
                    for rank, name in enumerate(order)])


def _domain_signals(domain: str, histograms: Sequence[Histogram], is_open: bool) -> Markup:
    ranked = sorted(histograms, key=lambda one: (-one.beyond_frac()[0], one.title))
    documents = max(sum(one.counts) for one in ranked)
    return tag("details", tag("summary", tag("b", domain), tag(
                   "span", f"{count(documents)} documents, {len(ranked)} signals")),
               tag("div", [draw_histogram(one) for one in ranked], class_="histograms"),
               open="open" if is_open else None, class_="fold")


def duplicates(corpus: Corpus) -> Markup:
    """Verified near-duplicate clusters: number, sizes, and the largest as examples."""
    near_dedup = corpus.manifest.get("near_dedup")
    if not near_dedup or "clusters" not in near_dedup:
        return _not_run("Near duplicates")
    sizes = sorted((int(members), number)
                   for members, number in near_dedup.get("clusters_by_size", {}).items())
    bars = [(f"{members} documents", number) for members, number in sizes[:NUM_SIZES]]
    if rest := sizes[NUM_SIZES:]:
        bars.append((f"{rest[0][0]} and more", sum(number for _, number in rest)))
    return section(
        "Near duplicates", f"{count(near_dedup['candidates'])} candidate pairs were compared; "
        f"{percent(near_dedup['acceptance_rate'])} were confirmed. They form "
        f"{count(near_dedup['clusters'])} clusters, the largest of "
        f"{count(near_dedup['largest_cluster'])} documents; in each, one "
        "representative is kept for every group of similar documents.",
        tag("h3", "Clusters by size") if bars else None, _bars(bars),
        [join(tag("h3", "The largest") if rank == 0 else None, _cluster(example))
         for rank, example in enumerate(near_dedup.get("examples", ()))])


def _cluster(example: Mapping[str, Any]) -> Markup:
    members = [[tag("code", member["id"][:12]), tag("code", member["source"]),
                decimal(member["similarity"], 2)] for member in example["members"]]
    hidden = example["size"] - 1 - len(members)
    return tag("details", tag("summary", tag("b", f"{count(example['size'])} documents like "),
                              tag("code", example["source"])),
               tag("pre", excerpt(example["text"])),
               table(["document", "source", "similarity"], members, "numbers members"),
               tag("p", f"… and {count(hidden)} more.", class_="note") if hidden > 0 else None,
               class_="fold")


def privacy(corpus: Corpus) -> Markup:
    """Spans of personal data by kind."""
    redacted = corpus.manifest.get("redacted")
    if redacted is None:
        return _not_run("Personal data")
    return section("Personal data", f"{count(sum(redacted.values()))} spans were found and "
                   "replaced, by kind.", _bars(_largest_first(redacted)))


def languages_and_domains(corpus: Corpus) -> Markup:
    """Domains and languages of the training set."""
    manifest = corpus.manifest
    tables = [
        tag("div", tag("h3", title), _share_table(parts, per_token, manifest["bytes"]))
        for title, parts, per_token in (
            ("Domains", manifest.get("kept_by_domain"), manifest.get("bytes_per_token")),
            ("Languages", manifest.get("kept_by_language"), None)) if parts]
    return section("What is in it", "The training set by size of text, without held-out pages.",
                   tag("div", tables, class_="pair"), *map(unapplied_note, sorted(
                       manifest.get("unapplied_rules", {}).items()))) \
        if tables else _not_run("What is in it")


def unapplied_note(rule: tuple[str, Mapping[str, int]]) -> Markup:
    """A sentence on the documents that a rule of words did not apply to, by language."""
    name, languages = rule
    named = ", ".join(f"{language} {count(number)}"
                      for language, number in _largest_first(languages)[:NUM_PARTS])
    return tag("p", f"{name} did not apply to {count(sum(languages.values()))} documents whose "
               f"language has no list of words for it, is not surely identified, or is written "
               f"without spaces: {named}.", class_="note")


def _share_table(parts: Mapping[str, Mapping[str, int]], per_token: Mapping[str, float] | None,
                 num_bytes: int) -> Markup:
    ranked = sorted(parts.items(), key=lambda part: (-part[1]["bytes"], part[0]))
    rest = [one for _, one in ranked[NUM_PARTS:]]
    if rest:
        ranked = [*ranked[:NUM_PARTS], (f"{len(rest)} more", {
            key: sum(one[key] for one in rest) for key in ("documents", "bytes")})]
    rows = [[name, count(one["documents"]), size(one["bytes"]),
             percent(one["bytes"] / max(num_bytes, 1)),
             *([decimal(per_token[name], 2) if name in per_token else "·"] if per_token else [])]
            for name, one in ranked]
    return table(["", "documents", "text", "share", *(["bytes per token"] if per_token else [])],
                 rows, "numbers")


def contamination(corpus: Corpus) -> Markup:
    """Benchmark items found in documents, with the text that matched."""
    matches = corpus.manifest.get("contamination")
    if not matches or not matches.get("tasks"):
        return _not_run("Contamination", "No task files were given to search for.")
    tasks = [[name, count(task["items"]), count(task["hits"]),
              percent(task["hits"] / max(task["items"], 1), 2)]
             for name, task in matches["tasks"].items()]
    hits = [tag("div", tag("p", tag("b", hit["task"]), f" item {hit['item']} · ", hit["kind"],
                           f" {decimal(hit['overlap'], 2)} · ", tag("code", hit["source"])),
                tag("pre", excerpt(hit["text"])), class_="sample")
            for hit in matches.get("examples", ())]
    return section("Contamination", "Items of evaluation tasks that occur in documents, by n-gram "
                   "or near match.", table(["task", "items", "found", "share"], tasks, "numbers"),
                   tag("details", tag("summary", tag("b", f"{len(hits)} matches to read")), hits,
                       class_="fold", open="open") if hits else None)


def classifiers(corpus: Corpus) -> Markup:
    """Metrics and calibration of the classifiers that scored documents, on held-out pages."""
    described = corpus.manifest.get("classifiers")
    if not described:
        return _not_run("Classifiers")
    return section("Classifiers", "Measured on pages held out from their training. A calibrated "
                   "score lies on the dashed line.",
                   tag("div", [_classifier(one) for one in described], class_="panels"))


def _classifier(one: Mapping[str, Any]) -> Markup:
    numbers = {name: value for name, value in one.get("metrics", {}).items()
               if isinstance(value, int | float)}
    if one.get("threshold") is not None:
        numbers["threshold"] = one["threshold"]
    values = table(["", ""], [[name.replace("_", " "), f"{value:,.4g}"]
                              for name, value in numbers.items()], "numbers metrics")
    bins = [(row["predicted"], row["observed"]) for row in one.get("calibration", ())
            if row["documents"]]
    title = " · ".join([one["name"], *([one["kind"]] if one.get("kind") else [])])
    limits = one.get("known_limits")
    note = tag("p", f"Known limits: {limits}", class_="note") if limits else None
    if not bins:
        return tag("figure", tag("figcaption", tag("b", title)), values, note)
    drawing = draw_panel(Panel(title, "observed share by predicted score", [
        Line("observed", bins, "wood"), Line("ideal", [(0.0, 0.0), (1.0, 1.0)], "quiet dashed")],
        x_name="predicted score", x_digits=1))
    return tag("div", drawing, values, note)


def speed(corpus: Corpus) -> Markup:
    """Seconds and throughput of every stage."""
    manifest = corpus.manifest
    stages = manifest.get("stages")
    if not stages:
        return _not_run("Speed", "No stage was timed.")
    longest = max(stage["secs"] for stage in stages)

    def label(stage: Mapping[str, Any]) -> str:
        rate = (f" · {decimal(stage['bytes'] / 1e6 / stage['secs'], 1)} MB/s"
                if stage.get("bytes") and stage["secs"] else "")
        return f"{stage['secs']:,.1f} s{rate}"

    rows = [_bar_row(stage["name"].replace("_", " "), stage["secs"], longest, label(stage))
            for stage in stages]
    workers, memory = manifest.get("workers"), manifest.get("peak_memory_bytes")
    notes = [format_secs(sum(stage["secs"] for stage in stages)) + " in all",
             *([f"{count(workers)} workers"] if workers else []),
             *([f"at most {size(memory)} of memory in a process"] if memory else [])]
    return section("Speed", ", ".join(notes) + ". MB/s is the text or raw input processed by "
                   "the stage, over all workers.", tag("div", rows, class_="bars speed"))


def unread(corpus: Corpus) -> Markup:
    """Records without a document, by reason, and files that were not read."""
    corrupt, skipped = (corpus.manifest.get(kind, {}) for kind in ("corrupt", "skipped"))
    left_out = {f"{group['suffix']}: {group['reason']}": group["files"]
                for group in corpus.manifest.get("left_out", ())}
    if not corrupt and not skipped and not left_out:
        return section("Records that gave no document", "Every record was read.")
    parts = [tag("div", tag("h3", title), tag("p", note, class_="note"),
                 _bars(_largest_first(counts)))
             for title, note, counts in (
                 ("Damaged", "not readable in their declared format", corrupt),
                 ("Skipped", "readable, but without text to train on", skipped),
                 ("Files left out", "in the folders of the inputs", left_out)) if counts]
    return section("Records that gave no document", f"{count(sum(corrupt.values()))} damaged, "
                   f"{count(sum(skipped.values()))} skipped, {count(sum(left_out.values()))} files "
                   "left out.", tag("div", parts, class_="pair"))


def origin(corpus: Corpus) -> Markup:
    """Command, code, libraries and config that made the corpus."""
    lineage = corpus.lineage
    if lineage is None:
        return _not_run("How it was made", "The corpus has no lineage.")
    inputs = list(lineage["inputs"].items())
    more = f"and {count(len(inputs) - NUM_PARTS)} more" if len(inputs) > NUM_PARTS else None
    rows = [["command", command(lineage["command"])],
            ["commit", commit(lineage)],
            ["fingerprint", tag("code", lineage["fingerprint"])],
            ["corpus hash", tag("code", corpus.manifest.get("corpus_hash", "n/a"))],
            ["started", lineage["started"]], ["built with", versions(lineage)],
            ["inputs", join([tag("div", name, " ", tag("code", mark))
                             for name, mark in inputs[:NUM_PARTS]], more)]]
    return section("How it was made", "The same command on the same inputs gives the same bytes.",
                   table(["", ""], rows, "origin"),
                   tag("details", tag("summary", tag("b", "Config")),
                       tag("pre", json.dumps(lineage["config"], indent=2)), class_="fold"))


def _not_run(title: str, why: str = "This stage was not run.") -> Markup:
    return section(title, why)


def _largest_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(((name.replace("_", " "), number) for name, number in counts.items()),
                  key=lambda row: (-row[1], row[0]))


def _bars(rows: Sequence[tuple[str, int]]) -> Markup:
    longest = max((number for _, number in rows), default=1)
    return tag("div", [_bar_row(name, number, longest, count(number)) for name, number in rows],
               class_="bars")


def _bar_row(name: str, value: float, longest: float, label: str) -> Markup:
    return tag("div", tag("span", name, class_="what"), draw_bar(value, longest, label, "wood"),
               class_="bar-row")
