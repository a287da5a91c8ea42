"""Multiple choice by log-likelihood: the likeliest option is the model's answer.

Options differ in length, and what is done about that decides scores. All of the usual ways are
computed from the same log-probabilities:

    raw      the sum over the option's tokens                     `acc` of lm-eval
    char     the sum per character                                `acc_norm` of lm-eval
    byte     the sum per UTF-8 byte                               `acc_bytes` of lm-eval
    token    the mean over the option's tokens                    DCLM's CORE, llm-foundry
    pmi      the sum less that after a prompt without the         `acc_mutual_info` of lm-eval;
             question                                             arXiv 2104.08315

Characters and bytes are those of the option without the space that divides it from its context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from core.errors import UserError
from core.progress import log
from data.chat import Conversation, ask, render_prompt
from data.tokenizers.tokenizer import Tokenizer
from eval.measures.continuations import Continuation, score_continuations
from eval.respond.loaded import LoadedModel
from eval.respond.local import begin_text, write_plain
from eval.tasks.task import Choice

NORMALISATIONS = ("raw", "char", "byte", "token", "pmi")


@dataclasses.dataclass(frozen=True)
class ChoiceScore:
    """A model's scores of the options of one question.

    Attributes:
        contexts: literal texts before the options: one of all of them, or one of each.
        logps_nats: sum of the log-probabilities of each option's tokens.
        num_tokens, num_chars, num_bytes: of each option.
        is_greedy: of each option, whether its tokens are the likeliest ones, one by one.
        baseline_nats: as `logps_nats`, but after the question's baseline; empty without one.
        answers: indices of the right options, the one that counts first.
        is_cut: whether a context lost its beginning, because it exceeds the model's.
    """

    contexts: tuple[str, ...]
    logps_nats: tuple[float, ...]
    num_tokens: tuple[int, ...]
    num_chars: tuple[int, ...]
    num_bytes: tuple[int, ...]
    is_greedy: tuple[bool, ...]
    baseline_nats: tuple[float, ...]
    answers: tuple[int, ...]
    is_cut: bool = False

    def compared(self, normalisation: str) -> np.ndarray | None:
        """What is compared between options; None where there is no baseline for `pmi`."""
        logps = np.asarray(self.logps_nats)
        if normalisation == "pmi":
            return logps - self.baseline_nats if self.baseline_nats else None
        by = {"char": self.num_chars, "byte": self.num_bytes, "token": self.num_tokens}
        return logps / np.asarray(by[normalisation]) if normalisation in by else logps

    def is_right(self, normalisation: str = "raw") -> bool | None:
        """Whether the right option is the first of those with the largest number; of one option,
        whether the model would have said it."""
        if len(self.logps_nats) == 1:
            return self.is_greedy[0]
        compared = self.compared(normalisation)
        return None if compared is None else int(np.argmax(compared)) in self.answers[:1]


def score_choices(model: LoadedModel, questions: Sequence[Choice], *, batch_tokens: int,
                  examples: Sequence[Conversation] = (),
                  in_turns: bool = False) -> list[ChoiceScore | None]:
    """Scores every option of every question as the continuation of its context.

    Of a question with an option that by itself exceeds the model's context it is None, and a
    warning counts these.

    Args:
        batch_tokens: that are computed at once; changes no score.
        examples: solved, shown to a base model before questions that bring no literal context.
        in_turns: whether a literal context is a user's message and an option the answer to it.
    """
    asked = _ask(model, questions, examples, in_turns)
    fits = [all(len(option.tokens) <= model.context_tokens for option in options)
            for _, options, _ in asked]
    if num_over := len(fits) - sum(fits):
        log(f"warning: {num_over} of {len(fits)} questions are left out: an option by itself "
            f"exceeds the context of {model.name or 'the model'}, {model.context_tokens} tokens")
    flat = [one for (_, options, baselines), is_asked in zip(asked, fits) if is_asked
            for one in (*options, *baselines)]
    scored = iter(score_continuations(model, flat, batch_tokens=batch_tokens))
    found = []
    for question, (contexts, options, baselines), is_asked in zip(questions, asked, fits):
        if not is_asked:
            found.append(None)
            continue
        scores, base = ([next(scored) for _ in group] for group in (options, baselines))
        texts = [choice.removeprefix(" ") for choice in question.choices]
        found.append(ChoiceScore(
            contexts, tuple(score.logp_nats for score in scores),
            tuple(len(option.tokens) for option in options),
            tuple(max(len(text), 1) for text in texts),
            tuple(max(len(text.encode()), 1) for text in texts),
            tuple(score.is_greedy for score in scores),
            tuple(score.logp_nats for score in base),
            (question.answer, *(n for n in question.answers if n != question.answer)),
            any(score.is_cut for score in scores)))
    return found


Asked = tuple[tuple[str, ...], list[Continuation], list[Continuation]]


def _ask(model: LoadedModel, questions: Sequence[Choice], examples: Sequence[Conversation],
         in_turns: bool) -> list[Asked]:
    """Of each question its contexts, its options after them, and these after the baseline."""
    pairs = [(context, choice) for question in questions if question.contexts
             for context, choice in _literal(question)]
    literal = iter(encode_turns(model.tokenizer, pairs) if in_turns else
                   encode_pairs(model.tokenizer, pairs, begin_text(model.tokenizer)))
    asked = []
    for question in questions:
        if question.contexts:
            options = [next(literal) for _ in question.choices]
            contexts = question.contexts if not in_turns else tuple(
                model.tokenizer.decode(option.context)
                for option in options[:len(question.contexts)])
            asked.append((contexts, options, [next(literal) for _ in question.choices]
                          if question.baseline else []))
            continue
        options = _follow(model, question, examples)
        asked.append(((model.tokenizer.decode(options[0].context),), options, []))
    return asked


def _follow(model: LoadedModel, question: Choice,
            examples: Sequence[Conversation]) -> list[Continuation]:
    """The options of a question without contexts of its own, after the model's prompt for it."""
    tokenizer = model.tokenizer
    if model.chat:
        prompt = tuple(render_prompt(question.question, tokenizer))
        return [Continuation(prompt, tuple(tokenizer.encode_continuing(choice)))
                for choice in question.choices]
    begin, text = write_plain(examples, question.question, tokenizer)
    return encode_pairs(tokenizer, [(text, f" {choice}") for choice in question.choices], begin)


