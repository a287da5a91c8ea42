"""The kinds of personal data: for each a pattern for candidates and a check of candidates.

Patterns are for re2, whose time is linear in the text. `has_candidate` searches for the union of
all patterns, so that a text without any match, the usual case, is scanned once.
"""

from __future__ import annotations

import functools
import ipaddress
import math
from collections import Counter
from collections.abc import Callable, Iterator

import re2

from data.privacy import forms, phones
from data.privacy.phones import is_inside_number

Places = Iterator[tuple[int, int]]

# --- e-mail ---------------------------------------------------------------------------------

# Scripts with spaces between words: in others the pattern would match the preceding sentence.
_LETTERS = r"\p{Latin}\p{Greek}\p{Cyrillic}0-9"
_EMAIL = (rf"[{_LETTERS}_%+](?:[{_LETTERS}._%+-]|'[{_LETTERS}])*"
          rf"@[{_LETTERS}.-]+\.[{_LETTERS}-]{{2,}}")
# Domains in other scripts, before which words of Arabic, Devanagari and the like may stand.
_SPACED = r"\p{Arabic}\p{Hebrew}\p{Devanagari}\p{Bengali}\p{Tamil}\p{Georgian}\p{Armenian}"
_DOMAIN = rf"[{_SPACED}\p{{Hangul}}\p{{Han}}\p{{Hiragana}}\p{{Katakana}}\p{{Thai}}]"
_FOREIGN_EMAIL = (rf"[{_LETTERS}{_SPACED}_%+][{_LETTERS}{_SPACED}\p{{M}}._%+-]*"
                  rf"@{_DOMAIN}[\p{{L}}\p{{M}}0-9-]*(?:\.[\p{{L}}\p{{M}}0-9-]+)+")
# Users of remotes: ``git@host:path``, ``ssh://git@host:2222/path``. Other users may be persons.
_REMOTE_USERS = ("git@", "hg@", "svn@")
_REMOTE_PATH = re2.compile(r":[\w~/]")
_SPELLED_EMAIL = (r"(?i)[a-z0-9][a-z0-9._+-]* ?[\[({<] ?at ?[\])}>] ?[a-z0-9-]+"
                  r"(?:(?: ?[\[({<] ?dot ?[\])}>] ?|\.)[a-z0-9-]+)+"
                  r"|[a-z0-9][a-z0-9._+-]* at [a-z0-9-]+(?: dot [a-z0-9-]+)+")
_DOT = re2.compile(r"(?i) dot | ?[\[({<] ?dot ?[\])}>] ?|\.")


@functools.lru_cache(100_000)
def _is_top_level(label: str) -> bool:
    """Whether a domain can end in `label`: any two letters, or a public suffix.

    The check rejects matrix products in code (``x@weights.mean``, ``q@k.mT``).
    """
    from tld import is_tld  # reads the list on import

    if label[:1].islower() and not label.islower():
        return False
    return (len(label) == 2 and label.isalpha()) or is_tld(label.lower())


def _find_emails(text: str) -> Places:
    if "@" in text:
        for match in _compiled(_EMAIL).finditer(text):
            start, end = match.span()
            at = text.index("@", start)
            end = _end_of_domain(text, at + 1, end)
            if end is not None and not _is_code(text, start, end):
                yield start, end
        for match in () if text.isascii() else _compiled(_FOREIGN_EMAIL).finditer(text):
            if _is_top_level(match.group().rpartition(".")[2]):
                yield match.span()
    for match in _compiled(_SPELLED_EMAIL).finditer(text):
        if _is_top_level(_DOT.split(match.group())[-1].lower()):
            yield match.span()


def _is_code(text: str, start: int, end: int) -> bool:
    """Whether an address is a handle (``@me@host``), a call (``x@y.to(z)``) or a remote."""
    if text[max(start - 1, 0):start] == "@" or text[end:end + 1] == "(":
        return True
    is_remote = text[max(start - 3, 0):start] == "://" or _REMOTE_PATH.match(text, end)
    return bool(text.startswith(_REMOTE_USERS, start) and is_remote)


def _end_of_domain(text: str, start: int, end: int) -> int | None:
    """End of the longest domain within ``text[start:end]``, or None."""
    labels = text[start:end].split(".")
    while len(labels) > 1:
        if labels[-1] and _is_top_level(labels[-1].rstrip("-")):
            return start + len(".".join(labels).rstrip("-"))
        labels.pop()
    return None


# --- IP addresses ---------------------------------------------------------------------------

