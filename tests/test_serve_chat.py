"""The terminal chat: streaming is complete, and the cache equals recomputation."""

import dataclasses
import json
import os
import pty
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.artifacts import ROOT, make_lineage, write_json
from core.errors import UserError
from data.chat import Conversation, Message, ask, render_prompt
from data.layouts.faults import Faults
from data.layouts.read import read_examples
from data.tokenizers.bpe import BytePairTokenizer
from data.tokenizers.hub import import_tokenizer
from eval.respond.loaded import LoadedModel
from eval.respond.local import make_engine
from model.directory import save_model
from model.families.registry import forward, init
from model.generation.requests import Request
from model.generation.sampling import Sampling
from model.heads.language import logits
from serve import chat
from serve.session import CHUNK_TOKENS, Session, stream_text
from tests import hub_tokenizers as hub

# No merges: letters are cut into bytes.
BYTES = BytePairTokenizer({bytes([i]): i for i in range(256)})
CAPACITY = 96


@pytest.fixture(scope="module")
def model(config, execution):
    """A model over bytes that answers in turns."""
    config = dataclasses.replace(config, V=BYTES.vocab_size)
    params = jax.jit(lambda key: init(config, key))(jax.random.key(3))
    return LoadedModel(params, config, execution, BYTES, chat=True, context_tokens=CAPACITY)


def _session(model, *, max_new_tokens=8, temperature=0.0, **how):
    sampling = Sampling(max_new_tokens, temperature)
    return Session(model, sampling, **{"capacity": CAPACITY} | how)


@pytest.fixture(scope="module")
def next_token(model):
    """The likeliest next token, from scratch and without a cache."""
    how = {"config": model.config, "execution": model.execution}

    @jax.jit
    def run(tokens_BL):
        positions_BL = jnp.arange(CAPACITY)[None]
        x_BLD = forward(model.params, tokens_BL, positions_BL, jnp.ones_like(tokens_BL), **how)
        return logits(model.params, x_BLD, **how)

    def last(tokens):
        padded_BL = np.zeros((1, CAPACITY), np.int32)
        padded_BL[0, :len(tokens)] = tokens
        return int(run(padded_BL)[0, len(tokens) - 1].argmax())

    return last


def _answer_is_greedy(tokens, before, next_token):
    """Whether the tokens behind `before` are an answer without a cache, up to the end token."""
    answer_at = len(tokens) - 1 - tokens[::-1].index(BYTES.special("<|assistant|>")) + 1
    assert answer_at > before
    return all(next_token(tokens[:i]) == tokens[i] for i in range(answer_at, len(tokens) - 1))


def test_every_turn_equals_recomputing_the_conversation(model, next_token):
    session = _session(model, system="Be brief.")
    for text in ("Hello.", "And then?", "x"):
        before = len(session.tokens)
        "".join(session.answer(text))
        assert session.tokens[-1] == BYTES.end, "a cut answer ends with the end token"
        assert _answer_is_greedy(session.tokens, before, next_token)
    assert BYTES.decode(session.tokens).startswith(
        "<|bos|><|system|>Be brief.<|end|><|user|>Hello.<|end|><|assistant|>")
    assert session.num_turns == 3


def test_the_conversation_continues_after_a_stopped_answer(model, next_token):
    session = _session(model)
    pieces = session.answer("Hello.")
    next(pieces), next(pieces)
    pieces.close()
    assert session.num_tokens == CHUNK_TOKENS
    before = len(session.tokens)
    "".join(session.answer("Go on."))
    assert _answer_is_greedy(session.tokens, before, next_token)


def _num_read(session):
    """Tokens that were read, also as drawn: the last of an answer is read with what follows."""
    return session._engine.counts["read"] + session.num_tokens - session.num_turns


def test_nothing_is_read_twice(model):
    session = _session(model)
    for text in ("Hello.", "And then?"):
        "".join(session.answer(text))
    # All but the last token of the last answer, and the end behind it if it was cut.
    assert _num_read(session) in (len(session.tokens) - 1, len(session.tokens) - 2)


