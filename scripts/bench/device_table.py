"""The figures of `scripts.bench.device` as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]

TITLES = {"checks": "Correctness", "training": "Training", "again": "Training, warm cache",
          "peer": "Training, transformers' Llama", "search": "Search",
          "profile": "Training, by operation",
          "attention": "Attention", "head": "Head and loss", "optimizer": "Optimizer",
          "generation": "Generation"}


def _number(key: str, digits: int = 1, factor: float = 1.0) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = row.get(key)
        return "" if value is None else f"{value * factor:,.{digits}f}"

    return text


def _settings(row: Row) -> str:
    return " ".join(f"{name}={value}" for name, value in row["settings"].items())


_TRAINING = {
    "settings": _settings,
    "tokens/s": _number("tokens_per_sec", 0),
    "MFU causal, %": _number("mfu_causal", 1, 100), "full": _number("mfu_full", 1, 100),
    "of the product, %": _number("product_frac", 1, 100),
    "GB": _number("peak_memory_bytes", 1, 1e-9),
    "compile, s": _number("compile_secs"), "to first step, s": _number("start_secs"),
    "data wait, %": _number("data_wait_frac", 2, 100),
}

COLUMNS: dict[str, dict[str, Callable[[Row], str]]] = {
    "checks": {"relative error": lambda row: f"{row['relative_error']:.1e}",
               "limit": lambda row: f"{row['limit']:.0e}",
               "": lambda row: "passed" if row["passed"] else "**failed**"},
    "attention": {"shape": lambda row: row["shape"],
                  "forward, TFLOP/s": _number("forward_tflops"),
                  "forward and backward, TFLOP/s": _number("both_tflops"),
                  "ms": _number("both_ms", 2)},
    "head": {"shape": lambda row: row["shape"], "ms": _number("ms", 2),
             "TFLOP/s": _number("tflops"), "temporaries, GB": _number("temporaries_gb", 2)},
    "optimizer": {"parameters": _number("num_params", 0), "ms": _number("ms", 2),
                  "GB/s": _number("gb_per_sec", 0)},
    "generation": {"": lambda row: row["shape"],
                   "prefill, tokens/s": _number("prefill_tokens_per_sec", 0),
                   "decode, tokens/s": _number("decode_tokens_per_sec", 0),
                   "ms a step": _number("step_ms", 3), "GB/s": _number("gb_per_sec", 0),
                   "of the copy's": lambda row: f"{100 * row['copy_frac']:.0f} %"},
    **dict.fromkeys(("training", "again", "peer", "profile", "search"), _TRAINING),
}


def format_tables(values: Mapping[str, Any]) -> str:
    """All tables, with the device and its ceilings above them."""
    parts = [_describe(values["machine"])] if "machine" in values else []
    for table, rows in values["tables"].items():
        parts.append(f"### {TITLES[table]}\n\n{_format_table(COLUMNS[table], rows)}")
        if profiles := [f"{row['size']}: {_format_profile(row['profile'])}"
                        for row in rows.values() if "profile" in row]:
            parts += profiles
    return "\n\n".join(parts) + "\n"


def _describe(machine: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    memory = machine.get("memory_bytes")
    return (f"{machine['device']}, {versions}"
            + (f", {memory / 1e9:.1f} GB for arrays" if memory else "")
            + f". A product of square matrices runs at "
            f"{machine['bfloat16_matmul_flops_per_sec'] / 1e12:,.1f} TFLOP/s in bfloat16 and "
            f"{machine['float32_matmul_flops_per_sec'] / 1e12:,.1f} in float32, a copy at "
            f"{machine['copy_bytes_per_sec'] / 1e9:,.0f} GB/s read and written."
            + (f" `XLA_FLAGS`: {machine['xla_flags']}." if machine.get("xla_flags") else ""))


def _format_table(columns: Mapping[str, Callable[[Row], str]], rows: Mapping[str, Row]) -> str:
    lines = [_line(["", *columns]), "|" + "---|" * (len(columns) + 1)]
    for name, row in rows.items():
        cells = ([f"not measured: {row['error']}", *[""] * (len(columns) - 1)]
                 if "error" in row else [text(row) for text in columns.values()])
        lines.append(_line([row.get("size", name) + (
            f", {row['rows']} x {row['row_length']}" if "rows" in row else ""), *cells]))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _format_profile(profile: Row) -> str:
    kinds = ", ".join(f"{name} {100 * frac:.1f} %" for name, frac in profile["kinds"].items())
    return (f"{100 * profile['products_frac']:.1f} % of the operations' time contains a matrix "
            f"product, idle {100 * profile['idle_frac']:.1f} %: {kinds}.")
