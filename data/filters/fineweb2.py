"""FineWeb-2: thresholds and stop words of each language (arXiv:2506.20920).

Source: huggingface/fineweb-2 `configs/<name>.yml`, commit d0defb2, which has 1,929 languages;
more can be added to the table. The bounds were set on words of spaCy's and other segmenters. Here
Chinese and Japanese words are single characters and Vietnamese words are syllables, so their
n-gram bounds are approximate. Korean and Thai are excluded, since their stop words are parts of
words.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Language:
    """Thresholds and stop words of one language.

    Attributes:
        name: ISO 639-3 code and script, as in FineWeb-2.
        score: minimum score of GlotLID, not of the identifier used here.
        lines: maximum duplicate lines, minimum lines that end a sentence, maximum newlines per
            word.
        words: minimum and maximum mean characters of a word, minimum share of words with a letter.
        top: maximum characters in the top 2-, 3- and 4-gram.
        duplicate: maximum characters in duplicate 5- ... 10-grams.
        stop_words: a document must contain two of them.
    """

    name: str
    score: float
    lines: tuple[float, float, float]
    words: tuple[float, float, float]
    top: tuple[float, ...]
    duplicate: tuple[float, ...]
    stop_words: tuple[str, ...]


def _language(name: str, score: float, lines: str, words: str, top: str, duplicate: str,
              stop_words: str) -> Language:
    rows = [tuple(map(float, row.split())) for row in (lines, words, top, duplicate)]
    return Language(name, score, *rows, tuple(stop_words.split()))


FINEWEB2 = {
    "ar": _language(
        "arb_Arab", 0.711, ".304 .143 .189",
        "2 9 .787", ".197 .172 .146", ".165 .153 .142 .131 .12 .109",
        "، في من على إلى عام أن مع أو هو عن التي كان بين ما كانت هي المتحدة بعد"),
    "cs": _language(
        "ces_Latn", 0.88, ".311 .06 .182",
        "3 11 .781", ".206 .183 .165", ".168 .157 .145 .133 .121 .109",
        "v a se na je z s do"),
    "de": _language(
        "deu_Latn", 0.821, ".263 0 .152",
        "0 15 .774", ".169 .153 .137", ".141 .134 .126 .117 .108 .098",
        "der und die in von im den des mit das er dem als wurde für"),
    "es": _language(
        "spa_Latn", 0.84, ".252 .182 .138",
        "3 14 .825", ".156 .14 .125", ".145 .136 .127 .117 .108 .099",
        "de la en el y a que del los se por un con una las su"),
    "fa": _language(
        "fas_Arab", 0.85, ".246 .2 .15",
        "2 9 .812", ".189 .164 .143", ".157 .147 .137 .127 .117 .107",
        "در و ، به از که است این را با یک"),
    "fr": _language(
        "fra_Latn", 0.824, ".264 .1 .185",
        "2 11 .812", ".161 .149 .134", ".15 .141 .131 .121 .111 .1",
        "de la le et à en l' des du les est d' un une il dans par au"),
    "hi": _language(
        "hin_Deva", 0.692, ".206 .091 .316",
        "2 21 .837", ".208 .198 .161", ".135 .125 .116 .108 .099 .09",
        "के में है की और से का को एक हैं पर"),
    "id": _language(
        "ind_Latn", 0.685, ".241 .111 .157",
        "3 12 .805", ".194 .166 .145", ".166 .155 .144 .133 .122 .111",
        "dan yang di pada dari ini dengan adalah untuk dalam"),
    "it": _language(
        "ita_Latn", 0.817, ".246 .025 .2",
        "3 21 .807", ".198 .156 .133", ".144 .136 .127 .118 .109 .1",
        "di e il la in a del che è della un per nel l' con da i una"),
    "ja": _language(
        "jpn_Jpan", 0.886, ".328 .096 .13",
        "1 6 .759", ".239 .196 .172", ".243 .225 .207 .19 .175 .159",
        "の に を は た て が と で 年 し ・ 月 れ さ"),
    "nl": _language(
        "nld_Latn", 0.689, ".296 .102 .154",
        "3 17 .828", ".213 .182 .158", ".156 .146 .136 .126 .115 .104",
        "de van in het een en is op voor met door zijn werd hij uit"),
    "pl": _language(
        "pol_Latn", 0.689, ".32 .087 .158",
        "3 12 .726", ".222 .198 .176", ".172 .16 .148 .136 .123 .111",
        "w i na z do się roku od a jest przez po jako oraz o został był nie"),
    "pt": _language(
        "por_Latn", 0.799, ".287 .077 .186",
        "3 13 .814", ".371 .191 .163", ".163 .153 .141 .13 .119 .108",
        "de a e o em do da que um no uma com para na é foi"),
    "ru": _language(
        "rus_Cyrl", 0.9, ".322 .231 .139",
        "3 11 .713", ".184 .164 .146", ".168 .156 .145 .133 .121 .109",
        "в и на с года по году из был к не от что за для его как а он также до после"),
    "sv": _language(
        "swe_Latn", 0.629, ".292 .2 .135",
        "3 12 .841", ".242 .195 .174", ".156 .147 .136 .125 .116 .105",
        "i och är av en som den med på till att för"),
    "tr": _language(
        "tur_Latn", 0.875, ".272 .091 .222",
        "3 21 .773", ".214 .168 .147", ".154 .144 .134 .124 .113 .103",
        "ve bir olarak bu ile için olan da de tarafından yılında sonra en daha ilk the"),
    "uk": _language(
        "ukr_Cyrl", 0.9, ".3 .167 .175",
        "3 11 .694", ".189 .172 .153", ".16 .148 .136 .124 .113 .102",
        "у в на і з та до року за що"),
    "vi": _language(
        "vie_Latn", 0.802, ".293 .333 .103",
        "3 11 .803", ".223 .197 .171", ".178 .163 .15 .136 .124 .111",
        "là và của một được trong năm các có loài này đã người"),
    "zh": _language(
        "cmn_Hani", 0.692, ".287 .106 .178",
        "1 5 .735", ".256 .201 .171", ".198 .182 .167 .154 .14 .127",
        "的 年 在 月 是 和 日 了 於 · 為 有 被 人 中 为 他 與 後 也 而 由"),
}
