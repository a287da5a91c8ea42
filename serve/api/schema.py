"""What the endpoints are asked: bodies of requests, parsed and checked."""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Mapping
from typing import Any

from core.errors import UserError
from data.chat import Conversation, make_conversation
from model.generation.requests import NUM_TOP
from serve.api.tools import Tools, check_object, order_results, parse_calls, parse_tools
from serve.web.errors import WebError, wrong
from serve.web.fields import MAX_INT64, Fields, check_text

MAX_CHOICES, MAX_STOPS, MAX_INPUTS, MAX_MESSAGES = 128, 16, 2048, 2048
MAX_COMPLETION_TOP = 5
MAX_NEW_TOKENS = 2**31 - 1
DEFAULT_COMPLETION_TOKENS = 16
# Values of OpenAI's fields that change nothing here; any other value of theirs is refused.
NEUTRAL = {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "store": False,
           "best_of": 1}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the answers to a prompt are drawn and sent.

    Attributes:
        draws: fields of `Sampling`, its limit aside.
        max_tokens: longest answer; None is what the context leaves, 0 draws nothing.
        num_choices: answers to each prompt.
        stop_texts: texts that end an answer.
        with_logps: whether log-probabilities are sent.
        num_top: likeliest tokens that are sent in each place.
        constraint: kind and text of a grammar that answers follow; see `serve.api.grammar`.
        stream: whether pieces are sent as they come; `with_usage`: and counts after them;
            `with_usage_so_far`: and in each of them.
    """

    draws: Mapping[str, Any]
    max_tokens: int | None
    num_choices: int
    seed: int
    stop_texts: tuple[str, ...]
    with_logps: bool
    num_top: int
    constraint: tuple[str, str] | None
    stream: bool
    with_usage: bool
    with_usage_so_far: bool


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """The body of `/v1/chat/completions`."""

    model: str
    conversation: Conversation
    tools: Tools
    settings: Settings


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """The body of `/v1/completions`; a prompt is a text or tokens."""

    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool
    settings: Settings


@dataclasses.dataclass(frozen=True)
class EmbeddingRequest:
    """The body of `/v1/embeddings`; an input is a text or tokens."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    encoding: str


def parse_chat(body: Mapping[str, Any]) -> ChatRequest:
    """Parses a request for chat completions; raises `WebError`."""
    fields = Fields(body)
    model, conversation = fields.text("model"), _parse_messages(fields.take("messages"))
    with_logps = fields.boolean("logprobs")
    num_top = fields.whole("top_logprobs", 0, 0, NUM_TOP)
    if num_top and not with_logps:
        raise wrong("top_logprobs", "needs logprobs to be true")
    limits = [fields.whole(name, None, 1, MAX_NEW_TOKENS)
              for name in ("max_completion_tokens", "max_tokens")]
    if None not in limits and limits[0] != limits[1]:
        raise wrong("max_tokens", "differs from max_completion_tokens")
    tools = parse_tools(fields)
    settings = _parse_settings(fields, max_tokens=next((n for n in limits if n is not None), None),
                               with_logps=with_logps, num_top=num_top)
    if tools.forced and settings.constraint is not None:
        raise wrong("tool_choice", "and a form of the answer cannot both be followed")
    return ChatRequest(model, conversation, tools, settings)


def parse_completion(body: Mapping[str, Any]) -> CompletionRequest:
    """Parses a request for completions; raises `WebError`."""
    fields = Fields(body)
    model, prompts = fields.text("model"), _parse_inputs("prompt", fields.take("prompt"))
    num_top = fields.whole("logprobs", None, 0, MAX_COMPLETION_TOP)
    max_tokens = fields.whole("max_tokens", DEFAULT_COMPLETION_TOKENS, 0, MAX_NEW_TOKENS)
    echo = fields.boolean("echo")
    if not max_tokens and not echo:
        raise wrong("max_tokens", "must be at least 1 where the prompt is not echoed")
    settings = _parse_settings(fields, max_tokens=max_tokens, with_logps=num_top is not None,
                               num_top=num_top or 0)
    return CompletionRequest(model, prompts, echo, settings)


def parse_embedding(body: Mapping[str, Any]) -> EmbeddingRequest:
    """Parses a request for embeddings; raises `WebError`."""
    fields = Fields(body)
    model, inputs = fields.text("model"), _parse_inputs("input", fields.take("input"))
    encoding = fields.one_of("encoding_format", "float", ("float", "base64"))
    fields.text("user", "")
    fields.end()
    return EmbeddingRequest(model, inputs, encoding)


