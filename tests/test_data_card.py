"""The data card of a planted corpus: safe, reproducible, complete without optional stages."""

import json
from html.parser import HTMLParser

import pytest
from planted_corpus import ATTACK, details, removal, write_corpus, write_planted

from core.errors import UserError
from data.card.page import write_card
from data.corpus import Corpus

VOID = {"meta"}


class _Page(HTMLParser):
    """All elements and texts of a page; elements must be properly nested."""

    def __init__(self, folder):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed((folder / "report.html").read_text())
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text.append(data)

    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def folder(tmp_path):
    return write_planted(tmp_path / "corpus")


def test_card_has_no_scripts_and_loads_no_resources(folder):
    write_card(folder)
    page = _Page(folder)
    assert not {"script", "img", "link", "iframe"} & {name for name, _ in page.elements}
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("src", "href") for name in attributes)
    policies = [attributes["content"] for _, attributes in page.elements
                if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    # A sample with its source, alarm, cluster, contamination hit, damage, command: all as text.
    assert sum("<script>alert('x')</script>" in text for text in page.text) >= 9
    assert "\x1b" not in (folder / "report.html").read_text()


def test_card_shows_the_manifest_and_is_reproducible(folder):
    write_card(folder)
    first = (folder / "report.html").read_bytes()
    write_card(folder)
    assert (folder / "report.html").read_bytes() == first
    words = _Page(folder).words()
    for phrase in ("2 of 5 read", "lost 89.0 % of its 9 documents to deduplication",
                 "b.jsonl.gz lost 20,000 bytes, 50.0 % of it (jsonl: file is cut off).",
                 "10 candidate pairs were compared; 40.0 % were confirmed", "3 documents like",
                 "measured 3, the threshold is 10", "2.0 s · 4.0 MB/s", "email 3", "0.91",
                 "arc item 7 · ngram 0.90", "from 10 · 50.0 % beyond", "to 0.6 · ≥ 0.0 % beyond",
                 "observed share by predicted score", "precision 0.9",
                 "2 damaged, 5 skipped, 4 files left out", "unknown format 4",
                 "gopher_min_words rules 1 20.00 %"):
        assert phrase in words, phrase


@pytest.mark.parametrize("missing", [*details(), "all of them"])
def test_a_card_renders_without_the_fields_of_a_stage_that_did_not_run(tmp_path, missing):
    folder = write_planted(tmp_path / "corpus")
    manifest = json.loads((folder / "manifest.json").read_text())
    for field in details() if missing == "all of them" else [missing]:
        manifest.pop(field, None)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if missing == "all of them":
        (folder / "lineage.json").unlink()
    write_card(folder)
    words = _Page(folder).words()
    assert "The funnel" in words and "Speed" in words and " nan" not in words
    assert ("no lineage" in words) == (missing == "all of them")


def test_empty_corpus_has_a_card(tmp_path):
    write_card(write_corpus(tmp_path / "corpus", []))
    assert "No document was removed" in _Page(tmp_path / "corpus").words()


def test_damaged_corpora_are_user_errors(folder):
    (folder / "removed" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"part-00000.parquet: cannot be read"):
        write_card(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json: is not valid JSON"):
        write_card(folder)
    with pytest.raises(UserError, match="holds no corpus"):
        Corpus(folder / "documents")
    assert not (folder / "report.html").exists()


def test_documents_by_domain_agree_with_the_funnel(folder):
    corpus = Corpus(folder)
    funnel = corpus.manifest["funnel"]
    assert [sum(stage.values()) for stage in corpus.domains_by_stage()] == [
        funnel[0]["documents_in"], *(stage["documents_out"] for stage in funnel)]


def test_sampled_removals_have_the_smallest_ids(tmp_path):
    rows = [removal(f"{(i * 7919) % 1000:04d}", f"text {i}", "rules", reason, float(i))
            for i in range(700) for reason in ("a", "b")]
    corpus = Corpus(write_corpus(tmp_path / "corpus", [], removed=rows, part_rows=500))
    samples = corpus.sample_removed(3)
    for reason in ("a", "b"):
        smallest = sorted((row for row in rows if row["reason"] == reason),
                          key=lambda row: row["id"])[:3]
        assert [(row["id"], row["text"]) for row in samples[reason]] == [
            (row["id"], row["text"]) for row in smallest]
    assert list(corpus.sample_removed(1, "b")) == ["b"]
    assert ATTACK in samples["a"][0]["source"]
