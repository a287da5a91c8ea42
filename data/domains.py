"""Names of domains: any text in documents, safe ones in configs and in token folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import xxhash

POOLS = ("best", "heldout")     # of a token folder: made of documents of any domain
POOL_PREFIX = "domain:"
PLAIN_STEM = re.compile(r"[a-z0-9_][a-z0-9_-]{0,63}")
DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])")     # no file names on Windows
STEM_CHARS = 40                 # of a name, before the hash that tells it from others

Value = TypeVar("Value")


def token_domain(domain: str) -> str:
    """Name of a corpus' domain in a token folder and in mixtures: its own, unless a pool has it.

    `best`, `heldout` and what begins with `domain:` get that prefix, so that names stay distinct.
    """
    return POOL_PREFIX + domain if domain in POOLS or domain.startswith(POOL_PREFIX) else domain


def file_stem(domain: str) -> str:
    """Name of a domain's files, valid on every file system, in any case of its letters.

    Short lower-case names without dots are their own; others get a hash: ``Science & Tech.`` is
    ``science_tech~9f2c...``.
    """
    if PLAIN_STEM.fullmatch(domain) and not DEVICE.fullmatch(domain):
        return domain
    readable = re.sub(r"[^a-z0-9]+", "_", domain.lower()).strip("_")[:STEM_CHARS] or "domain"
    return f"{readable}~{xxhash.xxh3_64_hexdigest(domain.encode())}"


def by_domain(section: Mapping[str, Value]) -> dict[str, Value]:
    """A section of a config whose keys are domains, by their names.

    Keys of a config hold no dots: a dot is written as ``%2E``, and ``%`` before it as ``%25``.
    """
    return {key.replace("%2E", ".").replace("%25", "%"): value for key, value in section.items()}


def config_key(domain: str) -> str:
    """The key of a domain in a section of a config; `by_domain` reads it."""
    return domain.replace("%", "%25").replace(".", "%2E")