def _literal(question: Choice) -> Iterable[tuple[str, str]]:
    """Contexts and options of a question, then the baseline and the options."""
    contexts = question.contexts * (len(question.choices) if len(question.contexts) == 1 else 1)
    yield from zip(contexts, question.choices, strict=True)
    if question.baseline:
        yield from ((question.baseline, choice) for choice in question.choices)


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]],
                 begin: Sequence[int]) -> list[Continuation]:
    """Token ids of contexts and continuations, as they are encoded together.

    Spaces at the end of a context are taken to the continuation, whose tokens they begin. What the
    encodings of the context and of the whole have in common is the context: where a token spans the
    two, it is scored (`_encode_pair` of lm-eval would feed it twice; elsewhere both are equal).

    Args:
        begin: ids before every context.

    Raises:
        UserError: a continuation adds no token to its context.
    """
    moved = [(context.rstrip(" "), context[len(context.rstrip(" ")):] + text)
             for context, text in pairs]
    contexts = list(dict.fromkeys(context for context, _ in moved))
    ids = dict(zip(contexts, tokenizer.encode_batch(contexts)))
    wholes = tokenizer.encode_batch([context + text for context, text in moved])
    made = []
    for (context, text), whole in zip(moved, wholes):
        size = _num_common(ids[context], whole)
        if size == len(whole):
            raise UserError(f"an option {text!r}", "adds no token to its context",
                            "correct its item, or leave it out")
        before = (*begin, *whole[:size]) or (tokenizer.bos,)
        made.append(Continuation(before, tuple(whole[size:])))
    return made


def encode_turns(tokenizer: Tokenizer,
                 pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
    """Token ids of user's messages in the tokenizer's template, and of answers to them.

    Both are stripped of the spaces between them, as lm-evaluation-harness does with a template.

    Raises:
        UserError: an answer has no token.
    """
    messages = list(dict.fromkeys(message for message, _ in pairs))
    prompts = {message: tuple(render_prompt(ask(message.rstrip(" ")), tokenizer))
               for message in messages}
    made = []
    for message, text in pairs:
        tokens = tuple(tokenizer.encode_continuing(text.lstrip(" ")))
        if not tokens:
            raise UserError(f"an option {text!r}", "has no token",
                            "correct its item, or leave it out")
        made.append(Continuation(prompts[message], tokens))
    return made


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    size = min(len(first), len(second))
    return next((n for n in range(size) if first[n] != second[n]), size)
