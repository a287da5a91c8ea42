"""The report that compares tokenizers: every number against one that was counted by hand."""

import itertools
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from core.artifacts import ROOT
from core.errors import UserError
from core.json_text import format_json
from data.documents import Document, write_documents
from data.tokenizer_report import (
    format_table,
    make_report,
    name_of,
    read_domains,
    read_tokenizers,
)
from data.tokenizers import bpe
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.patterns import SPLITS
from data.tokenizers.recipe import Recipe
from data.vocabularies import probes
from data.vocabularies.compression import (
    join_domains,
    measure_cost,
    measure_domain,
    measure_evenness,
    measure_languages,
)
from data.vocabularies.page import render_report
from data.vocabularies.sample import (
    MAX_DOCUMENT_CHARS,
    Domain,
    Sampler,
    cut,
    read_corpus,
    read_domain,
    read_languages,
)
from data.vocabularies.views import SAMPLES, view_text
from data.vocabularies.vocabulary import (
    NOT_UTF8,
    describe_vocabulary,
    find_odd,
    find_unreachable,
    kind_of,
    rank_curve,
)

SINGLE = {bytes([i]): i for i in range(256)}
BYTES = BytePairTokenizer(SINGLE)


def _with(*tokens, pattern=SPLITS["heartwood"]):
    """Single bytes and these tokens, each of which must be two of those before it."""
    return BytePairTokenizer(SINGLE | {token: 256 + i for i, token in enumerate(tokens)},
                             pattern=pattern)


CATS = _with(b"at", b"cat", b" cat")


def _domain(*texts, name="animals"):
    return Domain(name, texts, sum(len(text.encode()) for text in texts))


def test_compression_is_what_counting_by_hand_gives():
    domain = _domain("a cat cat", "é.")
    measured, counts_V = measure_domain(CATS, domain)
    # "a", " cat", " cat"; two bytes of "é", "."; of the words a, cat, cat, é after a space only cat
    # is one token.
    assert measured == {
        "tokens": 6, "bytes_per_token": 12 / 6, "characters_per_token": 11 / 6,
        "tokens_per_word": 6 / 4, "whole_words_frac": 2 / 4, "unknown_tokens": 0,
        "round_trip_frac": 1.0}
    assert {i: n for i, n in enumerate(counts_V.tolist()) if n} == {
        ord("a"): 1, ord("."): 1, 0xC3: 1, 0xA9: 1, 258: 2}
    assert len(counts_V) == CATS.vocab_size


def test_units_of_scripts_without_spaces_are_words():
    tokenizer = _with("日".encode()[:2], "日".encode())
    measured, _ = measure_domain(tokenizer, _domain("日日本"))
    assert measured["tokens"] == 1 + 1 + 3
    assert measured["whole_words_frac"] == 2 / 3
    assert measured["tokens_per_word"] == 5 / 2, "three ideographs are two words"


def test_domains_together_are_one_text():
    parts = [_domain("a cat cat", "at"), _domain("1234 cat", "x", "y z", name="others")]
    joined = join_domains([(part, measure_domain(CATS, part)[0]) for part in parts])
    at_once, _ = measure_domain(CATS, _domain(*parts[0].texts, *parts[1].texts))
    assert joined == pytest.approx(at_once)


def test_evenness_is_the_entropy_over_that_of_an_even_use():
    assert measure_evenness(np.array([5, 5, 5, 5, 0]), 4) == pytest.approx(
        {"entropy_bits": 2.0, "shannon_efficiency": 1.0, "renyi_efficiency": 1.0})
    uneven = measure_evenness(np.array([2, 1, 1, 0, 0]), 8)
    # p = 1/2, 1/4, 1/4; sum p^2.5 = 2^-2.5 + 2 * 2^-5 over three bits
    assert uneven == pytest.approx({
        "entropy_bits": 1.5, "shannon_efficiency": 0.5,
        "renyi_efficiency": math.log2(2 ** -2.5 + 2 ** -4) / -1.5 / 3})
    assert math.isnan(measure_evenness(np.array([3]), 1)["renyi_efficiency"])


