"""Calls of tools: their form by the chat template, how text is read, and the way there and back by
the official client."""

import dataclasses
import itertools
import json
import re

import pytest
from api_server import BYTES, CAPACITY, await_idle, make_model, make_worker, serving
from hypothesis import given
from hypothesis import strategies as st

from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.tokenizer import SPECIAL_TOKENS
from serve.api.calls import Call, CallForm, CallReader, find_form
from serve.api.metrics import Metrics
from serve.api.schema import parse_chat
from serve.web.errors import WebError

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("jinja2")
pytest.importorskip("llguidance")
openai = pytest.importorskip("openai")

MISTRAL_CALLS = "[TOOL_CALLS]"
SPECIAL = BytePairTokenizer(BYTES.ranks, specials=(*SPECIAL_TOKENS, MISTRAL_CALLS))
TOOLS = ("{% if tools %}{{ '<|system|>' }}{% for t in tools %}{{ t.function | tojson }}{% endfor %}"
         "{{ '<|end|>' }}{% endif %}")
START = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
# As templates of Hermes and Qwen, Llama 3, Mistral, DeepSeek write calls.
CALLS = {
    "tags": "{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
            "{% if m.content or not loop.first %}{{ '\\n' }}{% endif %}"
            "{{ '<tool_call>\\n{\"name\": \"' ~ c.function.name ~ '\", \"arguments\": ' }}"
            "{{ c.function.arguments | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}",
    "bare": "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
            "{{ raise_exception('one call at a time') }}{% endif %}"
            "{% set f = m.tool_calls[0].function %}"
            "{{ '{\"name\": \"' ~ f.name ~ '\", \"parameters\": ' ~ (f.arguments | tojson) ~ '}' }}"
            "{% else %}{{ m.content }}{% endif %}",
    "list": "{% if m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}"
            "{% if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
            "{{ '{\"name\": \"' ~ c.function.name ~ '\", \"arguments\": ' }}"
            "{{ c.function.arguments | tojson }}{{ ', \"id\": \"' ~ c.id ~ '\"}' }}"
            "{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']' }}"
            "{% else %}{{ m.content }}{% endif %}",
    "texts": "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ '<call>{\"function\": "
             "{\"name\": \"' + c.function.name + '\", \"arguments\": ' + c.function.arguments + "
             "'}}</call>' }}{% endfor %}",
    "python": "{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
              "{{ '[' ~ c.function.name ~ '(' ~ c.function.arguments ~ ')]' }}{% endfor %}"}
CALLS["thinks"] = "{{ '<think>\\n</think>\\n' }}" + CALLS["tags"]


def write_template(name):
    """A template with a place for tools, calls and results; ids of results are written."""
    return (TOOLS + "{% for m in messages %}{{ '<|' ~ ('user' if m.role == 'tool' else m.role) "
            "~ '|>' }}{% if m.role == 'assistant' %}" + CALLS[name] + "{% else %}"
            "{% if m.role == 'tool' %}{{ m.tool_call_id ~ ': ' }}{% endif %}{{ m.content }}"
            "{% endif %}{{ '<|end|>' }}{% endfor %}" + START)


def taught(name):
    return dataclasses.replace(SPECIAL, chat_template=write_template(name))


def make_tool(name="add", **properties):
    return {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": properties, "required": [*properties],
        "additionalProperties": False}}}


TAGS = CallForm("<tool_call>\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>", "arguments",
                False, False)
BARE = CallForm("", None, "", "parameters", False, False)
LIST = CallForm("[TOOL_CALLS] [", ", ", "]", "arguments", False, False,
                frozenset([SPECIAL.special(MISTRAL_CALLS)]))


@pytest.mark.parametrize("name, form", [
    ("tags", TAGS), ("thinks", TAGS), ("bare", BARE), ("list", LIST),
    ("texts", CallForm("<call>", "</call><call>", "</call>", "arguments", True, True)),
    ("python", None)])
def test_the_form_of_calls_is_that_of_the_template(name, form, capfd):
    assert find_form(taught(name), "some@1") == form
    assert ("some@1: calls of tools stay text" in capfd.readouterr().err) == (form is None)


def test_a_template_without_a_place_for_tools_has_no_form(capfd):
    for source in ("", "{{ messages[0].content }}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}"):
        assert find_form(dataclasses.replace(SPECIAL, chat_template=source), "x") is None
    assert not capfd.readouterr().err


def read(form, pieces, names=("add", "f"), most=None):
    """The text and the calls of an answer that comes in pieces."""
    reader = CallReader(form, names, most)
    found = [*map(reader.push, pieces), reader.end()]
    return ("".join(text for text, _ in found),
            [(call.name, json.loads(call.arguments)) for _, calls in found for call in calls])


