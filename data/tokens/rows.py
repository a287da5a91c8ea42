"""Token files and the rows that training reads from them.

A token folder holds, per domain, `STEM.tokens` (flat little-endian uint16 or uint32: for each
document the tokenizer's bos, text and end) and `STEM.ends` (little-endian int64: end of each
document), each with checksums, and one `tokens.json`, which lists the domains by name;
`data.domains.file_stem` makes the stem of a name. Rows are cut at load, so one folder serves every
row length. A row is determined by its number, so the state of a loader is one integer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import grain
import jax
import numpy as np

from core.artifacts import read_json
from core.errors import UserError
from data.batch import Batch, stack
from data.domains import file_stem
from data.tokenizers.tokenizer import Tokenizer
from data.tokens.best_fit import open_index
from data.tokens.checked import CheckedArray

NUM_SHOWN_CHARS = 120  # of a line of `show`


class TokenRows:
    """Random access to the rows of one domain, concatenated and cut; a Grain source.

    Args:
        folder: token folder.
        domain: which of its files to read.
        row_length: inputs in a row, L.
        stride: distance of row starts, in inputs; below `row_length` rows overlap, and the overlap
            is context with loss weight 0.
    """

    def __init__(self, folder: Path, domain: str, row_length: int, stride: int | None = None):
        #: All tokens of the domain, memory-mapped and verified on access.
        self.tokens, self._ends = open_tokens(folder, domain)
        self._row_length, self._stride = row_length, stride or row_length
        self._name = f"{folder}/{domain}/{row_length}/{self._stride}"

    def __len__(self) -> int:
        return max(-(-(len(self.tokens) - 1 - self._row_length) // self._stride) + 1, 1)

    def __getitem__(self, index: int) -> Batch:
        start = int(index) * self._stride
        tokens = self.tokens[start:start + self._row_length + 1]
        num_inputs = len(tokens) - 1
        first, last = self._ends.searchsorted((start, start + num_inputs), side="right")
        begins = (self._ends[first:last] - start).tolist()  # of documents, among these tokens
        row = lay_out(tokens[:-1], tokens[1:], [0, *begins], self._row_length)
        for begin in begins:  # the first token of a document has no context
            row.loss_weights_BL[begin - 1] = 0
        if start:
            row.loss_weights_BL[:self._row_length - self._stride] = 0
        return row

    def __repr__(self) -> str:  # Grain compares it on restore
        return f"TokenRows({self._name})"


class BestFitRows:
    """Random access to the rows of one domain, packed by `data.tokens.best_fit`; a Grain source.

    Documents that fit a row are never cut; the rest of a row is padding.

    Args:
        folder: token folder, which is only read.
        domain: which of its files to read.
        row_length: inputs in a row, L.
        stored: folder for the index of rows, made if missing; None holds it in memory.
    """

    def __init__(self, folder: Path, domain: str, row_length: int, stored: Path | None = None):
        #: All tokens of the domain, memory-mapped and verified on access.
        self.tokens, ends = open_tokens(folder, domain)
        self._pieces, self._row_ends = open_index(
            ends, row_length, stored and stored / f"{file_stem(domain)}.best_fit-{row_length}")
        self._row_length = row_length
        self._name = f"{folder}/{domain}/{row_length}"

    def __len__(self) -> int:
        return len(self._row_ends)

    def __getitem__(self, index: int) -> Batch:
        first = self._row_ends[index - 1] if index else 0
        pieces = self._pieces[first:self._row_ends[index]].tolist()
        tokens = np.concatenate([self.tokens[start:start + n] for start, n in pieces])
        targets = np.concatenate([self.tokens[start + 1:start + n + 1] for start, n in pieces])
        begins = itertools.accumulate((n for _, n in pieces[:-1]), initial=0)
        return lay_out(tokens, targets, [*begins], self._row_length)

    def __repr__(self) -> str:
        return f"BestFitRows({self._name})"


#: Packings of documents into rows, by their name in configs: functions of the token folder, the
#: domain, the row length, and a folder for what is derived from the tokens.
PACKINGS = {"concatenate": lambda folder, domain, row_length, stored=None:
            TokenRows(folder, domain, row_length), "best_fit": BestFitRows}


def open_tokens(folder: Path, domain: str) -> tuple[CheckedArray, np.ndarray]:
    """Memory-maps a domain's tokens, verified on access, and the ends of its documents.

    Raises:
        UserError: the folder lacks the domain, or its files are damaged or empty.
    """
    described = read_json(Path(folder) / "tokens.json")
    if domain not in described["domains"]:
        raise UserError(f"domain {domain!r}", f"{folder} holds {sorted(described['domains'])}",
                        "name one of these in the mixture")
    expected = described["domains"][domain]["tokens"]
    path = Path(folder) / f"{file_stem(domain)}.tokens"
    if not expected:
        raise UserError(str(path), "holds no tokens", "leave this domain out of the mixture")
    dtype = np.dtype(described["dtype"]).newbyteorder("<")
    tokens, ends = CheckedArray(path, dtype), CheckedArray(path.with_suffix(".ends"), "<i8")[:]
    if len(tokens) != expected or ends[-1] != expected:
        raise UserError(str(path), f"does not hold {expected} tokens, or {path.stem}.ends does not",
                        "run `python -m data.pack` again")
    return tokens, ends


def check_tokenizer(folder: Path, fingerprint: str, field: str) -> None:
    """Raises `UserError` if a token folder was not made by a model's tokenizer.

    Args:
        fingerprint: of the model's tokenizer.
        field: that names the token folder, for the message.
    """
    own = read_json(Path(folder) / "tokenizer" / "tokenizer.json")["fingerprint"]
    if own != fingerprint:
        raise UserError(f"{field}={str(folder)!r}", f"was made by tokenizer {own}, the model was "
                        f"trained with {fingerprint}", "run `python -m data.pack` with the model's "
                        "tokenizer, or name the tokens that it was trained on")


def lay_out(tokens: np.ndarray, targets: np.ndarray, begins: Sequence[int],
            row_length: int) -> Batch:
    """Makes one row of at most `row_length` inputs, the rest padding; every target weighs 1.

    Args:
        tokens, targets: inputs, and the token after each.
        begins: start of each document among the inputs, the first at 0.
    """
    size = len(tokens)
    row = Batch(*np.zeros((2, row_length), np.int32), np.zeros(row_length, np.float32),
                *np.zeros((2, row_length), np.int32))
    row.tokens_BL[:size] = tokens
    row.targets_BL[:size] = targets
    row.loss_weights_BL[:size] = 1
    for segment, (begin, end) in enumerate(itertools.pairwise([*begins, size]), start=1):
        row.segment_ids_BL[begin:end] = segment
        row.positions_BL[begin:end] = np.arange(end - begin)
    return row


def show(row: Batch, tokenizer: Tokenizer) -> str:
    """Formats a row for inspection: a line per run of one document and one loss weight.

    A line has the positions in the row, the number of the document, the weight, and the targets as
    text.
    """
    columns = list(zip(row.segment_ids_BL.tolist(), row.loss_weights_BL.tolist()))
    lines, place = [], 0
    for (segment, weight), run in itertools.groupby(columns):
        end = place + len(list(run))
        text = repr(tokenizer.decode(row.targets_BL[place:end])) if segment else "(padding)"
        if len(text) > NUM_SHOWN_CHARS:
            half = NUM_SHOWN_CHARS // 2
            text = f"{text[:half]} ... {text[-half:]}"
        lines.append(f"{place:6}-{end - 1:<6} document {segment:<3} weight {weight:<4g} {text}")
        place = end
    return "\n".join(lines)


def first_rows(batched: Sequence[Batch], num: int) -> dict[str, Batch]:
    """The first `num` rows of a source of batches, or all that there are, without their B axis.

    Their names are ``row 1`` and so on.
    """
    rows: list[Batch] = []
    for index in range(len(batched)):
        if len(rows) >= num:
            break
        batch = batched[index]
        rows += [jax.tree.map(lambda leaf, row=row: leaf[row], batch)
                 for row in range(len(batch.tokens_BL))]
    return {f"row {number}": row for number, row in enumerate(rows[:num], start=1)}


def batches(rows: grain.MapDataset, batch_size: int) -> grain.MapDataset:
    """Groups rows into batches; batch i depends on i alone."""
    return rows.batch(batch_size, drop_remainder=True, batch_fn=stack)
