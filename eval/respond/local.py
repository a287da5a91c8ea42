"""Answers of a loaded model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from core.errors import UserError
from core.progress import Progress, log
from data.chat import Conversation, ask, render_prompt
from data.tokenizers.tokenizer import Tokenizer
from eval.respond.loaded import LoadedModel
from eval.respond.responder import Reply
from model.generation.engine import Engine
from model.generation.requests import LENGTH, REFUSED, STOP, Completion, Request
from model.generation.sampling import Sampling
from model.generation.speculative import Speculation

FAULTS = {LENGTH: "truncated", REFUSED: "prompt_too_long"}      # of a `Reply`


def render_plain(examples: Sequence[Conversation], question: Conversation,
                 tokenizer: Tokenizer) -> list[int]:
    """The prompt of a base model: solved examples in plain text, then the question.

    A question whose `meta` has a text `prompt` brings its own: that text, byte for byte.
    """
    if isinstance(own := question.meta.get("prompt"), str):
        return [tokenizer.bos, *tokenizer.encode(own)]
    solved = "".join(map(_write_plain, examples))
    return [tokenizer.bos, *tokenizer.encode(f"{solved}{_write_plain(question)}Answer:")]


def _write_plain(conversation: Conversation) -> str:
    forms = {"user": "Question: {}\n", "assistant": "Answer: {}\n\n"}
    return "".join(forms.get(message.role, "{}\n\n").format(message.content)
                   for message in conversation.messages)


def make_prompts(model: LoadedModel, questions: Sequence[Conversation],
                 examples: Sequence[Conversation] = ()) -> list[list[int]]:
    """Prompts of conversations whose last message is the user's.

    A chat model's prompt is the conversation; a base model's is `render_plain` with `examples`.
    """
    if model.chat:
        return [render_prompt(question, model.tokenizer) for question in questions]
    return [render_plain(examples, question, model.tokenizer) for question in questions]


def complete(model: LoadedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, *,
             seed: int, batch_size: int) -> list[Completion]:
    """Completes prompts, with the model's stop tokens.

    Each completion depends on seed, prompt and sampling alone; of equal prompts each gets another
    sample. A prompt that exceeds the model's context with its answer is refused if the model chats,
    and otherwise cut at its beginning; both are logged.

    Args:
        batch_size: prompts that are answered at once.

    Returns:
        One completion per prompt, in the order of `prompts`.
    """
    overlong = "refuse" if model.chat else "cut"
    longest = max(map(len, prompts), default=0) + sampling.max_new_tokens
    engine = make_engine(model, num_slots=batch_size,
                         capacity=min(_round_up(longest), model.context_tokens))
    num_before: Counter[tuple[int, ...]] = Counter()
    numbers = []
    for prompt in map(tuple, prompts):
        numbers.append(engine.submit(Request(
            prompt, sampling, model.tokenizer.stops, seed=seed, sample=num_before[prompt],
            overlong=overlong)))
        num_before[prompt] += 1
    finished: dict[int, Completion] = {}
    with Progress("answers", len(prompts), "answers") as progress:
        while engine.is_running:
            model.between_batches()
            finished |= {number: completion for number, completion in engine.step().items()
                         if completion.finish}
            progress.update(len(finished))
    for word in ("refused", "cut"):
        if num := engine.counts[word]:
            log(f"warning: {num} of {len(prompts)} prompts are {word}: with answers of "
                f"{sampling.max_new_tokens} tokens they exceed the context of "
                f"{model.name or 'the model'}, {model.context_tokens} tokens")
    return [finished[number] for number in numbers]


def make_engine(model: LoadedModel, *, num_slots: int, capacity: int,
                chunk_tokens: int = 16, speculation: Speculation | None = None) -> Engine:
    """An engine for a loaded model, whose completions have a text; see `Engine`."""
    return Engine(model.weights, model.config, model.execution, num_slots=num_slots,
                  capacity=capacity, chunk_tokens=chunk_tokens, to_text=model.tokenizer.text_of,
                  speculation=speculation)


def _round_up(num_tokens: int) -> int:
    """The next power of two, so that few shapes are compiled."""
    return 1 << (num_tokens - 1).bit_length()


def answer(model: LoadedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seed: int,
           batch_size: int) -> list[Completion]:
    """Answers prompts of `make_prompts`.

    A base model's answer is the first line of its text; one that has a further line is complete.
    """
    completions = complete(model, prompts, sampling, seed=seed, batch_size=batch_size)
    if model.chat:
        return completions
    answers = []
    for completion in completions:
        line, newline, _ = (completion.text or "").strip().partition("\n")
        answers.append(dataclasses.replace(
            completion, text=line, finish=STOP if newline else completion.finish))
    return answers


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
        rendered = make_prompts(self._model, [ask(prompt) for prompt in prompts])
        completions = complete(self._model, rendered, self._sampling, seed=seed,
                               batch_size=self._batch_size)
        return [Reply(completion.text, FAULTS.get(completion.finish, ""))
                for completion in completions]
