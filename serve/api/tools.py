"""What requests say of tools: those that are offered, calls of earlier answers, and their results.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data.chat import Conversation
from serve.web.errors import wrong
from serve.web.fields import Fields

NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")      # of a tool, as OpenAI has it
MAX_TOOLS = 128


@dataclasses.dataclass(frozen=True)
class Tools:
    """Tools of a request.

    Attributes:
        offered: those that the model is shown, as OpenAI writes them.
        forced: those of which one must be called; none where the model chooses.
        is_parallel: whether an answer may have several calls.
    """

    offered: tuple[Mapping[str, Any], ...] = ()
    forced: tuple[Mapping[str, Any], ...] = ()
    is_parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        """Names of the tools that may be called."""
        return frozenset(tool["function"]["name"] for tool in self.forced or self.offered)


def parse_tools(fields: Fields) -> Tools:
    """Reads `tools`, `tool_choice` and `parallel_tool_calls`; raises `WebError`."""
    given, choice = fields.take("tools"), fields.take("tool_choice", "auto")
    is_parallel = fields.take("parallel_tool_calls", True)
    if not isinstance(is_parallel, bool):
        raise wrong("parallel_tool_calls", "must be true or false")
    given = [] if given is None else given
    if not isinstance(given, list) or len(given) > MAX_TOOLS:
        raise wrong("tools", f"must be a list of at most {MAX_TOOLS} tools")
    by_name: dict[str, Mapping[str, Any]] = {}
    for index, tool in enumerate(given):
        name = _check_tool(f"tools[{index}]", tool)
        if name in by_name:
            raise wrong(f"tools[{index}].function.name", "is that of another tool")
        by_name[name] = tool
    offered = tuple(by_name.values())
    if choice == "none":
        return Tools()
    if choice == "auto":
        return Tools(offered, (), is_parallel)
    if not offered:
        raise wrong("tool_choice", "needs tools")
    if choice == "required":
        return Tools(offered, offered, is_parallel)
    named = Fields(check_object("tool_choice", choice), "tool_choice.")
    named.one_of("type", "", ("function",))
    function = Fields(check_object("tool_choice.function", named.take("function")),
                      "tool_choice.function.")
    name = function.text("name")
    named.end()
    function.end()
    if name not in by_name:
        raise wrong("tool_choice.function.name", "is that of no tool")
    return Tools(offered, (by_name[name],), is_parallel=False)


def _check_tool(where: str, tool: Any) -> str:
    """Checks a tool, and returns its name."""
    fields = Fields(check_object(where, tool), f"{where}.")
    fields.one_of("type", "", ("function",))
    function = Fields(check_object(f"{where}.function", fields.take("function")),
                      f"{where}.function.")
    fields.end()
    name = function.text("name")
    if not NAME.fullmatch(name):
        raise wrong(f"{where}.function.name", "must be up to 64 letters, digits, _ and -")
    function.text("description", "")
    if (parameters := function.take("parameters")) is not None:
        check_object(f"{where}.function.parameters", parameters)
    function.boolean("strict")      # what is forced always follows its schema
    function.end()
    return name


def parse_calls(where: str, value: Any) -> list[dict[str, Any]]:
    """The calls of an assistant's message, whose arguments are texts of JSON objects."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise wrong(where, "must be a list of calls")
    calls = []
    for index, call in enumerate(value):
        place = f"{where}[{index}]"
        fields = Fields(check_object(place, call), f"{place}.")
        kind, number = fields.one_of("type", "function", ("function",)), fields.text("id")
        function = Fields(check_object(f"{place}.function", fields.take("function")),
                          f"{place}.function.")
        name, arguments = function.text("name"), function.text("arguments")
        for each in (fields, function):
            each.end()
        if not isinstance(_read(arguments), dict):
            raise wrong(f"{place}.function.arguments", "must be the text of a JSON object")
        calls.append({"id": number, "type": kind,
                      "function": {"name": name, "arguments": arguments}})
    return calls


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def order_results(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages with the results of each turn in the order of its calls, as many templates tell them
    apart by nothing else.

    Raises:
        WebError: a result is of no call before it, or of one that has a result, or a call has none.
    """
    ordered: list[Mapping[str, Any]] = []
    missing: dict[str, Mapping[str, Any] | None] = {}      # results by the ids of their calls
    for index, message in enumerate([*messages, None]):
        if message is not None and message["role"] == "tool":
            number = message["tool_call_id"]
            if number not in missing or missing[number] is not None:
                raise wrong(f"messages[{index}].tool_call_id",
                            "is that of no call before it whose result is missing")
            missing[number] = message
            continue
        if message is not None and None in missing.values():
            number = next(number for number, result in missing.items() if result is None)
            raise wrong(f"messages[{index}]", f"comes before the result of the call {number[:100]}")
        ordered += [result for result in missing.values() if result is not None]
        if message is None:
            break
        ordered.append(message)
        calls = message["tool_calls"] or ()
        missing = dict.fromkeys(call["id"] for call in calls)
        if len(missing) < len(calls):
            raise wrong(f"messages[{index}].tool_calls", "has two calls with one id")
    if None in missing.values():
        raise wrong("messages", "end before the result of each call")
    return ordered


def with_objects(conversation: Conversation) -> Conversation:
    """A conversation whose calls have objects as arguments, not their texts."""
    def open_call(call: Mapping[str, Any]) -> Mapping[str, Any]:
        function = call["function"]
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}

    return dataclasses.replace(conversation, messages=tuple(
        dataclasses.replace(message, tool_calls=tuple(map(open_call, message.tool_calls)))
        for message in conversation.messages))


def check_object(name: str, value: Any) -> Mapping[str, Any]:
    """A field that is an object; raises `WebError` for anything else."""
    if not isinstance(value, dict):
        raise wrong(name, "must be an object")
    return value
