"""Rules by script and language: plain text of all scripts stays, broken text of all goes."""

import base64
import os
import random
import zipfile
from pathlib import Path

import pytest

from data.card.sections import unapplied_note
from data.filters.language import identify
from data.filters.letters import pair_ratio
from data.filters.lines import clean_lines
from data.filters.presets import line_rules, thresholds
from data.filters.rules import decide
from data.filters.signals import measure_batch, prose_frac
from data.passes.decide import wrong_language
from scripts.bench.languages import break_text, judge, script_of

DATASETS = os.environ.get("HEARTWOOD_DATASETS")

TEXTS = {
    "de": "Die alte Fähre verlässt den kleinen Hafen jeden Morgen um neun Uhr. Sie kommt zurück, "
          "bevor die Sonne hinter den Hügeln verschwindet, und bringt Fische, Holz und Briefe mit. "
          "Im Winter bleibt sie am Ufer, weil der See dann zugefroren ist.",
    "ru": "Старый паром каждое утро в девять часов выходит из маленькой гавани. Он возвращается до "
          "того, как солнце садится за холмы, и привозит рыбу, дрова и письма. Зимой он стоит у "
          "берега, потому что озеро замерзает, и дети катаются на коньках.",
    "ar": "تغادر العبارة القديمة الميناء الصغير كل صباح في الساعة التاسعة. تعود قبل أن تغيب الشمس "
          "خلف التلال، وتحمل معها السمك والخشب والرسائل من القرى. في الشتاء تبقى عند الشاطئ لأن "
          "البحيرة تتجمد، ويلعب الأطفال على الجليد حتى المساء.",
    "he": "המעבורת הישנה יוצאת מן הנמל הקטן בכל בוקר בשעה תשע. היא חוזרת לפני שהשמש שוקעת מאחורי "
          "הגבעות, ומביאה איתה דגים, עצים ומכתבים של אנשי הכפר. בחורף היא נשארת על החוף, כי האגם "
          "קופא, וגם הילדים לא הולכים אל המים אלא משחקים על הקרח.",
    "hi": "पुरानी नाव हर सुबह नौ बजे छोटे बंदरगाह से निकलती है। वह सूरज के पहाड़ियों के पीछे डूबने से "
          "पहले लौट आती है और मछली, लकड़ी और गाँव के लोगों की चिट्ठियाँ लाती है। सर्दियों में वह "
          "किनारे पर रहती है, क्योंकि झील जम जाती है और बच्चे बर्फ पर खेलते हैं।",
    "ko": "낡은 나룻배는 매일 아침 아홉 시에 작은 항구를 떠난다. 해가 언덕 너머로 지기 "
          "전에 돌아오며 물고기와 나무와 마을 사람들의 편지를 싣고 온다. 겨울에는 호수가 "
          "얼기 때문에 배는 물가에 머물고, 아이들은 저녁까지 얼음 위에서 논다. 봄이 오면 "
          "늙은 사공은 배를 다시 칠하고 밧줄을 새로 묶는다.",
    "zh": "那艘旧渡轮每天早上九点离开小港口，在太阳落到山后之前返回，带回鱼、木柴和村里人"
          "的信。冬天湖面结冰，它就停在岸边，孩子们在冰上玩到傍晚。春天来了，老船夫会重新"
          "给船刷上油漆，换一条新的绳子。",
    "ja": "古い渡し船は毎朝九時に小さな港を出て、太陽が丘の向こうに沈む前に魚や薪や村の人た"
          "ちの手紙を積んで戻ってくる。冬は湖が凍るので船は岸にとどまり、子供たちは夕方まで"
          "氷の上で遊ぶ。春になると、年老いた船頭は船を塗り直し、新しい綱を結ぶ。",
    "th": "เรือข้ามฟากลำเก่าออกจากท่าเรือเล็กทุกเช้าตอนเก้าโมง และกลับมาก่อนที่ดวงอาทิตย์จะลับเนินเขา "
          "พร้อมปลา ฟืน และจดหมายของคนในหมู่บ้าน ในฤดูหนาวทะเลสาบเป็นน้ำแข็ง เรือจึงจอดอยู่ริมฝั่ง "
          "และเด็กๆ เล่นบนน้ำแข็งจนถึงเย็น เมื่อถึงฤดูใบไม้ผลิ คนพายเรือจะทาสีเรือใหม่",
    "km": "សាឡាងចាស់ចាកចេញពីកំពង់ផែតូចរៀងរាល់ព្រឹកនៅម៉ោងប្រាំបួន ហើយត្រឡប់មកវិញមុនពេលព្រះអាទិត្យលិច"
          "នៅពីក្រោយភ្នំ។ វានាំមកនូវត្រី អុស និងសំបុត្ររបស់អ្នកភូមិ។ នៅរដូវវស្សា ទឹកបឹងឡើងខ្ពស់ "
          "ដូច្នេះសាឡាងត្រូវចតនៅមាត់ច្រាំង ហើយក្មេងៗលេងទឹកនៅទីនោះរហូតដល់ល្ងាច។"}


