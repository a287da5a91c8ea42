"""Lists of hosts, URLs and words: matches and similar text that must not match."""

import re

import pytest

from core.errors import UserError
from data.filters.harm import load_url_list, load_word_list, measure


@pytest.fixture
def url_file(tmp_path):
    path = tmp_path / "blocked.txt"
    path.write_text("# a comment\nExample.com\nwww.evil.org\nhttps://news.net/Bad/\n\n"
                    "shop.de/item?id=7\nmüller.de\nxxx\n*casino-bonus*\n")
    return path


@pytest.mark.parametrize("url, is_blocked", [
    ("http://example.com", True), ("https://www.EXAMPLE.com:8080/a?b#c", True),
    ("http://a.b.example.com/x", True), ("http://example.com./", True),
    ("http://user@example.com/", True),
    ("http://notexample.com", False), ("http://example.com.au", False),
    ("http://example.org/example.com", False), ("http://com", False),
    ("http://evil.org", True), ("http://www.evil.org", True), ("http://m.evil.org", True),
    ("http://news.net/", False), ("http://news.net/good/bad", False),
    ("http://news.net/badly", False),
    ("http://news.net/bad", True), ("http://www.news.net/bad/7.html", True),
    ("http://shop.de/item?id=7", True), ("http://shop.de/item?id=77", False),
    ("http://müller.de/", True), ("http://xn--mller-kva.de/", True),
    ("http://anything.xxx/", True), ("http://xxx.anything/", False),
    ("http://ok.org/best-CASINO-bonus-1", True), ("files/casino-bonus.txt", True),
    ("files/example.com/a.txt", False), ("http://[", False), ("", False), ("http://\udcff/", False),
])
def test_url_match(url_file, url, is_blocked):
    assert load_url_list(url_file).match(url) == ("blocked" if is_blocked else None)


def test_ut1_folders_name_their_categories(tmp_path):
    for category, name, lines in (("adult", "domains", "a.com\nboth.com"),
                                  ("adult", "urls", "c.org/x"),
                                  ("gambling", "domains", "b.com\nboth.com")):
        (tmp_path / category).mkdir(exist_ok=True)
        (tmp_path / category / name).write_text(lines)
    everything = load_url_list(tmp_path)
    assert [everything.match(f"http://{place}") for place in
            ("a.com", "c.org/x/y", "b.com", "both.com", "c.org")] == [
                "adult", "adult", "gambling", "adult", None]
    adult = load_url_list(tmp_path / "adult")
    assert (adult.match("http://a.com"), adult.match("http://b.com")) == ("adult", None)


@pytest.mark.parametrize("line", ["two words", "0.0.0.0 ads.com", "http://", "a*b.com", "/path"])
def test_an_invalid_url_is_reported_with_its_line(tmp_path, line):
    (tmp_path / "list").write_text(f"fine.com\n{line}\n")
    with pytest.raises(UserError, match=f"list, line 2: {re.escape(repr(line))} is not a host"):
        load_url_list(tmp_path / "list")


def test_missing_and_empty_lists_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="url_list='/no/such': no such file"):
        load_url_list("/no/such")
    with pytest.raises(UserError, match="holds no file `domains`"):
        load_url_list(tmp_path)
    with pytest.raises(UserError, match="word_list='/no/such': no such file"):
        load_word_list("/no/such")
    (tmp_path / "empty").write_text("# nothing\n\n")
    with pytest.raises(UserError, match="holds no word"):
        load_word_list(tmp_path / "empty")
    (tmp_path / "latin").write_bytes("dämlich".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8"):
        load_word_list(tmp_path / "latin")


@pytest.mark.parametrize("text, count", [
    ("", 0), ("darn", 1), ("Darn, DARN! (darn)", 3), ("darn darn", 2), ("darned undarn", 0),
    ("darn_it", 0), ("darné édarn", 0), ("c++ and ++c", 1), ("what a$$ this is", 1),
    ("son of a gun; son of\n a gun", 2), ("gun", 0), ("dämlich DÄMLICH unterdämlich", 2),
    ("这是坏词吗", 1), ("🖕🖕", 2), ("darn.darn-darn/darn", 4), ("one darn\n\n2 darn\n", 2),
])
def test_words_are_counted_whole(tmp_path, text, count):
    path = tmp_path / "words"
    path.write_text("Darn\nson of a gun\nc++\na$$\ndämlich\n坏词\n🖕\n# no word\n")
    assert load_word_list(path).count(text) == count


def test_counts_agree_with_a_plain_pattern(tmp_path):
    """The whole-word pattern of C4's cleaner, on plain English and with overlaps allowed."""
    terms = ["ipsum", "dolor", "sit amet", "elit"]
    path = tmp_path / "words"
    path.write_text("\n".join(terms))
    text = ("Lorem ipsum dolor sit amet, consectetur adipiscing elit; delit elite IPSUM "
            "ipsum-dolor sit amet\n") * 50
    reference = re.compile(rf"(?<![a-z])({'|'.join(terms)})(?![a-z])", re.IGNORECASE)
    assert load_word_list(path).count(text) == len(reference.findall(text)) > 0


def test_signals(tmp_path):
    for name, word in (("en", "darn"), ("de", "mist")):
        (tmp_path / name).write_text(word)
    lists = [load_word_list(tmp_path / name) for name in ("en", "de")]
    assert measure("darn this mist today", lists) == {"bad_words": 2, "bad_word_frac": 0.5}
    assert measure("", lists) == {"bad_words": 0, "bad_word_frac": 0.0}
