"""Texts on which tokenizers are compared with other programs."""

import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

# What splits and normalisations treat differently, and names of special tokens.
TRICKY = [
    "", " ", "\n", "a", "The cat's 12,345.67 metres;  it'll\tgo.\r\n\r\n  End  \n \n", "\n\n  ",
    "I'M, don'T we'VE ſ'ſ", "x\u00a0y\u2003z\u3000", "def f(x):\n        return  x\n",
    "größer naïve e\u0301 \u1e9b\u0323 ﬁ ①", "日本語の文章 한국어 ไทย العربية हिन्दी",
    "🌲👩\u200d👩\u200d👧 \ufffd\u0000\u007f",
    "1234567890 ١٢٣ ¼ Ⅷ", "<|endoftext|><|fim_prefix|> <|eot_id|></s> <s>[INST] <unk> <0x0A>",
    "\u2581 \u2581\u2581x", "a" * 300, " " * 300 + "a", "=" * 77 + "-" * 77, "ab" * 99, "\ufeffx"]


def every_code_point(size=4096):
    """All planes, assigned or not, in chunks; surrogates are no text."""
    for first in range(0, 0x110000, size):
        yield "".join(chr(i) for i in range(first, first + size) if not 0xD800 <= i < 0xE000)


def noise(count, seed=0):
    """Random bytes as text, and random code points."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.bytes(4096).decode(errors="replace")
        yield rng.integers(0x20, 0x110000, 512, np.uint32).tobytes().decode("utf-32-le", "replace")


def short_texts(count, seed=0):
    """Random texts of up to 40 characters, in several scripts and of what splits treat apart."""
    rng = np.random.default_rng(seed)
    alphabets = ["ab \n'", "the cat's 12,5 \r\n\t", "eéo\u0301ßſİıſ'S", "日本한ไข้ہे🌲\u200d👧",
                 "\u00a0\u2003\u2581 \u3000x", "<|/s>[]_im0xA", "".join(map(chr, range(0x250)))]
    for alphabet in rng.choice(alphabets, count):
        yield "".join(rng.choice([*alphabet], rng.integers(0, 41)))


def datasets() -> Path:
    """The folder of benchmark files; skips the test without it."""
    if not (folder := os.environ.get("HEARTWOOD_DATASETS")):
        pytest.skip("needs HEARTWOOD_DATASETS")
    return Path(folder)


def real_texts():
    """The Declaration of Human Rights in some 380 languages, and English texts."""
    for archive in (datasets() / "udhr" / "udhr2.zip", *sorted(
            (datasets() / "text_small").glob("*.zip"))):
        with zipfile.ZipFile(archive) as files:
            for name in files.namelist():
                yield files.read(name).decode(errors="replace")
    for packed in sorted((datasets() / "text_small").glob("*.gz")):
        lines = gzip.decompress(packed.read_bytes()).decode(errors="replace").splitlines(True)
        yield from ("".join(lines[i:i + 200]) for i in range(0, len(lines), 200))
