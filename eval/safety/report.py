"""A safety report: the sections of every probe, of every model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from core.errors import UserError
from core.progress import log
from eval.safety.items import TRUNCATED
from eval.safety.probe import Section, Settings, Subject
from eval.safety.registry import Entry, why_not

Report = dict[str, Any]


def make_report(subjects: Iterable[Subject], probes: Mapping[str, Entry],
                settings: Settings) -> tuple[Report, list[dict[str, Any]]]:
    """Runs all probes that can be run.

    Args:
        subjects: opened one after the other, so that one is held at a time.

    Returns:
        The report, and the rows of all items with their model and probe. The report: `models`, each
        name with the mark of its build, "" behind an endpoint; `probes`: by name the title, what it
        is about, and of each of its `models` the estimates, verdicts (in all and by group) and
        counts; `not_run`: by probe and model the reason; `settings`.

    Raises:
        UserError: no probe can be run, or two models have the same name.
    """
    report: Report = {"models": {}, "probes": {}, "not_run": {}, "settings": dataclasses.asdict(
        settings) | {"files": {name: str(path) for name, path in settings.files.items()}}}
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        if subject.name in report["models"]:
            raise UserError(f"--endpoint_model={subject.name!r}", "is the name of another model",
                            "name that one anew: --model=NAME=DIR")
        report["models"][subject.name] = subject.model.name if subject.model else ""
        for name, entry in probes.items():
            if why := why_not(entry, subject, settings):
                report["not_run"].setdefault(name, {})[subject.name] = why
                log(f"safety: {name} of {subject.name} is not run: {why}")
                continue
            log(f"safety: {name} of {subject.name}")
            section = entry.probe(subject, settings)
            own = report["probes"].setdefault(
                name, {"title": section.title, "about": section.about, "models": {}})
            own["models"][subject.name] = _describe(section)
            if section.rows and all(is_failed(row) for row in section.rows):
                log(f"warning: safety: {name} of {subject.name}: not one reply came, of "
                    f"{len(section.rows)}: {own['models'][subject.name]['faults']}")
            rows += [{"model": subject.name, "probe": name, **row} for row in section.rows]
    if not report["probes"]:
        whys = "; ".join(f"{name}: {why}" for name, by_model in report["not_run"].items()
                         for why in dict.fromkeys(by_model.values()))
        raise UserError("--probes", f"none of them can be run ({whys})",
                        "give what they need, or choose others")
    return report, rows


def is_failed(row: Mapping[str, Any]) -> bool:
    """Whether an item has no reply, which is not the same as an empty one."""
    return row["fault"] not in ("", TRUNCATED)


def _describe(section: Section) -> dict[str, Any]:
    by_group: dict[str, Counter[str]] = {}
    for row in section.rows:
        by_group.setdefault(str(row["group"]), Counter())[str(row["verdict"])] += 1
    return {"items": len(section.rows), "counts": dict(section.counts),
            "verdicts": dict(Counter(str(row["verdict"]) for row in section.rows)),
            "verdicts_by_group": {group: dict(num) for group, num in by_group.items()},
            "faults": dict(Counter(row["fault"] for row in section.rows if row["fault"])),
            "estimates": {label: dataclasses.asdict(one)
                          for label, one in section.estimates.items()}}
