"""Perplexity of texts, in every unit at once, under a named rule of windows.

The nats of all scored tokens are summed over the documents before anything is divided:

    bpb                 bits per UTF-8 byte of the original text: comparable across tokenizers
    bits_per_char       bits per character (code point)
    byte_perplexity     exp of the nats per byte
    word_perplexity     exp of the nats per word: words as EleutherAI/lm-evaluation-harness@4e7e0d4
                        counts them, `re.split(r"\\s+", text)`, where an empty end is one, too; or
                        an official number of words
    token_perplexity    exp of the nats per scored token; depends on the tokenizer

The original text is that of the document, even where the model reads another form of it. Without
BOS the first token has no score, and its bytes are no part of the text.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.artifacts import read_json
from core.errors import UserError
from core.progress import log
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.rows import check_tokenizer, open_tokens
from eval.measures.packed import Piece, score_pieces
from eval.measures.texts import Text
from eval.measures.windows import WindowRule
from eval.respond.loaded import LoadedModel

CHUNK_TOKENS = 1 << 20      # of documents that are sorted and packed together
REPEATS = "best"            # the domain whose documents are also in others

# Log-probabilities of the scored tokens of each piece, in nats.
Scorer = Callable[[Sequence[Piece]], Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class TextSums:
    """What is summed over documents.

    Attributes:
        nats: minus the log-probabilities of the scored tokens.
        documents, windows: how many.
        tokens, unscored_tokens: scored, and without a score for lack of context.
        bytes, chars, words: of the scored text.
        not_finite: documents whose nats are infinite or not a number.
    """

    nats: float = 0.0
    documents: int = 0
    windows: int = 0
    tokens: int = 0
    unscored_tokens: int = 0
    bytes: int = 0
    chars: int = 0
    words: int = 0
    not_finite: int = 0


class DocumentScore(NamedTuple):
    """A document's line in the table, and its sums."""

    name: str
    sums: TextSums


class Encoded(NamedTuple):
    """A document as token ids, without special tokens, and the text whose units are counted."""

    name: str
    ids: np.ndarray
    text: str


def add_sums(parts: Sequence[TextSums]) -> TextSums:
    """The sums over documents; the nats do not depend on their order."""
    names = [field.name for field in dataclasses.fields(TextSums)]
    return TextSums(**{name: (math.fsum if name == "nats" and not any(p.not_finite for p in parts)
                              else sum)(getattr(part, name) for part in parts)
                       for name in names})


def describe_sums(sums: TextSums, official_words: int = 0) -> dict[str, Any]:
    """All measures of the module's list, and all counts.

    Args:
        official_words: number of words for the word perplexity; 0 uses those that are counted.

    Returns:
        Plain data. A measure without a denominator, of no scored text, is NaN.
    """
    counts = dataclasses.asdict(sums)
    words = official_words or sums.words
    with np.errstate(over="ignore"):
        return counts | {
            "words": words, "words_by": "official" if official_words else "whitespace",
            "bpb": _ratio(sums.nats, sums.bytes) / math.log(2),
            "bits_per_char": _ratio(sums.nats, sums.chars) / math.log(2),
            "byte_perplexity": float(np.exp(_ratio(sums.nats, sums.bytes))),
            "word_perplexity": float(np.exp(_ratio(sums.nats, words))),
            "token_perplexity": float(np.exp(_ratio(sums.nats, sums.tokens)))}


def _ratio(nats: float, units: int) -> float:
    return nats / units if units else math.nan


def count_words(text: str) -> int:
    """Words as lm-evaluation-harness counts them: one more than there are runs of white space."""
    return len(re.split(r"\s+", text))


def score_encoded(documents: Iterable[Encoded], tokenizer: Tokenizer, rule: WindowRule,
                  score: Scorer) -> Iterator[DocumentScore]:
    """Scores documents in their order, window by window.

    Args:
        score: the model: see `Scorer`.
    """
    chunk: list[Encoded] = []
    num_tokens = 0
    for document in documents:
        chunk.append(document)
        num_tokens += len(document.ids)
        if num_tokens >= CHUNK_TOKENS:
            yield from _score_chunk(chunk, tokenizer, rule, score)
            chunk, num_tokens = [], 0
    yield from _score_chunk(chunk, tokenizer, rule, score)


def _score_chunk(documents: Sequence[Encoded], tokenizer: Tokenizer, rule: WindowRule,
                 score: Scorer) -> Iterator[DocumentScore]:
    pieces: list[Piece] = []
    edges = [0]
    for document in documents:
        tokens = np.r_[[tokenizer.bos] * rule.bos, document.ids].astype(np.int32)
        pieces += [Piece(tokens[window.start:window.stop], window.num_scored)
                   for window in rule.cut(len(tokens))]
        edges.append(len(pieces))
    logps = score(pieces)
    for document, first, stop in zip(documents, edges, edges[1:]):
        nats = -math.fsum(np.sum(logp, dtype=np.float64) for logp in logps[first:stop])
        num_scored = sum(piece.num_scored for piece in pieces[first:stop])
        text = _scored_text(document, tokenizer, rule)
        yield DocumentScore(document.name, TextSums(
            nats=nats, documents=1, windows=stop - first, tokens=num_scored,
            unscored_tokens=len(document.ids) - num_scored, bytes=len(text),
            chars=len(text.decode(errors="ignore")),
            words=count_words(text.decode(errors="ignore")), not_finite=not math.isfinite(nats)))


