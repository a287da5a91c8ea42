"""Gives a model more tokens, or another tokenizer, for pretraining that goes on from it.

    python -m model.extend --model=runs/smollm2 --tokens=words.txt --out=runs/smollm2-words
    python -m model.extend --model=runs/smollm2 --tokenizer=runs/mine/tokenizer --out=runs/moved

`--tokens` names a file with a new token in each line, a space before a word included. All ids stay
as they are, so a text without new tokens is encoded as before, and the states before the head are
those that it had, bit for bit. In the softmax new logits join the old ones: each log-probability
falls by -log(1 - p), where p is what the new tokens get. `--tokenizer` replaces the tokenizer as a
whole.

A row of the embedding, and of the head where it has its own, for a token that the model has is
copied. That of another token is the mean of the rows of the tokens into which the model's tokenizer
cuts it (arXiv 2402.09977). Tokens that begin and end documents keep their rows, whatever their
names; special tokens without a counterpart have the mean of all rows.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from core import artifacts, entry, locks
from core.artifacts import code_digest, digest, make_lineage, read_json, read_lineage
from core.errors import UserError, first_line, require_file
from core.progress import log
from data.tokenizers.extended import extend
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from model.config import ModelConfig
from model.directory import Description, load_params, read_description, save_model
from model.families.registry import Params
from model.parallel.sharding import letters_of, make_mesh

Sources = list[list[int]]


def keep_rows(old: Tokenizer, new: Tokenizer, tokens: Sequence[str], num_rows: int) -> Sources:
    """The sources of all rows of a model with further tokens; see `extend_params`.

    Args:
        new: `old` with these tokens.
        num_rows: of the model, which may have more than `old` has ids.
    """
    sources = [[i] for i in range(max(num_rows, new.vocab_size))]
    for token in tokens:
        sources[new.encode_continuing(token)[0]] = old.encode_continuing(token)
    return sources


def match_rows(old: Tokenizer, new: Tokenizer) -> Sources:
    """The sources of the rows of a model whose tokenizer is replaced; see `extend_params`.

    An id that means the same in both, or nothing in both, keeps its row.
    """
    ours, theirs = (each.list_bytes(range(each.vocab_size)) for each in (old, new))
    # Of several the last one: SentencePiece has first the bytes for what it cannot spell.
    by_bytes = {piece: i for i, piece in enumerate(ours) if piece and i not in old.special_ids}
    roles = {new.bos: old.bos, new.end: old.end} | {
        new.special(name): old.special(name) for name in new.specials if name in old.specials}

    def find(i: int, piece: bytes) -> list[int]:
        if i in roles:
            return [roles[i]]
        if i < len(ours) and ours[i] == piece and i not in old.special_ids:
            return [i]
        if piece in by_bytes:
            return [by_bytes[piece]]
        return [] if i in new.special_ids else _spell(old, piece, by_bytes)

    return [find(i, piece) for i, piece in enumerate(theirs)]


def _spell(old: Tokenizer, piece: bytes, by_bytes: Mapping[bytes, int]) -> list[int]:
    """The old tokens that spell a new one; byte by byte where it is no text by itself."""
    try:
        return old.encode_continuing(piece.decode())
    except UnicodeDecodeError:
        bytes_ = (bytes([byte]) for byte in piece)
        return [by_bytes[byte] for byte in bytes_ if byte in by_bytes]


def extend_params(params: Params, sources: Sources) -> Params:
    """Parameters whose axes V have other rows.

    Args:
        sources: for each row of the result the rows whose mean it is: one is copied bit for bit,
            and none stands for all.
    """
    firsts = [own[0] if own else 0 for own in sources]

    def extend_array(path: Any, array: jax.Array) -> jax.Array:
        axis = letters_of(path, array.ndim).find("V")
        if axis < 0:
            return array
        table = np.moveaxis(np.asarray(array), axis, 0)
        rows, mean = table[firsts], np.mean(table, axis=0, dtype=np.float64)
        for i, own in enumerate(sources):
            if len(own) != 1:
                rows[i] = np.mean(table[own], axis=0, dtype=np.float64) if own else mean
        return jax.device_put(np.moveaxis(rows, 0, axis), array.sharding)

    return jax.tree_util.tree_map_with_path(extend_array, params)


def extend_model(model: Path, out: Path, *, tokens: Path | None = None,
                 tokenizer: Path | None = None) -> dict[str, Any]:
    """Writes a model directory with more tokens, or with another tokenizer.

    One that was made of the same is left as it is.

    Args:
        model: a model directory.
        tokens: a file with a new token in each line.
        tokenizer: that takes the place of the model's, where no tokens are given.

    Raises:
        UserError: `model` is no model directory or is damaged, `out` is `model`, or the tokens
            cannot be added.
    """
    if out.resolve() == model.resolve():
        raise UserError(f"--out={out}", "is the model that is extended", "name a new folder")
    described = read_description(model)
    added = _read_tokens(tokens) if tokens else []
    new = None if tokens else load_tokenizer(require_file("--tokenizer", tokenizer,
                                                          "name a tokenizer"))
    given = {"tokens": digest(added)} if tokens else {
        "tokenizer": digest([new.fingerprint, new.chat_template, new.end_names])}
    lineage = make_lineage(
        stage="extend", config={"extend": {"run": {"model": str(model.resolve())}}},
        inputs={"model": read_lineage(model)["build"]} | given, code=code_digest(__file__))
    partial_folder, result = out.with_name(f"{out.name}.partial"), {"model": str(out)}
    with locks.locked(out):
        if artifacts.find_finished(out, lineage):
            log(f"extend: {out} is up to date")
            return result | {"skipped": True} | read_json(out / "metrics.json")
        with artifacts.opened(partial_folder, lineage):
            old = load_tokenizer(model)
            if new is None:
                new = extend(old, added)
                sources = keep_rows(old, new, added, described.config.V)
            else:
                sources = match_rows(old, new)
            metrics = _write(partial_folder, model, described, new, sources)
        artifacts.finish(partial_folder, out, metrics)
    return result | {"skipped": False} | metrics


def _read_tokens(path: Path) -> list[str]:
    """The lines of a file that are not empty."""
    require_file("--tokens", path, "name a file with a token in each line")
    try:
        return [line for line in path.read_text("utf-8-sig").split("\n") if line]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--tokens={path}", f"is no text in UTF-8 ({first_line(error)})",
                        "name a file with a token in each line") from None


def _write(folder: Path, model: Path, described: Description, tokenizer: Tokenizer,
           sources: Sources) -> dict[str, int]:
    """Writes the model directory and counts its rows."""
    config: ModelConfig = dataclasses.replace(described.config, V=len(sources))
    has_turns = bool(tokenizer.chat_template or tokenizer.turn_tokens)
    if described.chat and not has_turns:
        log("extend: the new tokenizer has no chat template, so this is a chat model no more")
    mesh = make_mesh({"fsdp": -1}) if jax.device_count() > 1 else None
    params = extend_params(load_params(model, described.config, mesh), sources)
    with tempfile.TemporaryDirectory() as temporary:
        own = Path(temporary) / "tokenizer"
        tokenizer.save(own)
        save_model(folder, params, config, own, chat=described.chat and has_turns,
                   context_tokens=described.context_tokens)
    sizes = np.array([len(own) for own in sources])
    return {"tokens": tokenizer.vocab_size, "rows": config.V, "copied": int(np.sum(sizes == 1)),
            "averaged": int(np.sum(sizes > 1)), "without_source": int(np.sum(sizes == 0))}


def main() -> dict[str, Any]:
    """Reads the flags."""
    model, tokens, tokenizer, out = (
        Path(value) if (value := flags.FLAGS[name].value) else None
        for name in ("model", "tokens", "tokenizer", "out"))
    for name, path in (("model", model), ("out", out)):
        if path is None:
            raise UserError(f"--{name}", "is missing", f"name a path: --{name}=PATH")
    if (tokens is None) == (tokenizer is None):
        raise UserError("--tokens and --tokenizer", "exclude each other, and one is needed",
                        "name a file of new tokens, or a tokenizer")
    return extend_model(model, out, tokens=tokens, tokenizer=tokenizer)


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "The model directory.")
    flags.DEFINE_string("tokens", None, "A file with a new token in each line.")
    flags.DEFINE_string("tokenizer", None, "The tokenizer that takes the place of the model's.")
    flags.DEFINE_string("out", None, "The model directory that is written.")
    entry.run(main)
