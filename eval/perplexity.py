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

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.errors import UserError
from data.layouts.faults import Faults
from data.readers.units import split_patterns
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
from eval.respond.loaded import LoadedModel, load_model
from model.execution import COMPUTE_DTYPES, Execution


def is_token_folder(path: str) -> bool:
    """Whether a path is a folder of tokens, as `python -m data.pack` writes it."""
    return (Path(path) / "tokens.json").exists()


def read_inputs(model: LoadedModel, inputs: str, faults: Faults, *, documents: str = "whole",
                domains: Sequence[str] = (), num: int = 0) -> Iterator[Encoded]:
    """The documents of all inputs, each with the name of its line in the table.

    Args:
        inputs: comma-separated, as `data.readers.units` describes them, or folders of tokens.
        documents: see `read_texts`.
        domains: of folders of tokens; see `read_domains`.
        num: documents of each input or domain.

    Raises:
        UserError: an input does not exist or has no text; see also `read_domains`.
    """
    patterns = split_patterns(inputs)
    folders = [pattern for pattern in patterns if is_token_folder(pattern)]
    if domains and not folders:
        raise UserError(f"domains={','.join(domains)}", f"no input of {inputs!r} is a folder of "
                        "tokens", "name one, or leave the domains out")
    parts = [read_domains(Path(pattern), model.tokenizer, domains, num) if pattern in folders
             else encode_texts(read_texts(pattern, faults, documents=documents, num=num),
                               model.tokenizer) for pattern in dict.fromkeys(patterns)]
    return (document for part in parts for document in part)


def main() -> dict[str, Any]:
    """Reads the flags, measures and prints the table."""
    values = flags.FLAGS
    for name in ("model", "inputs"):
        if not values[name].value:
            raise UserError(f"--{name}", "is missing", f"name a path: --{name}=PATH")
    execution = Execution(values.compute_dtype, loss_chunks=0)
    faults = Faults("inputs")
    model = load_model(Path(values.model), execution)
    rule = WindowRule(values.window_tokens or model.context_tokens, values.rule, values.stride,
                      values.bos)
    check_context(model, rule)
    documents = read_inputs(model, values.inputs, faults, documents=values.documents,
                            domains=values.domains, num=values.num)
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
