"""What the rules of `configs/curate.py:local` keep, by script: plain texts and broken ones.

    python -m scripts.bench.languages --benchmark=PATH/udhr

PATH holds udhr2.zip of nltk_data: the Universal Declaration of Human Rights, a text per language.
Every text is judged as it is, and in four broken versions: random letters of its alphabet, a single
line again and again, a table of numbers, and UTF-8 that was read as KOI8-R (where most of it is not
ASCII). FineWeb-2's rules are applied where the language is identified and has bounds; they judge
the web, so fragments and lists of these texts break some. Prints a table in Markdown, and one JSON
line last.
"""

from __future__ import annotations

import os
import random
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.errors import require_file
from data.extraction.normalise import normalise
from data.filters.fineweb2 import FINEWEB2
from data.filters.language import identify
from data.filters.lines import clean_lines
from data.filters.presets import line_rules, thresholds
from data.filters.rules import decide
from data.filters.signals import MIN_LANGUAGE_SCORE, measure_batch
from data.writing import count_words

MIN_WORDS = 30      # `curate.lines.min_words`
COLUMNS = ("texts", "kept", "broken", "broken_kept", "fineweb2", "fineweb2_kept")


def judge(texts: Sequence[str]) -> Iterator[dict[str, int]]:
    """For each text whether `local` keeps it, and FineWeb-2's rules, if they apply to it."""
    texts = list(map(normalise, texts))
    languages = list(map(identify, texts))
    signals = measure_batch(texts, ["prose"] * len(texts), languages)
    for text, (language, score), measured in zip(texts, languages, signals):
        lines = clean_lines(text, line_rules("technical")).text
        kept = count_words(lines) >= MIN_WORDS
        verdict = {"kept": kept and decide(measured, thresholds("technical", language)) is None}
        if language in FINEWEB2 and score >= MIN_LANGUAGE_SCORE:
            verdict |= {"fineweb2": 1, "fineweb2_kept": decide(
                measured, thresholds("fineweb2", language)) is None}
        yield verdict


def break_text(text: str, key: random.Random) -> Iterator[str]:
    """Broken versions of a text."""
    alphabet = sorted(set(filter(str.isalpha, text)))
    yield "".join(key.choice(alphabet) if char.isalpha() else char for char in text)
    line = next(line for line in text.splitlines() if len(line.strip()) > 20).strip()
    yield "\n".join([line] * 60)
    yield "\n".join(" ".join([line[:6], *(str(key.randint(0, 9999)) for _ in range(9))])
                    for _ in range(40))
    if sum(map(str.isascii, text)) < len(text) / 2:
        yield text.encode().decode("koi8-r")


def script_of(text: str) -> str:
    """The script of most letters, by the names of Unicode's characters."""
    names = Counter(unicodedata.name(char, "?").split()[0] for char in text if char.isalpha())
    return names.most_common(1)[0][0]


def main() -> dict[str, Any]:
    """Judges all texts and prints the table."""
    folder = Path(flags.FLAGS.benchmark or
                  Path(os.environ.get("HEARTWOOD_DATASETS", "")) / "udhr")
    path = require_file("--benchmark", folder / "udhr2.zip", "give the folder of udhr2.zip")
    with zipfile.ZipFile(path) as archive:
        texts = [archive.read(name).decode() for name in sorted(archive.namelist())
                 if name.endswith(".txt")]
    texts = list(filter(str.strip, texts))
    key = random.Random(0)
    counts: dict[str, Counter[str]] = {}
    for text, verdict in zip(texts, judge(texts)):
        counts.setdefault(script_of(text), Counter()).update(verdict | {"texts": 1})
    broken = [(script_of(text), version) for text in texts for version in break_text(text, key)]
    for (script, _), verdict in zip(broken, judge([version for _, version in broken])):
        counts[script].update({"broken": 1, "broken_kept": verdict["kept"]})
    counts["All"] = sum(counts.values(), Counter())
    print("| script | " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " |")
    print("|---|" + "---:|" * len(COLUMNS))
    for script, row in sorted(counts.items(), key=lambda item: (-item[1]["texts"], item[0])):
        print(f"| {script} | " + " | ".join(str(int(row[name])) for name in COLUMNS) + " |")
    return {name: int(counts["All"][name]) for name in COLUMNS}


if __name__ == "__main__":
    flags.DEFINE_string("benchmark", None, "Folder of udhr2.zip; by default udhr in "
                        "$HEARTWOOD_DATASETS.")
    entry.run(main)
