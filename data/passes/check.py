"""Checks of the curation config, made before any input is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.bounds import check_numbers
from core.errors import UserError
from core.progress import log_once
from data.classify.classifier import load_classifier
from data.extraction.extract import MODES
from data.filters import harm
from data.filters.code import CODE_SIGNALS
from data.filters.own import load_filter
from data.filters.presets import PRESETS, line_rules
from data.filters.rules import parse_rule
from data.filters.signals import PROSE_SIGNALS
from data.passes.losses import Loss
from data.privacy import redaction
from data.readers import fields


def check(section: Mapping[str, Any]) -> None:
    """Raises `UserError` for the first field of ``config.curate`` that is invalid."""
    fields.from_config(section)
    for domain, names in section["presets"].items():
        for name in [names] if isinstance(names, str) else names:
            if name not in PRESETS:
                raise UserError(f"curate.presets.{domain}={name!r}", "there is no such preset",
                                f"choose among {', '.join(PRESETS)}")
        line_rules(names)
    if "default" not in section["presets"]:
        raise UserError("curate.presets", "has no `default`", "name one, e.g. default=('gopher',)")
    for domain, bounds in section["overrides"].items():
        check_thresholds(f"curate.overrides.{domain}", bounds)
    redaction.check_actions("curate.privacy.actions", section["privacy"]["actions"])
    if section["privacy"]["name_finder"]:
        redaction.load_name_finder(section["privacy"]["name_finder"])
    for path in section["harm"]["url_lists"]:
        harm.load_url_list(path)
    for path in section["harm"]["word_lists"]:
        harm.load_word_list(path)
    for name, model in section["classifiers"].items():
        if model["model"] and (limits := load_classifier(Path(model["model"])).limits):
            log_once(f"curate: known limits of the classifier {name}: {limits}")
    for path in section["filters"]:
        load_filter(path)
    for corpus in section["against"]:
        if not (Path(corpus) / "exact.npy").exists():
            raise UserError(f"curate.against={corpus!r}", "is not a finished corpus",
                            "give folders that `python -m data.curate` wrote")
    mode = section["extraction"]["mode"]
    if mode not in MODES:
        raise UserError(f"curate.extraction.mode={mode!r}", "there is no such extractor",
                        f"choose one of {', '.join(MODES)}")
    check_numbers(section, "curate")


def check_thresholds(field: str, thresholds: Mapping[str, float]) -> None:
    """Raises `UserError` when a threshold names no signal; `field` is its path in the config."""
    known = {*PROSE_SIGNALS, *CODE_SIGNALS}
    for name in thresholds:
        if parse_rule(name).signal not in known:
            raise UserError(f"{field}.{name}", "names no signal",
                            f"write <family>_min_ or <family>_max_ and one of "
                            f"{', '.join(sorted(known))}")


def check_read(section: Mapping[str, Any], measured: Sequence[Mapping[str, Any]],
               losses: Sequence[Loss], lost_frac: float) -> None:
    """Raises `UserError` without a document, or when too many records or bytes are lost.

    Args:
        measured: results of `data.passes.measure`, per unit.
        losses, lost_frac: see `data.passes.losses.find_losses`.
    """
    inputs = f"curate.inputs={section['inputs']!r}"
    reasons: dict[str, int] = {}
    for result in measured:
        for reason, count in result["corrupt"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    num_corrupt = sum(reasons.values())
    num_documents = sum(result["documents"] for result in measured)
    total = num_corrupt + num_documents
    remedy = ("repair the files, or raise --config.curate.max_corrupt_frac above "
              f"{section['max_corrupt_frac']}")
    if total and num_corrupt / total > section["max_corrupt_frac"]:
        worst = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:3])
        raise UserError(inputs, f"{num_corrupt} of {total} records are damaged ({worst})"
                        + "".join(f"; {loss}" for loss in losses[:3]), remedy)
    if lost_frac > section["max_corrupt_frac"]:
        worst = "; ".join(map(str, losses[:3])) or f"{reasons}"
        raise UserError(inputs, f"{lost_frac:.0%} of the bytes are lost: {worst}", remedy)
    if not num_documents:
        raise UserError(inputs, "holds no document",
                        "give WARC, JSONL, Parquet or text files that hold text")