def _scored_text(document: Encoded, tokenizer: Tokenizer, rule: WindowRule) -> bytes:
    """The document's text; without BOS, what follows its first token."""
    text = document.text.encode()
    if rule.bos or not len(document.ids):
        return text
    return text[len(next(iter(tokenizer.stream(document.ids.tolist())), b"")):]


def measure_texts(model: LoadedModel, texts: Iterable[Text], *, rule: WindowRule,
                  batch_size: int = 1, official_words: int = 0) -> dict[str, Any]:
    """`measure_encoded` of texts."""
    return measure_encoded(model, encode_texts(texts, model.tokenizer), rule=rule,
                           batch_size=batch_size, official_words=official_words)


def measure_domains(model: LoadedModel, tokens: Path, *, rule: WindowRule,
                    domains: Sequence[str] = (), num: int = 0,
                    batch_size: int = 1) -> dict[str, Any]:
    """`measure_encoded` of the documents of a token folder that `read_domains` gives."""
    return measure_encoded(model, read_domains(tokens, model.tokenizer, domains, num), rule=rule,
                           batch_size=batch_size)


def encode_texts(texts: Iterable[Text], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Texts as token ids."""
    return (Encoded(text.name, tokenizer.encode_array(text.text), text.counted) for text in texts)


def read_domains(tokens: Path, tokenizer: Tokenizer, domains: Sequence[str] = (),
                 num: int = 0) -> Iterator[Encoded]:
    """The documents of a token folder, by domain.

    Args:
        domains: their names; none stands for all but `best`, which repeats others' documents.
        num: documents of each domain, the first ones; 0 or less: all.

    Raises:
        UserError: another tokenizer made the folder, it lacks a domain, or `best` is not alone.
    """
    check_tokenizer(tokens, tokenizer.fingerprint, "inputs")
    held = read_json(Path(tokens) / "tokens.json")["domains"]
    if missing := sorted(set(domains) - set(held)):
        raise UserError(f"domains={','.join(domains)}",
                        f"{tokens} has no {missing[0]!r} but {', '.join(sorted(held))}",
                        "choose among these")
    if REPEATS in domains and len(set(domains)) > 1:
        raise UserError(f"domains={','.join(domains)}", f"{REPEATS!r} repeats documents of the "
                        "others, which the total would count twice", "measure it alone")
    chosen = list(dict.fromkeys(domains)) or [name for name in held if name != REPEATS]
    return (document for name in chosen for document in _read_domain(tokens, name, tokenizer, num))


def _read_domain(folder: Path, name: str, tokenizer: Tokenizer, num: int) -> Iterator[Encoded]:
    tokens, ends = open_tokens(folder, name)
    start = 0
    for end in ends[:num if num > 0 else None].tolist():
        ids = np.asarray(tokens[start + 1:end - 1])     # without bos and end
        yield Encoded(name, ids, tokenizer.decode(ids.tolist()))
        start = end


def measure_encoded(model: LoadedModel, documents: Iterable[Encoded], *, rule: WindowRule,
                    batch_size: int = 1, official_words: int = 0) -> dict[str, Any]:
    """Measures documents, by their names and in total.

    Args:
        batch_size: windows of full length in a batch; changes no figure.
        official_words: of all documents together; see `describe_sums`.

    Returns:
        The rule; in total, and by name in `inputs`, what `describe_sums` gives.

    Raises:
        UserError: the windows are longer than the model's context, or no token has a score.
    """
    check_context(rule, model.context_tokens, model.name or "the model")

    def score(pieces: Sequence[Piece]) -> Sequence[np.ndarray]:
        return score_pieces(model, pieces, longest=rule.window_tokens, batch_size=batch_size)

    by_name: dict[str, list[TextSums]] = {}
    for name, sums in score_encoded(documents, model.tokenizer, rule, score):
        if sums.not_finite and not any(part.not_finite for part in by_name.get(name, ())):
            log(f"warning: {name}: the log-probability of document "
                f"{len(by_name.get(name, ())) + 1} is {-sums.nats}")
        by_name.setdefault(name, []).append(sums)
    total = add_sums([sums for parts in by_name.values() for sums in parts])
    if not total.tokens:
        raise UserError("inputs", "hold no token to be scored", "name a longer text")
    return {"rule": rule.name, "window_tokens": rule.window_tokens, "stride": rule.stride,
            "bos": rule.bos, **describe_sums(total, official_words),
            "inputs": {name: describe_sums(add_sums(parts)) for name, parts in by_name.items()}}


def check_context(rule: WindowRule, context_tokens: int, name: str) -> None:
    """Raises `UserError` where windows are longer than the rows that a model was trained on."""
    if rule.window_tokens > context_tokens:
        raise UserError(f"window_tokens={rule.window_tokens}", f"exceeds the context of {name}, "
                        f"{context_tokens} tokens, beyond which no position was trained",
                        f"set it to {context_tokens} or less")


def format_table(measured: Mapping[str, Any]) -> str:
    """The measures of each input, and their total, as a table."""
    columns = ("documents", "tokens", "words", "bytes", "bpb", "bits_per_char", "word_perplexity",
               "token_perplexity")
    lines = {**measured["inputs"], "total": measured}
    width = max(map(len, (*lines, "input")))
    table = [f"{'input':{width}}  " + "  ".join(f"{column:>16}" for column in columns)]
    for name, line in lines.items():
        cells = (f"{line[c]:,}" if isinstance(line[c], int) else f"{line[c]:.6g}" for c in columns)
        table.append(f"{name:{width}}  " + "  ".join(f"{cell:>16}" for cell in cells))
    return "\n".join(table)
