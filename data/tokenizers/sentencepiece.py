"""Models of SentencePiece (arXiv 1808.06226), as tokenizers of the library `tokenizers`.

A model is a message of Protocol Buffers: pieces with scores and types, and how text is normalised
(`sentencepiece_model.proto` of google/sentencepiece). Byte-pair models merge, of all neighbours
that make a piece, those of the highest score first; unigram models choose the pieces whose scores
have the largest sum. Spaces are written as U+2581, and one stands before every text.

Which pieces may become which, and in what order a text is normalised, is as in the library's
`normalizer.cc`, `bpe_model.cc` and `unigram_model.cc`. The library `tokenizers` differs in three
things: its normaliser replaces grapheme clusters where these have up to five bytes and else single
characters, so that a mark behind a character that is itself replaced is lost, and a longer cluster
is not composed; it adds the scores of unigram models in double precision, so that of two sums which
are nearly equal the other may be larger; and of neighbours that make the same piece it merges those
with the longer left side first, not the leftmost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import UserError, first_line, quote
from data.tokenizers.hub import make_tokenizer, read_beside, read_optional, token_name
from data.tokenizers.huggingface import BYTE, SPACE, HuggingFaceTokenizer, require_library
from data.tokenizers.patterns import splitting
from data.tokenizers.protobuf import as_bytes, as_float, as_int, as_text, read_fields

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, OF_BYTE = range(1, 7)       # types of pieces
UNIGRAM, BPE = 1, 2                                                         # types of models
MODEL_TYPES = {UNIGRAM: "unigram", BPE: "bpe", 3: "word", 4: "char"}
PARTS = {2: "trainer_spec", 3: "normalizer_spec"}       # behind the pieces, by their fields
MAX_BYTES = 100_000_000     # of a file; that of 256,000 pieces has 4,200,000
REMEDY = "fetch it anew, or name the tokenizer.json of its model"


class Piece(NamedTuple):
    """A token: its text, where U+2581 stands for a space, its score, and its type."""

    text: str
    score: float = 0.0
    kind: int = NORMAL


class Model(NamedTuple):
    """What a model holds that decides the ids of a text.

    Attributes:
        pieces: in the order of their ids.
        kind: `UNIGRAM` or `BPE`.
        has_bytes: whether characters without a piece become their bytes.
        charsmap: replacements of characters, as the library compiles them; b"" for none.
        has_prefix: whether a space is put before a text.
        trims: whether outer spaces are removed, and inner ones are joined.
        named: special tokens by their roles in the hub's files.
    """

    pieces: Sequence[Piece]
    kind: int = UNIGRAM
    has_bytes: bool = False
    charsmap: bytes = b""
    has_prefix: bool = True
    trims: bool = True
    named: Mapping[str, str] = {}


def import_sentence_piece(file: Path) -> HuggingFaceTokenizer:
    """Reads a model of SentencePiece, and the hub's files beside it.

    Raises:
        UserError: the file is missing or damaged, or has a part that we do not have.
    """
    model, beside = read_model(file), read_beside(file.parent)
    _check_added(file.parent, beside["config"], model)
    try:
        backend = make_piece_backend(model)
        config = {"add_bos_token": model.kind == BPE} | model.named | beside["config"]
        return make_tokenizer(backend.to_str(), **beside | {"config": config})
    except UserError as error:
        raise UserError(str(file), *str(error).split(": ", 1)) from None


def read_model(file: Path) -> Model:
    """Reads a model's file; fields that decide nothing about ids are passed over.

    Raises:
        UserError: see `import_sentence_piece`.
    """
    try:
        with open(file, "rb") as opened:
            message = opened.read(MAX_BYTES + 1)
        if len(message) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        pieces, parts = [], {}
        for number, value in read_fields(message):
            if number == 1:
                pieces.append(_read_piece(value))
            elif number in PARTS:
                parts.setdefault(number, {}).update(read_fields(value))
        if lacking := [name for number, name in PARTS.items() if number not in parts]:
            raise ValueError(f"it has {len(pieces)} pieces, and lacks {' and '.join(lacking)}")
        return _make_model(file, pieces, *map(parts.get, PARTS))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(str(file), f"is no model of SentencePiece ({first_line(error)})", REMEDY) \
            from None


def _check_added(folder: Path, config: Mapping[str, Any], model: Model) -> None:
    """Raises `UserError` if the hub's files add tokens to the model's, or number these otherwise.

    The program of XLM-R, for one, gives pieces other ids, and that of T5 adds `<extra_id_0>`.
    """
    names, decoder = config.get("additional_special_tokens"), config.get("added_tokens_decoder")
    ids = {piece.text: str(i) for i, piece in enumerate(model.pieces)}
    added = [(token_name(name), None) for name in (names if isinstance(names, list) else ())]
    added += [(name, str(i)) for name, i in read_optional(folder / "added_tokens.json").items()]
    added += [(token_name(token), i) for i, token in
              (decoder.items() if isinstance(decoder, Mapping) else ())]
    if others := [name for name, i in added if name not in ids or i not in (None, ids[name])]:
        raise UserError(str(folder), f"names {len({*others})} tokens that its model lacks or gives "
                        f"other ids, as {quote(others[0])}",
                        "save the tokenizer as tokenizer.json, with transformers")


def _read_piece(message: Any) -> Piece:
    fields = dict(read_fields(message))
    piece = Piece(as_text(fields[1]) if 1 in fields else "",
                  as_float(fields[2]) if 2 in fields else 0.0, as_int(fields.get(3, NORMAL)))
    if not piece.text or not NORMAL <= piece.kind <= OF_BYTE or not abs(piece.score) < 1e30:
        raise ValueError(f"the piece {quote(piece.text)} has the type {piece.kind} and the score "
                         f"{piece.score}")
    return piece


def _make_model(file: Path, pieces: Sequence[Piece], trainer: Mapping[int, Any],
                normaliser: Mapping[int, Any]) -> Model:
    """Checks what was read; numbers and defaults are those of `sentencepiece_model.proto`."""
    kind = as_int(trainer.get(3, UNIGRAM))
    unknown = [piece.text for piece in pieces if piece.kind == UNKNOWN]
    byte_pieces = [piece.text for piece in pieces if piece.kind == OF_BYTE]
    has_bytes = bool(as_int(trainer.get(35, 0)))
    if len({piece.text for piece in pieces}) < len(pieces) or len(unknown) != 1:
        raise ValueError(f"{len({piece.text for piece in pieces})} of {len(pieces)} pieces differ, "
                         f"and {len(unknown)} are for unknown text")
    if not all(map(BYTE.fullmatch, byte_pieces)) or (has_bytes and len(byte_pieces) != 256):
        raise ValueError(f"it has {len(byte_pieces)} pieces for bytes, expected 256")
    named = {}
    for role, number, default in (("unk_token", 40, 0), ("bos_token", 41, 1), ("eos_token", 42, 2),
                                  ("pad_token", 43, -1)):
        place = as_int(trainer.get(number, default))
        place -= (1 << 32) * (place >= 1 << 31)     # some write 32 bits of a negative number
        if 0 <= place < len(pieces) and pieces[place].kind in (UNKNOWN, CONTROL, USER_DEFINED):
            named[role] = pieces[place].text
    lacking = {
        f"the model type {MODEL_TYPES.get(kind, kind)}": kind not in (UNIGRAM, BPE),
        "spaces behind words (treat_whitespace_as_suffix)": as_int(trainer.get(24, 0)),
        "spaces as they are (escape_whitespaces)": not as_int(normaliser.get(5, 1)),
        "pieces that are unused": any(piece.kind == UNUSED for piece in pieces)}
    for what, is_there in lacking.items():
        if is_there:
            raise UserError(str(file), f"has {what}, which is not known here",
                            "name the tokenizer.json of its model")
    return Model(pieces, kind, has_bytes, as_bytes(normaliser.get(2, b"")),
                 bool(as_int(normaliser.get(3, 1))), bool(as_int(normaliser.get(4, 1))), named)


def make_piece_backend(model: Model) -> Any:
    """The library's tokenizer that gives the ids of a model.

    Raises:
        UserError: the library is not installed, or cannot read the model's normaliser; or the
            normaliser changes a piece that text is to become as it stands.
    """
    library = require_library()
    symbols = [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]
    backend = library.Tokenizer(
        _bpe(library, model, is_whole=bool(symbols)) if model.kind == BPE
        else _unigram(library, model))
    _set_normalizer(library, backend, model, symbols)
    _set_splits(library, backend, model, symbols)
    _set_decoder(library, backend, model)
    backend.add_tokens([library.AddedToken(piece.text, special=True, normalized=False)
                        for piece in model.pieces if piece.kind in (UNKNOWN, CONTROL)])
    return backend


def _bpe(library: Any, model: Model, *, is_whole: bool) -> Any:
    """The merges of a model; `is_whole` if a text that is set apart is a piece without merges."""
    return library.models.BPE(
        vocab={piece.text: i for i, piece in enumerate(model.pieces)},
        merges=merges_by_score({piece.text: piece.score for piece in model.pieces
                                if piece.kind == NORMAL}),
        unk_token=next((piece.text for piece in model.pieces if piece.kind == UNKNOWN), None),
        fuse_unk=True, byte_fallback=model.has_bytes, ignore_merges=is_whole)


def _unigram(library: Any, model: Model) -> Any:
    """The scores of a model; that of a user-defined piece grows with its length in bytes.

    So it does in 0.2.3 of the library; in 0.2.0 it is -0.1 where all others are below 0.
    """
    return library.models.Unigram(
        [(piece.text, 0.1 * len(piece.text.encode()) - 0.1 if piece.kind == USER_DEFINED
          else piece.score) for piece in model.pieces],
        next((i for i, piece in enumerate(model.pieces) if piece.kind == UNKNOWN), None),
        model.has_bytes)


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, those that are merged first in front.

    Args:
        scores: of the pieces that may be merged, and may come of it.
    """
    pairs = [(-score, cut, len(text) - cut, text[:cut], text[cut:])
             for text, score in scores.items() for cut in range(1, len(text))
             if text[:cut] in scores and text[cut:] in scores]
    # Of equal scores the longer left side, then the longer right side, merges first.
    pairs.sort(key=lambda pair: (pair[0], -pair[1], -pair[2]))
    return [(left, right) for *_, left, right in pairs]


