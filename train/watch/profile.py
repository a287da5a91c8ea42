"""Profiles a window of steps and logs a table: ``--profile=START:STOP``.

The trace itself is in ``profile/`` next to the metrics, for Perfetto or XProf.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from absl import flags

from core.errors import UserError
from core.progress import log


@dataclasses.dataclass(frozen=True)
class Window:
    """Steps to trace, both ends included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str | None) -> Window | None:
        """Parses ``START:STOP``; None for an empty text.

        Raises:
            UserError: it is anything else.
        """
        if not text:
            return None
        first, colon, last = text.partition(":")
        if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            raise UserError(f"--profile={text}", "is not START:STOP, two steps from 1 in order",
                            "try --profile=10:12")
        return cls(int(first), int(last))


class _WindowParser(flags.ArgumentParser):
    """Parser of the flag, which rejects a wrong window before anything is compiled."""

    syntactic_help = "START:STOP"

    def parse(self, argument: str | Window) -> Window | None:
        return argument if isinstance(argument, Window) else Window.parse(argument)


def define_flag() -> None:
    """Declares ``--profile``; called by trainers before flags are parsed."""
    flags.DEFINE(_WindowParser(), "profile", None,
                 "Steps to trace, START:STOP, both included; prints the costliest operations.")


def requested_window() -> Window | None:
    """The value of ``--profile``; None if the flag is not defined."""
    return flags.FLAGS.profile if "profile" in flags.FLAGS else None