def _parse_settings(fields: Fields, *, max_tokens: int | None, with_logps: bool,
                    num_top: int) -> Settings:
    """Reads what both kinds of completions have in common; no other field may be left."""
    draws = {"temperature": fields.number("temperature", 1, 0, 100),
             "top_p": fields.number("top_p", 1, 0, 1), "min_p": fields.number("min_p", 0, 0, 1),
             "top_k": fields.whole("top_k", 0, 0, 2**31 - 1),
             "repetition_penalty": fields.number("repetition_penalty", 1, 0, 1000)}
    seed = fields.whole("seed", None, -MAX_INT64 - 1)
    stream, options = fields.boolean("stream"), fields.take("stream_options")
    if options is not None and not stream:
        raise wrong("stream_options", "needs stream to be true")
    settings = Settings(
        draws, max_tokens, fields.whole("n", 1, 1, MAX_CHOICES),
        secrets.randbits(32) if seed is None else seed, _parse_stops(fields.take("stop")),
        with_logps, num_top, _parse_constraint(fields), stream, *_parse_options(options))
    fields.text("user", "")     # names the caller's user, and changes no answer
    fields.neutral(NEUTRAL)
    fields.end()
    return settings


def _parse_options(options: Any) -> tuple[bool, bool]:
    if options is None:
        return False, False
    fields = Fields(check_object("stream_options", options), "stream_options.")
    with_usage, so_far = fields.boolean("include_usage"), fields.boolean("continuous_usage_stats")
    fields.end()
    if so_far and not with_usage:
        raise wrong("stream_options.continuous_usage_stats", "needs include_usage to be true")
    return with_usage, so_far


def _parse_stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise wrong("stop", f"must be a text or a list of at most {MAX_STOPS} texts")
    if not all(check_text("stop", stop) for stop in stops):
        raise wrong("stop", "holds an empty text, which would end every answer")
    return tuple(stops)


def _parse_constraint(fields: Fields) -> tuple[str, str] | None:
    """The grammar of `response_format` or `guided_regex`."""
    form, regex = fields.take("response_format"), fields.text("guided_regex", "")
    if form is None:
        return ("regex", regex) if regex else None
    inner = Fields(check_object("response_format", form), "response_format.")
    kind = inner.one_of("type", "", ("text", "json_object", "json_schema"))
    schema = inner.take("json_schema") if kind == "json_schema" else None
    inner.end()
    if kind == "text":
        return ("regex", regex) if regex else None
    if regex:
        raise wrong("guided_regex", "and response_format cannot both be followed")
    if kind == "json_object":
        return "json", '{"type": "object"}'
    described = Fields(check_object("response_format.json_schema", schema),
                       "response_format.json_schema.")
    text = json.dumps(check_object("response_format.json_schema.schema", described.take("schema")))
    described.text("name", "")
    described.text("description", "")
    described.boolean("strict")     # it always is
    described.end()
    return "json", text


def _parse_messages(value: Any) -> Conversation:
    if not isinstance(value, list) or len(value) > MAX_MESSAGES:
        raise wrong("messages", f"must be a list of at most {MAX_MESSAGES} messages")
    messages = []
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        fields = Fields(check_object(where, message), f"{where}.")
        role, content = fields.text("role"), _join(where, fields.take("content"))
        calls = parse_calls(f"{where}.tool_calls", fields.take("tool_calls")) \
            if role == "assistant" else []
        number = fields.text("tool_call_id") if role == "tool" else ""
        fields.end()
        messages.append({"role": "system" if role == "developer" else role, "content": content,
                         "tool_calls": calls, "tool_call_id": number})
    messages = order_results(messages)
    try:
        made = make_conversation(messages)
    except UserError as error:
        raise WebError(400, str(error), param="messages", code="invalid_value") from None
    return Conversation(tuple(
        dataclasses.replace(one, tool_call_id=message["tool_call_id"])
        for one, message in zip(made.messages, messages, strict=True)))


def _join(where: str, content: Any) -> str | None:
    """The text of a message's content, which may come in parts."""
    if not isinstance(content, list):
        return None if content is None else check_text(f"{where}.content", content)
    texts = []
    for index, part in enumerate(content):
        place = f"{where}.content[{index}]"
        fields = Fields(check_object(place, part), f"{place}.")
        fields.one_of("type", "", ("text",))
        texts.append(fields.text("text"))
        fields.end()
    return "".join(texts)


def _parse_inputs(name: str, value: Any) -> tuple[str | tuple[int, ...], ...]:
    """Texts or lists of tokens, or one of them."""
    if isinstance(value, str) or (isinstance(value, list) and value and _is_token(value[0])):
        value = [value]
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_INPUTS:
        raise wrong(name, "must be a text, a list of tokens, or a list of at most "
                    f"{MAX_INPUTS} of these")
    inputs = []
    for one in value:
        if isinstance(one, list):
            if not one or not all(map(_is_token, one)):
                raise wrong(name, "has a list that holds something else than tokens")
            inputs.append(tuple(one))
        else:
            inputs.append(check_text(name, one))
    return tuple(inputs)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
