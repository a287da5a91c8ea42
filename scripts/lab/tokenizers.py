"""Tokenizers by the models that they allow: bits per byte after the same compute.

    python -m scripts.lab.tokenizers --parents=runs/quickstart-cpu --out=runs/lab/tokenizers

Each tokenizer is trained on the corpus in `--parents`, which is then encoded with it, and a model
of always the same body is trained for `--flops`, of which a larger vocabulary spends more on the
head and sees fewer tokens, each of which stands for more bytes. What is compared is the loss of
held-out pages in bits per byte, which no tokenizer makes smaller by itself (arXiv 2404.09937). A
tokenizer that does not restore its text is scored on what it keeps of it, bytes and bits; a page
may be lost almost whole, so that such a figure says nothing beside the others.

BPE has a model for each of `--vocab_sizes`, the other kinds of configs/tokenizer.py have one of
their own size. Intervals are Student's over seeds of weights and rows; the tokenizers and the pages
are the same. A run that was stopped goes on; `--out` gets `table.md` and `figure.png`, which needs
matplotlib, pip install -e '.[report]'.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from configs.ladder import get_config
from configs.tokenizer import VOCABULARIES
from core import entry
from core.artifacts import read_json
from core.errors import UserError
from core.points import Point, run_in_order
from data.documents import read_documents
from data.tokenizers.load import load_tokenizer
from model.flops import train_flops_per_token
from model.section import read_section
from scripts.bench.frontier_page import open_figure, save_figure
from scripts.bench.frontier_results import estimate
from scripts.lab.experiment import finish_chart, format_estimate

MODEL = "configs/ladder.py:cpu,4,1.0"       # whose body all have


class Plan(NamedTuple):
    """What decides the results.

    Attributes:
        corpus: folder of the documents.
        flops: of a training, counted exactly.
    """

    corpus: Path
    flops: float
    seeds: int
    vocab_sizes: tuple[int, ...]
    kinds: tuple[str, ...]


class Line(NamedTuple):
    """A tokenizer: its kind and the size that its vocabulary may have."""

    kind: str
    vocab_size: int

    @property
    def name(self) -> str:
        """That of its folder."""
        return f"{self.kind}-{self.vocab_size}"


def list_lines(plan: Plan) -> list[Line]:
    """BPE in all sizes, then the other kinds."""
    return [Line("bpe", size) for size in plan.vocab_sizes if "bpe" in plan.kinds] + [
        Line(kind, VOCABULARIES[kind]) for kind in plan.kinds if kind != "bpe"]


def make_tokens(line: Line, plan: Plan, folder: Path) -> Point:
    """The stages that make a line's tokenizer and tokens."""
    return Point({}, folder, ("data.train_tokenizer", "data.pack"), _arguments({
        "tokenizer.kind": line.kind, "tokenizer.vocab_size": line.vocab_size,
        "tokenizer.corpus": plan.corpus, "pack.corpus": plan.corpus}))


