"""Namespaces: a process that has its own user, network and tree of files, and what that tree has.

The tree holds the standard library, the shared libraries and three devices, all read-only, and an
empty folder for programs to work in: no home, no /etc, no /proc, no site-packages.
"""

from __future__ import annotations

import os
import sys
import sysconfig

from eval.sandbox import kernel

WORK = "/work"
INSIDE = 1000                   # user and group within
FIRST_OUTSIDE = 2_000_000_000   # of the users that root lends: no account of a machine is so high
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")


def find_readable() -> list[str]:
    """Folders and devices that Python itself needs; none lies in another."""
    paths = sysconfig.get_paths()
    base = sys.base_prefix
    modules = sysconfig.get_config_var("DESTSHARED") or paths["platstdlib"]     # those in C
    wanted = sorted({*LIBRARIES, *DEVICES, f"{base}/lib", f"{base}/lib64", paths["stdlib"],
                     paths["platstdlib"], modules})
    found: list[str] = []
    for path in map(os.path.abspath, wanted):
        if os.path.exists(path) and not any(path.startswith(f"{above}/") for above in found):
            found.append(path)
    return found


def enter(*, has_files: bool) -> None:
    """Moves this process into its own user, network, IPC and host name.

    Root lends a user that no account has, if the tree is its own; others are mapped to themselves.

    Args:
        has_files: gives it its own tree of files as well, with an empty folder `WORK`.

    Raises:
        OSError: the kernel, or what confines this machine, refuses; this process may be in some of
            the namespaces then, and should end.
    """
    lends = has_files and os.geteuid() == 0     # whom root's own folders would be closed to
    if os.geteuid() == 0:
        os.setgroups([])
    ready, mapped = os.pipe(), os.pipe()
    pid = os.getpid()
    mapper = os.fork()
    if mapper == 0:
        os._exit(_map_user(pid, ready, mapped, lends))
    kernel.call("unshare", kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET
                | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS)
    for descriptor in (ready[1], mapped[1]):
        os.close(descriptor)
    is_mapped = os.read(mapped[0], 1) == b"y"
    os.close(ready[0])
    os.close(mapped[0])
    os.waitpid(mapper, 0)
    if not is_mapped:
        raise PermissionError("the user could not be mapped")
    # Opened as the user outside, whose folders those of Python may be.
    opened = [(path, os.open(path, os.O_PATH)) for path in find_readable()] if has_files else []
    os.setresgid(INSIDE, INSIDE, INSIDE)
    os.setresuid(INSIDE, INSIDE, INSIDE)
    if has_files:
        _make_tree(opened)


def _map_user(pid: int, ready: tuple[int, int], mapped: tuple[int, int], lends: bool) -> int:
    """Maps the user of process `pid` from outside, when that has left this user's namespace."""
    os.close(ready[1])
    os.close(mapped[0])
    os.read(ready[0], 1)        # ends when the other has closed its end
    own = os.geteuid(), os.getegid()
    lent = FIRST_OUTSIDE + pid % 1_000_000
    for user, group in ((lent, lent), (65534, 65534)) if lends else (own,):
        try:
            if not lends:
                _write(f"/proc/{pid}/setgroups", "deny")
            _write(f"/proc/{pid}/gid_map", f"{INSIDE} {group} 1")
            _write(f"/proc/{pid}/uid_map", f"{INSIDE} {user} 1")
            os.write(mapped[1], b"y")
            return 0
        except OSError:
            continue
    return 1


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _make_tree(opened: list[tuple[str, int]]) -> None:
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    root = "/tmp"               # hidden by the new tree while that is made, in this process alone
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID, "size=1m,mode=755")
    for path, descriptor in opened:
        target = root + path
        if path in DEVICES:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
        else:
            os.makedirs(target, exist_ok=True)
        kernel.mount(f"/proc/self/fd/{descriptor}", target, "", kernel.MS_BIND | kernel.MS_REC)
        os.close(descriptor)
        if path not in DEVICES:
            kernel.set_read_only(target)
            _hide_packages(target)
    os.mkdir(root + WORK)
    kernel.pivot_to(root)
    kernel.set_read_only("/")


def _hide_packages(folder: str) -> None:
    """Mounts nothing over the installed packages of a folder of libraries."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for hidden in (f"{folder}/{name}/site-packages", f"{folder}/site-packages",
                   f"{folder}/python3/dist-packages"):
        if os.path.isdir(hidden):
            kernel.mount("tmpfs", hidden, "tmpfs", kernel.MS_NOSUID | kernel.MS_RDONLY, "size=4k")


def enter_case(work_bytes: int) -> None:
    """Gives what this process starts its own process numbers, IPC and, if not 0, `WORK`.

    All of it ends with the first process that is started: its processes are killed, and its files
    are in memory.
    """
    kernel.call("unshare", kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWPID)
    if not work_bytes:
        return
    kernel.mount("tmpfs", WORK, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV,
                 f"size={work_bytes},mode=700,nr_inodes=4096")