def _broken_rule(text, presets=("technical",), language=None):
    code, score = identify(text)
    measured = measure_batch([text], ["prose"], [(language or code, score)])[0]
    removal = decide(measured, thresholds(presets, language or code))
    return removal and removal.reason


@pytest.mark.parametrize("language", TEXTS)
def test_plain_text_of_every_script_stays(language):
    assert identify(TEXTS[language])[0] == language
    assert _broken_rule(TEXTS[language]) is None
    assert prose_frac(TEXTS[language], language) > 0.9


@pytest.mark.parametrize("language", TEXTS)
def test_fineweb2_keeps_plain_text(language):
    text = f"{TEXTS[language][::-1]} {TEXTS[language]}"     # of a length that its rules require
    bounds = thresholds(("fineweb2",), language)
    assert bounds["gopher_min_words"] == 50
    assert decide(measure_batch([text], ["prose"], [(language, 1.0)])[0], bounds) is None


def test_a_language_that_the_identifier_does_not_know_is_measured_by_its_own_words():
    """Kalaallisut and Fijian, say, are taken for Finnish and Esperanto."""
    words = ["kora", "mitu", "salen", "vo", "taruka", "nim", "pelato", "osi", "veru", "limak"]
    key = random.Random(0)
    text = " ".join(key.choices([*words, "ka", "ne"], [1] * 10 + [4, 4], k=200))
    measured = measure_batch([text], ["prose"], [("fi", 0.99)])[0]
    assert measured["technical_stop_words"] >= 2
    unsure = measure_batch([text], ["prose"], [("fi", 0.4)])[0]
    assert "technical_stop_words" not in unsure and unsure["technical_letter_pair_ratio"] > 1.1


def _random_words(letters, key, num_words=150):
    return " ".join("".join(key.choices(letters, k=key.randint(2, 9))) for _ in range(num_words))


LETTERS = {"Latin": (0x61, 0x7B), "Cyrillic": (0x430, 0x450), "Greek": (0x3B1, 0x3CA),
           "Arabic": (0x627, 0x64B), "Hebrew": (0x5D0, 0x5EB), "Devanagari": (0x905, 0x93A),
           "Thai": (0xE01, 0xE2F), "Khmer": (0x1780, 0x17A3), "Han": (0x4E00, 0x9FA5),
           "Hangul": (0xAC00, 0xD7A3), "Georgian": (0x10D0, 0x10F1)}


@pytest.mark.parametrize("script", LETTERS)
def test_random_letters_go(script):
    text = _random_words(list(map(chr, range(*LETTERS[script]))), random.Random(3), 250)
    assert pair_ratio(text) < 1.1
    assert _broken_rule(text) is not None


@pytest.mark.parametrize("language", [name for name in TEXTS if name not in ("zh", "ja", "ko")])
def test_letters_in_order_are_told_from_the_same_letters_shuffled(language):
    text = TEXTS[language]
    letters = [char for char in text if char.isalpha()]
    random.Random(1).shuffle(letters)
    pool = iter(letters)
    shuffled = "".join(next(pool) if char.isalpha() else char for char in text)
    assert pair_ratio(text) > 1.2
    assert pair_ratio(shuffled) < pair_ratio(text)


@pytest.mark.parametrize("language", TEXTS)
def test_broken_text_of_every_script_goes(language):
    text, key = TEXTS[language], random.Random(2)
    first = text[:40]
    assert _broken_rule("\n".join([first] * 60)) is not None            # one line again and again
    assert _broken_rule(f"{first[:15]} " * 200) is not None
    table = "\n".join(" ".join([first[:4], *(str(key.randint(0, 9999)) for _ in range(9))])
                      for _ in range(40))
    assert _broken_rule(table) is not None
    if language != "de":        # mostly ASCII, whatever the charset
        for charset in ("koi8-r", "cp437"):
            wrong = text.encode().decode(charset, "replace")
            assert _broken_rule(wrong) is not None
        assert _broken_rule(text.encode().decode("cp1252", "replace")) is not None


