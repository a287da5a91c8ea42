"""Windows of a document: which of its tokens are scored in which window, after how much context.

A text longer than a model's context is scored piece by piece, and the rule by which it is cut
changes the figure: GPT-2 large has a perplexity of 19.44 on WikiText-2 without overlap and 16.44
with windows that advance by half. Every measure therefore names its rule:

    disjoint    windows of L inputs side by side; the last ends with the document and begins
                earlier, so that its tokens have more context (the rolling windows of
                EleutherAI/lm-evaluation-harness@4e7e0d4, lm_eval/utils.py, with context_len 1)
    strided     windows of L tokens, their last target included, that advance by a stride; what an
                earlier window has scored is context (the guide to perplexity of
                huggingface/transformers@052b1dc, which weights the mean of every window but the
                first by one token too few; here every token weighs the same)
    half        windows of L inputs that advance by half of L: as `eval.measures.likelihood` cuts
                rows, but from the start of each document

Windows never span two documents, and each token after the first of a sequence is scored exactly
once. The first is the tokenizer's `bos`, or, without it, the text's own first token, which then has
no context and is not scored.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from core.errors import UserError

RULES = ("disjoint", "strided", "half")


class Window(NamedTuple):
    """A piece of a sequence of tokens.

    The inputs are the tokens from `start` to before `stop - 1`, and their targets those from
    `start + 1` to before `stop`, of which those from `first` on are scored.
    """

    start: int
    first: int
    stop: int

    @property
    def num_inputs(self) -> int:
        """Tokens that the model reads."""
        return self.stop - self.start - 1

    @property
    def num_scored(self) -> int:
        """Targets that are scored here."""
        return self.stop - self.first


@dataclasses.dataclass(frozen=True)
class WindowRule:
    """How documents are cut into windows.

    Attributes:
        window_tokens: size of a window, L, at most the model's context.
        name: one of `RULES`.
        stride: of `strided`, how many tokens a window advances, from 1 to L - 1.
        bos: whether the tokenizer's `bos` is put before each document.

    Raises:
        UserError: there is no such rule, or a size is impossible.
    """

    window_tokens: int
    name: str = "disjoint"
    stride: int = 0
    bos: bool = True

    def __post_init__(self):
        if self.name not in RULES:
            raise UserError(f"rule={self.name!r}", f"is none of {', '.join(RULES)}",
                            "choose one of them")
        smallest = 1 + (self.name == "strided")
        if self.window_tokens < smallest:
            raise UserError(f"window_tokens={self.window_tokens}",
                            f"is too small for {self.name} windows",
                            f"set it to {smallest} or more, or to 0 for the model's context")
        if self.name != "strided" and self.stride:
            raise UserError(f"stride={self.stride}", f"is not part of the rule {self.name}",
                            "leave it out, or choose the rule strided")
        if self.name == "strided" and not 0 < self.stride < self.window_tokens:
            raise UserError(f"stride={self.stride}",
                            f"is not from 1 to {self.window_tokens - 1}: windows of "
                            f"{self.window_tokens} tokens would leave tokens without a score",
                            "set a stride below the size of the windows")

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride else ""
        return (f"{self.name}, windows of {self.window_tokens} tokens{stride}, "
                f"{'with' if self.bos else 'without'} BOS")

    def cut(self, num_tokens: int) -> Iterator[Window]:
        """The windows of a sequence, `bos` included; none where it has no second token."""
        if self.name == "strided":
            return _advance(num_tokens, self.window_tokens, self.stride)
        width = self.window_tokens + 1      # the last target is no input
        if self.name == "half":
            return _advance(num_tokens, width, max(self.window_tokens // 2, 1))
        return (Window(min(start, max(first_of_last, 0)), start + 1,
                       min(start + width, num_tokens))
                for first_of_last in (num_tokens - width,)
                for start in range(0, num_tokens - 1, self.window_tokens))


def _advance(num_tokens: int, width: int, stride: int) -> Iterator[Window]:
    """Windows of up to `width` tokens whose starts are `stride` apart."""
    first = 1
    for start in itertools.count(0, stride):
        stop = min(start + width, num_tokens)
        if first < stop:
            yield Window(start, first, stop)
        if stop == num_tokens:
            return
        first = stop
