"""Answers of a loaded model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from core.errors import UserError
from core.progress import Progress, log
from data.chat import Conversation, render_prompt
from data.tokenizers.tokenizer import Tokenizer
from eval.respond.kept import key_of
from eval.respond.loaded import LoadedModel
from eval.respond.responder import Prompt, Reply, as_conversation
from model.generation.engine import Engine
from model.generation.requests import (
    DEFAULT_BUDGET,
    LENGTH,
    REFUSED,
    STOP,
    Budget,
    Completion,
    Request,
)
from model.generation.sampling import Sampling
from model.generation.speculative import Speculation

FAULTS = {LENGTH: "truncated", REFUSED: "prompt_too_long"}      # of a `Reply`


def render_plain(examples: Sequence[Conversation], question: Conversation,
                 tokenizer: Tokenizer) -> list[int]:
    """The prompt of a base model; see `write_plain`."""
    begin, text = write_plain(examples, question, tokenizer)
    return [*begin, *tokenizer.encode(text)]


def write_plain(examples: Sequence[Conversation], question: Conversation,
                tokenizer: Tokenizer) -> tuple[tuple[int, ...], str]:
    """What begins the prompt of a base model, and its text: solved examples, then the question.

    A question whose `meta` has a text `prompt` brings its own: that text, byte for byte.
    """
    if isinstance(own := question.meta.get("prompt"), str):
        return begin_text(tokenizer), own
    solved = "".join(map(_write_plain, examples))
    return (tokenizer.bos,), f"{solved}{_write_plain(question)}Answer:"


def begin_text(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What stands before a literal text: <|bos|>, where the model was trained with it."""
    return (tokenizer.bos,) if tokenizer.adds_bos else ()


def _write_plain(conversation: Conversation) -> str:
    forms = {"user": "Question: {}\n", "assistant": "Answer: {}\n\n"}
    return "".join(forms.get(message.role, "{}\n\n").format(message.content)
                   for message in conversation.messages)


def make_prompts(model: LoadedModel, questions: Sequence[Conversation],
                 examples: Sequence[Conversation] = ()) -> list[list[int]]:
    """Prompts of conversations whose last message is the user's.

    A chat model's prompt is the conversation; a base model's is `render_plain` with `examples`, and
    so is any model's where the question brings its own text.
    """
    return [render_prompt(question, model.tokenizer)
            if model.chat and not isinstance(question.meta.get("prompt"), str)
            else render_plain(examples, question, model.tokenizer) for question in questions]


def complete(model: LoadedModel, prompts: Sequence[Sequence[int]], sampling: Sampling, *,
             seed: int, batch_size: int, stop_texts: Sequence[str] = ()) -> list[Completion]:
    """Completes prompts, with the model's stop tokens.

    Each completion depends on seed, prompt and sampling alone; of equal prompts each gets another
    sample. A prompt that exceeds the model's context with its answer is refused if the model chats,
    and otherwise cut at its beginning; both are logged.

    Args:
        batch_size: prompts that are answered at once.
        stop_texts: texts that end an answer, and are no part of it.

    Returns:
        One completion per prompt, in the order of `prompts`.
    """
    num_before: Counter[tuple[int, ...]] = Counter()
    requests = []
    for prompt in map(tuple, prompts):
        requests.append(Request(prompt, sampling, model.tokenizer.stops, tuple(stop_texts), seed,
                                num_before[prompt], "refuse" if model.chat else "cut"))
        num_before[prompt] += 1
    keys = [key_of(repr(dataclasses.replace(request, prompt=(0,))), request.prompt)
            for request in requests]
    found = {key: Completion(**model.answers[key]) for key in keys
             if model.answers is not None and key in model.answers}
    if found:
        model.answers.note_found(len(found), len(keys), "answers")
    unknown = {key: request for key, request in zip(keys, requests) if key not in found}
    found |= _generate(model, unknown, batch_size)
    for word, num in (("refused", sum(one.finish == REFUSED for one in found.values())),
                      ("cut", sum(one.num_cut > 0 for one in found.values()))):
        if num:
            log(f"warning: {num} of {len(prompts)} prompts are {word}: with answers of "
                f"{sampling.max_new_tokens} tokens they exceed the context of "
                f"{model.name or 'the model'}, {model.context_tokens} tokens")
    return [found[key] for key in keys]


def _generate(model: LoadedModel, requests: Mapping[str, Request],
              batch_size: int) -> dict[str, Completion]:
    """Answers requests, by their keys, and keeps what is answered as it comes."""
    if not requests:
        return {}
    longest = max(len(request.prompt) + request.sampling.max_new_tokens
                  for request in requests.values())
    engine = make_engine(model, num_slots=batch_size,
                         capacity=min(_round_up(longest), model.context_tokens))
    key_by_number = {engine.submit(request): key for key, request in requests.items()}
    finished: dict[str, Completion] = {}
    with Progress("answers", len(requests), "answers") as progress:
        while engine.is_running:
            model.between_batches()
            new = {key_by_number[number]: completion
                   for number, completion in engine.step().items() if completion.finish}
            if new and model.answers is not None:
                model.answers.add({key: dataclasses.asdict(completion)
                                   for key, completion in new.items()})
            finished |= new
            progress.update(len(finished))
    return finished


def make_engine(model: LoadedModel, *, num_slots: int, capacity: int,
                budget: Budget = DEFAULT_BUDGET,
                speculation: Speculation | None = None) -> Engine:
    """An engine for a loaded model, whose completions have a text; see `Engine`."""
    return Engine(model.weights, model.config, model.execution, num_slots=num_slots,
                  capacity=capacity, budget=budget, to_text=model.tokenizer.text_of,
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

    def respond(self, prompts: Sequence[Prompt], seed: int,
                keep: Callable[[int, Reply], None] | None = None) -> list[Reply]:
        """Answers in batches; see `Responder`. Replies come when all are there."""
        rendered = make_prompts(self._model, list(map(as_conversation, prompts)))
        completions = complete(self._model, rendered, self._sampling, seed=seed,
                               batch_size=self._batch_size)
        replies = [Reply(completion.text, FAULTS.get(completion.finish, ""),
                         (len(prompt), len(completion.tokens)))
                   for prompt, completion in zip(rendered, completions, strict=True)]
        for number, reply in enumerate(replies if keep is not None else ()):
            keep(number, reply)
        return replies
