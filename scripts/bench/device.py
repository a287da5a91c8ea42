"""The figures of a device in one command: correctness, then speed, beside transformers' Llama.

    python -m scripts.bench.device --minutes=9 --out=runs/device
    python -m scripts.bench.device --minutes=5 --out=runs/device --tables=search,generation

Tables are made in the order of `--tables`, the most valuable first. After every line
`results.json` and `table.md` in `--out` are written anew, so that a run that is cut keeps what it
has; a second run with the same `--out` measures only what is missing or failed. Packages that a
machine without a network lacks are named first, with the command that fetches them elsewhere.
"""

from __future__ import annotations

import importlib.util
import sys

OURS = ("jax", "flax", "optax", "ml_collections", "absl", "numpy", "rich")
PEERS = ("torch", "transformers")


def packages_fault(names: tuple[str, ...]) -> str:
    """A line that names the packages that this Python lacks and says how to bring them."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    names = " ".join(missing).replace("absl", "absl-py").replace("_", "-")
    return (f"this Python lacks {', '.join(missing)}: fetch wheels elsewhere with `pip download "
            f"--only-binary=:all: --python-version {sys.version_info[0]}.{sys.version_info[1]} "
            f"--no-deps {names}`, install them with `pip install --no-index --no-deps --target "
            "FOLDER *.whl`, and set PYTHONPATH=FOLDER")


if __name__ == "__main__":
    if fault := packages_fault(OURS):   # before what needs them is imported
        sys.exit(f"error: {fault}")

    from absl import flags

    from core import entry
    from core.progress import log
    from scripts.bench.device_run import TABLES, main

    flags.DEFINE_float("minutes", 9.0, "After which no further line begins.", lower_bound=0.1)
    flags.DEFINE_string("out", "runs/device", "Folder of results.json and table.md.")
    flags.DEFINE_list("tables", list(TABLES), f"Among {', '.join(TABLES)}, in order.")
    flags.DEFINE_string("peer_python", sys.executable, "Python with torch and transformers.")
    if fault := packages_fault(PEERS):
        log(f"the peer will not run unless --peer_python names another: {fault}")
    entry.run(main)
