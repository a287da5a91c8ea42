"""Chat templates by name, for any tokenizer.

A name turns a tokenizer into one whose `chat_template` is Jinja written here, with the names of its
own tokens in it; whoever opens the tokenizer renders with that. Where the tokenizer has the special
tokens of a template, the template writes these; otherwise they are text, and a turn ends with the
token that ends the tokenizer's documents. A conversation begins with the token that begins
documents, unless that is one that the tokenizer writes between them.

    turns    <|user|>2+2?<|end|><|assistant|>4<|end|>, the tokens of our own tokenizers
    chatml   <|im_start|>user, a line break, 2+2?<|im_end|>, a line break (openai/openai-python at
             v0.27.0, chatml.md)
    llama3   <|start_header_id|>user<|end_header_id|>, a blank line, 2+2?<|eot_id|>, without the
             spaces around contents (meta-llama/llama3, llama/tokenizer.py, `ChatFormat`); results
             of tools have the role ipython, as in Llama 3.1
    alpaca   `### Instruction:` and `### Response:` after the preamble of tatsu-lab/stanford_alpaca,
             in whose place stands the system message if there is one
    plain    the texts alone, a blank line between them
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError
from core.progress import log
from data.tokenizers.hub import END_OF_TEXT
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer

PREAMBLE = ("Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.")

# Of all templates: none of them has a form for calls of tools.
_CALLS = ("{% if message.tool_calls %}{{ raise_exception('it has no form for calls of tools') }}"
          "{% endif %}")
_ROLES = ("{% if message.role not in ('system', 'user', 'assistant') %}"
          "{{ raise_exception('it has no turn of the role ' + message.role) }}{% endif %}")
_TURNS = (
    "{{ bos }}{% for message in messages %}" + _CALLS + _ROLES +
    "{{ '<|' + message.role + '|>' + message.content + end }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
_CHATML = (
    "{{ bos }}{% for message in messages %}" + _CALLS +
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + end + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
_LLAMA3 = (
    "{{ bos }}{% for message in messages %}" + _CALLS +
    "{% set role = 'ipython' if message.role == 'tool' else message.role %}"
    "{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + message.content | trim + end }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
_ALPACA = (
    "{{ bos }}{% set is_told = messages and messages[0].role == 'system' %}"
    "{% set first = messages[0].content if is_told else " + json.dumps(PREAMBLE) + " %}{{ first }}"
    "{% set text = namespace(gap='\\n\\n' if first else '') %}"
    "{% for message in messages %}" + _CALLS + _ROLES +
    "{% if message.role == 'system' and not loop.first %}"
    "{{ raise_exception('its system message is the first') }}{% endif %}"
    "{% if message.role == 'user' %}{{ text.gap + '### Instruction:\\n' + message.content }}"
    "{% elif message.role == 'assistant' %}"
    "{{ text.gap + '### Response:\\n' + message.content + end }}{% endif %}"
    "{% if message.role != 'system' %}{% set text.gap = '\\n\\n' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ text.gap + '### Response:\\n' }}{% endif %}")
_PLAIN = (
    "{{ bos }}{% set text = namespace(gap='') %}"
    "{% for message in messages %}" + _CALLS +
    "{% if message.content or message.role == 'assistant' %}"
    "{{ text.gap + message.content }}{% set text.gap = '\\n\\n' %}{% endif %}"
    "{% if message.role == 'assistant' %}{{ end }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ text.gap }}{% endif %}")


class Named(NamedTuple):
    """A template that is known by a name.

    Attributes:
        source: in Jinja, of `messages`, `bos` and `end`.
        tokens: special tokens that it writes, the one that ends a turn last.
    """

    source: str
    tokens: tuple[str, ...] = ()


NAMED = {
    "turns": Named(_TURNS, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")),
    "chatml": Named(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama3": Named(_LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "alpaca": Named(_ALPACA),
    "plain": Named(_PLAIN)}


def with_template(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """A tokenizer that renders conversations with a named template; itself for the name "".

    Raises:
        UserError: there is no such template.
    """
    if not name:
        return tokenizer
    if name not in tokenizer.variants:
        tokenizer.variants[name] = _make_variant(tokenizer, name)
    return tokenizer.variants[name]


def _make_variant(tokenizer: Tokenizer, name: str) -> Tokenizer:
    if name not in NAMED:
        raise UserError(f"template={name!r}", f"is none of {', '.join(NAMED)}",
                        "choose one of them, or '' for the tokenizer's own")
    if name == "turns" and tokenizer.turn_tokens:
        return dataclasses.replace(tokenizer, chat_template="")
    tokens, end = NAMED[name].tokens, tokenizer.end_names[0]
    if missing := [token for token in tokens if token not in tokenizer.specials]:
        log(f"template {name}: the tokenizer has no token {', '.join(missing)}: written as text, "
            f"and {end} ends a turn")
    elif tokens:
        end = tokens[-1]
    made = dataclasses.replace(tokenizer, chat_template=make_source(tokenizer, name, end))
    if end not in made.end_names:   # so it is of the hub, whose documents end with another token
        made = dataclasses.replace(made, stop_names=(*made.stop_names, end))
    return made


def make_source(tokenizer: Tokenizer, name: str, end: str) -> str:
    """The Jinja of a named template for a tokenizer, in which `end` ends a turn."""
    bos = tokenizer.decode([tokenizer.bos])
    bos = "" if bos in (END_OF_TEXT, tokenizer.end_names[0]) else bos
    values = "".join(f"{{% set {variable} = {json.dumps(value)} %}}"
                     for variable, value in (("bos", bos), ("end", end)))
    return values + NAMED[name].source


@contextlib.contextmanager
def taught_folder(folder: Path, name: str) -> Iterator[Path]:
    """The folder of a tokenizer with a named template, while the context lasts.

    Args:
        folder: of the tokenizer; itself for the name "".
    """
    if not name:
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        with_template(load_tokenizer(folder), name).save(Path(scratch))
        yield Path(scratch)
