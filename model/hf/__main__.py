"""Models of other programs: in as a model directory, out as files that they load.

    python -m model.hf import --source=DIR_OR_FILE --out=DIR [--tokenizer=DIR_OR_FILE]
    python -m model.hf export --model=DIR --out=DIR [--dtype=bfloat16] [--format=gguf]

`import` takes a folder of the Hugging Face hub, with safetensors, or a GGUF file. `export` writes
such a folder, or a GGUF file in a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from absl import flags

from core import entry
from core.errors import UserError

COMMANDS = "`import` or `export`"


def main(words: list[str]) -> dict[str, Any]:
    """Runs the command given by `words`."""
    own = flags.FLAGS
    match words:
        case ["import"]:
            from model.hf.import_model import import_model  # imports jax, which is slow

            return import_model(_path("source"), _path("out"),
                                Path(own.tokenizer) if own.tokenizer else None)
        case ["export"]:
            from model.hf.export_model import export_model

            return export_model(_path("model"), _path("out"), dtype=own.dtype, format=own.format)
    raise UserError(" ".join(words) or "no command", "is not a command of model.hf",
                    f"write {COMMANDS}")


def _path(name: str) -> Path:
    value = flags.FLAGS[name].value
    if not value:
        raise UserError(f"--{name}", "is missing", f"name a path: --{name}=PATH")
    return Path(value)


if __name__ == "__main__":
    flags.DEFINE_string("source", None, "import: folder or file of another program.")
    flags.DEFINE_string("tokenizer", None, "import: folder or file of its tokenizer, if it lies "
                        "elsewhere.")
    flags.DEFINE_string("model", None, "export: model directory.")
    flags.DEFINE_string("out", None, "Folder that is written.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16", "q8_0"],
                      "export: of the weights; q8_0 is of GGUF files.")
    flags.DEFINE_enum("format", "safetensors", ["safetensors", "gguf"], "export: of the files.")
    command = list(sys.argv[1:])
    positional = [word for word in command if not word.startswith("-")]
    sys.argv[1:] = [word for word in command if word.startswith("-")]
    entry.run(lambda: main(positional))
