"""Splitting of chunks into words, and the vocabulary."""

import numpy as np
import pytest

from data.filters.vocabulary import Vocabulary
from data.filters.words import MAX_CHUNK_CHARS, STOP_WORDS, Splitter


@pytest.mark.parametrize("chunk, words", [
    ("word", "word"), ("word,", "word ,"), ("(word).", "( word ) ."), ("“Yes!”", "“ Yes ! ”"),
    ("don't", "do n't"), ("Don’t", "Do n’t"), ("\"I'm", "\" I 'm"), ("she'd've", "she 'd 've"),
    ("dog's", "dog 's"), ("cannot", "can not"), ("well", "well"), ("Well", "Well"), ("-5", "-5"),
    ("well-known", "well - known"), ("and/or", "and/or"), ("red/blue", "red / blue"),
    ("2-3", "2 - 3"), ("1,000.50", "1,000.50"), ("10km", "10 km"), ("$5", "$ 5"),
    ("5%.", "5 % ."), ("U.S.", "U.S."), ("e.g.", "e.g."), ("Mr.", "Mr."), ("id.", "i d."),
    ("end.Start", "end . Start"), ("end.\"Start", "end . \"Start"), ("file.txt", "file.txt"),
    ("https://my-host.org/a-b?c", "https://my-host.org/a-b?c"), ("wait...what", "wait ... what"),
    ("Oh...", "Oh ..."), ("here:)", "here :)"), ("(see):", "( see ):"), ("->", "- >"),
    ("★x", "★ x"), ("a.m.", "a.m."), ("9pm", "9 pm")])
def test_english_chunks(chunk, words):
    assert Splitter("en").split(chunk) == tuple(words.split())


@pytest.mark.parametrize("language, chunk, words", [
    ("de", "Groß-Berlin", "Groß-Berlin"), ("fr", "l'eau", "l' eau"), ("es", "¿Qué?", "¿ Qué ?"),
    ("ru", "друг-враг,", "друг - враг ,"), ("zh", "ABC。", "ABC 。")])
def test_other_languages(language, chunk, words):
    assert Splitter(language).split(chunk) == tuple(words.split())


def test_no_character_is_lost():
    key = np.random.default_rng(0)
    alphabet = list("abzAZ09.,;:!?'\"()[]-—–_/\\@#$%&*+=<>~^`|…’“”é中ー©→")
    for language in ("en", "fr", "de", "zh"):
        split = Splitter(language).split
        for _ in range(3000):
            chunk = "".join(key.choice(alphabet, key.integers(1, 12)))
            assert "".join(split(chunk)) == chunk


def test_an_overlong_chunk_is_one_word():
    chunk = "a." * MAX_CHUNK_CHARS
    assert Splitter("en").split(chunk) == (chunk,)


def test_vocabulary_gives_the_words_of_a_text_in_order():
    vocabulary = Vocabulary("en", STOP_WORDS)
    text = "The cat, the dog's and\nthe cat,"
    words = vocabulary.words_of(vocabulary.chunks_of(text))
    spelled = [word for chunk in text.split() for word in Splitter("en").split(chunk)]
    names = dict(zip(words.tolist(), spelled))
    assert [names[word] for word in words.tolist()] == spelled
    assert len(set(names.values())) == len(names)
    assert vocabulary.chars_of_word[words].tolist() == list(map(len, spelled))
    assert [STOP_WORDS[place - 1] if place else "" for place in vocabulary.stop_of_word[words]] == [
        word if word in STOP_WORDS else "" for word in spelled]
