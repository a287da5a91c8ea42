"""Gives a model more tokens, or another tokenizer, for pretraining that goes on.

    python -m model.extend --model=runs/smollm2 --tokens=tokens.txt --out=runs/smollm2-more
    python -m model.extend --model=runs/smollm2 --tokenizer=runs/mine/tokenizer --out=runs/moved

`--tokens` names a file with a new token in each line, a space before a word included. All ids stay
as they are, so that a text without new tokens is encoded as before. `--tokenizer` replaces the
tokenizer as a whole.

A row of the embedding, and of the head where it has its own, that the model has a token for is
copied. The row of another token is the mean of those of the tokens into which the model's tokenizer
cuts it (arXiv 2402.09977): in a language model it begins with the meaning of its parts. Tokens that
begin and end documents and turns keep their rows, whatever their names.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from core import artifacts, entry, locks
from core.artifacts import code_digest, make_lineage, read_json, sum_file
from core.errors import UserError, require_file
from core.progress import log
from data.tokenizers.extended import extend
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from model.config import ModelConfig
from model.directory import load_params, read_description, save_model
from model.families.registry import Params

MULTIPLE = 64       # that the number of rows is rounded up to


def list_sources(old: Tokenizer, new: Tokenizer) -> list[list[int]]:
    """The old ids whose rows each new id's row is the mean of; none for an id without text."""
    ours, theirs = list_bytes(old), list_bytes(new)
    by_bytes = {piece: i for i, piece in reversed([*enumerate(ours)])
                if i not in old.special_ids}
    sources: list[list[int]] = []
    roles = {new.special(name): old.special(ours_) for name, ours_ in _pair_specials(old, new)}
    for i, piece in enumerate(theirs):
        if i in roles:
            sources.append([roles[i]])
        elif i in new.special_ids or not piece:
            sources.append([])
        elif i < len(ours) and ours[i] == piece and i not in old.special_ids:
            sources.append([i])
        elif piece in by_bytes:
            sources.append([by_bytes[piece]])
        else:
            sources.append(_cut(old, piece, by_bytes))
    return sources


