"""Line rules on cases like those of the reference implementations, and repeated blocks."""

import pytest

from data.filters.c4 import count_sentences
from data.filters.lines import clean_lines
from data.filters.presets import line_rules
from data.filters.rules import BrokenRule

PAPER, CODE, FINEWEB = (line_rules(name) for name in ("c4-paper", "c4-code", "fineweb"))


def test_c4_keeps_sentences_and_counts_dropped_bytes():
    kept = ("Ms. Rivera said that the bridge would open on time!\n"
            "\"Come early. Bring a coat. Expect wind.\"")
    result = clean_lines("\n".join((
        kept.split("\n")[0], "Home | News | Weather | Contact the newsroom", "  ",
        kept.split("\n")[1], "Sports results of the whole week...", "Only four words here.",
        "Please turn on javascript to read the comments.",
        "It works without JavaScript in most of the browsers.",
        "Our cookie policy explains how they are baked.",
        "Read the privacy policy before you write to us.",
        "By entering you agree to the Terms of Use!")), CODE)
    assert result.text == kept and result.removal is None
    assert set(result.trimmed) == {"c4_end_marks", "c4_min_line_words", "c4_javascript",
                                   "c4_policy"}
    assert result.trimmed["c4_min_line_words"] == len("Only four words here.\n")


def test_c4_drops_pages_of_too_few_sentences():
    text = ("The opening line is a single sentence.\n"
            "What seems to be two of them... is but one in the end.")
    assert clean_lines(text, CODE).removal == BrokenRule("c4_min_sentences", 2.0)
    assert clean_lines(f"{text}\nA third one is all it takes.", CODE).removal is None
    assert clean_lines(f"{text}\nA third one is all it takes.", PAPER).removal == \
        BrokenRule("c4_min_sentences", 3.0)


@pytest.mark.parametrize("line, rule", [
    ("void f(int a) { return a + 1 + 2; }.", "c4_curly_bracket"),
    ("Lorem Ipsum dolor sit amet, consectetur adipiscing elit.", "c4_lorem_ipsum")])
def test_c4_drops_pages_of_code_and_filler(line, rule):
    page = "All seems well on the first line. And on it goes. Then comes this:\n"
    assert clean_lines(page + line, CODE).removal == BrokenRule(rule, 1.0)
    # A line dropped for its end mark does not remove the page.
    assert clean_lines(page + line[:-1] + "\nThis one stays. It ends well. So it does.",
                       CODE).removal is None


def test_c4_cuts_citations_out():
    text = ("Rivers carry sand to the sea.[12]\nNobody knows how much[citation needed] of it.[edit]"
            "\nThe delta grows every year. [] It is wide.\nSee [1] [2] too.")
    result = clean_lines(text, CODE)
    assert result.text == ("Rivers carry sand to the sea.\nNobody knows how much of it.\n"
                           "The delta grows every year.  It is wide.")
    assert result.trimmed == {"c4_citations": 4 + 17 + 6 + 2, "c4_min_line_words": 17}


def test_c4_variants():
    text = "He said: 'Come in, it is open.'\nA b c\nFour words are here.\n" + "One. Two. Six.\n" * 2
    assert "c4_end_marks" not in FINEWEB
    assert clean_lines(text, FINEWEB).text.startswith("He said: 'Come in, it is open.'\nA b c\n")
    assert clean_lines(text, PAPER).text.startswith("He said: 'Come in, it is open.'\nFour words")
    assert clean_lines(text, CODE).removal == BrokenRule("c4_min_sentences", 0.0)
    page = "This is one sentence of eight short words. " * 5000
    assert clean_lines(page, CODE).removal == BrokenRule("c4_max_page_chars", float(len(page)))
    assert clean_lines(page, PAPER).removal is None
    assert "c4_max_word_chars" in clean_lines(f"x{'y' * 1000} is a word too long.\n" + page[:900],
                                              PAPER).trimmed


@pytest.mark.parametrize("line, count", [
    ("One.", 1), ("no end", 1), ("One. Two! Three?", 3), ("Dr. No met Mr. Yes.", 1),
    ("He left... and came back.", 1), ("\"Go.\" \"No.\" She went.", 3), ("3.5 is e.g. more.", 1),
    ("Wait?! - What?", 2), ("end.Start of it", 2), ("好。 再见。", 2)])
def test_sentences(line, count):
    assert count_sentences(line) == count


def test_refinedweb_line_corrections():
    body = "\n".join(f"The {place}th line of running text has nine words." for place in range(40))
    text = "\n".join((body, "", "CLICK HERE NOW", "12345", "3 likes", "1.2K followers!", "Home",
                      "2 items in cart", "Sign-in now, friends", "Go on, read more...",
                      "3 likes were given by the people"))
    result = clean_lines(text, line_rules("refinedweb"))
    assert result.text == f"{body}\n\n2\nnow, friends\nGo on,\n3 likes were given by the people"
    assert result.removal is None
    assert result.trimmed == {
        "refinedweb_max_uppercase_frac": 15, "refinedweb_numeric": 6, "refinedweb_counter": 24,
        "refinedweb_min_line_words": 5, "refinedweb_phrases": 14 + 8 + 13}
    removal = clean_lines("SHOUTED WORDS\nnine calm words follow here " * 1,
                          line_rules("refinedweb")).removal
    assert removal.reason == "refinedweb_max_removed_word_frac"
    assert removal.score == pytest.approx(2 / 7)


def test_technical_lines():
    text = ("We use cookies on this site\nkeep me\n" + "y" * 1001 + "\n" + "word " * 30
            + "use cookies\n  indented")
    result = clean_lines(text, line_rules("technical"))
    assert result.text == "keep me\n" + "word " * 30 + "use cookies\n  indented"
    assert result.trimmed == {"technical_max_policy_line_words": 28,
                              "technical_max_word_chars": 1002}


@pytest.mark.parametrize("name", ["gopher", "code", "c4-code", "fineweb", "refinedweb",
                                  "technical"])
@pytest.mark.parametrize("text", ["", "\n", "\n\n\n"])
def test_texts_without_lines(name, text):
    result = clean_lines(text, line_rules(name))
    assert not result.text.strip() and not result.trimmed


def test_without_rules_a_text_is_unchanged():
    assert clean_lines(" a \n\n{ b\n", {}).text == " a \n\n{ b\n"