_IPV4 = r"\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b"
# Global unicast is 2000::/3 (RFC 4291); other prefixes would match `dead::beef` and `std::add`.
_IPV6 = r"\b[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]*[0-9A-Fa-f]\b"
# Addresses that begin with three single digits are section numbers or well-known name servers; the
# others here are object identifiers (X.500 attributes, X.509 extensions, elliptic curves).
_SECTION = re2.compile(r"(?:[0-9]\.){3}|2\.5\.(?:4|29)\.|1\.3\.(?:101|132)\.")
_BEFORE_VERSION = re2.compile(
    r"(?i)(?:\b(?:ver|release|rev|revision|build|firmware|driver|section|sec|"
    r"chapter|clause|article|table|figure|oid|rfc ?[0-9]+|v)s?(?: number| no)?[ =.:#]*"
    r"|(?:version|release|revision|build)s?[^\w\n]{0,5}"           # AssemblyVersion("4.12.0.17")
    r"|\b(?:update|upgrade|downgrade)[sd]?(?: to| from)?[ =.:#]*"
    r"|[=<>~!]= ?|[a-z][-_]|(?:^|[^\w/.:-])[a-z][\w.+-]*/"         # nginx/1.25.3.12
    r"|[\w.-]+:[\w.-]+:)$")                                        # Maven's group:name:version
# ``Oracle 11.2.0.4``, where at least two of the last three numbers have one digit.
_AFTER_PRODUCT = re2.compile(r"\b([A-Z][A-Za-z]+)(?: [A-Z]{1,3}[0-9]{1,2})? $")
_NO_PRODUCTS = frozenset((
    "From", "To", "At", "By", "On", "In", "Is", "Host", "Server", "Address", "Client", "Peer",
    "Gateway", "Router", "Ping", "Banned", "Blocked", "User"))


def _find_ips(text: str) -> Places:
    for match in _compiled(_IPV4).finditer(text):
        if _is_public(match.group()) and not _is_numbering(text, *match.span()):
            yield match.span()
    for match in _compiled(_IPV6).finditer(text):
        if _is_public(match.group()):
            yield match.span()


def _is_public(value: str) -> bool:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


def _is_numbering(text: str, start: int, end: int) -> bool:
    before, after = text[max(start - 32, 0):start], text[end:end + 2]
    in_chain = before.endswith(".") or (after[:1] == "." and after[1:].isdigit())
    has_suffix = after[:1] == "-" and after[1:].isalpha()
    return bool(in_chain or has_suffix or _SECTION.match(text[start:end])
                or _BEFORE_VERSION.search(before) or _is_of_product(before, text[start:end]))


def _is_of_product(before: str, value: str) -> bool:
    product = _AFTER_PRODUCT.search(before)
    if product is None or product[1] in _NO_PRODUCTS or product[1].isupper():
        return False
    first, *rest = map(int, value.split("."))
    return first < 40 and sum(number < 10 for number in rest) >= 2


# --- cards and accounts ---------------------------------------------------------------------

_CARD = (r"\b[2-6][0-9]{13,18}\b|\b[2-6][0-9]{3}(?: [0-9]{4}){3}(?: [0-9]{3})?\b"
         r"|\b[2-6][0-9]{3}(?:-[0-9]{4}){3}(?:-[0-9]{3})?\b"
         r"|\b3[0-9]{3}[ -][0-9]{6}[ -][0-9]{4,5}\b")
