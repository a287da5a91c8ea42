"""Answers as a reward model reads them: conversations up to the end of the last answer.

Nothing is shifted, since nothing is predicted: the token that ends the answer is an input, and the
last one. What is real in a row is carried as segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from core.errors import UserError
from data.chat import Conversation, render
from data.tokenizers.tokenizer import Tokenizer


class Answer(NamedTuple):
    """A rendered conversation that ends with an answer.

    Attributes:
        tokens: ids, up to the token that ends the answer.
        start: place of the answer's first token.
    """

    tokens: list[int]
    start: int


def render_answer(conversation: Conversation, tokenizer: Tokenizer, *, is_encoder: bool = False,
                  is_cut: bool = False) -> Answer:
    """Renders a conversation up to the end of its last answer.

    The chat that is scored is the chat that is taught, `data.chat.render`; what a template writes
    behind the answer's end is left out. An encoder whose tokenizer knows no turns reads the prompt
    and the answer between its own special tokens, as [CLS] prompt [SEP] answer [SEP]
    (arXiv 1810.04805, section 3.2); several messages of a prompt are lines with their roles.

    Args:
        is_cut: whether the answer ended at a limit; then no token ends it.

    Raises:
        UserError: the last message is no answer, or the template refuses the conversation.
    """
    *prompt, last = conversation.messages
    if last.role != "assistant" or not last.content:
        raise UserError("the last message", "is no answer of the assistant",
                        "give conversations that end with one")
    if is_encoder and not (tokenizer.turn_tokens or tokenizer.chat_template):
        texts = [message.content if len(prompt) == 1 else f"{message.role}: {message.content}"
                 for message in prompt]
        tokens = [tokenizer.bos, *tokenizer.encode("\n".join(texts)), tokenizer.end]
        end = [] if is_cut else [tokenizer.end]
        return Answer([*tokens, *tokenizer.encode(last.content), *end], len(tokens))
    tokens, weights = render(conversation, tokenizer, is_cut=is_cut)
    is_answer = np.asarray(weights) > 0
    end = int(np.flatnonzero(is_answer)[-1]) + 1
    return Answer(tokens[:end], int(np.flatnonzero(~is_answer[:end])[-1]) + 1)


def cut_prompt(answers: Sequence[Answer], length: int) -> list[Answer] | None:
    """Answers to one prompt without the oldest part of it, so that the longest has `length` tokens.

    All keep the same part of the prompt, so that its length says nothing about an answer, and the
    first token, which begins every text.

    Returns:
        The answers; None if one leaves no room for a token of the prompt beside the first.
    """
    room = length - max(len(tokens) - start for tokens, start in answers)
    if room < 2:
        return None
    return [answer if answer.start <= room else
            Answer([answer.tokens[0], *answer.tokens[answer.start - room + 1:]], room)
            for answer in answers]


def lay_out_answers(texts: Sequence[Sequence[int]],
                    length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of one text each, the rest of them padding.

    Args:
        texts: token ids, none more than `length`; an empty one gives a row of padding.

    Returns:
        tokens_BL, positions_BL and segment_ids_BL, int32; a segment is 1, and 0 at padding.
    """
    tokens_BL, positions_BL, segment_ids_BL = np.zeros((3, len(texts), length), np.int32)
    for row, text in enumerate(texts):
        tokens_BL[row, :len(text)] = text
        positions_BL[row, :len(text)] = np.arange(len(text))
        segment_ids_BL[row, :len(text)] = 1
    return tokens_BL, positions_BL, segment_ids_BL
