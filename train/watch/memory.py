"""How much memory a run has taken."""

from __future__ import annotations

import resource

import jax


def peak_memory_bytes() -> int:
    """Largest peak of this process's devices or, where they keep no count (CPU), of the process.

    A device's peak is that of its allocator: live arrays and the temporaries of programs.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in stats if found]
    return max(peaks, default=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
