"""Language identification: codes, scores, and the text that is read."""

import pytest

from data.filters.language import SAMPLE_CHARS, SAMPLE_PIECES, identify, sample

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


def test_a_long_text_is_sampled_from_beginning_to_end():
    text = "".join(chr(0x4E00 + place) for place in range(SAMPLE_CHARS + 1000))
    pieces = sample(text).split(" ")
    assert len(pieces) == SAMPLE_PIECES
    assert pieces[0] == text[:len(pieces[0])] and pieces[-1] == text[-len(pieces[-1]):]
    assert pieces[2] in text and sum(map(len, pieces)) == SAMPLE_CHARS
    assert sample(text[:SAMPLE_CHARS]) == text[:SAMPLE_CHARS]


def test_a_banner_in_another_language_does_not_decide():
    banner = SENTENCES["en"] + " "
    german = (SENTENCES["de"] + " ") * 120
    banner *= SAMPLE_CHARS // len(banner) + 1       # longer than what is read of a text
    assert identify(banner)[0] == "en"
    for text in (banner + german, german + banner, german[:4000] + banner + german[4000:]):
        code, score = identify(text)
        assert code == "de"
        assert score < identify(german)[1]


@pytest.mark.parametrize("text", [
    "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ᎠᎴ ᏗᎧᎿᏩᏛᏍᏗ",
    "ꆈꌠꉙ ꉬꄷꊿꃅꀉꑌ",
    "ᐃᓄᒃᑎᑐᑦ ᐅᖃᐅᓯᖅ",
    "ⵜⴰⵎⴰⵣⵉⵖⵜ ⴷ ⵉⵎⴷⴰⵏⵏ"])
def test_scripts_that_the_model_does_not_know_have_no_language(text):
    assert identify(text * 5) == ("und", 0.0)
    assert identify(f"{SENTENCES['en']} {text}")[0] == "en"


def test_white_space_and_capitals_change_little():
    text = SENTENCES["en"]
    assert identify(text.replace(" ", "\n\n  ")) == identify(text)
    assert identify(text.upper())[0] == "en"
