"""The calls to the Linux kernel that Python 3.11 does not have, through ctypes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
MOUNT_SETATTR = 442                     # the same number on every architecture
AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 0x8000, 1, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
CAPABILITY_VERSION_3 = 0x20080522

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def call(name: str, *arguments) -> int:
    """Calls a function of the C library that returns -1 and sets errno on failure.

    Raises:
        OSError: it failed.
    """
    return _check(getattr(_LIBC, name)(*arguments), name)


def syscall(number: int, *arguments) -> int:
    """Makes a system call; whole numbers are passed as `long`.

    Raises:
        OSError: it failed.
    """
    longs = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return _check(_LIBC.syscall(ctypes.c_long(number), *longs), f"system call {number}")


def _check(result: int, what: str) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def prctl(option: int, *arguments: int) -> int:
    """Makes the call prctl; what is left out of its four arguments is 0."""
    longs = [ctypes.c_ulong(each) for each in (*arguments, 0, 0, 0, 0)[:4]]
    return call("prctl", option, *longs)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mounts; empty texts are passed as null pointers."""
    texts = [text.encode() if text else None for text in (source, target, kind, data)]
    call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])


def set_read_only(path: str) -> None:
    """Makes the mount at `path`, and where the kernel can (5.12) those below it, read-only."""
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    try:
        syscall(MOUNT_SETATTR, -100, path.encode(), AT_RECURSIVE, attributes, 32)
    except OSError:
        # Flags that the mount has may not be cleared: ST_* and MS_* agree in these bits.
        kept = os.statvfs(path).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC | 1024 | 2048)
        mount("", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | kept)


def pivot_to(folder: str) -> None:
    """Makes `folder`, a mount, the root; what was mounted before is out of reach."""
    os.chdir(folder)
    syscall(PIVOT_ROOT[platform.machine()], b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def drop_privileges() -> None:
    """Gives up all capabilities, and for good: no program that is executed can have any."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:     # EPERM without the right to drop, EINVAL after the last one
            break
    with contextlib.suppress(OSError):      # before Linux 4.3
        prctl(PR_CAP_AMBIENT, 4)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    call("capset", header, (ctypes.c_uint32 * 6)())
