"""The last step before untrusted code runs: limits, no rights, and only the files it needs."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Collection

from eval.sandbox import kernel, landlock, namespaces, seccomp

# In the order in which they are entered.
NAMESPACES, TREE, LIMITS, LANDLOCK, SECCOMP = ("namespaces", "tree", "limits", "landlock",
                                               "seccomp")
LAYERS = {
    NAMESPACES: "own user, network, IPC and process namespaces",
    TREE: "own tree of files",
    LIMITS: "limits of resources",
    LANDLOCK: "Landlock",
    SECCOMP: "filter of system calls",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use; more ends it.

    Attributes:
        wall_secs: of time, from its start to the end of its check.
        cpu_secs: of processor time, in whole seconds.
        memory_bytes: of address space, for each process.
        output_bytes: written to stdout and stderr together.
        file_bytes: of each file, and where the tree of files is its own of all together.
        open_files: at a time.
        num_tasks: threads and processes at a time, where it has its own user.
        may_fork: whether it may start processes and execute programs, where they are counted.
        allow_unconfined: runs it even where nothing keeps it from files or the network.
    """

    wall_secs: float = 10.0
    cpu_secs: int = 5
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 20
    file_bytes: int = 16 << 20
    open_files: int = 64
    num_tasks: int = 64
    may_fork: bool = False
    allow_unconfined: bool = False


def counts_tasks(layers: Collection[str]) -> bool:
    """Whether the number of a program's processes is limited, and they are sure to end with it.

    The kernel counts no processes of root, which only with its own tree of files is another user,
    and before 5.14 it counts all that a user has, within the namespace and outside.
    """
    release = tuple(int(part) for part in os.uname().release.split(".")[:2] if part.isdigit())
    return {NAMESPACES, TREE, LIMITS} <= set(layers) and release >= (5, 14)


def confine(layers: Collection[str], limits: Limits, work: str | None) -> None:
    """Holds this process to the limits, for good.

    Args:
        layers: of `LAYERS`; namespaces have been entered already.
        work: the one folder that may be written.

    Raises:
        OSError: a layer cannot be entered; nothing untrusted may be run then.
    """
    if LIMITS in layers:
        _limit(layers, limits)
    kernel.drop_privileges()
    if LANDLOCK in layers:
        landlock.restrict([path for path in namespaces.find_readable() if os.path.exists(path)],
                          [namespaces.DEVICES[0], *([work] if work else [])],
                          may_execute=limits.may_fork)
    if SECCOMP in layers:
        seccomp.install(seccomp.make_filter(
            os.getpid(), may_fork=limits.may_fork,
            may_kill=limits.may_fork and NAMESPACES in layers))


def _limit(layers: Collection[str], limits: Limits) -> None:
    wanted = {resource.RLIMIT_CPU: limits.cpu_secs, resource.RLIMIT_AS: limits.memory_bytes,
              resource.RLIMIT_FSIZE: limits.file_bytes, resource.RLIMIT_CORE: 0,
              resource.RLIMIT_NOFILE: limits.open_files, resource.RLIMIT_MSGQUEUE: 0,
              resource.RLIMIT_MEMLOCK: 0}
    if counts_tasks(layers):
        wanted[resource.RLIMIT_NPROC] = limits.num_tasks + 4    # with those of the sandbox itself
    for kind, value in wanted.items():
        allowed = resource.getrlimit(kind)[1]
        value = value if allowed == resource.RLIM_INFINITY else min(value, allowed)
        # The first second above the limit of processor time ends it with a signal that it may
        # ignore, the next one with SIGKILL.
        hard = value + 1 if kind == resource.RLIMIT_CPU and value != allowed else value
        resource.setrlimit(kind, (value, hard))
