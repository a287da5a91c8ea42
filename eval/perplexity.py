"""Measures how likely a model finds texts: bits per byte and perplexities, input by input.

    python -m eval.perplexity --model=runs/mine/sft --inputs=news.txt,pages.jsonl
    python -m eval.perplexity --model=runs/mine/base --inputs=runs/mine/tokens --domains=heldout
    python -m eval.perplexity --model=runs/smollm2 --inputs=wiki.test.raw.txt \\
        --documents=wikitext_detokenised --rule=strided --stride=256 --window_tokens=1024

An input is a text file, a file of rows (JSONL, CSV, Parquet), a folder or a glob of these, or a
folder of tokens, of which each domain is measured. Prints a table by input, and all figures and
counts as the last line; what has no text is counted there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.errors import UserError
from core.progress import log
from data.layouts.faults import Faults
from data.readers.units import find_inputs, split_patterns
from data.tokenizers.load import load_tokenizer
from data.tokenizers.tokenizer import Tokenizer
from eval.measures.perplexity import (
    Encoded,
    check_context,
    encode_texts,
    format_table,
    measure_encoded,
    read_domains,
)
from eval.measures.texts import DOCUMENTS, read_texts
from eval.measures.windows import RULES, WindowRule
from eval.respond.loaded import load_model
from model.directory import read_description
from model.execution import COMPUTE_DTYPES, Execution


def is_token_folder(path: str) -> bool:
    """Whether a path is a folder of tokens, as `python -m data.pack` writes it."""
    return (Path(path) / "tokens.json").exists()


def read_inputs(tokenizer: Tokenizer, inputs: str, faults: Faults, *, documents: str = "whole",
                domains: Sequence[str] = (), num: int = 0) -> Iterator[Encoded]:
    """The documents of all inputs, each with the name of its line in the table.

    Args:
        inputs: comma-separated, as `data.readers.units` describes them, or folders of tokens.
        documents: see `read_texts`.
        domains: of folders of tokens; see `read_domains`.
        num: documents of each input or domain, the first ones; 0 or less: all.

    Raises:
        UserError: an input does not exist or has no text, or two have files in common; see also
            `read_domains`.
    """
    patterns = list(dict.fromkeys(split_patterns(inputs)))
    folders = [pattern for pattern in patterns if is_token_folder(pattern)]
    files = [pattern.replace(",", "\\,") for pattern in patterns if pattern not in folders]
    if domains and not folders:
        raise UserError(f"domains={','.join(domains)}", f"no input of {inputs!r} is a folder of "
                        "tokens", "name one, or leave the domains out")
    if files and len(find_inputs(",".join(files))) < sum(len(find_inputs(one)) for one in files):
        raise UserError(f"inputs={inputs!r}", "two of them have files in common, which the total "
                        "would count twice", "name each file once")
    texts = [encode_texts(read_texts(one, faults, documents=documents, num=num), tokenizer)
             for one in files]
    tokens = [_read_folder(one, tokenizer, domains, num) for one in folders]
    return itertools.chain(*texts, *tokens)


def _read_folder(folder: str, tokenizer: Tokenizer, domains: Sequence[str],
                 num: int) -> Iterator[Encoded]:
    found = read_domains(Path(folder), tokenizer, domains, num)
    return (document._replace(name=f"{folder}:{document.name}") for document in found)


def main() -> dict[str, Any]:
    """Reads the flags, measures and prints the table."""
    values = flags.FLAGS
    for name in ("model", "inputs"):
        if not values[name].value:
            raise UserError(f"--{name}", "is missing", f"name a path: --{name}=PATH")
    folder, faults = Path(values.model), Faults("inputs")
    described = read_description(folder)
    rule = WindowRule(values.window_tokens or described.context_tokens, values.rule, values.stride,
                      values.bos)
    check_context(rule, described.context_tokens, folder.name)
    documents = read_inputs(load_tokenizer(folder), values.inputs, faults,
                            documents=values.documents, domains=values.domains, num=values.num)
    model = load_model(folder, Execution(values.compute_dtype, loss_chunks=0))
    log(f"perplexity: {rule}")
    measured = measure_encoded(model, documents, rule=rule, batch_size=values.batch_size,
                               official_words=values.official_words)
    faults.report()
    print(format_table(measured))
    return {"model": model.name, "documents_rule": values.documents, **measured,
            "left_out": dict(faults.counts)}


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "Model directory.")
    flags.DEFINE_string("inputs", None, "Files, folders, globs or folders of tokens, with commas.")
    flags.DEFINE_enum("rule", RULES[0], RULES, "How a document is cut into windows.")
    flags.DEFINE_integer("window_tokens", 0, "Size of a window; 0: the model's context.",
                         lower_bound=0)
    flags.DEFINE_integer("stride", 0, "Tokens that a window of the rule strided advances.",
                         lower_bound=0)
    flags.DEFINE_bool("bos", True, "Puts the tokenizer's bos before each document; without it the "
                      "first token has no score.")
    flags.DEFINE_enum("documents", "whole", list(DOCUMENTS), "What of a file or row is a document.")
    flags.DEFINE_list("domains", [], "Domains of folders of tokens; none: all but `best`.")
    flags.DEFINE_integer("num", 0, "Documents of each input, the first ones; 0: all.",
                         lower_bound=0)
    flags.DEFINE_integer("official_words", 0, "Official number of words of all inputs together, "
                         "for the word perplexity; 0: those between white space.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 1, "Windows of full size in a forward pass.", lower_bound=1)
    flags.DEFINE_enum("compute_dtype", COMPUTE_DTYPES[0], COMPUTE_DTYPES, "Dtype of matmuls.")
    entry.run(main)
