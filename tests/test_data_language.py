"""Language identification: codes, scores, and the text that is read."""

import pytest

from data.filters.language import SAMPLE_CHARS, identify

SENTENCES = {
    "en": "The ferry leaves the harbour at nine and comes back before the sun goes down.",
    "de": "Die Fähre verlässt den Hafen um neun Uhr und kommt vor dem Abend wieder zurück.",
    "fr": "Le bateau quitte le port à neuf heures et revient avant le coucher du soleil.",
    "es": "El barco sale del puerto a las nueve y vuelve antes de que se ponga el sol.",
    "ru": "Паром выходит из гавани в девять часов и возвращается до захода солнца.",
    "zh": "渡轮九点离开港口，在太阳下山之前回来。我们在码头上等着它。"}


@pytest.mark.parametrize("language", SENTENCES)
def test_languages(language):
    code, score = identify(SENTENCES[language])
    assert code == language
    assert 0.6 < score <= 1
    assert identify(SENTENCES[language]) == (code, score)


@pytest.mark.parametrize("text", ["", " \n\t", "12 + 3 = 15", "--- *** ---"])
def test_text_without_letters_has_no_language(text):
    assert identify(text) == ("und", 0.0)


def test_only_the_beginning_is_read_but_all_of_it():
    english = SENTENCES["en"] + " "
    long = english * (SAMPLE_CHARS // len(english) + 2)
    assert identify(long) == identify(long + SENTENCES["ru"] * 100)
    # Not only the first line: a name above a Russian text does not make it English.
    assert identify(english + (SENTENCES["ru"] + " ") * 12)[0] == "ru"


def test_white_space_and_capitals_change_little():
    text = SENTENCES["en"]
    assert identify(text.replace(" ", "\n\n  ")) == identify(text)
    assert identify(text.upper())[0] == "en"