def write(arguments=None, name="add", field="arguments"):
    return json.dumps({"name": name, field: {} if arguments is None else arguments})


ONE, TWO = write({"a": [1, {"b": "}\"{"}]}), write({"s": "é</tool_call>\n\\"}, "f")
VALUES = [("add", {"a": [1, {"b": "}\"{"}]}), ("f", {"s": "é</tool_call>\n\\"})]
BROKEN = ["<tool_call>\n{\"name\": \"add\", \"arg", "<tool_call>\n" + write(name="other"),
          "<tool_call>{}</tool_call>", "<tool_call>" + write([1]), "<tool_call>" + write("x"),
          "<tool_call>add(1)</tool_call>", "<tool_call>", "<tool_", "</tool_call>",
          '<tool_call>{"name": "add", "arguments": {"a": NaN}}', "<tool_call>" + "{" * 5000,
          '<tool_call>{"name": 1, "arguments": {}}', '<tool_call>{"name": "add"}</tool_call>']


@pytest.mark.parametrize("form, text, content, calls", [
    (TAGS, f"<tool_call>\n{ONE}\n</tool_call>", "", VALUES[:1]),
    (TAGS, f"Sure. \n<tool_call>{ONE}</tool_call> \n\n<tool_call>\n{TWO}\n</tool_call>\n", "Sure.",
     VALUES),
    (TAGS, f"<tool_call>{ONE}</tool_call>\nDone. <b>", "Done. <b>", VALUES[:1]),
    (TAGS, f"<tool_call>{ONE}", "", VALUES[:1]),
    (TAGS, f"<tool_call>{ONE}</tool_", "</tool_", VALUES[:1]),
    (TAGS, f"x {BROKEN[1]} <tool_call>{TWO}", f"x {BROKEN[1]}", VALUES[1:]),
    (TAGS, ' <tool_call>{"name": "f", "arguments": "{\\"s\\": 1}"}', "", [("f", {"s": 1})]),
    (TAGS, " a \n", " a \n", []), (TAGS, ONE, ONE, []),
    (BARE, f" {write({'a': 1}, field='parameters')}\n", "", [("add", {"a": 1})]),
    (BARE, write({"a": 1}), write({"a": 1}), []),
    (BARE, f"So: {write(field='parameters')}", f"So: {write(field='parameters')}", []),
    (BARE, 2 * write(field="parameters"), write(field="parameters"), [("add", {})]),
    (LIST, f"[TOOL_CALLS][{ONE},{TWO}]", "", VALUES),
    (LIST, f"[TOOL_CALLS] [{ONE}, {TWO} ]", "", VALUES),
    (LIST, f"[TOOL_CALLS]  [ {ONE} , {write(name='g')}]", f", {write(name='g')}]", VALUES[:1]),
    (LIST, f"[TOOL_CALLS] [{ONE}", "", VALUES[:1]),
    *((TAGS, text, text, []) for text in BROKEN)])
def test_calls_are_read_and_all_else_stays_text(form, text, content, calls):
    assert read(form, [text]) == (content, calls)
    assert read(form, text) == (content, calls), "character by character"


PARTS = [ONE, TWO, write(field="parameters"), "<tool_call>", "</tool_call>", "\n", " ",
         "[TOOL_CALLS] [", "[TOOL_CALLS]", "]", ", ", "{", "}", '"', "\\", "a", "<tool", "_call>",
         write(name="g")]


@given(st.sampled_from([TAGS, BARE, LIST]), st.lists(st.sampled_from(PARTS), max_size=9),
       st.lists(st.integers(0, 400), max_size=6), st.sampled_from([None, 1]))
def test_every_cut_of_a_text_gives_the_same_calls(form, parts, cuts, most):
    text = "".join(parts)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in itertools.pairwise(edges)]
    whole = read(form, [text], most=most)
    assert read(form, pieces, most=most) == whole == read(form, text, most=most)
    if not whole[1]:
        assert whole[0] == text, "nothing is lost"
    assert len(whole[1]) <= (most or 9)


def test_text_is_held_back_only_while_it_may_be_a_call():
    reader = CallReader(TAGS, ["add"])
    texts = [reader.push(text)[0] for text in ("Yes ", "<b> ", "<tool", "s>", "<tool_call>\n[")]
    assert texts == ["Yes", " <b>", "", " <tools>", "<tool_call>\n["]
    found = [reader.push(char) for char in f"<tool_call>{ONE}</tool_call>"]
    assert [bool(calls) for _, calls in found].index(True) == len(f"<tool_call>{ONE}") - 1
    ids = {reader.push(f"<tool_call>{ONE}</tool_call>")[1][0].id for _ in range(20)}
    assert len(ids) == 20 and all(re.fullmatch("[a-zA-Z0-9]{9}", one) for one in ids)