def list_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The UTF-8 bytes of every token, as within a text."""
    return [*tokenizer.stream([0, *range(tokenizer.vocab_size)])][1:]


def _cut(old: Tokenizer, piece: bytes, by_bytes: Mapping[bytes, int]) -> list[int]:
    """The old tokens that spell a new one; byte by byte where it is no text by itself."""
    try:
        return old.encode_rendered(piece.decode(), "", begins=False)
    except UnicodeDecodeError:
        own = [bytes([byte]) for byte in piece]
        return [by_bytes[byte] for byte in own if byte in by_bytes]


def _pair_specials(old: Tokenizer, new: Tokenizer) -> list[tuple[str, str]]:
    """Special tokens, new and old, that have one name or one role."""
    pairs = {name: name for name in new.specials if name in old.specials}
    by_role = [(new.decode([new.end]), old.decode([old.end])),
               (new.decode([new.bos]), old.decode([old.bos]))]
    return [*pairs.items(), *(pair for pair in by_role if pair[0] not in pairs)]


def grow(params: Params, config: ModelConfig, sources: Sequence[Sequence[int]]) -> \
        tuple[Params, ModelConfig]:
    """Parameters and sizes of the model with the rows of other tokens.

    Args:
        sources: see `list_sources`; the row of an id without sources, and of the ids beyond them,
            is the mean of all rows.
    """
    num_rows = -(-max(len(sources), 1) // MULTIPLE) * MULTIPLE
    mean = list(range(config.V))
    places, counts = [], np.zeros(num_rows, np.int64)
    for i in range(num_rows):
        own = sources[i] if i < len(sources) and sources[i] else mean
        places.append(own)
        counts[i] = len(own)
    owners = jnp.asarray(np.repeat(np.arange(num_rows), counts))
    taken = jnp.asarray(np.concatenate([np.asarray(own, np.int64) for own in places]))

    @jax.jit
    def mean_rows(table_VX: jax.Array) -> jax.Array:
        sums = jax.ops.segment_sum(table_VX.astype(jnp.float32)[taken], owners, num_rows)
        return (sums / jnp.asarray(counts)[:, None]).astype(table_VX.dtype)

    def grow_array(path: Any, array: jax.Array) -> jax.Array:
        axes = path[-1].key.rpartition("_")[2]
        if "V" not in axes:
            return array
        axis = len(axes) - 1 - axes.rindex("V")     # from the end: layers may stand in front
        moved = jnp.moveaxis(array, -1 - axis, 0)
        grown = mean_rows(moved.reshape(len(moved), -1)).reshape(num_rows, *moved.shape[1:])
        return jnp.moveaxis(grown, 0, -1 - axis)

    return (jax.tree_util.tree_map_with_path(grow_array, params),
            dataclasses.replace(config, V=num_rows))


def extend_model(source: Path, out: Path, *, tokens: Path | None = None,
                 tokenizer: Path | None = None) -> dict[str, Any]:
    """Writes a model directory with more tokens, or with another tokenizer.

    Raises:
        UserError: `source` is no model directory, or the tokens cannot be added.
    """
    given = tokens or tokenizer
    require_file("--tokens" if tokens else "--tokenizer", given, "name an existing path")
    described = read_description(source)
    lineage = make_lineage(
        stage="extend", config={"extend": {"run": {"source": str(source.resolve())}}},
        inputs={"model": artifacts.read_lineage(source)["fingerprint"],
                given.name: sum_file(tokens) if tokens else load_tokenizer(tokenizer).fingerprint},
        code=code_digest(__file__))
    partial_folder = out.with_name(f"{out.name}.partial")
    with locks.locked(out):
        if artifacts.find_finished(out, lineage):
            log(f"extend: {out} is up to date")
            return {"model": str(out), "skipped": True} | read_json(out / "metrics.json")
        old = load_tokenizer(source)
        new = load_tokenizer(tokenizer) if tokenizer else extend(old, _read_tokens(tokens))
        sources = list_sources(old, new)
        with artifacts.opened(partial_folder, lineage), \
                tempfile.TemporaryDirectory() as temporary:
            new.save(Path(temporary) / "tokenizer")
            params, config = grow(load_params(source, described.config), described.config, sources)
            save_model(partial_folder, params, config, Path(temporary) / "tokenizer",
                       chat=described.chat, context_tokens=described.context_tokens)
        sizes = np.array(list(map(len, sources)))
        metrics = {"tokens": new.vocab_size, "rows": config.V, "copied": int((sizes == 1).sum()),
                   "means": int((sizes > 1).sum()), "without_source": int((sizes == 0).sum()),
                   "fingerprint": new.fingerprint}
        artifacts.finish(partial_folder, out, metrics)
    return {"model": str(out), "skipped": False} | metrics


def _read_tokens(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line]
    except UnicodeDecodeError:
        raise UserError(str(path), "is no UTF-8 text", "write a token in each line") from None


def main() -> dict[str, Any]:
    """Reads the flags."""
    values = flags.FLAGS
    for name, example in (("model", "runs/smollm2"), ("out", "runs/more")):
        if not getattr(values, name):
            raise UserError(f"--{name}", "is missing", f"try --{name}={example}")
    if bool(values.tokens) == bool(values.tokenizer):
        raise UserError("--tokens and --tokenizer", "exclude each other, and one is needed",
                        "name a file of new tokens, or a tokenizer")
    return extend_model(Path(values.model), Path(values.out),
                        tokens=Path(values.tokens) if values.tokens else None,
                        tokenizer=Path(values.tokenizer) if values.tokenizer else None)


if __name__ == "__main__":
    flags.DEFINE_string("model", "", "The model directory.")
    flags.DEFINE_string("tokens", "", "A file with a new token in each line.")
    flags.DEFINE_string("tokenizer", "", "The tokenizer that takes the place of the model's.")
    flags.DEFINE_string("out", "", "The model directory that is written.")
    entry.run(main)
