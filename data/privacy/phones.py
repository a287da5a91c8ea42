"""Telephone numbers: international, national where their form tells, and behind words like "tel".

Without a word before them, digits are a number if they begin with a country code behind ``+`` or
``00``, or are grouped as one country's numbers are and begin as these do. Others (``98765 43210``,
``13800138000``, ``06 12 34 56 78``) are also quantities, and need the word.
"""

from __future__ import annotations

from collections.abc import Iterator

import re2

GAP = r"[ \x{a0}\x{2009}\x{202f}().\x{2010}-\x{2013}/-]"
_INTERNATIONAL = (rf"\+[17](?:{GAP}{{0,3}}[0-9]){{10}}\b"
                  rf"|\+[2-9](?:{GAP}{{0,3}}[0-9]){{6,18}}\b")
_DIALLED = rf"\b00[1-9](?:{GAP}{{0,3}}[0-9]){{8,18}}\b"
_NORTH_AMERICAN = (r"(?:\b1[ .-])?(?:\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[ .-]|\b[2-9][0-9]{2}-[2-9]"
                   r"[0-9]{2}-|\b[2-9][0-9]{2}\.[2-9][0-9]{2}\.)[0-9]{4}\b")
_NATIONAL = "|".join((
    r"\b0(?:[25-9][0-9]|1[0-25-9])[ -][0-9]{3,4}[ -][0-9]{4}\b",    # East and West Asia, Africa
    r"\b0[37-9][0-9]{2}[ -][0-9]{3}[ -][0-9]{3,4}\b",               # Africa, South Asia, Vietnam
    r"\b08[0-9]{2}-[0-9]{4}-[0-9]{3,5}\b",                          # Indonesia
    r"\b0[2-6]-[0-9]{3,4}-[0-9]{4}\b",                              # Tokyo, Osaka, Seoul, Bangkok
    r"\b0[1-9][0-9]{1,2}-[0-9]{7,8}\b",                             # China, Pakistan, Germany
    r"\b0(?:1[3-9]|7[0-9])[0-9]{2}[ -][0-9]{6}\b",                  # Bangladesh, United Kingdom
    r"\b05[0-9]{2} [0-9]{3} [0-9]{2} [0-9]{2}\b",                   # Turkey
    r"\b1[3-9][0-9]-[0-9]{4}-[0-9]{4}\b",                           # China
    r"\b8[ -]?\(?[3489][0-9]{2}\)?[ -]?[0-9]{3}-[0-9]{2}-[0-9]{2}\b",       # Russia
    r"(?:\([1-9][0-9]\) ?|\b[1-9][0-9] )9[0-9]{4}-[0-9]{4}\b",      # Brazil
    r"\([1-9][0-9]\) ?[2-5][0-9]{3}-[0-9]{4}\b"))

_WORDS = (      # that begin with a letter of ASCII, the only ones that \b knows
    "tel|telephone|phone|ph|call|fax|mobile|mob|cell|whatsapp|sms|contact|hotline|helpline|gsm"
    "|telefon|telefonnummer|rufnummer|handy|tél|téléphone|teléfono|telefono|móvil|celular|cel|fone"
    "|telefone|telp|telepon|cep|tlf|puh|puhelin|kom|komórka|fono|simu|toll free|tollfree")
_FOREIGN_WORDS = (
    "тел|телефон|моб|мобильный|факс|τηλ|κιν|đt|sđt|điện thoại"
    "|(?:ال)?(?:هاتف|جوال|موبايل|محمول|فاكس)|واتساب|تلفن|موبایل|همراه|فاکس|טלפון|טל|נייד|פקס"
    "|फोन|सम्पर्क|फ़ोन|मोबाइल|दूरभाष|संपर्क|ফোন|মোবাইল|โทร|โทรศัพท์|มือถือ|เบอร์โทร|เบอร์โทรศัพท์")
_UNSPACED_WORDS = (
    "电话|電話|手机|手機|携帯|致电|致電|拨打|热线|传真|傳真|联系方式|フリーダイヤル"
    "|전화|휴대폰|핸드폰|휴대전화|연락처|팩스")
_FILLERS = (r"[.:：)\"'= \x{a0}-]| us| me| at| on| or text| is|no\b| ?number| nr"
            "|号码|號碼|番号|번호|номер| ?नंबर| ?নম্বর|の|は")
_NUMBER = rf"(\(?[0-9](?:{GAP}{{0,3}}[0-9]){{6,14}})\b"
_LABELLED = (rf"(?i:(?:\b(?:{_WORDS})|(?:^|[^\p{{L}}\p{{M}}])(?:{_FOREIGN_WORDS})"
             rf"|{_UNSPACED_WORDS})(?:{_FILLERS}){{0,5}}){_NUMBER}"
             rf"|(?i:\bh/?p[.: ]{{0,3}})(0[0-9](?:[ -]?[0-9]){{7,12}})\b")

