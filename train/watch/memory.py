"""Peak memory of a run."""

from __future__ import annotations

import resource

import jax


def peak_memory_bytes() -> int:
    """Largest peak of this process's devices or, if they report none (CPU), of the process.

    A device's peak is that of its allocator: live arrays and the temporaries of programs.
    """
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [each["peak_bytes_in_use"] for each in stats if each]
    return max(peaks, default=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
