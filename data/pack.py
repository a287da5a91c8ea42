"""Stage: encodes the corpus into flat token files per domain, with shuffled documents.

    python -m data.pack --config=configs/quickstart.py --workdir=runs/quickstart

Writes the files that `data.tokens.rows` reads: one pair per domain of the corpus, `best` (the
documents of highest quality in `best_domains`, for annealing) unless these are none, and `heldout`
where the corpus holds pages out. `pack.tokenizer` names the tokenizer: an artifact or a model
directory of ours, a folder of the Hugging Face hub, or a tokenizer's file: `tokenizer.json`, a rank
file of tiktoken, a model of SentencePiece, or a GGUF file. A domain that is itself called `best` or
`heldout` is named `domain:best` or `domain:heldout` here and in mixtures.

Units of the corpus are encoded in worker processes; their runs are merged into one global order.
Memory is bounded by one unit per worker, then by one bucket; the disk holds every token twice until
the merge is complete.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from core.artifacts import read_json, write_json
from core.bounds import check_numbers
from core.entry import Stage, run_stage
from core.errors import UserError
from core.progress import Progress, log
from data.domains import POOL_PREFIX, POOLS, file_stem
from data.engine import assist, run_units
from data.tokenizers.load import find_tokenizer, load_tokenizer
from data.tokens.checked import write_sums
from data.tokens.encode import encode_unit, plan_units, read_domains, token_dtype
from data.tokens.shards import WORST_RANK, merge_runs, select_rank

BUCKET_BYTES = 256_000_000  # tokens in memory during the merge


def build(config: ConfigDict, parents: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """Encodes every domain; `best` repeats documents of the domains' own files."""
    described = folder / "tokens.json"
    if not described.exists():  # written last
        tokenizer = load_tokenizer(parents["tokenizer"])
        domains = pack(config.pack, parents["corpus"], parents["tokenizer"], folder)
        tokenizer.save(folder / "tokenizer")
        write_json(described, {
            "dtype": token_dtype(tokenizer).name, "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint, "domains": domains})
    shutil.rmtree(folder / "encode", ignore_errors=True)
    domains = read_json(described)["domains"]
    trained = sum(d["tokens"] for n, d in domains.items() if n not in POOLS)
    return {"tokens": trained, "domains": domains}


def pack(section: ConfigDict, corpus: Path, tokenizer: Path, folder: Path, *,
         unit_bytes: int | None = None, num_workers: int | None = None,
         bucket_bytes: int = BUCKET_BYTES) -> dict[str, dict[str, float]]:
    """Writes the token files of a corpus; the last three arguments do not affect them.

    Returns:
        Documents, tokens, bytes of text, and bytes per text token, by domain.

    Raises:
        UserError: the corpus is damaged or empty, or lacks the domains that the config names.
    """
    check_numbers(section, "pack")
    encoder, units = load_tokenizer(tokenizer), folder / "encode"
    tasks = [{"spans": spans, "tokenizer": str(tokenizer), "seed": section.seed, "domain": domain}
             for kind, domain in (("documents", None), ("heldout", "heldout"))
             for spans in plan_units(corpus / kind, unit_bytes)]
    _check_units(tasks, corpus)
    _check_best(section, corpus)
    results = run_units(encode_unit, tasks, units, key=encoder.fingerprint,
                        num_workers=num_workers)
    runs: dict[str, list[Path]] = defaultdict(list)
    counts: dict[str, Counter] = defaultdict(Counter)
    for unit, result in enumerate(results):
        for name, counted in result.items():
            runs[name].append(units / f"{unit:05d}.{file_stem(name)}")
            counts[name].update(counted)
    merges = {name: (runs[name], counts[name]["tokens"], WORST_RANK) for name in sorted(runs)}
    if section.best_domains:
        merges["best"] = _best(section, runs, counts)
    for name in sorted(runs):
        if name.startswith(POOL_PREFIX):
            log(f"pack: the domain {name.removeprefix(POOL_PREFIX)!r} is called {name!r}")

    domains, dtype = {}, token_dtype(encoder)
    with Progress("merge", sum(tokens for _, tokens, _ in merges.values()), "tokens") as progress:
        done = 0
        for name, (inputs, num_tokens, max_rank) in merges.items():
            num_buckets = math.ceil(num_tokens * dtype.itemsize / bucket_bytes)
            stem = file_stem(name)
            merged = merge_runs(inputs, folder / stem, dtype, num_buckets, max_rank)
            for suffix in ("tokens", "ends"):
                write_sums(folder / f"{stem}.{suffix}")
            num_text_tokens = merged["tokens"] - 2 * merged["documents"]  # less bos and end
            domains[name] = merged | {
                "bytes_per_token": round(merged["bytes"] / max(num_text_tokens, 1), 3)}
            done += num_tokens
            progress.update(done)
    return domains


def _check_units(tasks: Sequence[Mapping[str, Any]], corpus: Path) -> None:
    """Raises `UserError` without a document to train on; logs once where none is held out."""
    domains = {task["domain"] for task in tasks}
    if None not in domains:
        raise UserError(str(corpus / "documents"), "holds no documents",
                        "see the report of `python -m data.curate`")
    if "heldout" not in domains:
        log("pack: the corpus holds no page out (curate.heldout.frac, curate.heldout.domain): no "
            "held-out numbers while training and in evaluation")


def _check_best(section: ConfigDict, corpus: Path) -> None:
    """Raises `UserError` where no document may be `best`, before any is encoded."""
    if not section.best_domains:
        return
    domains = read_domains(corpus / "documents")
    missing = sorted({*section.best_domains} - domains)
    if len(missing) == len({*section.best_domains}):
        raise UserError(f"pack.best_domains={tuple(section.best_domains)}",
                        f"the corpus holds only {sorted(domains)}",
                        "set --config.pack.best_domains, or \"()\" for no such pool")
    if missing:
        log(f"pack: the corpus holds none of pack.best_domains {', '.join(missing)}")


def _best(section: ConfigDict, runs: Mapping[str, Sequence[Path]],
          counts: Mapping[str, Counter]) -> tuple[list[Path], int, int]:
    """Runs and tokens of the pool of `best`, and the last rank that is selected."""
    names = [name for name in section.best_domains if name in runs and name != "heldout"]
    pool = [run for name in names for run in runs[name]]
    total = sum((counts[name] for name in names), Counter())
    if total["unscored"]:
        log(f"pack: {total['unscored']} of {total['documents']} documents in the pool of `best` "
            "have no quality score and rank last")
    num_wanted = max(round(section.best_frac * total["documents"]), 1)
    return pool, total["tokens"], select_rank(pool, num_wanted)


def mark_tokenizer(source: Path) -> str | None:
    """The fingerprint of a tokenizer that no stage made; None where there is none."""
    return load_tokenizer(source).fingerprint if find_tokenizer(source).exists() else None


STAGE = Stage("pack", build, parents=("corpus", "tokenizer"), assist=assist,
              foreign={"tokenizer": mark_tokenizer})

if __name__ == "__main__":
    run_stage(STAGE)