class Profiler:
    """Traces a window of steps on process 0, then logs its table.

    Args:
        window: None traces nothing.
        folder: gets ``profile/`` with the trace and, as ``ops.txt``, the tables of all devices.
    """

    def __init__(self, window: Window | None, folder: Path):
        self._window = window if jax.process_index() == 0 else None
        self._folder = folder / "profile"
        self._is_tracing = False

    def before(self, step: int, arrays: Any) -> None:
        """Starts the trace before the window's first step, once `arrays` are computed."""
        if (self._window and not self._is_tracing
                and self._window.first <= step <= self._window.last):
            jax.block_until_ready(arrays)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0     # it slows the host
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._is_tracing = True

    def after(self, step: int, arrays: Any) -> None:
        """Ends the trace after the window's last step, once `arrays` are computed."""
        if self._is_tracing and step >= self._window.last:
            jax.block_until_ready(arrays)
            self._stop()

    def close(self, arrays: Any) -> None:
        """Ends an unfinished trace once `arrays` are computed; logs if the window was never
        reached."""
        if self._is_tracing:
            jax.block_until_ready(arrays)
            self._stop()
        elif self._window:
            log(f"profile: steps {self._window.first} to {self._window.last} were not run by this "
                "process: nothing was traced")
            self._window = None

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._is_tracing, self._window = False, None
        trace = max(self._folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        devices = read_profile(trace)
        (self._folder / "ops.txt").write_text("\n\n".join(map(format_table, devices)) + "\n")
        if devices:
            log(format_table(devices[0]))
        for other in devices[1:]:
            log(_headline(other))
        log(f"profile: trace and tables of all devices are in {self._folder}")


@dataclasses.dataclass(frozen=True)
class Op:
    """All runs of one operation on a device.

    Attributes:
        category: kind of operation, if the device reports it.
        total_ms: time in it, without operations that it contains (a loop's body).
        frac: share of the device's time in operations; those of a device add up to 1.
    """

    name: str
    category: str
    total_ms: float
    count: int
    frac: float


@dataclasses.dataclass(frozen=True)
class DeviceProfile:
    """Operations and idle time of one device.

    Attributes:
        window_ms: from the start of its first operation to the end of its last.
        idle_frac: share of the window in which no operation ran on any stream.
        ops: the costliest first.
    """

    device: str
    window_ms: float
    idle_frac: float
    ops: list[Op]


def read_profile(path: Path) -> list[DeviceProfile]:
    """Reads an ``.xplane.pb`` file. A trace without operations gives an empty list."""
    with warnings.catch_warnings():
        # jaxlib's bindings warn inside C++, where a warning that is an error aborts the process.
        warnings.simplefilter("ignore", DeprecationWarning)
        return _read_profile(path)


def _read_profile(path: Path) -> list[DeviceProfile]:
    spans = defaultdict(list)   # by device: (start_ns, end_ns)
    own_ns = defaultdict(lambda: defaultdict(list))     # by device and (op, category)
    for line, device_of in _op_lines(list(jax.profiler.ProfileData.from_file(str(path)).planes)):
        events = []     # (start_ns, end_ns, device, (op, category))
        for event in line.events:
            stats = dict(event.stats)
            if device := device_of(stats):
                op = str(stats.get("hlo_op", event.name)), str(stats.get("hlo_category", ""))
                events.append((event.start_ns, event.start_ns + event.duration_ns, device, op))
        events.sort(key=lambda event: (event[0], -event[1]))
        for (start, end, device, op), own in zip(events, _own_times(events)):
            spans[device].append((start, end))
            own_ns[device][op].append(own)
    return [_summarise(device, spans[device], own_ns[device]) for device in sorted(spans)]


def _op_lines(planes: list[Any]) -> Iterable[tuple[Any, Any]]:
    """The lines that hold operations, each with a function from an event's stats to its device.

    On a GPU these are all streams; on a TPU the line "XLA Ops". The CPU's operations are among the
    other events of the host's threads.
    """
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices:
        lines = list(plane.lines)
        streams = [line for line in lines if line.name.startswith("Stream")]
        for line in streams or [line for line in lines if line.name == "XLA Ops"]:
            yield line, lambda stats, name=plane.name: name
    if not devices:
        for plane in planes:
            for line in plane.lines if plane.name == "/host:CPU" else ():
                yield line, lambda stats: (f"/host:CPU:{stats.get('device_ordinal', 0)}"
                                           if "hlo_op" in stats else None)


def _own_times(events: list[tuple]) -> list[float]:
    """Time of each event of a line without nested events; input sorted by start, longer first."""
    own, open_events = [], []
    for i, (start, end, *_) in enumerate(events):
        own.append(end - start)
        while open_events and events[open_events[-1]][1] <= start:
            open_events.pop()
        if open_events:
            parent = open_events[-1]
            own[parent] -= min(end, events[parent][1]) - start
        open_events.append(i)
    return own


def _summarise(device: str, spans: list[tuple[float, float]],
               own_ns: dict[tuple[str, str], list[float]]) -> DeviceProfile:
    window_ns = max(end for _, end in spans) - min(start for start, _ in spans)
    busy_ns, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        busy_ns += max(end - max(start, reached), 0)
        reached = max(reached, end)
    total_ns = max(sum(map(sum, own_ns.values())), 1e-9)
    ops = [Op(name, category, sum(times) / 1e6, len(times), sum(times) / total_ns)
           for (name, category), times in own_ns.items()]
    ops.sort(key=lambda op: (-op.total_ms, op.name))
    return DeviceProfile(device, window_ns / 1e6, 1 - busy_ns / max(window_ns, 1e-9), ops)


def format_table(profile: DeviceProfile, num_ops: int = 15) -> str:
    """A device's costliest operations as text."""
    rows = [f"{100 * op.frac:6.1f} % {op.total_ms:11.3f} {op.count:8}  {op.name}"
            + (f"  ({op.category})" if op.category else "") for op in profile.ops[:num_ops]]
    rest = profile.ops[num_ops:]
    if rest:
        rows.append(f"{100 * sum(op.frac for op in rest):6.1f} % "
                    f"{sum(op.total_ms for op in rest):11.3f} {sum(op.count for op in rest):8}  "
                    f"{len(rest)} others")
    return "\n".join([_headline(profile), "   share    total ms    count  operation", *rows])


def _headline(profile: DeviceProfile) -> str:
    return (f"profile: {profile.device}: idle {100 * profile.idle_frac:.1f} % of "
            f"{profile.window_ms:.1f} ms")
