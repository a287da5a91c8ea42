"""Imports a tokenizer from the files of a Hugging Face folder.

`tokenizer.json` holds the vocabulary. Which of its tokens begin and end texts stands beside it, in
`tokenizer_config.json`, `special_tokens_map.json` and `generation_config.json`, each of which may
be missing.

Many models have no token that begins a text, and some name one that their tokenizer never writes.
In Heartwood every document begins with one, so it is the first of these that exists:

1. the token that the tokenizer itself puts before a text (Llama, Gemma, BERT's `[CLS]`);
2. `<|endoftext|>`, which such models have seen between documents (GPT-2, NeoX, Qwen, SmolLM2);
3. the token that is named as bos;
4. the token that ends a document (T5).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import read_json
from core.errors import UserError
from core.progress import log
from data.tokenizers.huggingface import HuggingFaceTokenizer, make_backend
from data.tokenizers.patterns import splitting
from data.tokenizers.tokenizer import TEMPLATE

END_OF_TEXT = "<|endoftext|>"
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")    # where nothing names one
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def import_tokenizer(source: Path) -> HuggingFaceTokenizer:
    """Reads a tokenizer of the hub; its method `save` writes it as a tokenizer folder.

    Args:
        source: a folder with `tokenizer.json`, or that file.

    Raises:
        UserError: it is missing or damaged, of an unknown kind, or nothing tells which token ends
            a text.
    """
    source = Path(source)
    file = source if source.is_file() else source / "tokenizer.json"
    if not file.exists():
        raise UserError(str(source), "holds no tokenizer.json",
                        "name the folder of a model whose tokenizer is saved in that form")
    beside = read_beside(file.parent)
    try:
        return make_tokenizer(file.read_bytes().decode(), **beside)
    except UnicodeDecodeError:
        raise UserError(str(file), "is no UTF-8 text", "fetch it anew") from None
    except UserError as error:
        raise UserError(str(file.parent), *str(error).split(": ", 1)) from None


def read_beside(folder: Path) -> dict[str, Any]:
    """What stands beside a tokenizer's file, as arguments of `make_tokenizer`.

    Raises:
        UserError: a file is damaged.
    """
    config, special, generation = (read_optional(folder / name) for name in (
        "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"))
    stops = generation.get("eos_token_id")
    return {"config": {**special, **config}, "template": _read_template(folder, config),
            "stops": stops if isinstance(stops, list) else [] if stops is None else [stops]}


def make_tokenizer(text: str, config: Mapping[str, Any], *, template: str = "",
                   stops: Sequence[int] = ()) -> HuggingFaceTokenizer:
    """Makes a tokenizer of the contents of a `tokenizer.json`.

    Args:
        config: contents of `tokenizer_config.json`: tokens by their roles, `add_bos_token`.
        template: Jinja template of conversations; "" if there is none.
        stops: ids after which generation stops, beside the token that ends a text.

    Raises:
        UserError: see `import_tokenizer`.
    """
    backend = make_backend(text)
    named = {role: name for role in ROLES if (name := token_name(config.get(role)))}
    stop_names = [backend.id_to_token(i) for i in stops if isinstance(i, int)]
    if None in stop_names or len(stop_names) < len(stops):
        raise UserError("generation_config.json", f"names ids without a token among {stops}",
                        "put all files of one tokenizer together")
    known = [name for name in ENDS if backend.token_to_id(name) is not None]
    end = named.get("eos_token") or next(iter([*stop_names, *known]), None)
    if end is None:
        raise UserError("tokenizer.json", "names no token that ends a text",
                        "put the tokenizer_config.json of its model beside it")
    with splitting():
        first = backend.encode("a").tokens[:1]      # with what the tokenizer puts before a text
        puts_first = first != backend.encode("a", add_special_tokens=False).tokens[:1]
    bos = (first[0] if puts_first else
           named.get("bos_token") if config.get("add_bos_token") else None) or (
        END_OF_TEXT if END_OF_TEXT in known else named.get("bos_token") or end)
    if config.get("add_bos_token") and not puts_first:
        text = _putting_first(text, bos, backend.token_to_id(bos))
    return HuggingFaceTokenizer(text, bos, end, tuple(n for n in stop_names if n != end), named,
                                template)


def _putting_first(text: str, bos: str, number: int) -> str:
    """The `tokenizer.json` with a last step that puts `bos` before a text."""
    described = json.loads(text)
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    parts = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    step = {"type": "TemplateProcessing", "single": [first, parts[0]], "pair": [first, *parts],
            "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}}}
    steps = [described["post_processor"]] if described.get("post_processor") else []
    described["post_processor"] = {"type": "Sequence", "processors": [*steps, step]}
    return json.dumps(described, ensure_ascii=False)


def read_optional(file: Path) -> dict[str, Any]:
    """A JSON object of a file, {} if there is none; raises `UserError` if it is damaged."""
    described = read_json(file) if file.exists() else {}
    if not isinstance(described, dict):
        raise UserError(str(file), "holds no JSON object", "fetch it anew")
    return described


def _read_template(folder: Path, config: Mapping[str, Any]) -> str:
    """The template of conversations: a file of its own, or a field of the config."""
    if (folder / TEMPLATE).exists():
        try:
            return (folder / TEMPLATE).read_bytes().decode()
        except UnicodeDecodeError:
            raise UserError(str(folder / TEMPLATE), "is no UTF-8 text", "fetch it anew") from None
    template = config.get("chat_template") or ""
    if isinstance(template, list):      # of several, for several purposes
        by_name = {entry.get("name"): entry.get("template") for entry in template
                   if isinstance(entry, dict)}
        log(f"{folder}: of the chat templates {sorted(map(str, by_name))}, `default` is used")
        template = by_name.get("default") or ""
    if not isinstance(template, str):
        raise UserError(str(folder / "tokenizer_config.json"),
                        "has a chat template that is no text", "fetch it anew")
    return template


def token_name(value: Any) -> str:
    """The token of a role, which is written as its name or as an object with it."""
    name = value.get("content") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else ""
