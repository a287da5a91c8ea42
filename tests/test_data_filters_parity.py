"""Parity of decisions with datatrove, per document, on real texts."""

import gzip
import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from data.filters.lines import clean_lines
from data.filters.presets import line_rules

DATASETS = os.environ.get("HEARTWOOD_DATASETS")
MIN_AGREEMENT = 0.995

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not DATASETS, reason="needs the folder HEARTWOOD_DATASETS"),
    # Ignore warnings of the other library.
    pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """300 pages of C4, and a sample of extractors' outputs on 121 web pages."""
    folder, texts = Path(DATASETS), []
    with gzip.open(folder / "text_small" / "c4_demo.jsonl.gz", "rt") as lines:
        texts += [json.loads(line)["text"] for line in lines]
    for path in sorted((folder / "web_extraction" / "outputs").glob("*.json.gz")):
        pages = json.loads(gzip.decompress(path.read_bytes()))
        texts += [page if isinstance(page, str) else page["articleBody"]
                  for page in list(pages.values())[::4]]
    return [text for text in texts if text.strip()]


@pytest.mark.parametrize("name", [
    "gopher repetition", "gopher quality", "c4 paper", "c4 code", "c4 without end marks",
    "fineweb", "fineweb chain"])
def test_filters_agree_with_datatrove(name, texts):
    pytest.importorskip("datatrove")
    from scripts.bench.peer_datatrove import make_pairs

    theirs, ours = make_pairs()[name]
    verdicts = list(zip(theirs(texts), ours(texts)))
    agreeing = sum((their is None) == (our is None) for their, our in verdicts)
    assert agreeing >= MIN_AGREEMENT * len(texts)
    # So do the reasons: the commonest of ours to each of theirs explains nearly all.
    by_reason = Counter(pair for pair in verdicts if None not in pair)
    explained = {their: max((count, our) for (other, our), count in by_reason.items()
                            if other == their)[0] for their, _ in by_reason}
    assert sum(explained.values()) >= MIN_AGREEMENT * sum(by_reason.values()) - 1


def test_lines_that_c4_keeps_are_datatroves(texts):
    pytest.importorskip("datatrove")
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter

    reference, rules, num_kept = C4QualityFilter(), line_rules("c4-paper"), 0
    for text in texts:
        document = Document(text=text, id="")
        if reference.filter(document) is True:
            num_kept += 1
            assert clean_lines(text, rules).text == document.text
    assert num_kept > 100


@pytest.mark.parametrize("language, name", [
    ("de", "deu"), ("fr", "fra"), ("ru", "rus"), ("es", "spa"), ("it", "ita"), ("pl", "pol")])
def test_fineweb2_agrees_with_datatrove(language, name):
    pytest.importorskip("datatrove")
    from scripts.bench.peer_datatrove import make_fineweb2_pair

    with zipfile.ZipFile(Path(DATASETS) / "udhr" / "udhr2.zip") as archive:
        lines = archive.read(f"udhr2/{name}.txt").decode().split("\n")
    # Documents of all kinds: long, short and repeated passages.
    texts = ["\n".join(lines[start:start + size]) for start in range(0, len(lines), 7)
             for size in (5, 20, 60)]
    texts += [f"{text}\n{text[:cut]}" for text in texts[::2] for cut in (100, 400)]
    texts = [text for text in texts if text.strip()]
    theirs, ours = make_fineweb2_pair(language)
    verdicts = list(zip(theirs(texts), ours(texts)))
    assert {None} < {their for their, _ in verdicts}
    assert sum((their is None) == (our is None) for their, our in verdicts) >= \
        MIN_AGREEMENT * len(texts)