def test_a_premium_is_the_tokens_over_those_of_english():
    measured = measure_languages(BYTES, {"ell": "αβ γδε", "eng": "ab cde", "fra": "ab cdé"})
    assert measured["languages"]["ell"] == {
        "tokens": 11, "tokens_per_word": 5.5, "tokens_per_character": 11 / 6, "premium": 11 / 6}
    assert measured["languages"]["eng"]["premium"] == 1
    assert measured["english"] == "eng" and measured["worst"] == "ell"
    assert measured["median_premium"] == pytest.approx((11 / 6 + 7 / 6) / 2), "without English"


def test_the_cost_follows_from_the_vocabulary_and_the_compression():
    cost = measure_cost(64, 1000, 4.0)
    assert cost == {"embedding_params": 64_000, "head_flops_per_byte": 32_000,
                    "tokens_per_byte": 0.25}


def test_odd_and_unreachable_tokens_are_found():
    # Digits are split one by one, and no piece goes on after a space.
    odd = _with(b"12", b"  ", b"x1", "aя".encode(), b"cat", b"t c", "日の".encode(), b"\x1b[")
    pieces = odd.list_bytes(range(odd.vocab_size))
    assert pieces[256:264] == [b"12", b"  ", b"x1", "aя".encode(), b"cat", b"t c",
                               "日の".encode(), b"\x1b["]
    found = find_odd(pieces, range(256, 264))
    assert found == {NOT_UTF8: [], "white space only": [257], "digits and letters": [258],
                     "letters of several scripts": [259], "control characters": [263]}
    assert len(find_odd(pieces, range(256))[NOT_UTF8]) == 128
    assert find_unreachable(odd, pieces, range(256, 264)) == [256, 258, 261]
    described = describe_vocabulary(odd, np.bincount([260] * 3 + [97], minlength=odd.vocab_size))
    assert (described["ordinary"], described["specials"], described["empty"]) == (264, 5, 0)
    assert (described["used"], described["unused"]) == (2, 262)
    assert described["unreachable"]["tokens"] == 3
    assert described["ranks"][0] == (1, 0.75) and described["ranks"][-1] == (2, 0.25)
    assert sum(described["scripts"].values()) == pytest.approx(1)
    assert described["scripts"]["(bytes)"] == pytest.approx(128 / 264)


@pytest.mark.parametrize("piece, kind", [
    ("cat", "Latin"), (" кот", "Cyrillic"), ("猫", "Han"), ("ねこ", "Hiragana"), ("ⴰ", "(others)"),
    (" \n", "(spaces)"), ("12", "(digits)"), ("!?", "(marks)"), ("٣", "(digits)")])
def test_a_token_has_the_script_of_its_first_letter(piece, kind):
    assert kind_of(piece.encode()) == kind


def test_a_part_of_a_character_is_bytes():
    assert kind_of("猫".encode()[:2]) == "(bytes)"


def test_a_curve_of_ranks_descends_to_the_rarest_token():
    curve = rank_curve(np.array([0, 1, *range(100, 400)]))
    assert curve[0][0] == 1 and curve[-1] == (301, 1 / (1 + sum(range(100, 400))))
    assert len(curve) <= 36 and all(a[1] >= b[1] for a, b in itertools.pairwise(curve))


DIGITS = [f"{n:0{size}}".encode() for size in (2, 3) for n in range(10 ** size)]


@pytest.mark.parametrize("tokenizer, digits, split, share", [
    (BYTES, "4", "1+1+1+1", 1.0), (BYTES, "1", "1", 1.0),
    (_with(*DIGITS, pattern=SPLITS["threes"]), "7", "3+3+1", 1.0),
    (_with(*DIGITS, pattern=SPLITS["threes"]), "2", "2", 1.0)], ids=["4", "1", "7", "2"])
def test_numbers_are_split_at_the_same_places(tokenizer, digits, split, share):
    found = probes.run_probes(tokenizer)["numbers"][digits]
    assert (found["split"], found["split_frac"]) == (split, share)
    assert found["tokens"] == len(split.split("+"))
    assert found["tokens_per_digit"] == found["tokens"] / int(digits)