# Issuer ranges with their lengths (ISO/IEC 7812): Visa, Mastercard, American Express, Diners Club,
# Discover, JCB, UnionPay. Visa's rare numbers of 13 and 19 digits are excluded: in texts,
# such numbers are article numbers (EAN) and 64-bit integers.
_ISSUERS = tuple((re2.compile(prefix), lengths) for prefix, lengths in (
    ("4", (16,)), ("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,)), ("3[47]", (15,)),
    ("30[0-5]|3[689]", (14,)), ("6011|64[4-9]|65", (16,)), ("352[89]|35[3-8]", (16,)),
    ("62", (16, 17, 18, 19))))

_IBAN_START = r"\b[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4}"
_IBAN_CHARS = {country: int(chars) for chars, countries in (     # SWIFT IBAN registry, release 97
    (15, "NO"), (16, "BE"), (18, "DK FI FO GL NL FK SD"), (19, "MK SI"),
    (20, "AT BA EE KZ LT LU XK MN"), (21, "CH HR LI LV"),
    (22, "BG BH CR DE GB GE IE ME RS VA"), (23, "AE GI IL IQ OM SO TL"),
    (24, "AD CZ ES MD PK RO SA SE SK TN VG"), (25, "LY PT ST"), (26, "IS TR"),
    (27, "BI DJ FR GR IT MC MR SM"), (28, "AL AZ BY CY DO GT HN HU LB NI PL SV"),
    (29, "BR EG PS QA UA"), (30, "JO KW MU YE"), (31, "MT SC"), (32, "LC"), (33, "RU"))
    for country in countries.split()}


def _find_cards(text: str) -> Places:
    for match in _compiled(_CARD).finditer(text):
        start, end = match.span()
        short = end - 4     # without a last group of three, which may be a security code
        for candidate in (end, short) if text[short] in " -" else (end,):
            if _is_card(text[start:candidate]) and not is_inside_number(text, start, candidate):
                yield start, candidate
                break


def _is_card(value: str) -> bool:
    digits = value.replace(" ", "").replace("-", "")
    is_issued = any(len(digits) in lengths and prefix.match(digits)
                    for prefix, lengths in _ISSUERS)
    return is_issued and _luhn_sum(digits) % 10 == 0


def _luhn_sum(digits: str) -> int:
    return sum(sum(divmod(int(digit) * (1 + place % 2), 10))
               for place, digit in enumerate(reversed(digits)))


def _find_ibans(text: str) -> Places:
    for match in _compiled(_IBAN_START).finditer(text):
        start = match.start()
        wanted = _IBAN_CHARS.get(text[start:start + 2], 0)
        places = _letters_and_digits(text, start, wanted)
        if len(places) == wanted > 0:
            end = places[-1] + 1
            number = "".join(text[at] for at in places)
            if not text[end:end + 1].isalnum() and _is_iban(number):
                yield start, end


def _letters_and_digits(text: str, start: int, num: int) -> list[int]:
    """Places of up to `num` characters of a number from `start`, skipping single spaces."""
    places = []
    for at in range(start, min(start + 2 * num, len(text))):
        if text[at] != " " or text[at - 1] == " ":
            if len(places) == num or not (text[at].isascii() and text[at].isalnum()):
                break
            places.append(at)
    return places


def _is_iban(number: str) -> bool:
    return int("".join(str(int(char, 36)) for char in number[4:] + number[:4])) % 97 == 1


# --- keys and tokens ------------------------------------------------------------------------

_TOKENS = (     # prefixes of the issuers
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",                                   # AWS
    r"gh[pousr]_[A-Za-z0-9]{36}", r"github_pat_[A-Za-z0-9_]{40,90}",
    r"glpat-[A-Za-z0-9_-]{20,}",                                    # GitLab
    r"sk-[A-Za-z0-9_-]{20,200}",                                    # OpenAI, Anthropic and others
    r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",                        # Stripe
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}",                              # Slack
    r"AIza[A-Za-z0-9_-]{35}", r"ya29\.[A-Za-z0-9_-]{20,}",          # Google
    r"hf_[A-Za-z0-9]{30,}", r"npm_[A-Za-z0-9]{36}", r"pypi-[A-Za-z0-9_-]{50,}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",                  # SendGrid
    r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}")    # JSON web token
_TOKEN = rf"\b(?:{'|'.join(_TOKENS)})"
# Up to its end line or, without one, all following lines of base64.
_KEY_BLOCK = (r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:(?:[^-]|-[^-])*-----END [A-Z ]*PRIVATE KEY"
              r"-----|(?:[\s\\nr\"'+]*[A-Za-z0-9+/=]{16,})+)")
_BASE64 = re2.compile(r"[A-Za-z0-9+/=]{16}")
_PLACEHOLDER = re2.compile(r"(?i)example|placeholder|your|xxxx|\*\*\*")
_MIN_ENTROPY_BITS = 3.0     # per character; hexadecimal digits at random have 4, words near 3


def _find_keys(text: str) -> Places:
    if "-----BEGIN " in text:
        for match in _compiled(_KEY_BLOCK).finditer(text):
            if _BASE64.search(match.group()):
                yield match.span()
    for match in _compiled(_TOKEN).finditer(text):
        if _looks_random(match.group()):
            yield match.span()


def _looks_random(token: str) -> bool:
    if _PLACEHOLDER.search(token) or not any(map(str.isdigit, token)):
        return False
    has_words = not any(map(str.isupper, token)) and token.count("-") > 1   # `sk-container-id-1`
    entropy = -sum(count / len(token) * math.log2(count / len(token))
                   for count in Counter(token).values())
    return not has_words and entropy >= _MIN_ENTROPY_BITS


# --------------------------------------------------------------------------------------------

# In order of precedence where spans overlap.
FINDERS: dict[str, Callable[[str], Places]] = {
    "key": _find_keys, "email": _find_emails, "iban": _find_ibans, "card": _find_cards,
    "ip": _find_ips,
    "phone": lambda text: phones.find_phones(_compiled(phones.PATTERN).finditer(text))}

_ANYTHING = "|".join(f"(?:{pattern})" for pattern in (
    _EMAIL, _FOREIGN_EMAIL, _SPELLED_EMAIL, _IPV4, _IPV6, phones.PATTERN, _CARD, _IBAN_START,
    _TOKEN, "-----BEGIN ", forms.PATTERN))


@functools.cache
def _compiled(pattern: str):
    return re2.compile(pattern)


def has_candidate(text: str) -> bool:
    """Whether any pattern of any kind occurs in `text`."""
    return _compiled(_ANYTHING).search(text) is not None
