"""The section of origins: the graph of artifacts, and how each was made."""

from __future__ import annotations

import json
import math
from typing import Any

from core.page import layout
from core.page.markup import Markup, join, size, tag
from core.progress import format_secs
from serve.report.graph import Box, draw_graph
from serve.report.runs import Artifact, Run

# CSS classes of boxes by stage: data, models, and what is measured.
KINDS = {**dict.fromkeys(("curate", "tokenizer", "pack", "classifier"), "data"),
         **dict.fromkeys(("eval", "judge", "measure"), "measured"),
         **dict.fromkeys(("pretrain", "sft", "dpo", "rl", "reward", "import", "extend"), "model")}


def origin(run: Run) -> Markup:
    """The graph of artifacts; below it, of each: command, time, memory, code, config."""
    boxes = [Box(artifact.name, artifact.lineage["fingerprint"][:8],
                 KINDS.get(artifact.stage, "other")) for artifact in run.artifacts]
    warnings = [tag("p", f"{name} was built from another {field} than the one of its name that is "
                    "here now.", class_="warning") for name, field in run.replaced_parents()]
    return layout.section(
        "Where everything comes from", "Each artifact names its parents by fingerprint. A click "
        "selects a whole command; time and memory are those of the process that finished it.",
        warnings, tag("div", tag("div", draw_graph(boxes, run.edges()), class_="graph"),
                      tag("div", [_card(run, artifact) for artifact in run.artifacts]),
                      class_="origins"))


def _card(run: Run, artifact: Artifact) -> Markup:
    lineage = artifact.lineage
    facts: list[Any] = [artifact.stage]
    for key, show in (("secs", format_secs), ("peak_memory_bytes", size)):
        if math.isfinite(value := artifact.number(key)):
            facts.append(show(value))
    commands = list(dict.fromkeys([lineage["command"], *(
        own["command"] for own in lineage["runs"] if isinstance(own.get("command"), str))]))
    parents = run.parents(artifact)
    inputs = [join(f"{field}: ", tag("code", str(mark)[:16]), " ",
                   parents[field].name if field in parents else "(not an artifact of this run)")
              for field, mark in lineage["inputs"].items()]
    return tag(
        "article", tag("h3", artifact.name, tag("small", " ", " · ".join(facts), " · commit ",
                                                layout.commit(lineage))),
        [tag("p", layout.command(text)) for text in commands],
        tag("details", tag("summary", "Inputs, versions, config"),
            tag("p", "Fingerprint ", tag("code", lineage["fingerprint"]), ", started ",
                lineage["started"], ", commit ", tag("code", lineage["commit"] or "unknown"),
                " with uncommitted changes" if lineage["uncommitted_changes"] else "", "."),
            [tag("p", text) for text in inputs], tag("p", layout.versions(lineage)),
            tag("pre", json.dumps(lineage["config"], indent=2))), class_="origin")


def left_out(run: Run) -> Markup | None:
    """A line for each folder that is not shown, with the reason; None where all are."""
    if not run.left_out:
        return None
    return tag("div", tag("p", "Not shown:"),
               tag("ul", [tag("li", tag("b", name), ": ",
                              reason.removeprefix(f"{name}: ")) for name, reason in run.left_out]),
               class_="left-out warning", role="note")
