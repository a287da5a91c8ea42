"""A corpus, tokenizer and tokens small enough to be made anew for a test, by the real stages."""

from pathlib import Path

import numpy as np

from configs.quickstart import get_config
from core.artifacts import make_lineage, write_json
from data import pack, train_tokenizer
from data.documents import Document, write_documents

STAGES = {"tokenizer": train_tokenizer, "tokens": pack}


def write_corpus(workdir: Path) -> None:
    """Writes `corpus`: documents of two domains, and a few held out."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bcdfgl" for b in "aeiou" for c in ("n", "rt", "lking", "s")]
    for split, count in (("documents", 120), ("heldout", 12)):
        made = [Document(id=f"{split}{i:04d}", text=" ".join(rng.choice(words, 120)),
                         source=f"test://{i}", domain=("pages", "code")[i % 2])
                for i in range(count)]
        write_documents(workdir / "corpus" / split / "part-00000.parquet", made)
    _finish(workdir / "corpus")


def write_artifacts(workdir: Path, **tokenizer) -> None:
    """Writes `corpus`, `tokenizer` (with these changes of its section) and `tokens`."""
    write_corpus(workdir)
    config = get_config("smoke")
    config.tokenizer.update(vocab_size=300, **tokenizer)
    for name, stage in STAGES.items():
        (workdir / name).mkdir()
        stage.build(config, {other: workdir / other for other in ("corpus", *STAGES)},
                    workdir / name)
        _finish(workdir / name)


def _finish(folder: Path) -> None:
    write_json(folder / "lineage.json",
               make_lineage(stage=folder.name, config={}, inputs={}, code=""))
