"""Curation by itself: a corpus from files of your own.

    python -m data.curate --config=configs/curate.py:local --workdir=runs/mine \\
        --config.curate.inputs='texts/*.jsonl.zst,more/'
    python -m data.curate --config=configs/curate.py:warc --workdir=runs/crawl \\
        --config.curate.inputs='crawl/*.warc.gz' --num_workers=32

local takes documents as they are, in any language, mends and deduplicates them, and drops what is
plainly broken.
warc takes pages of the open web and follows FineWeb (arXiv:2406.17557): English, the rules of
Gopher, C4 (without its end marks) and FineWeb, near duplicates, personal data. Both take about a
second per megabyte of text and core.
"""

from ml_collections import ConfigDict

from configs.common import make_curate, parse_variant


def get_config(arg: str | None = None) -> ConfigDict:
    variant = parse_variant(arg, ("local", "warc"))
    c = ConfigDict()
    c.curate = make_curate()
    if variant == "local":
        c.curate.presets.default = ("technical",)
    else:
        c.curate.presets.default = ("fineweb",)
        c.curate.languages.update(keep=("en",), min_score=0.65)
        c.curate.dedup.by_url = True
        c.curate.lines.min_words = 50
    return c