def test_encoded_data_goes():
    blob = random.Random(4).randbytes(3000)
    assert _broken_rule(base64.encodebytes(blob).decode()) is not None
    assert _broken_rule(" ".join(blob[at:at + 16].hex() for at in range(0, 3000, 16))) is not None
    wide = str.maketrans("0123456789", "０１２３４５６７８９")
    assert _broken_rule(" ".join(map(str, blob)).translate(wide)) is not None


def test_end_marks_and_sentences_of_other_scripts():
    rules = line_rules("c4-paper") | {"c4_min_sentences": 1}
    for language in ("zh", "ja", "hi", "km", "th", "ar"):
        result = clean_lines(TEXTS[language], rules)
        assert result.removal is None and result.text == TEXTS[language]
    mixed = "港口很小。\n那艘渡轮每天早上离开\n他说：“我们走吧。”"
    assert clean_lines(mixed, rules).text == "港口很小。\n他说：“我们走吧。”"
    enough = line_rules("c4-paper") | {"c4_min_sentences": 3}
    assert clean_lines("他来了，我走了。他来了！我走了？", enough).removal is None
    assert clean_lines("वह यहाँ आया। मैं वहाँ गया।", enough).removal.reason == "c4_min_sentences"


def test_an_english_page_is_treated_as_ever():
    page = "The page has a menu of languages here.\n简体中文版\nIt ends with this line of text."
    rules = line_rules("c4-paper") | {"c4_min_sentences": 1}
    assert "中" not in clean_lines(page, rules).text
    signals = measure_batch(["one 简体中文 two"], ["prose"], [("en", 1.0)])[0]
    assert signals["gopher_words"] == signals["technical_words"] == 3


def test_text_mixed_with_much_english_is_counted_by_script():
    text = f"{TEXTS['zh'].replace('，', '').replace('。', '')} pip install numpy"
    unsure = measure_batch([text], ["prose"], [("en", 0.4)])[0]
    assert unsure["technical_words"] > 50 and "technical_mean_word_chars" not in unsure


def test_long_paragraphs_without_spaces_are_not_overlong_words():
    text = TEXTS["zh"].replace("，", "").replace("。", "") * 20
    assert len(text) > 1000
    for preset in ("technical", "c4-code"):
        rules = line_rules(preset) | {"c4_min_sentences": 1}
        assert clean_lines(text + "。", rules).text == text + "。"
    assert clean_lines("x" * 1200, line_rules("technical")).text == ""


def test_a_short_text_of_a_large_script_is_not_told_from_random_letters():
    assert pair_ratio(TEXTS["zh"]) is None
    assert pair_ratio("".join(map(chr, range(0x4E00, 0x4F00)))) == 0
    assert pair_ratio("") == 0


def test_the_bench_judges_texts_and_breaks_them():
    text = TEXTS["ru"]
    assert script_of(text) == "CYRILLIC" and script_of(TEXTS["zh"]) == "CJK"
    versions = list(break_text(text, random.Random(0)))
    assert [verdict["kept"] for verdict in judge([text, *versions])] == [True] + [False] * 4


@pytest.mark.full
@pytest.mark.skipif(not DATASETS, reason="needs the folder HEARTWOOD_DATASETS")
def test_the_declaration_of_human_rights_stays_in_every_language():
    removed = {}
    with zipfile.ZipFile(Path(DATASETS) / "udhr" / "udhr2.zip") as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()
                 if name.endswith(".txt")}
    texts = {name: text for name, text in texts.items() if text.strip()}
    languages = list(map(identify, texts.values()))
    signals = measure_batch(list(texts.values()), ["prose"] * len(texts), languages)
    for name, (language, _), measured in zip(texts, languages, signals):
        removal = decide(measured, thresholds(("technical",), language))
        if removal is not None:
            removed[name] = removal
    # Fragments of fewer than thirty words, the beginning of three translations.
    assert len(texts) == 387 and len(removed) <= 4
    assert {removal.reason for removal in removed.values()} == {"technical_min_words"}


def test_rules_of_words_that_do_not_apply_are_shown():
    note = str(unapplied_note(("technical_min_stop_words", {"fi": 3, "und": 12})))
    assert "technical_min_stop_words did not apply to 15 documents" in note
    assert "und 12, fi 3" in note


def test_a_text_without_a_known_language_is_not_of_a_wanted_one():
    prose = {"language": "und", "language_score": 0.0, "signals": {"words": 40.0}}
    assert wrong_language(prose, keep=("en",), min_score=0.0)[0] == "language_und"
    assert wrong_language(prose, keep=(), min_score=0.0) is None
    assert wrong_language(prose | {"signals": {"code_lines": 3}}, keep=("en",),
                          min_score=0.0) is None
