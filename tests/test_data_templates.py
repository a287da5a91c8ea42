"""Conversations by the chat templates of other models: tokens, weights, and templates as data."""

import dataclasses
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from data.chat import ROLES, Conversation, Message, ask, render, render_prompt
from data.templates import template
from data.tokenizers.hub import import_tokenizer
from tests import hub_tokenizers as hub

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

CONFIG = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
TALK = Conversation((Message("system", "Be brief."), *ask("2+2?", "4").messages,
                     *ask(" And\n3? ", "5 ").messages))
MESSAGES = st.lists(st.builds(Message, st.sampled_from(ROLES), st.lists(st.sampled_from(
    [*hub.SPECIALS, "<|im_", "end|>", "|>", "<", "a", " ", "\n"]), max_size=6).map("".join)),
    min_size=1, max_size=4).map(lambda messages: [Message("user", "?"), *messages])


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a byte-level tokenizer with a chat template."""
    tokenizer = import_tokenizer(hub.write_hub(tmp_path_factory.mktemp("hub"), hub.byte_level(),
                                               tokenizer_config=CONFIG))
    return lambda source: dataclasses.replace(tokenizer, chat_template=source)


@pytest.fixture(scope="module")
def chatml(make):
    return make(hub.CHATML)


def _scored(conversation, tokenizer):
    tokens, weights = render(conversation, tokenizer)
    assert len(tokens) == len(weights) and set(weights) <= {0.0, 1.0}
    return tokenizer.decode([token for token, weight in zip(tokens, weights) if weight])


def test_a_conversation_is_what_the_template_makes_of_it(make, chatml):
    tokens, _ = render(TALK, chatml)
    assert chatml.decode(tokens) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\n And\n3? <|im_end|>\n"
        "<|im_start|>assistant\n5 <|im_end|>\n")
    assert tokens.count(chatml.special("<|im_start|>")) == 5 and tokens.count(chatml.end) == 5
    prompt = chatml.decode(render_prompt(ask("2+2?"), chatml))
    assert prompt == ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
                      "<|im_start|>assistant\n"), "with the system message that the template adds"
    trimmed = make(hub.TRIMMED)
    tokens, _ = render(TALK, trimmed)
    assert tokens[0] == trimmed.special("<|endoftext|>") and tokens.count(tokens[0]) == 1
    assert "\n\nAnd\n3?<|im_end|>" in trimmed.decode(tokens)


def test_answers_and_the_tokens_that_end_them_are_scored(make, chatml, tmp_path):
    assert _scored(TALK, chatml) == "4<|im_end|>5 <|im_end|>"
    assert _scored(TALK, make(hub.TRIMMED)) == "4<|im_end|>5<|im_end|>"
    assert _scored(ask("a?"), chatml) == ""
    pieces = import_tokenizer(hub.write_hub(
        tmp_path, hub.sentence_piece(), tokenizer_config={
            "bos_token": "<s>", "eos_token": "</s>", "chat_template": hub.BRACKETS}))
    talk = Conversation((*ask("the cat", "is in").messages, *ask("the", "cat").messages))
    assert _scored(talk, pieces) == "is in </s> cat </s>"
    tokens, _ = render(talk, pieces)
    assert pieces.decode(tokens) == ("<s>[INST] the cat [/INST] is in </s>[INST] the [/INST] cat "
                                     "</s>"), "no space is put before what follows other text"


@given(messages=MESSAGES)
def test_contents_become_no_special_tokens(make, messages):
    for source in (hub.CHATML, hub.TRIMMED):
        tokenizer = make(source)
        plain = [Message(message.role, "a") for message in messages]
        expected, _ = render(Conversation(tuple(plain)), tokenizer)
        tokens, weights = render(Conversation(tuple(messages)), tokenizer)
        for name in hub.SPECIALS:
            assert tokens.count(tokenizer.special(name)) == expected.count(tokenizer.special(name))
        num_answers = sum(message.role == "assistant" for message in messages)
        scored = [token for token, weight in zip(tokens, weights) if weight]
        assert scored.count(tokenizer.end) == num_answers
        text = tokenizer.decode(tokens)
        for message in messages:
            content = message.content.strip() if source == hub.TRIMMED else message.content
            between = "\n\n" if source == hub.TRIMMED else "\n"
            assert f"<|im_start|>{message.role}{between}{content}<|im_end|>" in text


@given(messages=MESSAGES)
def test_the_first_messages_render_to_a_prefix(make, messages):
    tokenizer = make(hub.CHATML)
    whole, weights = render(Conversation(tuple(messages)), tokenizer)
    for k in range(1, len(messages)):
        part, part_weights = render(Conversation(tuple(messages[:k])), tokenizer)
        assert whole[:len(part)] == part and weights[:len(part)] == part_weights
        if messages[k].role == "assistant":
            prompt = render_prompt(Conversation(tuple(messages[:k])), tokenizer)
            assert whole[:len(prompt)] == prompt


def test_tokens_that_were_drawn_are_kept_where_the_text_is_the_same(chatml):
    talk = Conversation((*ask("a?", "the").messages, Message("user", "b?")))
    letters = [i for letter in "the" for i in chatml.encode(letter)]
    assert letters != chatml.encode("the"), "a text has several encodings"
    plain, kept = render_prompt(talk, chatml), render_prompt(talk, chatml, [letters])
    assert chatml.decode(plain) == chatml.decode(kept) and len(kept) > len(plain)
    assert render_prompt(talk, chatml, [chatml.encode("other")]) == plain


def test_a_template_that_rewrites_earlier_turns_serves_but_does_not_teach(make):
    tokenizer = make(hub.THINKING)
    assert _scored(ask("a?", "b"), tokenizer) == "<think>\n\n</think>\n\nb<|im_end|>"
    talk = Conversation((*ask("a?", "<think>x</think>b").messages, *ask("c?", "d").messages))
    with pytest.raises(UserError, match="cannot be taught on: it rewrites earlier turns"):
        render(talk, tokenizer)
    prompt = tokenizer.decode(render_prompt(Conversation(talk.messages[:3]), tokenizer))
    assert "assistant\nb<|im_end|>" in prompt and prompt.endswith("assistant\n")
    with pytest.raises(UserError, match=r"ends an answer with none of the tokens <\|im_end\|>"):
        render(ask("a?", "b"), make("{% for m in messages %}{{ m.content }};{% endfor %}"))


def test_an_end_of_turn_that_belongs_to_the_next_message_is_refused(make):
    """As GLM-4, whose answers end with the token that begins the next message."""
    tokenizer = dataclasses.replace(
        make("{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content }}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"),
        stop_names=("<|im_start|>",))
    talk = Conversation((*ask("a?", "b").messages, Message("user", "c?")))
    with pytest.raises(UserError, match="cannot be taught on: it leaves the token that ends an "
                       "answer to the next message: train with another") as raised:
        render(talk, tokenizer)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"with none of the tokens <\|im_end\|>, <\|im_start\|>"):
        render(ask("a?", "b"), tokenizer)
    assert tokenizer.decode(render_prompt(talk, tokenizer)).endswith("c?<|im_start|>assistant\n")


def test_messages_reach_the_template_whole(make):
    tokenizer = make(
        "{% for m in messages %}{{ m.role }}:{% if m.content is none %}null{% else %}"
        "{{ m.content }}{% endif %}{% for call in m.tool_calls or [] %}"
        "{{ call.function | tojson }}{% endfor %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}")
    call = {"type": "function",
            "function": {"name": "tides", "arguments": '{"port": "<|im_end|>"}'}}
    talk = Conversation((
        Message("user", "When?"), Message("assistant", "", (call,)),
        Message("tool", "at <|im_start|>"), Message("assistant", "At 3.", (call,))))
    written = ('{"name": "tides", "arguments": "{\\"port\\": \\"<|im_end|>\\"}"}')
    tokens, _ = render(talk, tokenizer)
    assert tokenizer.decode(tokens) == (
        f"user:When?<|im_end|>assistant:null{written}<|im_end|>tool:at <|im_start|><|im_end|>"
        f"assistant:At 3.{written}<|im_end|>")
    assert tokens.count(tokenizer.end) == 4 and tokenizer.special("<|im_start|>") not in tokens
    assert _scored(talk, tokenizer) == f"null{written}<|im_end|>At 3.{written}<|im_end|>"


def test_what_a_template_may_use(make):
    tokenizer = make(
        "{% for m in messages %}\n    {% if m.content == 'x' %}{% continue %}{% endif %}\n"
        "{% generation %}{{ m | tojson }}{% endgeneration %}\n{% endfor %}"
        "{{ strftime_now('%d') | length }}{{ eos_token }}{{ tools is none }}")
    conversation = Conversation((Message("user", "x"), Message("user", "<é>")))
    assert tokenizer.decode(render_prompt(conversation, tokenizer)) == \
        '{"role": "user", "content": "<é>"}2<|im_end|>True'


@pytest.mark.parametrize("source, words", [
    ("{{ raise_exception('no system\nplease') }}", r"refuses this conversation \(no system\)"),
    ("{{ [].__class__.__mro__ }}", "reaches for what no template may use"),
    ("{{ cycler.__init__.__globals__.os.popen('touch X') }}", "reaches for what no template may"),
    ("{{ messages.append(1) }}", "reaches for what no template may use"),
    ("{% include '/etc/passwd' %}", "fails .*no loader"),
    ("{% bad", "is no Jinja template"),
    ("{{ messages[9].content.x }}", "fails .*has no element 9"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails .*RecursionError"),
    ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
     "runs for more than"),
    ("{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
     "needs more than 1024 MiB|runs for more than"),
    ("{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", "writes more than 16,777,216")])
def test_a_hostile_or_broken_template_is_refused_in_one_line(make, monkeypatch, source, words):
    monkeypatch.setattr(template, "MAX_SECS", 0.7)
    with pytest.raises(UserError, match=f"^the chat template: {words}") as raised:
        render_prompt(ask("a?"), make(source))
    assert "\n" not in str(raised.value)
    assert render_prompt(ask("a?"), make(hub.CHATML)), "others are rendered after it"


def test_a_process_that_is_gone_is_replaced(make):
    tokenizer = make(f"{hub.CHATML}{{# another source #}}")
    expected = render_prompt(ask("a?"), tokenizer)
    opened = template.open_template(tokenizer.chat_template, tokenizer.named)
    os.kill(opened._child.pid, 9)
    with pytest.raises(UserError, match="ended its process with status -9"):
        render_prompt(ask("a?"), tokenizer)
    assert render_prompt(ask("a?"), tokenizer) == expected


def test_a_tokenizer_without_a_template_renders_no_conversation(make):
    with pytest.raises(UserError, match=r"has no chat template: name one with template=turns, "):
        render(ask("a?", "b"), make(""))


@pytest.mark.full
@pytest.mark.parametrize("source", [hub.CHATML, hub.TRIMMED])
def test_tokens_are_those_of_transformers(make, tmp_path, source):
    transformers = pytest.importorskip("transformers")
    tokenizer = make(source)
    hub.write_hub(tmp_path, tokenizer.text, tokenizer_config={
        **CONFIG, "chat_template": source, "tokenizer_class": "PreTrainedTokenizerFast"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    long = ask("日本語 🌲\n\n  def f(x):\n\treturn x ** 2", "Größe:\n- a\n- b\n\n1234")
    for conversation in (TALK, long, ask("a < b?", "<b>yes</b> ")):
        messages = conversation.to_dict()["messages"]
        found = [render(conversation, tokenizer)[0],
                 render_prompt(Conversation(conversation.messages[:-1]), tokenizer)]
        expected = [theirs.apply_chat_template(part, add_generation_prompt=prompt,
                                               return_dict=False)
                    for part, prompt in ((messages, False), (messages[:-1], True))]
        assert found == expected


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {
    "role": {"description": "<|im_end|>"}}}}]
WITH_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + hub.CHATML


def test_tools_are_given_to_the_template_as_data(make):
    tokenizer = make(WITH_TOOLS)
    tokens = render_prompt(ask("Hi?"), tokenizer, tools=TOOLS)
    plain = render_prompt(ask("Hi?"), tokenizer)
    assert tokenizer.decode(tokens) == json.dumps(TOOLS) + tokenizer.decode(plain)
    assert tokens.count(tokenizer.special("<|im_end|>")) == plain.count(
        tokenizer.special("<|im_end|>")), "the name of a token in them is text"


def test_tools_are_refused_where_they_have_no_place(make, chatml):
    for tokenizer, name in ((chatml, ""), (make(WITH_TOOLS), "turns")):
        with pytest.raises(UserError, match="tools: have no place in the model's chat template"):
            render_prompt(ask("Hi?"), tokenizer, template=name, tools=TOOLS)


def test_a_special_token_named_in_a_call_of_a_tool_is_text(make):
    tokenizer = make("{% for m in messages %}{{ (m.tool_calls or []) | tojson }}{% endfor %}")
    call = {"function": {"name": "f", "arguments": {"role": "<|im_end|>"}}}
    conversation = Conversation((Message("user", "?"), Message("assistant", "", (call,))))
    assert tokenizer.special("<|im_end|>") not in render_prompt(conversation, tokenizer)