def test_half_a_surrogate_pair_in_a_call_can_be_sent():
    reader = CallReader(TAGS, ["add"])
    _, [call] = reader.push(f'<tool_call>{write({"a": chr(0xD800)})}')
    assert isinstance(call, Call) and call.arguments.encode() == b'{"a": "\\ud800"}'


# The way there and back.

CALL = {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL, CALL | {"id": "b"}]}
USER = {"role": "user", "content": "Hi"}
RESULTS = [{"role": "tool", "tool_call_id": number, "content": f"of {number}"} for number in "ab"]


def parse(messages, **more):
    return parse_chat({"model": "m", "messages": messages} | more)


def test_results_are_matched_with_their_calls():
    asked = parse([USER, ASKED, *RESULTS[::-1], USER, ASKED, *RESULTS])
    assert [message.content for message in asked.conversation.messages] == [
        "Hi", "", "of a", "of b", "Hi", "", "of a", "of b"]
    assert [message.tool_call_id for message in asked.conversation.messages] == [
        "", "", "a", "b", "", "", "a", "b"]


@pytest.mark.parametrize("messages, param", [
    ([USER, RESULTS[0]], "messages[1].tool_call_id"),
    ([USER, ASKED, RESULTS[0], RESULTS[0]], "messages[3].tool_call_id"),
    ([USER, ASKED, RESULTS[0]], "messages"),
    ([USER, ASKED, RESULTS[0], USER], "messages[3]"),
    ([USER, ASKED, *RESULTS, USER, RESULTS[0]], "messages[5].tool_call_id"),
    ([USER, ASKED, RESULTS[0], {"role": "tool", "content": "x"}], "messages[3].tool_call_id"),
    ([USER, ASKED | {"tool_calls": [CALL, CALL]}], "messages[1].tool_calls"),
    ([USER | {"tool_calls": [CALL]}], "messages[0].tool_calls"),
    ([ASKED | {"tool_calls": {}}], "messages[0].tool_calls"),
    ([ASKED | {"tool_calls": [{}]}], "messages[0].tool_calls[0].id"),
    ([ASKED | {"tool_calls": [CALL | {"type": "x"}]}], "messages[0].tool_calls[0].type"),
    ([ASKED | {"tool_calls": [CALL | {"function": {"name": "x", "arguments": "1"}}]}],
     "messages[0].tool_calls[0].function.arguments")])
def test_calls_and_results_that_do_not_match_are_refused(messages, param):
    with pytest.raises(WebError) as error:
        parse(messages)
    assert (error.value.status, error.value.param) == (400, param)


TOOL = make_tool(a={"type": "integer"})


@pytest.mark.parametrize("fields, param", [
    ({"tools": [{}]}, "tools[0].type"), ({"tools": [1]}, "tools[0]"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
    ({"tools": [TOOL | {"x": 1}]}, "tools[0].x"), ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
     "tool_choice.function.name"),
    ({"tools": [TOOL], "tool_choice": "required", "guided_regex": "a"}, "tool_choice"),
    ({"tools": [TOOL], "parallel_tool_calls": 1}, "parallel_tool_calls")], ids=str)
def test_tools_that_are_wrong_are_refused(fields, param):
    with pytest.raises(WebError) as error:
        parse([USER], **fields)
    assert (error.value.status, error.value.param) == (400, param)


@pytest.fixture(scope="module")
def served(config, execution):
    """The URL of a server of models that differ in their templates alone, and what is served."""
    metrics, model = Metrics(), make_model(config, execution, SPECIAL)
    workers = {name: make_worker(dataclasses.replace(model, tokenizer=taught(name)), metrics, name,
                                 num_slots=2, capacity=6 * CAPACITY, max_queue=8)
               for name in ("tags", "bare", "list", "python")}
    for worker in workers.values():
        worker.start()
    with serving(workers, {}, metrics) as found:
        yield found


@pytest.fixture(scope="module")
def ask(served):
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0) as client:
        def create(model, text=None, **more):
            guide = {} if text is None else {"extra_body": {"guided_regex": re.escape(text)}}
            return client.chat.completions.create(**{
                "model": model, "messages": [USER], "tools": [TOOL, make_tool("f")],
                "max_tokens": 250, "temperature": 1, "seed": 1} | guide | more)

        yield create


def gather(chunks):
    """Text, calls and finishes of a stream of one answer."""
    text, calls, finishes = "", {}, []
    for chunk in chunks:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finishes += [choice.finish_reason] * bool(choice.finish_reason)
            for call in choice.delta.tool_calls or []:
                own = calls.setdefault(call.index, {"arguments": ""})
                own |= {"id": call.id, "name": call.function.name}
                own["arguments"] += call.function.arguments
    made = [(call["name"], json.loads(call["arguments"])) for call in calls.values()]
    return text, made, finishes


