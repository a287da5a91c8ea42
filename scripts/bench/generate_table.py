"""The figures of `scripts.bench.generate`: rows of engines, ratios between them, and their text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

LABELS = {"ours_float32": "ours, float32", "ours_int8": "ours, int8", "ours_int4": "ours, int4",
          "transformers": "transformers, float32", "llama_cpp": "llama.cpp, Q4_1"}

Row = dict[str, Any]


def summarise(loaded: Mapping[str, Row], results: Mapping[str, Row],
              requests: Mapping[str, tuple[str, Row]]) -> tuple[dict[str, Row], Row]:
    """Rows of figures, and the ratios between them.

    Args:
        loaded: by engine, what loading it said, or `error`.
        results: seconds of each turn, by engine and request, or `error`.
        requests: their names and arguments.
    """
    rows: dict[str, Row] = {}
    for name in LABELS:
        result = results.get(name, loaded[name])
        rows[name] = {"error": result["error"]} if "error" in result else (
            loaded[name] | make_row(result, requests))
    return rows, make_ratios(rows, results.get("ours_float32", {}), [
        result["num_compilations"] for result in results.values() if "num_compilations" in result])


def make_row(result: Row, requests: Mapping[str, tuple[str, Row]]) -> Row:
    """Medians over the turns as rates; the time to the first token is that of the first prefill."""
    row: Row = {}
    for request, (call, args) in requests.items():
        secs = statistics.median(result[request])
        num_tokens = (len(args["prompt"]) if call == "prefill"
                      else len(args["prompts"]) * args["num_tokens"])
        row[f"{request}_tokens_per_sec"] = num_tokens / secs
        if call == "prefill":
            row.setdefault("first_token_secs", secs)
        row[f"{request}_secs"] = result[request]
    return row


def make_ratios(rows: Mapping[str, Row], own: Row, num_compilations: list[int]) -> Row:
    """The ratios by name; None where a side has no figure.

    Args:
        own: seconds of our float32 engine's turns by request.
        num_compilations: of each of our engines, after its first requests.
    """
    def divide(above: str, below: str, batch_size: int) -> float | None:
        speeds = [rows[name].get(f"decode_{batch_size}_tokens_per_sec") for name in (above, below)]
        return round(speeds[0] / speeds[1], 3) if all(speeds) else None

    def compare(above: str, below: str) -> float | None:
        return (statistics.median(own[above]) / statistics.median(own[below])
                if above in own and below in own else None)

    larger = compare("decode_1_larger", "decode_1")
    prefills = [name for name in own if name.startswith("prefill_") and name != "prefill_cached"]
    hit = compare("prefill_cached", prefills[-1]) if prefills else None
    return {"ratio_batch_1": divide("ours_float32", "transformers", 1),
            "int8_over_float32": divide("ours_int8", "ours_float32", 1),
            "int4_over_llama_cpp": divide("ours_int4", "llama_cpp", 1),
            "capacity_cost_frac": None if larger is None else round(larger - 1, 4),
            "prefix_hit_over_miss": None if hit is None else round(hit, 4),
            "num_compilations_after_first": sum(num_compilations) if num_compilations else None,
            "ratio": divide("ours_float32", "transformers", 16)}


def format_roofline(roofline: Row) -> str:
    """The bandwidth, and the limits that follow from it."""
    rates = roofline["bytes_per_sec"]
    limits = ", ".join(f"{rate:,.0f} in {name}"
                       for name, rate in roofline["limit_tokens_per_sec"].items())
    return (f"{roofline['device']}: a sum reads {rates['sum'] / 1e9:.1f} GB/s, a product of a "
            f"matrix and a vector {rates['matrix_vector'] / 1e9:.1f}; reading "
            f"{roofline['weights_read'] / 1e6:,.1f}M weights for each token allows, at batch 1, "
            f"tokens/s: {limits}")


def format_table(rows: Mapping[str, Row], requests: Mapping[str, Any]) -> str:
    """The rows as Markdown, and below them a line for each engine that was not run."""
    titles = {f"{request}_tokens_per_sec": "{} {}".format(*request.split("_"))
              for request in requests}
    titles = {key: title.replace("decode ", "decode, batch ").replace("prefill ", "prefill of ")
              for key, title in titles.items()}
    lines = [" | ".join(["| tokens/s", *titles.values(), "first token, ms", "weights, MB |"]),
             "|" + "---|" * (len(titles) + 3)]
    for name, row in rows.items():
        if "error" not in row:
            speeds = [f"{row[key]:,.1f}" for key in titles]
            lines.append(" | ".join([f"| {LABELS[name]}", *speeds,
                                     f"{1e3 * row['first_token_secs']:,.0f}",
                                     f"{row['weight_bytes'] / 1e6:,.0f} |"]))
    return "\n".join([*lines, *(f"{LABELS[name]}: not run: {row['error']}"
                                for name, row in rows.items() if "error" in row)])
