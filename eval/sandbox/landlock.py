"""Landlock: the folders that a process may read and write, from then on (Linux 5.13, its ABI 1)."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Sequence

from eval.sandbox.kernel import PR_SET_NO_NEW_PRIVS, prctl, syscall

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446     # the same on every architecture
VERSION_FLAG, PATH_BENEATH = 1, 1
# linux/landlock.h: execute, write_file, read_file, read_dir, remove_dir, remove_file, make_char,
# make_dir, make_reg, make_sock, make_fifo, make_block, make_sym; refer (ABI 2), truncate (3),
# ioctl_dev (5).
READ = 1 << 2 | 1 << 3
WRITE = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 13 | 1 << 14
EXECUTE, OF_FILES = 1 << 0, 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
NETWORK, SCOPES = 0b11, 0b11    # bind and connect (ABI 4); abstract sockets and signals (6)


def find_abi() -> int:
    """The version of Landlock's interface; 0 where the kernel has none."""
    try:
        return syscall(CREATE_RULESET, None, 0, VERSION_FLAG)
    except OSError:
        return 0


def restrict(readable: Sequence[str], writable: Sequence[str], *, may_execute: bool) -> None:
    """Refuses this process, and all that it starts, every other file; there is no way back.

    Signals to processes outside and connections are refused where the kernel can (ABI 6 and 4).

    Raises:
        OSError: the kernel has no Landlock.
    """
    abi = syscall(CREATE_RULESET, None, 0, VERSION_FLAG)
    handled = (1 << NUM_RIGHTS.get(abi, 16)) - 1
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    attributes = struct.pack("QQQ", handled, NETWORK, SCOPES)[:size]
    ruleset = syscall(CREATE_RULESET, attributes, size, 0)
    read = READ | (EXECUTE if may_execute else 0)
    for path, rights in [*((path, read) for path in readable),
                         *((path, read | WRITE) for path in writable)]:
        _allow(ruleset, path, rights & handled)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= OF_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        syscall(ADD_RULE, ruleset, PATH_BENEATH, ctypes.c_char_p(rule), 0)
    finally:
        os.close(descriptor)
