"""Answers of a model to conversations, in words; batched, in few compiled shapes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from core.progress import Progress
from data.chat import Conversation, render_prompt
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.families.decoder import Params
from model.generation.generate import Sampling, generate

PROMPT_BUCKET = 32  # prompts are padded to a multiple of this, so that few shapes are compiled


def render_plain(examples: Sequence[Conversation], question: Conversation,
                 tokenizer: Tokenizer) -> list[int]:
    """The prompt of a base model: solved examples in plain text, then the question."""
    solved = [f"Question: {c.messages[0].content}\nAnswer: {c.messages[1].content}\n\n"
              for c in examples]
    asked = f"Question: {question.messages[0].content}\nAnswer:"
    return [tokenizer.bos, *tokenizer.encode("".join(solved) + asked)]


def make_prompts(questions: Sequence[Conversation], tokenizer: Tokenizer, *, chat: bool,
                 examples: Sequence[Conversation] = ()) -> list[list[int]]:
    """Prompts of conversations whose last message is the user's.

    Args:
        chat: whether the model answers in turns; otherwise `render_plain` with `examples`.
    """
    if chat:
        return [render_prompt(question, tokenizer) for question in questions]
    return [render_plain(examples, question, tokenizer) for question in questions]


def complete(params: Params, config: ModelConfig, tokenizer: Tokenizer,
             prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int,
             batch_size: int) -> list[str]:
    """Completes prompts; the stop token is cut off.

    Prompts of similar length share a batch. The last batch is filled with repeats, so every
    batch of one length bucket has one shape.

    Returns:
        One completion per prompt, in the order of `prompts`.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions = [""] * len(prompts)
    with Progress("answers", len(prompts), "answers") as progress:
        for first in range(0, len(order), batch_size):
            picked = order[first:first + batch_size]
            filled = picked + [picked[-1]] * (batch_size - len(picked))
            longest = len(prompts[picked[-1]])
            width = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
            prompts_BL = np.zeros((batch_size, width), np.int32)
            for row, i in enumerate(filled):
                prompts_BL[row, :len(prompts[i])] = prompts[i]
            lengths_B = np.array([len(prompts[i]) for i in filled], np.int32)
            key = jax.random.fold_in(jax.random.key(seed), first)
            new_BL, count_B = jax.device_get(generate(
                params, prompts_BL, lengths_B, key, config=config, sampling=sampling,
                stop=tokenizer.end))
            for row, i in enumerate(picked):
                ids = new_BL[row, :count_B[row]]
                completions[i] = tokenizer.decode(ids[ids != tokenizer.end])
            progress.update(min(first + batch_size, len(order)))
    return completions


def answer(params: Params, config: ModelConfig, tokenizer: Tokenizer,
           questions: Sequence[Conversation], sampling: Sampling, *, chat: bool, seed: int,
           batch_size: int, examples: Sequence[Conversation] = ()) -> list[str]:
    """Answers conversations. A base model's answer is its first line."""
    prompts = make_prompts(questions, tokenizer, chat=chat, examples=examples)
    completions = complete(params, config, tokenizer, prompts, sampling, seed=seed,
                           batch_size=batch_size)
    if chat:
        return completions
    return [completion.strip().partition("\n")[0] for completion in completions]
