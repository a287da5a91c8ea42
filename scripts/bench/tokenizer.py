"""Benchmark of tokenizers: training and encoding, next to rustbpe, tokenizers and tiktoken.

    python -m scripts.bench.tokenizer --corpus=runs/quickstart-cpu/corpus

All train the same byte-level BPE on the same texts, in turns: `data.train_tokenizer` on all cores
from the texts and from counts of units, rustbpe by itself, and the library tokenizers. The merges
of ours and rustbpe's are the same; of the library's it says how many are. Then all encode the texts
with our vocabulary on one core, the library through the `tokenizer.json` that ours is exported as,
and ours on more cores; ids are compared. Times are medians of `--rounds`. Prints a table in
Markdown, and one JSON line last. It needs the extra `hf`.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rustbpe
import tiktoken
from absl import flags

from core import entry
from core.errors import UserError
from data.documents import read_documents
from data.tokenizers import bpe
from data.tokenizers.export import hub_files
from data.tokenizers.huggingface import byte_alphabet, require_library
from data.tokenizers.merging import learn_merges, spell_tokens
from data.tokenizers.recipe import Recipe
from data.tokenizers.tokenizer import SPECIAL_TOKENS
from data.tokens.pieces import count_pieces

MB = 1e6


def take_turns(makers: dict[str, Callable[[], Any]], rounds: int) -> \
        tuple[dict[str, float], dict[str, Any]]:
    """The median seconds of each function over rounds in which each runs once; last results."""
    secs: dict[str, list[float]] = {name: [] for name in makers}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name, make in makers.items():
            start = time.perf_counter()
            results[name] = make()
            secs[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in secs.items()}, results


def train_all(texts: Sequence[str], documents: Path, recipe: Recipe, rounds: int) -> \
        tuple[dict[str, float], bpe.BytePairTokenizer, dict[str, Any]]:
    """Trains with each trainer.

    Returns:
        Seconds, our tokenizer, and whose merges are its.
    """
    def by_units() -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            pieces = count_pieces(documents, recipe, 10**15, Path(folder))
        return spell_tokens(learn_merges(pieces, recipe.num_ordinary - 256))

    def by_rustbpe() -> list[bytes]:
        trainer = rustbpe.Tokenizer()
        trainer.train_from_iterator(iter(texts), recipe.num_ordinary, pattern=recipe.pattern)
        return [bytes(token) for token, _ in trainer.get_mergeable_ranks()]

    secs, made = take_turns({
        "heartwood": lambda: bpe.train(texts, recipe), "heartwood, by units": by_units,
        "rustbpe": by_rustbpe, "tokenizers": lambda: train_library(texts, recipe)}, rounds)
    ours = made["heartwood"]
    tokens = [*ours.ranks]
    if not tokens == made["rustbpe"] == made["heartwood, by units"]:
        raise UserError("the merges", "are not those of rustbpe", "this is a defect: report it")
    theirs = made["tokenizers"]
    shared = len({*tokens} & theirs) / len(tokens)
    return secs, ours, {"library_tokens_shared_frac": round(shared, 4)}


def train_library(texts: Sequence[str], recipe: Recipe) -> set[bytes]:
    """The tokens that the library tokenizers learns."""
    library = require_library()
    steps = library.pre_tokenizers
    backend = library.Tokenizer(library.models.BPE())
    backend.pre_tokenizer = steps.Sequence([
        steps.Split(library.Regex(recipe.pattern), "isolated"),
        steps.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.train_from_iterator(texts, library.trainers.BpeTrainer(
        vocab_size=recipe.num_ordinary, initial_alphabet=steps.ByteLevel.alphabet(),
        show_progress=False))
    alphabet = byte_alphabet()
    return {bytes(alphabet[letter] for letter in token) for token in backend.get_vocab()}


def encode_all(texts: Sequence[str], ours: bpe.BytePairTokenizer, rounds: int) -> \
        tuple[dict[str, float], dict[str, float]]:
    """Seconds of each encoder on one core, and of ours by the number of cores."""
    cores = sorted(os.sched_getaffinity(0))
    files = hub_files(ours, chat=False, context_tokens=1024)
    library = require_library().Tokenizer.from_str(files["tokenizer.json"])
    plain = tiktoken.Encoding("peer", pat_str=ours.pattern, mergeable_ranks=ours.ranks,
                              special_tokens={})
    os.sched_setaffinity(0, cores[:1])
    secs, ids = take_turns({
        "heartwood": lambda: [ours.encode_array(text) for text in texts],
        "tiktoken": lambda: [plain.encode_ordinary(text) for text in texts],
        "tokenizers": lambda: [library.encode(text, add_special_tokens=False).ids
                               for text in texts]}, rounds)
    os.sched_setaffinity(0, cores)
    if not all([*a] == b == c for a, b, c in zip(*ids.values())):
        raise UserError("the ids", "are not those of tiktoken and tokenizers",
                        "this is a defect: report it")
    by_cores = {}
    for num in sorted({1, 2, len(cores)} & {*range(1, len(cores) + 1)}):
        os.sched_setaffinity(0, cores[:num])
        with ThreadPoolExecutor(num) as threads:
            found, _ = take_turns({"threads": lambda: [*threads.map(ours.encode_array, texts)]},
                                  rounds)
        by_cores[str(num)] = found["threads"]
    os.sched_setaffinity(0, cores)
    return secs, by_cores


def main() -> dict[str, Any]:
    """Runs the benchmark and prints its table."""
    values = flags.FLAGS
    documents = Path(values.corpus) / "documents"
    if not documents.is_dir():
        raise UserError(f"--corpus={values.corpus}", "has no folder `documents`",
                        "name a corpus that data.curate wrote")
    texts = [document.text for document in read_documents(documents)]
    num_bytes = sum(len(text.encode()) for text in texts)
    recipe = Recipe(values.vocab_size + len(SPECIAL_TOKENS))
    training, ours, merges = train_all(texts, documents, recipe, values.rounds)
    encoding, by_cores = encode_all(texts, ours, values.rounds)
    rows = [("training, s", training, 1.0, 2), ("encoding on one core, MB/s", encoding, MB, 1)]
    print(f"{num_bytes / MB:.1f} MB of text, {values.vocab_size} ordinary tokens\n")
    print("| | heartwood | heartwood, by units | rustbpe | tiktoken | tokenizers |")
    print("|---|---|---|---|---|---|")
    for name, secs, unit, digits in rows:
        shown = {who: value if unit == 1.0 else num_bytes / unit / value
                 for who, value in secs.items()}
        cells = [f"{shown[who]:.{digits}f}" if who in shown else "" for who in
                 ("heartwood", "heartwood, by units", "rustbpe", "tiktoken", "tokenizers")]
        print(f"| {name} | {' | '.join(cells)} |")
    speeds = {num: round(num_bytes / MB / secs, 2) for num, secs in by_cores.items()}
    print("ours by cores, MB/s: " + ", ".join(f"{num}: {speed}" for num, speed in speeds.items()),
          flush=True)
    return {"bytes": num_bytes, "vocab_size": values.vocab_size, **merges,
            "training_secs": {who: round(value, 3) for who, value in training.items()},
            "training_over_rustbpe": round(training["heartwood"] / training["rustbpe"], 3),
            "tokenizers_over_training": round(training["tokenizers"] / training["heartwood"], 2),
            "encoding_mb_per_sec": {who: round(num_bytes / MB / value, 2)
                                    for who, value in encoding.items()},
            "encoding_mb_per_sec_by_cores": speeds,
            "bytes_per_token": round(
                num_bytes / sum(len(ours.encode_array(text)) for text in texts), 4)}


if __name__ == "__main__":
    flags.DEFINE_string("corpus", "runs/quickstart-cpu/corpus", "A corpus of data.curate.")
    flags.DEFINE_integer("vocab_size", 8192, "Ordinary tokens.", lower_bound=257)
    flags.DEFINE_integer("rounds", 3, "Each is measured once in each round.", lower_bound=1)
    entry.run(main)