def test_an_answer_ends_where_the_model_begins_the_users_turn(model):
    """With a head that has only a row for <|user|>: the hidden state after the prompt."""
    user, prompt = BYTES.special("<|user|>"), render_prompt(ask("Hi?"), BYTES)
    rows = np.array([prompt]), np.arange(len(prompt))[None], np.ones((1, len(prompt)), int)
    x_BLD = forward(model.params, *rows, config=model.config, execution=model.execution)
    config = dataclasses.replace(model.config, tied=False)
    params = model.params | {"head_DV": jnp.zeros((config.D, config.V)).at[:, user].set(
        x_BLD[0, -1])}
    other = dataclasses.replace(model, params=params, config=config)
    drawn, = make_engine(other, num_slots=1, capacity=CAPACITY).run([
        Request(tuple(prompt), Sampling(12, temperature=0), BYTES.stops)])
    assert (drawn.tokens, drawn.finish, drawn.text) == ([user], "stop", "")
    assert "".join(_session(other, max_new_tokens=12).answer("Hi?")) == ""


def test_a_full_context_drops_the_oldest_turns(model, next_token, capsys):
    session = _session(model)
    for letter in "abcdefg":  # a turn is 4 letters, 8 tokens of answer, 4 special tokens
        "".join(session.answer(4 * letter))
        assert _answer_is_greedy(session.tokens, 0, next_token)
    assert capsys.readouterr().err == \
        "the context of 96 tokens is full: the oldest 4 of 6 turns are dropped\n"
    kept = BYTES.decode(session.tokens)
    assert [letter for letter in "abcdefg" if 4 * letter in kept] == ["e", "f", "g"]
    with pytest.raises(UserError, match="--context_tokens=96: does not hold 104 tokens of message"):
        next(session.answer("d" * 100))
    assert session.num_turns == 7


def test_reset_is_a_new_conversation(model):
    session = _session(model)
    first = "".join(session.answer("Hello."))
    "".join(session.answer("And then?"))
    session.reset()
    assert "".join(session.answer("Hello.")) == first


def test_a_base_model_continues_each_text(model, next_token):
    session = _session(dataclasses.replace(model, chat=False))
    for text in ("Once upon", "The end"):
        "".join(session.answer(text))
        prompt = [BYTES.bos, *BYTES.encode(text)]
        assert session.tokens[:len(prompt)] == prompt
        assert session.tokens[len(prompt)] == next_token(prompt)


@pytest.fixture(scope="module")
def hub_model(model, tmp_path_factory):
    """Makes a model with a tokenizer of the hub, of fewer tokens than rows, and a template."""
    pytest.importorskip("tokenizers")
    pytest.importorskip("jinja2")
    tokenizer = import_tokenizer(hub.write_hub(
        tmp_path_factory.mktemp("hub"), hub.byte_level(259),
        tokenizer_config={"eos_token": "<|im_end|>"}))
    assert tokenizer.vocab_size < model.config.V
    return lambda source: dataclasses.replace(
        model, tokenizer=dataclasses.replace(tokenizer, chat_template=source))


@pytest.mark.parametrize("source", [hub.CHATML, hub.THINKING])
def test_a_conversation_by_a_template_equals_recomputing_it(hub_model, source):
    model = hub_model(source)
    session = _session(model, capacity=400, system="Be brief.")
    talk = [Message("system", "Be brief.")]
    for text in ("Hello.", "And then?", "x"):
        talk.append(Message("user", text))
        answer = "".join(session.answer(text))
        drawn = session._turns[-1][1]
        prompt = session.tokens[:len(session.tokens) - 1 - len(drawn)]
        assert model.tokenizer.decode(prompt) == model.tokenizer.decode(
            render_prompt(Conversation(tuple(talk)), model.tokenizer))
        assert answer == model.tokenizer.decode(drawn)
        fresh = _session(model, capacity=400)
        fresh.tokens, fresh.num_turns = prompt, session.num_turns
        assert [*fresh._draw_answer([])] == drawn, "the cache equals reading all of it anew"
        talk.append(Message("assistant", answer))