def _set_normalizer(library: Any, backend: Any, model: Model, symbols: Sequence[str]) -> None:
    """As `Normalizer::Normalize`: replacements, no outer and double spaces, the space in front."""
    part, steps = library.normalizers, []
    if model.charsmap:
        try:
            steps.append(part.Precompiled(model.charsmap))
        except Exception as error:      # the library raises no narrower one
            raise UserError("the model's normaliser", "is no table of replacements "
                            f"({first_line(error)})", REMEDY) from None
        with splitting():
            changed = [symbol for symbol in symbols if steps[0].normalize_str(symbol) != symbol]
        if changed:
            raise UserError(f"the user-defined piece {quote(changed[0])}", "is changed by the "
                            "model's own normaliser", "name the tokenizer.json of its model")
    regex = library.Regex
    if model.trims:
        steps += [part.Replace(regex(r"\A +"), ""), part.Replace(regex(" {2,}"), " ")]
    steps += [part.Replace(" ", SPACE), *([part.Prepend(SPACE)] if model.has_prefix else [])]
    if model.trims:     # also what the text itself wrote with that character
        steps.append(part.Replace(regex(rf"{SPACE}+\z"), ""))
    backend.normalizer = part.Sequence(steps)


def _set_splits(library: Any, backend: Any, model: Model, symbols: Sequence[str]) -> None:
    """Sets pieces apart that text always becomes, and cuts names that it never becomes.

    The library would find the name of a byte, as `<0x0A>`, or of a special token in a text.
    """
    part, steps = library.pre_tokenizers, []
    if symbols and model.kind == BPE:
        longest_first = sorted(symbols, key=len, reverse=True)
        steps.append(part.Split(library.Regex("|".join(map(re.escape, longest_first))), "isolated"))
    if symbols or model.kind == UNIGRAM:    # merges alone make no such name
        rests: dict[str, list[str]] = {}
        for first, rest in _cut_names(model):
            rests.setdefault(re.escape(first), []).append(re.escape(rest))
        cuts = "|".join(f"{first}(?={'|'.join(rest)})" for first, rest in rests.items())
        steps += [part.Split(library.Regex(cuts), "merged_with_previous")] * bool(cuts)
    if steps:
        backend.pre_tokenizer = part.Sequence(steps)


def _cut_names(model: Model) -> Iterator[tuple[str, str]]:
    """Names of bytes and special tokens in two parts.

    The cut changes nothing else where no piece lies across it and no two unknown characters, of
    which the library joins neighbours, lie beside it.
    """
    inner = {text[i:i + 2] for text, _, kind in model.pieces if kind in (NORMAL, USER_DEFINED)
             for i in range(len(text) - 1)}
    known = {piece.text for piece in model.pieces}
    for name, _, kind in model.pieces:
        if kind in (UNKNOWN, CONTROL, OF_BYTE) and len(name) > 1:
            places = [i for i in range(1, len(name)) if name[i - 1:i + 1] not in inner
                      and (model.has_bytes or {name[i - 1], name[i]} & known)]
            cut = min(places, default=1)
            yield name[:cut], name[cut:]


def _set_decoder(library: Any, backend: Any, model: Model) -> None:
    part = library.decoders
    backend.decoder = part.Sequence([
        part.Replace(SPACE, " "), part.ByteFallback(), part.Fuse(),
        *([part.Strip(content=" ", left=1)] if model.has_prefix else [])])
