"""Calls of tools in the text that a model writes: in which form, and how they are read back.

The form is that of the model's chat template: a conversation with one known call is rendered, and
what surrounds the call's JSON is the form. So `<tool_call>{...}</tool_call>`, `[TOOL_CALLS] [...]`
and bare JSON are read alike. A form without JSON is not read.
"""

from __future__ import annotations

import dataclasses
import json
import re
import secrets
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from core.errors import UserError
from core.progress import log
from data.templates.template import ChatTemplate, open_template
from data.tokenizers.tokenizer import Tokenizer

ID_CHARS, ID_LENGTH = string.ascii_letters + string.digits, 9   # templates of Mistral ask for these
QUESTION, ANSWER = {"role": "user", "content": "Which?"}, "Words."
PROBE = "probe_tool"
PROBE_TOOL = {"type": "function", "function": {
    "name": PROBE, "description": "Probes.", "parameters": {
        "type": "object", "properties": {"probed": {"type": "string"}}, "required": ["probed"]}}}


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a tool; `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str

    def to_dict(self) -> dict[str, Any]:
        """The call as OpenAI writes it."""
        return {"id": self.id, "type": "function",
                "function": {"name": self.name, "arguments": self.arguments}}


@dataclasses.dataclass(frozen=True)
class CallForm:
    """How calls are written: `begin`, JSON, for each further one `between` and JSON, `end`.

    Attributes:
        between: None where a turn has one call.
        arguments: field of the JSON object that holds the arguments; `name` holds the name.
        is_nested: whether both are in a field `function` of it.
        takes_texts: whether the template takes arguments as texts, and not as objects.
        spoken: special tokens that are part of the form.
    """

    begin: str
    between: str | None
    end: str
    arguments: str
    is_nested: bool
    takes_texts: bool
    spoken: frozenset[int] = frozenset()

    @property
    def separator(self) -> str:
        """Text between two calls that are not each between `begin` and `end`."""
        between = self.between or ""
        return "" if _squeeze(between) == _squeeze(self.end + self.begin) else between.strip()

    def grammar(self, tools: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *,
                is_parallel: bool) -> str:
        """A grammar of llguidance: one call of these tools, or several."""
        def literal(text: str) -> str:
            parts = tokenizer.special_pattern.split(text)
            return " ".join(
                f"<[{tokenizer.special(part)}]>" if place % 2 else
                json.dumps(part, ensure_ascii=False) for place, part in enumerate(parts) if part)

        more = ""
        if is_parallel and self.between is not None:
            more = f"({literal(self.between)} call)*"
        rules = [f"start: {literal(self.begin)} call {more} {literal(self.end)}",
                 "call: " + " | ".join(f"call_{number}" for number in range(len(tools)))]
        rules += [f"call_{number}: %json {json.dumps(self._schema(tool['function']))}"
                  for number, tool in enumerate(tools)]
        return "\n".join(rules)

    def _schema(self, function: Mapping[str, Any]) -> dict[str, Any]:
        given = function.get("parameters") or {"properties": {}, "additionalProperties": False}
        # A reference begins at the root, so what it may name stays there.
        shared = {key: given[key] for key in ("$defs", "definitions") if key in given}
        own = {"type": "object"} | {key: given[key] for key in given if key not in shared}
        schema = _object_schema({"name": {"const": function["name"]}, self.arguments: own})
        return (_object_schema({"function": schema}) if self.is_nested else schema) | shared


def _object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": [*properties],
            "additionalProperties": False}


def find_form(tokenizer: Tokenizer, model: str) -> CallForm | None:
    """The form in which a tokenizer's chat template writes calls.

    None where it takes no tools, or writes calls in a form that is not read; the log says the
    latter, of the `model` of this name.
    """
    if not tokenizer.chat_template:
        return None
    try:
        template = open_template(tokenizer.chat_template, tokenizer.named)
        asked = [([QUESTION], True)]
        if template.render(asked) == template.render(asked, [PROBE_TOOL]):
            return None
    except UserError:       # which a request will be answered with
        return None
    for takes_texts in (False, True):
        if (form := _probe(template, tokenizer, takes_texts)) is not None:
            return form
    log(f"{model}: calls of tools stay text, as its chat template writes them in a form that is "
        "not read")
    return None


def _probe(template: ChatTemplate, tokenizer: Tokenizer, takes_texts: bool) -> CallForm | None:
    calls = []
    for number in range(2):
        arguments = {"probed": f"value {number}"}
        calls.append({"id": f"probe000{number}", "type": "function", "function": {
            "name": PROBE, "arguments": json.dumps(arguments) if takes_texts else arguments}})
    text = _render_turn(template, tokenizer, {"content": None, "tool_calls": calls[:1]})
    if text is None or (found := next(_find_calls(text), None)) is None:
        return None
    first, last, field, is_nested = found
    begin, end = text[:first], text[last:]
    plain = _render_turn(template, tokenizer, {"content": ANSWER}) or ""
    lead = plain[:plain.find(ANSWER)] if ANSWER in plain else ""
    between = None
    pair = _render_turn(template, tokenizer, {"content": None, "tool_calls": calls}) or ""
    if (len(places := [*_find_calls(pair)]) == 2 and pair[:places[0][0]] == begin
            and pair[places[1][1]:] == end):
        between = pair[places[0][1]:places[1][0]]
    begin = begin.removeprefix(lead)    # what begins answers without calls too, as empty thoughts
    names = tokenizer.special_pattern.findall(begin + (between or "") + end)
    return CallForm(begin, between, end, field, is_nested, takes_texts,
                    frozenset(map(tokenizer.special, names)))


def _render_turn(template: ChatTemplate, tokenizer: Tokenizer,
                 message: Mapping[str, Any]) -> str | None:
    """What an answer holds up to the token that ends it; None if the template refuses it."""
    try:
        start, whole = template.render([
            ([QUESTION], True), ([QUESTION, {"role": "assistant"} | message], False)],
            [PROBE_TOOL])
    except UserError:
        return None
    if not whole.startswith(start):
        return None
    text = whole[len(start):]
    ends = [text.find(name) for name in tokenizer.end_names if name in text]
    return text[:min(ends, default=len(text))]


def _find_calls(text: str) -> Iterator[tuple[int, int, str, bool]]:
    """The probe's calls in a text: begin and end, the arguments' field, whether it is nested."""
    at = 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            at += 1
            continue
        inner = value.get("function")
        fields = inner if isinstance(inner, dict) else value
        names = [name for name, held in fields.items()
                 if isinstance(held, dict) and [*held] == ["probed"]]
        if fields.get("name") == PROBE and names:
            yield at, end, names[0], fields is inner
            at = end
        else:
            at += 1


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _loosely(text: str) -> str:
    """A pattern of a text with any spaces where it has some."""
    return r"\s*".join(map(re.escape, text.split()))


class CallReader:
    """Reads the calls in an answer's text as it comes.

    Text is held back while it may be part of a call. What is no call of a known tool stays text,
    all of it; spaces beside calls are none.

    Args:
        names: of the tools that may be called.
        most: calls after which nothing more is read; None is any number.

    Attributes:
        num_calls: that were read.
    """

    def __init__(self, form: CallForm, names: Collection[str], most: int | None = None):
        self._form, self._names, self._most = form, frozenset(names), most
        self._begin = re.compile(rf"\s*{_loosely(form.begin)}\s*")
        self._between = re.compile(rf"\s*{_loosely(form.separator)}\s*")
        self._end = re.compile(rf"\s*{_loosely(form.end)}")
        self._held, self.num_calls = "", 0
        self._is_first, self._is_behind_call, self._drops_space = True, False, False
        self._scan = _ObjectScan()

    @property
    def is_full(self) -> bool:
        """Whether nothing more is read."""
        return self._most is not None and self.num_calls >= self._most

    def push(self, text: str) -> tuple[str, tuple[Call, ...]]:
        """Reads text; returns the text that is no part of a call, and the calls that are whole."""
        self._held += text
        return self._read(is_over=False)

    def end(self) -> tuple[str, tuple[Call, ...]]:
        """What is left once the answer has ended."""
        return self._read(is_over=True)

    def _read(self, is_over: bool) -> tuple[str, tuple[Call, ...]]:
        texts: list[str] = []
        calls: list[Call] = []
        while self._held and not self.is_full:
            step = self._step_behind if self._is_behind_call else self._step
            if (found := step(is_over)) is None:
                break       # only further text can tell
            count, read = found
            taken, self._held = self._held[:count], self._held[count:]
            if isinstance(read, Call):
                calls.append(read)
                self.num_calls += 1
                self._is_first, self._is_behind_call, self._drops_space = False, True, True
            elif read is None:
                texts.append(self._as_text(taken))
            if count:
                self._scan = _ObjectScan()
        return "".join(texts), tuple(calls)

    def _as_text(self, text: str) -> str:
        self._is_first = False
        if self._drops_space:
            text = text.lstrip()
            self._drops_space = not text
        return text

    def _step(self, is_over: bool) -> tuple[int, Call | None] | None:
        """Characters to take next, and the call that they end; None if more must come."""
        if not self._form.begin.strip() and not self._is_first:
            return len(self._held), None
        if (begin := self._begin.search(self._held)) is None:
            count = len(self._held) if is_over else self._num_certain()
            return (count, None) if count else None
        if begin.start():
            return begin.start(), None
        found = self._read_object(begin.end(), is_over)
        return (max(begin.end(), 1), None) if found == () else found

    def _step_behind(self, is_over: bool) -> tuple[int, Call | bool] | None:
        """As `_step`, behind a call; False instead of a call is what belongs to the form."""
        squeezed = _squeeze(self._held)
        for text, pattern in ((self._form.separator, self._between), (self._form.end, self._end)):
            whole = _squeeze(text)
            if not whole:
                continue
            if found := pattern.match(self._held):
                if pattern is self._end:
                    self._is_behind_call = False
                    return found.end(), False
                if (call := self._read_object(found.end(), is_over)) != ():
                    return call
            elif whole.startswith(squeezed) and not is_over:
                return None
        self._is_behind_call = False
        return 0, False

    def _num_certain(self) -> int:
        """Characters before the first place in which a call may have begun."""
        whole = _squeeze(self._form.begin)
        for place, char in enumerate(self._held):
            if (char.isspace() or char == whole[0]) and whole.startswith(
                    _squeeze(self._held[place:])):
                return place
        return len(self._held)

    def _read_object(self, place: int, is_over: bool) -> tuple[int, Call] | tuple[()] | None:
        """The call whose object begins at a place, and its end; () if there is none, None if more
        text must come."""
        if place == len(self._held):
            return () if is_over else None
        if self._held[place] != "{":
            return ()
        if (end := self._scan.find_end(self._held, place)) is None:
            return () if is_over else None
        call = self._parse(self._held[place:end])
        return () if call is None else (end, call)

    def _parse(self, text: str) -> Call | None:
        try:
            value = json.loads(text)
            inner = value.get("function")
            fields = inner if isinstance(inner, dict) else value
            arguments = fields.get(self._form.arguments)
            if isinstance(arguments, str):
                arguments = json.loads(arguments)
            written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
            if not written.isascii():
                written.encode()
        except UnicodeEncodeError:      # half a surrogate pair: only its escape can be sent
            written = json.dumps(arguments)
        except (ValueError, RecursionError):
            return None
        name = fields.get("name")
        if not isinstance(arguments, dict) or not isinstance(name, str) or name not in self._names:
            return None
        return Call(make_id(), name, written)


def make_id() -> str:
    """An id of a call."""
    return "".join(secrets.choice(ID_CHARS) for _ in range(ID_LENGTH))


class _ObjectScan:
    """Finds the end of a JSON object in a text that grows; one for each object."""

    def __init__(self):
        self._at, self._depth, self._is_text = None, 0, False

    def find_end(self, text: str, begin: int) -> int | None:
        """The index behind the object that begins at an index; None if it has no end yet."""
        at = begin if self._at is None else self._at
        while at < len(text):
            char = text[at]
            if self._is_text and char == "\\":
                if at + 1 == len(text):
                    break
                at += 1
            elif char == '"':
                self._is_text = not self._is_text
            elif not self._is_text and char in "{}":
                self._depth += 1 if char == "{" else -1
                if not self._depth:
                    return at + 1
            at += 1
        self._at = at
        return None