def test_calls_come_as_calls_whole_and_in_a_stream(ask):
    text = f"Yes.\n<tool_call>\n{write({'a': 3})}\n</tool_call>\n<tool_call>\n" \
           f"{write(name='f')}\n</tool_call>"
    [choice] = ask("tags", text).choices
    calls = choice.message.tool_calls
    assert choice.message.content == "Yes." and choice.finish_reason == "tool_calls"
    assert [(call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("function", "add", '{"a": 3}'), ("function", "f", "{}")]
    assert len({call.id for call in calls}) == 2
    found = gather(ask("tags", text, stream=True))
    assert found == ("Yes.", [("add", {"a": 3}), ("f", {})], ["tool_calls"])
    [choice] = ask("tags", text, parallel_tool_calls=False).choices
    assert [call.function.name for call in choice.message.tool_calls] == ["add"]
    assert choice.finish_reason == "tool_calls"
    found = gather(ask("tags", text, parallel_tool_calls=False, stream=True))
    assert found == ("Yes.", [("add", {"a": 3})], ["tool_calls"])
    [choice] = ask("tags", text[5:]).choices
    assert choice.message.content is None
    [choice] = ask("tags", text, max_tokens=70).choices
    assert (choice.finish_reason, len(choice.message.tool_calls)) == ("length", 1)


def test_an_answer_that_ends_with_its_call_leaves_the_others(ask, served):
    regex = re.escape(f"<tool_call>\n{write({'a': 0})[:-3]}") + "[1-9]{1,90}" + re.escape(
        "}}</tool_call>") + "x{80}"
    found = ask("tags", parallel_tool_calls=False, n=2, extra_body={"guided_regex": regex})
    calls = [choice.message.tool_calls for choice in found.choices]
    lengths = [len(call.function.arguments) for [call] in calls]
    assert abs(lengths[0] - lengths[1]) > 4, "one ends while the other is drawn"
    assert {choice.finish_reason for choice in found.choices} == {"tool_calls"}
    assert not any(choice.message.content for choice in found.choices)
    assert await_idle(served[1])


@pytest.mark.parametrize("model, more", [
    ("python", {}), ("bare", {}), ("tags", {"tools": None}), ("tags", {"tool_choice": "none"}),
    ("tags", {"tools": [make_tool("other")]})], ids=str)
def test_without_tools_or_a_form_calls_are_text(ask, model, more):
    text = f"<tool_call>\n{write({'a': 3})}\n</tool_call>"
    more = {name: value for name, value in more.items() if value is not None} if more.get(
        "tools", 1) else {"tools": openai.NOT_GIVEN}
    [choice] = ask(model, text, **more).choices
    assert (choice.message.content, choice.message.tool_calls) == (text, None)
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize("model", ["tags", "bare", "list"])
def test_a_call_that_is_required_is_made_and_its_result_is_read(ask, served, model):
    tool = make_tool("turn", lamp={"enum": ["left", "right"]}, on={"$ref": "#/$defs/switch"})
    tool["function"]["parameters"]["$defs"] = {"switch": {"type": "boolean"}}
    named = {"type": "function", "function": {"name": "turn"}}
    for choice_of, seed in (("required", 1), (named, 2), (named, 3)):
        whole = ask(model, tools=[tool, make_tool("f")], tool_choice=choice_of, seed=seed,
                    parallel_tool_calls=False)
        [choice] = whole.choices
        [call] = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        assert call.function.name in (("turn", "f") if choice_of == "required" else ("turn",))
        arguments = json.loads(call.function.arguments)
        if call.function.name == "turn":
            assert arguments.pop("lamp") in ("left", "right") and arguments.pop("on") in (0, 1)
        assert not arguments
        talk = [USER, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "1"}]
        [answer] = ask(model, "Done.", messages=talk).choices
        assert answer.message.content == "Done."
    assert await_idle(served[1])


def test_what_is_sent_back_is_what_the_template_writes(served):
    from serve.api.job import render_chat  # of an optional package

    asked = parse([USER, ASKED, *RESULTS[::-1]], tools=[TOOL])
    for name in ("tags", "texts"):
        model = dataclasses.replace(served[1].workers["tags"].model, tokenizer=taught(name))
        tokens = render_chat(model, asked, find_form(model.tokenizer, ""))
        text = SPECIAL.decode(tokens)
        assert text.count('"arguments": {"a": 1}}') == 2, text
        assert text.endswith("<|user|>a: of a<|end|><|user|>b: of b<|end|><|assistant|>")


def test_a_call_cannot_be_required_where_its_form_is_not_known(ask):
    with pytest.raises(openai.BadRequestError, match="tool_choice must be auto or none"):
        ask("python", tool_choice="required")