def test_a_split_that_depends_on_the_digits_is_seen():
    """`20` alone is a token, wherever it stands."""
    tokenizer = _with(b"20", pattern=SPLITS["gpt2"])
    found = probes.probe_numbers(tokenizer, ["1234", "2034", "1203", "5678"])
    assert found == {"tokens": 3.5, "tokens_per_digit": 3.5 / 4, "split": "1+1+1+1",
                     "split_frac": 0.5}
    assert probes.split_sizes(tokenizer, "1203") == (1, 2, 1)


def test_probes_of_single_bytes_are_numbers_of_bytes():
    found = probes.run_probes(BYTES)
    assert found["indents"]["13 spaces"] == 13 and found["indents"]["2 tabs"] == 2
    assert found["emoji"]["tree"] == 1 + 4
    assert found["scripts"]["Georgian"] == (1 + 9 * 3) / 9
    right, wrong = (sum(1 + len(word) for word in words)
                    for words in (probes.TYPOS, probes.TYPOS.values()))
    assert found["typos"]["ratio"] == wrong / right
    assert found["typos"]["words"]["goverment"] == [11, 10]
    sizes = [len(word) for word in probes.WORDS]
    mean = sum(sizes) / len(sizes)
    assert found["cases"] == {"lower": mean + 1, "title": mean + 1, "upper": mean + 1}
    assert found["places"] == {"first in the text": mean, "after a space": mean + 1,
                               "after a bracket": mean, "after a line break": mean}
    print_apostrophe = found["contractions"]["’"] - found["contractions"]["'"]
    assert print_apostrophe == 2, "U+2019 has three bytes"


def test_a_view_shows_parts_of_characters_before_the_character():
    assert view_text(BYTES, "a🌲") == [(97, "a", ""), (0xF0, "", "F0"), (0x9F, "", "9F"),
                                      (0x8C, "", "8C"), (0xB2, "🌲", "")]
    for text in SAMPLES.values():
        assert "".join(piece.text for piece in view_text(CATS, text)) == text


def test_the_sample_depends_on_the_contents_alone():
    texts = [f"document {i} " * (1 + i % 7) for i in range(200)]
    samples = []
    for order in (texts, texts[::-1], texts[50:] + texts[:50]):
        sampler = Sampler(max_bytes=1500)
        for text in order:
            sampler.add(text)
        samples.append(sampler.domain("d"))
    assert len({sample.texts for sample in samples}) == 1
    assert 1400 < samples[0].num_bytes <= 1500
    assert samples[0].read_bytes == sum(map(len, texts))
    wider = Sampler(max_bytes=3000)
    for text in texts:
        wider.add(text)
    assert wider.domain("d").texts[:len(samples[0].texts)] == samples[0].texts


@pytest.mark.parametrize("text", ["a" * 50_000, ("x" * 99 + "\n") * 999, "short", "\n\na"])
def test_a_long_document_is_cut_without_loss(text):
    parts = list(cut(text))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= MAX_DOCUMENT_CHARS
    assert "\n" not in text[:-1] or all(part.endswith("\n") for part in parts[:-1])


