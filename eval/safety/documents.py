"""Documents of which a model may have memorised parts: texts, or folders of tokens as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from core.artifacts import read_json
from core.errors import UserError
from core.progress import log
from data.layouts.faults import Faults
from data.tokenizers.load import load_tokenizer
from eval.measures.perplexity import REPEATS, read_domains
from eval.measures.texts import read_texts
from eval.perplexity import is_token_folder

MAX_CHARS = 20_000_000      # of an input, so that a large one is not read to its end
HELDOUT = "heldout"


def read_documents(path: Path, faults: Faults, *, heldout: bool) -> list[str]:
    """The first documents of an input, up to `MAX_CHARS`; a line says where more are left.

    Args:
        path: files of text or rows (`eval.measures.texts`), or a folder of tokens, of which as many
            characters of each domain are read.
        faults: counts what has no text.
        heldout: of a folder of tokens, reads the domain `heldout` alone, or all others.

    Raises:
        UserError: there is no text.
    """
    if not is_token_folder(str(path)):
        pattern = str(path).replace(",", "\\,")
        found = _take((text.text for text in read_texts(pattern, faults)), MAX_CHARS, str(path))
        faults.report()
        return found
    domains = [name for name in read_json(path / "tokens.json")["domains"]
               if name != REPEATS and (name == HELDOUT) == heldout]
    if not domains:
        raise UserError(str(path), f"has {'no' if heldout else 'no other'} domain {HELDOUT!r}",
                        "name text, or another folder of tokens")
    tokenizer = load_tokenizer(path / "tokenizer")
    return [text for name in domains for text in _take(
        (document.text for document in read_domains(path, tokenizer, (name,))),
        MAX_CHARS // len(domains), f"{path}:{name}")]


def has_heldout(path: Path) -> bool:
    """Whether an input is a folder of tokens with held-out documents."""
    return is_token_folder(str(path)) and HELDOUT in read_json(path / "tokens.json")["domains"]


def _take(texts: Iterable[str], max_chars: int, name: str) -> list[str]:
    return list(_until(texts, max_chars, name))


def _until(texts: Iterable[str], max_chars: int, name: str) -> Iterator[str]:
    num_chars = 0
    for text in texts:
        if num_chars and num_chars + len(text) > max_chars:
            log(f"safety: {name}: its first {num_chars:,} characters are read, and no more")
            return
        num_chars += len(text)
        yield text