#: Candidates; where a word stands before one, its digits are a group.
PATTERN = f"{_INTERNATIONAL}|{_DIALLED}|{_NORTH_AMERICAN}|{_NATIONAL}|{_LABELLED}"

_COUNTRY_CODE = re2.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|(?:2[1-69]|3[578]|42|5[09]|6[789]|8[0578]|9[679])[0-9]")     # ITU-T E.164
_DECIMAL = re2.compile(r"\+[0-9]{1,3}\.[0-9]{4}|\+[0-9]{5,}\.")
_SUM = re2.compile(r"[0-9][eE]?$|(?:[=@(*/]|(?:^|\s)[-+]) ?[0-9.,]{1,7} $|[A-Za-z)\]]$")
_WORD_END = re2.compile(rf"(?i)(?:{_WORDS})\.?$")
_DATE = re2.compile(r"(?:19|20)[0-9]{2}[-./][01]?[0-9][-./][0-3]?[0-9]"
                    r"|[0-3]?[0-9][-./][0-3]?[0-9][-./](?:19|20)[0-9]{2}"
                    r"|(?:19|20)[0-9]{2}[ /–-]{1,3}(?:19|20)[0-9]{2}$|[0-9]\.[0-9]\.")
_DOCKET = re2.compile(r"0[0-9]-(?:19|20)[0-9]{2}-")     # of a court, with the year
_BITS = re2.compile(r"[01 -]+")
_QUANTITY = re2.compile(r"(?i) ?(?:[kmgt]b|mah|million|billion|users?|times|people|units?|items?|"
                        r"copies|customers|subscribers|downloads|devices)\b")
_CHAIN_BEFORE, _CHAIN_AFTER = re2.compile(r"[\w][-._/]$|[0-9] $"), re2.compile(r"[-._/]\w| [0-9]")
_EXTENSION = re2.compile(
    r"(?i)[ ,;]{0,2}(?:ext|extn|extension|x|доб|内線|내선|转|轉)\.? ?[0-9]{1,5}\b")


def find_phones(matches: Iterator) -> Iterator[tuple[int, int]]:
    """Start and end of the numbers among matches of `PATTERN`, extensions included."""
    for match in matches:
        text, group = match.string, next((i for i in (1, 2) if match.group(i) is not None), 0)
        start, end = match.span(group)
        number, before = text[start:end], text[max(start - 16, 0):start]
        if group:
            if _DATE.match(number) or _QUANTITY.match(text, end):
                continue
        elif number.startswith(("+", "00")):
            rest = _SUM if number.startswith("+") else _CHAIN_BEFORE
            if rest.search(before) and not _WORD_END.search(before):
                continue
            end = start + _international_chars(number)
        elif re2.fullmatch(_NORTH_AMERICAN, number) is None and _is_other(text, start, end):
            continue
        if end > start and not is_inside_number(text, start, end):
            extension = _EXTENSION.match(text, end)
            yield start, extension.end() if extension else end


def _is_other(text: str, start: int, end: int) -> bool:
    """Whether digits grouped like a national number are bits, a docket, or in a longer chain."""
    number = text[start:end]
    return bool(_BITS.fullmatch(number) or _DOCKET.match(number)
                or _CHAIN_BEFORE.search(text[max(start - 2, 0):start])
                or _CHAIN_AFTER.match(text, end))


def _international_chars(number: str) -> int:
    """Characters of the telephone number at the start of `number`, or 0.

    It has 8 to 15 digits and ends at the end of a group of digits. After 00 there must be gaps, and
    not between pairs alone: those are bytes.
    """
    skipped = 2 if number.startswith("00") else 0
    digits = re2.sub("[^0-9]", "", number)[skipped:]
    if not _COUNTRY_CODE.match(digits) or _DECIMAL.match(number):
        return 0        # no such country, or a decimal
    groups = list(re2.finditer("[0-9]+", number))
    if skipped and (len(groups) == 1 or max(len(group.group()) for group in groups) < 3):
        return 0
    return max((group.end() for group in groups
                if 8 <= sum(map(str.isdigit, number[:group.end()])) - skipped <= 15), default=0)


def is_inside_number(text: str, start: int, end: int) -> bool:
    """Whether a run of digits is part of a decimal, a path or a longer chain of numbers."""
    before, after = text[max(start - 2, 0):start], text[end:end + 2]
    return (before.endswith(("/", "_")) or (before[-1:] in (".", ",", "-") and before[:1].isdigit())
            or (after[:1] in (".", ",", "-", "/", "_") and after[1:].isdigit())
            or (after[:1].isascii() and after[:1].isalnum()))