def test_a_corpus_has_its_domains_and_the_held_out_documents(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    for kind, domain in (("documents", "pages"), ("documents", "code"), ("heldout", "pages")):
        write_documents(tmp_path / kind / f"{domain}.parquet",
                        [Document(f"{kind}{domain}", f"{kind} {domain}", "x", domain)])
    assert {domain.name: domain.texts for domain in read_corpus(tmp_path)} == {
        "code": ("documents code",), "pages": ("documents pages",), "heldout": ("heldout pages",)}


@pytest.fixture
def planted(tmp_path):
    """Folders of two tokenizers, a text and its translation."""
    BYTES.save(tmp_path / "one" / "tokenizer")
    CATS.save(tmp_path / "two" / "tokenizer")
    (tmp_path / "text").mkdir()
    for name, text in {"a": "a cat <b>sat</b>\n" * 20, "b": "größer 🌲 12345\n" * 5}.items():
        (tmp_path / "text" / f"{name}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "languages").mkdir()
    for name, text in {"eng": "a cat", "deu": "eine Katze"}.items():
        (tmp_path / "languages" / f"{name}.txt").write_text(text)
    return tmp_path


def _report(planted, texts=None, names=("one", "two")):
    tokenizers = read_tokenizers([f"{name}={planted / place / 'tokenizer'}"
                                  for name, place in zip(names, ("one", "two"))])
    domains = read_domains(texts or {"animals": str(planted / "text")}, None)
    return make_report(tokenizers, domains, read_languages(planted / "languages"), 64)


def test_a_report_is_the_same_on_every_run(planted):
    first, second = _report(planted), _report(planted)
    assert first.pop("speeds") and second.pop("speeds")
    assert format_json(first) == format_json(second)
    for i, text in enumerate((planted / "text").iterdir()):     # other names, another order
        text.rename(planted / "text" / f"{9 - i}.txt")
    third = _report(planted)
    third.pop("speeds")
    assert format_json(first) == format_json(third)


def test_costs_are_relative_to_the_first_tokenizer(planted):
    report = _report(planted)
    one, two = report["tokenizers"].values()
    assert one["cost"]["tokens_per_byte_ratio"] == 1
    assert two["cost"]["tokens_per_byte_ratio"] == pytest.approx(
        two["together"]["tokens"] / one["together"]["tokens"])
    assert two["cost"]["head_flops_per_byte"] == pytest.approx(
        2 * CATS.vocab_size * 64 / two["together"]["bytes_per_token"])


def test_texts_and_names_on_the_page_are_escaped(planted):
    evil = "<script>alert(1)"
    BytePairTokenizer(SINGLE | {b"<b": 256, b"<b>": 257, b"</": 258}).save(
        planted / "two" / "tokenizer")
    texts = {f"{evil}</script>": str(planted / "text")}
    page = render_report(_report(planted, texts, (evil, "b|c")))
    assert "<script" not in page
    assert "<b>&lt;" not in page and "&lt;b&gt;</code>" in page, "a token that is a tag"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page, "the domain"
    tags = set(re.findall(r"<(\w+)", page))
    assert tags <= {"html", "head", "meta", "title", "style", "body", "header", "p", "h1", "h2",
                    "h3", "dl", "dt", "dd", "div", "section", "table", "thead", "tbody", "tr",
                    "th", "td", "span", "details", "summary", "code", "pre", "b", "small",
                    "figure", "figcaption", "svg", "line", "text", "path", "circle"}, tags
    assert "https://" not in page.replace("https:", "", page.count('class="token')), "no address"


def test_the_table_in_markdown_has_a_line_for_each_tokenizer(planted):
    lines = format_table(_report(planted, names=("a|b", "two"))).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    assert lines[2].startswith("| a\\|b ") and lines[0].count(" | ") == lines[3].count(" | ")


def test_the_command_prints_a_table_and_writes_the_report(planted):
    out = planted / "out"
    done = subprocess.run(
        [sys.executable, "-m", "data.tokenizer_report", "--width=64", f"--out={out}",
         f"--tokenizers={planted / 'one'},{planted / 'two' / 'tokenizer'}",
         f"--text=animals={planted / 'text'}", f"--languages={planted / 'languages'}"],
        capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[:5] for line in lines[:4]] == ["| tok", "| ---", "| one", "| two"]
    written, result = json.loads((out / "report.json").read_text()), json.loads(lines[-1])
    assert list(written["tokenizers"]) == ["one", "two"]
    assert result["bytes_per_token"]["one"] == 1.0
    assert written["texts"]["animals"]["bytes"] == result["bytes"] == 20 * 17 + 5 * 20
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    here = _report(planted)
    for report in (here, written):
        report.pop("speeds")
        for own in report["tokenizers"].values():
            own.pop("path")
    assert json.loads(format_json(here)) == written


def test_a_tokenizer_is_called_by_the_folder_that_tells_it_apart(tmp_path):
    assert name_of(tmp_path / "a" / "tokenizer") == "a"
    assert name_of(tmp_path / "b" / "tokenizer.json") == "b"
    assert name_of(tmp_path / "a" / "other.json") == "other.json"


@pytest.mark.parametrize("entries, message", [
    ([], "--tokenizers: is missing"), (["{0}/none"], "no such file or folder"),
    (["{0}/one", "one={0}/two"], "is the second one with the name 'one'"),
    (["{0}/text"], "no such file")])
def test_tokenizers_that_cannot_be_read_are_one_clear_line(planted, entries, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_tokenizers([entry.format(planted) for entry in entries])
    assert "\n" not in str(error.value)


def test_texts_that_cannot_be_read_are_one_clear_line(planted, tmp_path):
    cases = {"empty.txt": (b" \n", "is empty"), "latin.txt": (b"caf\xe9 au lait\n", "is not UTF-8"),
             "none.txt": (None, "matches no input file")}
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            read_domain("x", str(tmp_path / name))
        assert "\n" not in str(error.value)
    (planted / "languages" / "eng.txt").rename(planted / "languages" / "fra.txt")
    with pytest.raises(UserError, match=r"none of the texts is English"):
        read_languages(planted / "languages")
    with pytest.raises(UserError, match=r"holds no file LANGUAGE\.txt"):
        read_languages(planted / "one")


def test_languages_without_text_are_left_out(planted, capsys):
    (planted / "languages" / "abc.txt").write_text("\n")
    assert list(read_languages(planted / "languages")) == ["deu", "eng"]
    assert "left out 1 without text: abc" in capsys.readouterr().err


def _hub(name):
    pytest.importorskip("tokenizers")
    import hub_tokenizers

    from data.tokenizers.hub import make_tokenizer
    return make_tokenizer(getattr(hub_tokenizers, name)(), {"eos_token": "</s>"} if
                          name != "word_piece" else {"eos_token": "[SEP]", "unk_token": "[UNK]"})


def test_unknown_tokens_are_counted_and_do_not_come_back():
    measured, _ = measure_domain(_hub("word_piece"), _domain("the cat", "日"))
    assert measured["unknown_tokens"] == 1 and measured["round_trip_frac"] == 0.5


def test_tokens_within_words_are_reachable_where_a_space_is_put_before_a_text():
    tokenizer = _hub("sentence_piece")
    pieces = tokenizer.list_bytes(range(tokenizer.vocab_size))
    ordinary = [i for i, piece in enumerate(pieces) if piece and i not in tokenizer.special_ids]
    found = find_unreachable(tokenizer, pieces, ordinary)
    assert [pieces[i] for i in found if i > 258] == []
    twice = {i for i in range(3, 259) if pieces[i] in pieces[259:]}
    assert twice <= set(found), "a byte that is a letter's is never needed"


@pytest.mark.skipif("HEARTWOOD_DATASETS" not in os.environ, reason="needs real vocabularies")
@pytest.mark.full
def test_published_properties_of_a_real_vocabulary(tmp_path):
    """Llama 2 splits digits one by one and has a token for every byte; Llama 3 groups by three."""
    import gzip
    from pathlib import Path

    from data.tokenizers.load import load_tokenizer
    splits = {}
    for name in ("llama2", "llama3"):
        folder = Path(os.environ["HEARTWOOD_DATASETS"]) / "tokenizers" / name
        (tmp_path / name).mkdir()
        for file in folder.glob("*.gz"):
            (tmp_path / name / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        splits[name] = probes.run_probes(load_tokenizer(tmp_path / name))["numbers"]["5"]
    assert (splits["llama2"]["split"], splits["llama2"]["split_frac"]) == ("1+1+1+1+1", 1)
    assert (splits["llama3"]["split"], splits["llama3"]["split_frac"]) == ("3+2", 1)


def test_training_text_is_compressed_better_by_a_larger_vocabulary(planted):
    texts = ["the cat sat on the mat and the dog ran to the cat " * 3]
    small, large = (bpe.train(texts, Recipe(size)) for size in (265, 280))
    found = [measure_domain(one, _domain(*texts))[0]["bytes_per_token"] for one in (small, large)]
    assert found[0] < found[1]
