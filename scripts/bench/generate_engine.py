"""How `scripts.bench.generate` asks an engine of generation, which runs in a process of its own.

A request is a line of JSON, `{"call": NAME, "args": {...}}`, and so is its reply, `{"result": ...}`
or `{"error": REASON}`. Needs only the standard library, because peers import it in environments
where Heartwood's packages need not be installed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Protocol


class Engine(Protocol):
    """What is measured. All generation is greedy, and nothing ends it early."""

    def load(self, model: str, weights: str, num_threads: int) -> dict[str, Any]:
        """Loads a model.

        Args:
            model: its folder or file, in the engine's own format.
            weights: float32, int8, int4, or what the file holds.
            num_threads: of the computation.

        Returns:
            `weight_bytes` in memory, and `versions` of packages.
        """

    def prefill(self, prompt: Sequence[int]) -> float:
        """Seconds from the request of one prompt to its first new token, nothing of it cached."""

    def decode(self, prompts: Sequence[Sequence[int]], num_tokens: int, capacity: int) -> float:
        """Seconds of `num_tokens` steps of all rows together, after their first new token.

        Args:
            prompts: of equal length, one a row.
            capacity: positions of the cache of keys and values, where its size is fixed.
        """


def serve(engine: Any) -> None:
    """Answers requests until there are no more; an exception is a reply as well."""
    replies, sys.stdout = sys.stdout, sys.stderr    # what libraries print is no reply
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = {"result": getattr(engine, request["call"])(**request["args"])}
        except Exception as error:  # whatever a library raises
            text = str(error).strip() or type(error).__name__
            reply = {"error": text.splitlines()[0][:300]}
        print(json.dumps(reply), file=replies, flush=True)