def test_a_template_that_only_appends_has_nothing_read_twice(hub_model):
    session = _session(hub_model(hub.CHATML), capacity=400)
    for text in ("Hello.", "And then?"):
        "".join(session.answer(text))
    # All but the last token of the last answer, and the end behind it if it was cut.
    assert _num_read(session) in (len(session.tokens) - 1, len(session.tokens) - 2)


def test_a_template_that_refuses_the_system_message_says_so_at_once(hub_model):
    with pytest.raises(UserError, match=r"refuses this conversation \(no system message, please"):
        _session(hub_model(hub.BRACKETS), system="Be brief.")


@given(st.binary(max_size=12))
def test_streamed_pieces_are_the_whole_text(text):
    assert "".join(stream_text(bytes([b]) for b in text)) == BYTES.decode(text)


def test_no_half_character_is_shown():
    chunks = [b"a", "🌲".encode()[:3], "🌲".encode()[3:] + "é".encode()[:1], "é".encode()[1:]]
    assert list(stream_text(chunks)) == ["a", "", "🌲", "é", ""]


def test_the_answer_is_the_text_of_its_tokens(model):
    session = _session(model, max_new_tokens=30)
    answer = "".join(session.answer("Hello."))
    prompt = render_prompt(ask("Hello."), BYTES)
    assert session.tokens[:len(prompt)] == prompt and session.tokens[-1] == BYTES.end
    assert answer and answer == BYTES.decode(session.tokens[len(prompt):-1])


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    BYTES.save(folder / "source")
    for name, is_chat in (("chat", True), ("base", False)):
        (folder / name).mkdir()
        save_model(folder / name, model.params, model.config, folder / "source", chat=is_chat,
                   context_tokens=80)
        write_json(folder / name / "lineage.json",
                   make_lineage(stage=name, config={}, inputs={}, code=""))
    return folder


def _chat(*flags, text=""):
    return subprocess.run([sys.executable, "-m", "serve.chat", *flags], input=text.encode(),
                          capture_output=True, cwd=ROOT, timeout=120)


def test_each_line_of_stdin_is_answered(folder, model):
    done = _chat(f"--model={folder / 'chat'}", "--max_new_tokens=8", "--temperature=0",
                 f"--context_tokens={CAPACITY}",
                 text="Hello.\n\nAnd then?\n/reset\nHello.\n/quit\nx\n")
    session = _session(model)
    answers = ["".join(session.answer(text)) for text in ("Hello.", "And then?")]
    *printed, last = done.stdout.decode().split("\n")[:-1]
    assert "\n".join(printed) == "\n".join([*answers, answers[0]]), done.stderr.decode()
    result = json.loads(last)
    assert result["turns"] == 3 and result["tokens"] <= 24 and result["tokens_per_sec"] > 0
    assert "cleared" in done.stderr.decode() and done.returncode == 0
    assert f"--context_tokens={CAPACITY}: " in done.stderr.decode(), "more than it was trained on"
    assert "was trained on rows of 80" in done.stderr.decode()


def test_what_is_piped_in_can_be_one_message(folder, tmp_path):
    text = "Hello.\n\nAnd then?"
    saved = tmp_path / "chats.jsonl"
    done = _chat(f"--model={folder / 'chat'}", "--max_new_tokens=4", "--one_message",
                 text=f"//reset\n{text}")
    assert json.loads(done.stdout.decode().splitlines()[-1])["turns"] == 1
    done = _chat(f"--model={folder / 'chat'}", "--max_new_tokens=4",
                 text=f"/etc/hosts\n//reset\n/save {saved}\n/quit\n")
    assert done.returncode == 0, done.stderr.decode()
    messages = json.loads(saved.read_text())["messages"]
    assert [one["content"] for one in messages if one["role"] == "user"] == ["/etc/hosts", "/reset"]
    assert [row.messages[0].content for row in read_examples(
        saved, "conversations", faults=Faults("test"))] == ["/etc/hosts"]