def make_training(plan: Plan, tokens: Path, seed: int, folder: Path) -> Point:
    """The stage that trains a model for the plan's compute."""
    config = get_config(MODEL.partition(":")[2])
    row_length, batch_size = config.pretrain.row_length, config.pretrain.batch_size
    size = read_section(config.model, read_json(tokens / "tokens.json")["vocab_size"])
    per_step = train_flops_per_token(size, row_length) * row_length * batch_size
    num_steps = max(1, round(plan.flops / per_step))
    return Point({}, folder, ("train.pretrain",), _arguments({
        "pretrain.tokens": tokens, "pretrain.seed": seed, "pretrain.num_steps": num_steps,
        "pretrain.optimizer.warmup_steps": min(40, num_steps // 10)}))


def _arguments(fields: dict[str, Any]) -> tuple[str, ...]:
    return (f"--config={MODEL}", *(f"--config.{name}={value}" for name, value in fields.items()))


def measure_line(line: Line, plan: Plan, out: Path) -> dict[str, Any]:
    """Runs what is missing of a line, and returns its row: the numbers of `COLUMNS`."""
    folder, losses = out / line.name, []
    run_in_order("tokenizers", [make_tokens(line, plan, folder)])
    for seed in range(plan.seeds):
        training = make_training(plan, folder / "tokens", seed, folder / f"seed_{seed}")
        run_in_order("tokenizers", [training])
        metrics = read_json(training.folder / "result.json")["metrics"]
        losses.append(metrics["heldout_bpb"])
    heldout = read_json(folder / "tokens" / "tokens.json")["domains"]["heldout"]
    tokenizer = load_tokenizer(folder / "tokens")
    restored = [tokenizer.decode(tokenizer.encode(document.text)) == document.text
                for document in read_documents(plan.corpus / "heldout")]
    return {"kind": line.kind, "vocab_size": tokenizer.vocab_size,
            "bytes_per_token": heldout["bytes_per_token"], "params": metrics["params"],
            "megabytes": metrics["tokens"] * heldout["bytes_per_token"] / 1e6,
            "restored": 100 * sum(restored) / len(restored), "losses": losses}


COLUMNS = {"vocab_size": ("ids", ",.0f"), "bytes_per_token": ("bytes/token", ".2f"),
           "params": ("parameters", ",.0f"), "megabytes": ("MB seen", ".1f"),
           "restored": ("pages restored, %", ".0f")}


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with a line for each tokenizer."""
    titles = ["kind", *(title for title, _ in COLUMNS.values()), "bits per byte"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [format(row[name], form) for name, (_, form) in COLUMNS.items()]
        kept = "" if row["restored"] == 100 else " of what is kept"
        lines.append(f"| {' | '.join([row['kind'], *cells])} | "
                     f"{format_estimate(estimate(row['losses']))}{kept} |")
    return "\n".join(lines) + "\n"


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draws bits per byte by size of the vocabulary; hollow where text is not restored.

    Raises:
        UserError: matplotlib is missing.
    """
    figure, chart = open_figure(path)
    for number, kind in enumerate(dict.fromkeys(row["kind"] for row in rows)):
        own = [row for row in rows if row["kind"] == kind]
        found = [estimate(row["losses"]) for row in own]
        halves = [each["mean"] - each["low"] if each["low"] is not None else 0 for each in found]
        chart.errorbar([row["vocab_size"] for row in own], [each["mean"] for each in found], halves,
                       fmt="o-", color=f"C{number}", label=kind, capsize=3, linewidth=1,
                       markerfacecolor=None if own[0]["restored"] == 100 else "white")
    chart.set_xscale("log", base=2)
    finish_chart(chart, "ids of the vocabulary", "bits per byte of held-out pages")
    save_figure(figure, path)


def read_plan(values: Any) -> Plan:
    """The plan by the flags; raises `UserError` if one is missing or wrong."""
    for name, example in (("parents", "runs/quickstart-cpu"), ("out", "runs/lab/tokenizers")):
        if not getattr(values, name):
            raise UserError(f"--{name}", "is missing", f"try --{name}={example}")
    corpus = Path(values.parents).absolute() / "corpus"
    if not corpus.is_dir():
        raise UserError(f"--parents={values.parents}", "has no folder `corpus`",
                        "name a workdir in which data.curate has run")
    if unknown := sorted(set(values.kinds) - set(VOCABULARIES)):
        raise UserError(f"--kinds={','.join(values.kinds)}", f"names {unknown[0]!r}, which is none "
                        f"of {', '.join(VOCABULARIES)}", "leave it out")
    if wrong := [size for size in values.vocab_sizes if not size.isdecimal()]:
        raise UserError(f"--vocab_sizes={','.join(values.vocab_sizes)}",
                        f"names {wrong[0]!r}, which is no number", "write --vocab_sizes=2048,8192")
    return Plan(corpus, values.flops, values.seeds, tuple(sorted(map(int, values.vocab_sizes))),
                tuple(dict.fromkeys(values.kinds)))


def main() -> dict[str, Any]:
    """Runs all lines, then writes the table and the figure."""
    plan, out = read_plan(flags.FLAGS), Path(flags.FLAGS.out).absolute()
    rows = [measure_line(line, plan, out) for line in list_lines(plan)]
    table = format_table(rows)
    (out / "table.md").write_text(table)
    print(table, end="", flush=True)
    draw(out / "figure.png", rows)
    return {"rows": rows}


if __name__ == "__main__":
    flags.DEFINE_string("parents", "", "A workdir with a corpus.")
    flags.DEFINE_string("out", "", "Folder of the results.")
    flags.DEFINE_float("flops", 2e12, "Of each training.", lower_bound=1e6)
    flags.DEFINE_integer("seeds", 2, "Seeds, from 0 on.", lower_bound=1)
    flags.DEFINE_list("vocab_sizes", ["512", "2048", "8192", "32768"], "Sizes of BPE.")
    flags.DEFINE_list("kinds", [*VOCABULARIES], "Kinds of tokenizers.")
    entry.run(main)
