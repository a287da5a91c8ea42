"""Terminal chat: streaming, with a KV cache for the whole conversation.

    python -m serve.chat --model=runs/quickstart/rl
    echo "What is 3 + 4?" | python -m serve.chat --model=runs/quickstart/rl
    python -m serve.chat --model=runs/quickstart/rl --one_message < letter.txt

`/help` lists the commands, `/quit` or Ctrl-D exits, Ctrl-C stops an answer. A message that begins
with the name of a command is written with two slashes. Of what is piped in each line is a message.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags

from core import entry
from core.errors import UserError
from core.progress import log
from eval.respond.loaded import load_model
from model.adapters.quantization import KINDS
from model.execution import COMPUTE_DTYPES, KV_CACHES, Execution
from model.generation.sampling import Sampling
from model.generation.speculative import MAX_DRAFT_TOKENS, PromptLookup
from serve.session import Session
from serve.terminal import read_pipe, read_terminal

COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


class Command(NamedTuple):
    """A command of the chat.

    Attributes:
        argument: what stands behind its name, for the help; "" if nothing does.
        about: what it does.
        run: does it; returns the pieces of an answer, or None.
    """

    argument: str
    about: str
    run: Callable[[Session, str], Iterator[str] | None]


def _reset(session: Session, _: str) -> None:
    session.reset()
    log("the conversation is cleared")


def _set_system(session: Session, text: str) -> None:
    session.set_system(text)
    log("a new conversation begins " + ("with this system message" if text else
                                        "without a system message"))


def _save(session: Session, name: str) -> None:
    if not name:
        raise UserError("/save", "names no file", "write /save chats.jsonl")
    conversation = session.conversation.to_dict()
    with open(name, "a", encoding="utf-8") as file:
        file.write(json.dumps(conversation, ensure_ascii=False) + "\n")
    log(f"added to {name} as a line of JSON, as align.sft reads it")


def _help(session: Session, _: str) -> None:
    for name, command in COMMANDS.items():
        log(f"{f'/{name} {command.argument}'.strip():<16}{command.about}")
    log("Alt-Enter begins a new line, the arrow keys recall earlier messages")


COMMANDS = {
    "help": Command("", "lists the commands", _help),
    "reset": Command("", "clears the conversation; the system message stays", _reset),
    "system": Command("TEXT", "begins a new conversation with a system message", _set_system),
    "regen": Command("", "draws another answer to the last message",
                     lambda session, _: session.regenerate()),
    "save": Command("FILE", "adds the conversation to a file of JSON lines", _save),
    "quit": Command("", "exits, as Ctrl-D does", lambda session, _: None)}

@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C instead of raising, so that the cache stays consistent."""
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _print_answer(pieces: Iterator[str]) -> None:
    with _interrupts() as interrupts, contextlib.closing(pieces):
        for piece in pieces:
            print(piece, end="", flush=True)
            if interrupts:
                break
    print(flush=True)
    if interrupts and not sys.stdin.isatty():
        raise KeyboardInterrupt


def respond(session: Session, text: str) -> bool:
    """Runs a command or answers a message; returns whether the chat goes on.

    Raises:
        UserError: there is no such command, it cannot be run, or the message is too long.
    """
    found = COMMAND.fullmatch(text)
    if found is None:
        _print_answer(session.answer(text[text.startswith("//"):]))
        return True
    name, argument = found[1], (found[2] or "").strip()
    if name not in COMMANDS:
        raise UserError(f"/{name}", "is no command", f"/help lists them; //{name} is a message")
    if argument and not COMMANDS[name].argument:
        raise UserError(f"/{name}", "takes nothing behind its name", "leave the rest out, or write "
                        f"//{name} to make it a message")
    if (pieces := COMMANDS[name].run(session, argument)) is not None:
        _print_answer(pieces)
    return name != "quit"


def _open_session() -> Session:
    values = flags.FLAGS
    if values.model is None:
        raise UserError("--model", "is missing", "try --model=runs/quickstart/rl")
    sampling = Sampling(values.max_new_tokens, values.temperature, values.top_k, values.top_p)
    dtype = values.compute_dtype or (
        "float32" if jax.default_backend() == "cpu" else "bfloat16")
    model = load_model(Path(values.model), Execution(dtype, kv_cache=values.kv_cache),
                       weights=values.weights,
                       adapter=None if values.adapter is None else Path(values.adapter))
    if not model.chat:
        log(f"{values.model} is a base model: it continues each text instead of answering")
    if (values.context_tokens or 0) > model.context_tokens:
        log(f"warning: --context_tokens={values.context_tokens}: {values.model} was trained on "
            f"rows of {model.context_tokens}")
    speculation = PromptLookup(values.draft_tokens) if values.draft_tokens else None
    return Session(model, sampling, system=values.system, seed=values.seed,
                   capacity=values.context_tokens or model.context_tokens, speculation=speculation)


def chat() -> dict[str, Any]:
    """Chats until the input ends; returns the command's result."""
    session = _open_session()
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if on_terminal:
        log("/help lists the commands, /quit exits, Ctrl-C stops an answer")
    for text in read_terminal() if on_terminal else read_pipe(flags.FLAGS.one_message):
        try:
            if not respond(session, text):
                break
        except (UserError, OSError) as error:
            if not on_terminal:
                raise
            log(str(error))
    rate = session.num_timed / session.decode_secs if session.num_timed else 0.0
    return {"turns": session.num_turns, "tokens": session.num_tokens,
            "weight_bytes": session.weight_bytes, "tokens_per_sec": round(rate, 1)}


def _define_flags() -> None:
    flags.DEFINE_string("model", None, "Model directory.")
    flags.DEFINE_float("temperature", 0.7, "Divides the logits; 0 takes the likeliest token.")
    flags.DEFINE_integer("top_k", 0, "Keeps the k likeliest tokens; 0 keeps all.")
    flags.DEFINE_float("top_p", 0.95, "Keeps the smallest set of this probability; 1 keeps all.")
    flags.DEFINE_integer("max_new_tokens", 128, "Tokens after which an answer ends at the latest.")
    flags.DEFINE_integer("context_tokens", None, "Context length in tokens; by "
                         "default that of the model's training rows.")
    flags.DEFINE_enum("compute_dtype", None, COMPUTE_DTYPES, "Dtype of matmuls; by default float32 "
                      "on a CPU and bfloat16 elsewhere.")
    flags.DEFINE_enum("weights", "float32", ("float32", *KINDS), "What weights are held in.")
    flags.DEFINE_enum("kv_cache", "compute", KV_CACHES, "What keys and values are held in: the "
                      "compute dtype or int8.")
    flags.DEFINE_string("adapter", None, "Folder of an adapter of the model, which is added to it.")
    flags.DEFINE_integer("draft_tokens", 0, "Tokens that are drafted from what was said before and "
                         "checked at once, by the same distribution; 0 drafts none.",
                         lower_bound=0, upper_bound=MAX_DRAFT_TOKENS)
    flags.DEFINE_bool("one_message", False, "Takes all that is piped in as one message, instead of "
                      "each line.")
    flags.DEFINE_integer("seed", 0, "Seed of the random draws.")
    flags.DEFINE_string("system", "", "System message of the conversation.")


if __name__ == "__main__":
    _define_flags()
    entry.run(chat)
