"""Exact duplicates under a fixed memory limit, by a Bloom filter of the keys seen."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import xxhash
from rbloom import Bloom

from core.errors import UserError


def bloom_bytes(expected: int, false_positive_rate: float) -> int:
    """Memory of a filter: -n ln p / (ln 2)^2 bits for n keys at rate p (Bloom 1970)."""
    return math.ceil(-expected * math.log(false_positive_rate) / math.log(2) ** 2 / 8)


class BloomSeen:
    """Set of keys in fixed memory, with a known rate of false positives.

    Args:
        expected: keys that will be added.
        false_positive_rate: share of new keys reported as seen, once all are added.
        memory_bytes: limit on the size of the filter.

    Raises:
        UserError: the rate needs more memory than the limit.
    """

    def __init__(self, expected: int, false_positive_rate: float, memory_bytes: int):
        if not 0 < false_positive_rate < 1:
            raise UserError(f"dedup.bloom.false_positive_rate={false_positive_rate}",
                            "a rate lies between 0 and 1", "set it to 1e-6")
        needed = bloom_bytes(max(expected, 1), false_positive_rate)
        if needed > memory_bytes:
            raise UserError(
                f"dedup.bloom.memory_bytes={memory_bytes}",
                f"{expected} keys at a false-positive rate of {false_positive_rate:g} take "
                f"{needed} bytes", f"raise it to {needed}, or accept a higher rate")
        self._bloom = Bloom(max(expected, 1), false_positive_rate, _hash)
        self._num_hashes = max(int(-math.log2(false_positive_rate)), 1)     # as in rbloom

    @property
    def num_bytes(self) -> int:
        """Size of the filter."""
        return self._bloom.size_in_bits // 8

    def add(self, keys: Iterable[int]) -> np.ndarray:
        """Adds keys one by one.

        Returns:
            [num_keys] bool: whether each was added before, in this call or an earlier one.
        """
        seen = []
        for key in keys:
            is_seen = key in self._bloom
            seen.append(is_seen)
            if not is_seen:
                self._bloom.add(key)
        return np.array(seen, bool)

    def report(self) -> dict[str, float]:
        """Size, estimated number of keys, and current rate of false positives."""
        num_keys, num_bits = self._bloom.approx_items, self._bloom.size_in_bits
        filled = 1 - math.exp(-self._num_hashes * num_keys / num_bits)
        return {"bytes": self.num_bytes, "keys": round(num_keys),
                "false_positive_rate": float(f"{filled ** self._num_hashes:.3g}")}


def _hash(key: int) -> int:
    """128 signed bits of a key, the same on every machine."""
    return xxhash.xxh3_128_intdigest(key.to_bytes(16, "little")) - (1 << 127)
