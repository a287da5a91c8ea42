"""Batched answers of a loaded model, with few compiled shapes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from core.errors import UserError
from core.progress import Progress
from data.chat import Conversation, ask, render_prompt
from data.tokenizers.tokenizer import Tokenizer
from eval.respond.loaded import LoadedModel, warn_beyond_context
from eval.respond.responder import Reply
from model.generation.generate import generate
from model.generation.sampling import Sampling

PROMPT_BUCKET = 32  # prompts are padded to a multiple of this, so that few shapes are compiled


def render_plain(examples: Sequence[Conversation], question: Conversation,
                 tokenizer: Tokenizer) -> list[int]:
    """The prompt of a base model: solved examples in plain text, then the question."""
    solved = [f"Question: {c.messages[0].content}\nAnswer: {c.messages[1].content}\n\n"
              for c in examples]
    asked = f"Question: {question.messages[0].content}\nAnswer:"
    return [tokenizer.bos, *tokenizer.encode("".join(solved) + asked)]


def make_prompts(model: LoadedModel, questions: Sequence[Conversation],
                 examples: Sequence[Conversation] = ()) -> list[list[int]]:
    """Prompts of conversations whose last message is the user's.

    A chat model's prompt is the conversation; a base model's is `render_plain` with `examples`.
    """
    if model.chat:
        return [render_prompt(question, model.tokenizer) for question in questions]
    return [render_plain(examples, question, model.tokenizer) for question in questions]


def complete(model: LoadedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, *,
             seed: int, batch_size: int) -> list[str]:
    """Completes prompts; the stop token is cut off.

    Prompts of similar length share a batch. The last batch is padded with repeats, so every
    batch of one length bucket has one shape. Each prompt has its own PRNG key, by its index in
    `prompts`, so that samples do not depend on `batch_size`.

    Returns:
        One completion per prompt, in the order of `prompts`.
    """
    warn_beyond_context(model, "prompts with their answers",
                        [len(prompt) + sampling.max_new_tokens for prompt in prompts])
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    completions = [""] * len(prompts)
    make_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    with Progress("answers", len(prompts), "answers") as progress:
        for first in range(0, len(order), batch_size):
            model.between_batches()
            picked = order[first:first + batch_size]
            filled = picked + [picked[-1]] * (batch_size - len(picked))
            longest = len(prompts[picked[-1]])
            width = -(-longest // PROMPT_BUCKET) * PROMPT_BUCKET
            prompts_BL = np.zeros((batch_size, width), np.int32)
            for row, i in enumerate(filled):
                prompts_BL[row, :len(prompts[i])] = prompts[i]
            lengths_B = np.array([len(prompts[i]) for i in filled], np.int32)
            keys_B = make_keys(jax.random.key(seed), np.array(filled))
            new_BL, count_B = jax.device_get(generate(
                model.params, prompts_BL, lengths_B, keys_B, config=model.config,
                execution=model.execution, sampling=sampling, stops=model.tokenizer.stops))
            for row, i in enumerate(picked):
                ids = new_BL[row, :count_B[row]]
                completions[i] = model.tokenizer.decode(ids[~np.isin(ids, model.tokenizer.stops)])
            progress.update(min(first + batch_size, len(order)))
    return completions


def answer(model: LoadedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int,
           batch_size: int) -> list[str]:
    """Answers prompts of `make_prompts`. A base model's answer is its first line."""
    completions = complete(model, prompts, sampling, seed=seed, batch_size=batch_size)
    if model.chat:
        return completions
    return [completion.strip().partition("\n")[0] for completion in completions]


class LocalResponder:
    """A `Responder` by a loaded chat model.

    Raises:
        UserError: it is a base model.
    """

    def __init__(self, model: LoadedModel, sampling: Sampling, batch_size: int):
        if not model.chat:
            raise UserError(model.name, "is a base model, which follows no instruction",
                            "name a model that sft or dpo wrote")
        self._model, self._sampling, self._batch_size = model, sampling, batch_size
        self.name = model.name

    def respond(self, prompts: Sequence[str], seed: int) -> list[Reply]:
        """Answers in batches; see `Responder`."""
        room = self._model.context_tokens - self._sampling.max_new_tokens
        rendered = make_prompts(self._model, [ask(prompt) for prompt in prompts])
        fitting = [at for at, prompt in enumerate(rendered) if len(prompt) <= room]
        texts = complete(self._model, [rendered[at] for at in fitting], self._sampling, seed=seed,
                         batch_size=self._batch_size)
        replies = [Reply("", "prompt_too_long")] * len(prompts)
        for at, text in zip(fitting, texts):
            num_tokens = len(self._model.tokenizer.encode(text))
            is_cut = num_tokens >= self._sampling.max_new_tokens
            replies[at] = Reply(text, "truncated" if is_cut else "")
        return replies
