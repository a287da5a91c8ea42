"""Personal data in text: found by rule, replaced by a placeholder, counted."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import re2

# Two-letter endings are country codes; of the others, those in common use. The list keeps
# attribute access in code (`x@weights.mean`) from being read as an address.
GENERIC_ENDINGS = frozenset((
    "com", "org", "net", "edu", "gov", "mil", "int", "info", "biz", "name", "pro", "dev", "app",
    "tech", "cloud", "online", "site", "xyz", "email", "software", "science", "network",
    "foundation", "systems", "space", "world", "wiki", "blog", "museum", "arpa"))

_EMAIL = re2.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9][A-Za-z0-9.-]*\.[A-Za-z]{2,24}")
_NUMBERING = re2.compile(r"(?i)(?:version|release|section|chapter|rfc ?[0-9]+|\bv)[ =.:]*$")
_IPV4 = re2.compile(r"\b(?:[0-9]{1,3}\.){3}[0-9]{1,3}\b")


def redact(text: str) -> tuple[str, dict[str, int]]:
    """Replaces e-mail addresses by ``<email>`` and public IPv4 addresses by ``<ip>``.

    Not taken for an address: what stands behind words like "version" or "section", longer chains
    of numbers, and four single digits, which are section numbers or well-known name servers.

    Returns:
        The text, and the number of replaced spans by kind.
    """
    counts: dict[str, int] = {}
    if "@" in text:
        text = _replace(text, _EMAIL, _is_email, "<email>", counts)
    return _replace(text, _IPV4, _is_public_ip, "<ip>", counts), counts


def _replace(text: str, pattern, is_personal: Callable[[str], bool], placeholder: str,
             counts: dict[str, int]) -> str:
    pieces, end = [], 0
    for match in pattern.finditer(text):
        if is_personal(match.group()) and not _is_numbering(text, match):
            pieces += (text[end:match.start()], placeholder)
            end = match.end()
    if pieces:
        kind = placeholder.strip("<>")
        counts[kind] = counts.get(kind, 0) + len(pieces) // 2
    return "".join((*pieces, text[end:]))


def _is_email(found: str) -> bool:
    ending = found.rpartition(".")[2].lower()
    return len(ending) == 2 or ending in GENERIC_ENDINGS


def _is_public_ip(found: str) -> bool:
    try:
        return len(found) > len("1.2.3.4") and ipaddress.IPv4Address(found).is_global
    except ValueError:
        return False


def _is_numbering(text: str, match) -> bool:
    before = text[max(match.start() - 16, 0):match.start()]
    after = text[match.end():match.end() + 2]
    in_chain = before.endswith(".") or (after[:1] == "." and after[1:].isdigit())
    return in_chain or bool(_NUMBERING.search(before))