@pytest.mark.parametrize("text, line", [
    ("/rest", "/rest: is no command: /help lists them; //rest is a message"),
    ("/reset now", "/reset: takes nothing behind its name"), ("/regen", "/regen: no message was"),
    ("/save", "/save: names no file"), ("/system " + "x" * 200, "does not hold")])
def test_a_command_that_cannot_be_run_is_refused(model, text, line):
    session = _session(model, system="Be brief.")
    before = session.conversation
    with pytest.raises(UserError, match=re.escape(line)):
        chat.respond(session, text)
    assert session.conversation == before


def test_commands(model, capsys):
    session = _session(model, temperature=1.0, max_new_tokens=20)
    assert chat.respond(session, "Hello.") and chat.respond(session, "More.")
    first = session.conversation
    assert chat.respond(session, "/regen")
    second = session.conversation
    assert second.messages[:3] == first.messages[:3] and second.messages[3] != first.messages[3]
    assert chat.respond(session, "/help")
    shown = capsys.readouterr().err
    assert all(f"/{name}" in shown for name in chat.COMMANDS)
    chat.respond(session, "/system Be brief.\nVery.")
    assert session.conversation.messages == (Message("system", "Be brief.\nVery."),)
    assert not chat.respond(session, "/quit")


def test_the_keyboard(folder, tmp_path):
    """In a real terminal: a long paste of several lines is one message, arrow keys recall it, and
    Alt-Enter begins a new line."""
    main, terminal = pty.openpty()
    paste = "\n".join(f"line {number} of a long paste" for number in range(200))
    assert len(paste) > 4096
    saved = tmp_path / "chats.jsonl"
    keys = [f"\x1b[200~{paste}\x1b[201~\r", "one\x1b\rtwo!\x7f\r", "\x1b[A three\r",
            f"/save {saved}\r", "/quit\r"]
    environment = os.environ | {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm",
                                "XDG_STATE_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.chat", f"--model={folder / 'chat'}", "--temperature=0",
         "--max_new_tokens=4", "--context_tokens=16384"], cwd=ROOT, env=environment,
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True)
    os.close(terminal)
    for key in keys:
        _read_until(main, b"\x1b[?2004h")      # that pastes shall be marked: it awaits a message
        os.write(main, key.encode())
    assert b'"turns": 3' in _read_until(main, b"}")
    assert process.wait(60) == 0
    users = [one["content"] for one in json.loads(saved.read_text())["messages"]
             if one["role"] == "user"]
    history = tmp_path / "heartwood" / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600 and "+two three" in history.read_text()
    assert users == [paste, "one\ntwo", "one\ntwo three"]


def _read_until(terminal, words):
    shown = b""
    while words not in shown:
        shown += os.read(terminal, 65536)
    return shown


def test_wrong_input_is_one_line(folder, tmp_path):
    for flags, line in [
            ((f"--model={tmp_path}",), "is no model directory"),
            ((f"--model={folder / 'base'}", "--system=x"), "a base model takes no system message")]:
        done = _chat(*flags)
        assert done.returncode == 2 and not done.stdout
        errors = [row for row in done.stderr.decode().splitlines() if row.startswith("error: ")]
        assert len(errors) == 1 and line in errors[0] and b"Traceback" not in done.stderr


def test_an_interrupt_stops_the_answer_and_not_the_chat(model, monkeypatch, capsys):
    monkeypatch.setattr(chat.sys.stdin, "isatty", lambda: True, raising=False)
    session = _session(model, max_new_tokens=30)
    step = session._engine.step

    def interrupted():
        if session.num_tokens == CHUNK_TOKENS:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    monkeypatch.setattr(session._engine, "step", interrupted)
    chat.respond(session, "Hello.")
    assert session.num_tokens == 2 * CHUNK_TOKENS
    assert len(session._turns[0][1]) == CHUNK_TOKENS + 1, "what was not shown is not kept"
    monkeypatch.setattr(session._engine, "step", step)
    chat.respond(session, "Again.")
    assert session.num_turns == 2
