"""A filter of system calls (seccomp): what no program that is judged has any need of is refused.

Calls of Linux after 5.1 (number 424 and above, the same on every architecture) are refused but for
a few, so that a newer kernel opens no new way. Refused calls fail with EPERM; the newer ones with
ENOSYS, after which the C library uses older ones. A call by another architecture's numbers kills.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

from eval.sandbox.kernel import PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, call, prctl

PR_SET_SECCOMP, MODE_FILTER = 22, 2
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}   # linux/audit.h
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT = 0, 4, 16        # of struct seccomp_data
CLONE_THREAD, CLONE_NEW_ANY = 0x00010000, 0x7E020000    # the latter: any new namespace
X32_BIT, FIRST_UNIFIED = 0x40000000, 424
# close_range, faccessat2, epoll_pwait2, futex_waitv, fchmodat2
UNIFIED_ALLOWED = (436, 439, 441, 449, 452)

# Numbers on x86_64 and aarch64 (arch/x86/entry/syscalls/syscall_64.tbl and
# include/uapi/asm-generic/unistd.h); None: the architecture does not have it. The pair of
# connected sockets that asyncio makes for itself (socketpair) is allowed.
REFUSED = {
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "bind": (49, 200),
    "listen": (50, 201), "accept4": (288, 242),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "perf_event_open": (298, 241), "bpf": (321, 280),
    "userfaultfd": (323, 282), "personality": (135, 92), "syslog": (103, 116),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "mknod": (133, None), "mknodat": (259, 33),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "quotactl": (179, 60), "acct": (163, 89),
    "swapon": (167, 224), "swapoff": (168, 225),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "iopl": (172, None), "ioperm": (173, None), "vhangup": (153, 58),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    # Memory that no limit of a process counts, and that may outlive it.
    "memfd_create": (319, 279), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180),
    # Signals to others; those to oneself are sent with tgkill.
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
}
SIGNALS = {"kill": (62, 129)}
PROCESSES = {"fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281)}
CLONE, TGKILL, PRCTL = (56, 220), (234, 131), (157, 167)


def is_known() -> bool:
    """Whether the numbers of this machine's system calls are known."""
    return platform.machine() in ARCHITECTURES


def make_filter(pid: int, *, may_fork: bool, may_kill: bool) -> bytes:
    """The filter as a program of classic BPF, for `install`.

    Args:
        pid: of the process, the only one that tgkill may name.
        may_fork: whether it may start processes and execute programs; threads it may always.
        may_kill: whether it may send signals to every process that it sees.
    """
    machine = platform.machine()
    column = list(ARCHITECTURES).index(machine)
    refuse = RETURN, 0, 0, ERRNO | errno.EPERM
    program = [(LOAD, 0, 0, ARCHITECTURE_AT), (JUMP_EQUAL, 1, 0, ARCHITECTURES[machine]),
               (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER_AT),
               (JUMP_AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)]
    for number in UNIFIED_ALLOWED:
        program += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    program += [(JUMP_AT_LEAST, 0, 1, FIRST_UNIFIED), (RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    refused = REFUSED | ({} if may_fork else PROCESSES) | ({} if may_kill else SIGNALS)
    for numbers in refused.values():
        if numbers[column] is not None:
            program += [(JUMP_EQUAL, 0, 1, numbers[column]), refuse]
    if not may_kill:
        program += [(JUMP_EQUAL, 0, 4, TGKILL[column]), (LOAD, 0, 0, FIRST_ARGUMENT_AT),
                    (JUMP_EQUAL, 1, 0, pid), refuse, (RETURN, 0, 0, ALLOW)]
    # No program outlives the process that holds its clock.
    program += [(JUMP_EQUAL, 0, 4, PRCTL[column]), (LOAD, 0, 0, FIRST_ARGUMENT_AT),
                (JUMP_EQUAL, 0, 1, PR_SET_PDEATHSIG), refuse, (RETURN, 0, 0, ALLOW)]
    needed = CLONE_THREAD if not may_fork else 0xFFFFFFFF     # any flag: the signal at the end
    program += [(JUMP_EQUAL, 0, 5, CLONE[column]), (LOAD, 0, 0, FIRST_ARGUMENT_AT),
                (JUMP_SET, 1, 0, CLONE_NEW_ANY), (JUMP_SET, 1, 0, needed),
                refuse, (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def install(program: bytes) -> None:
    """Holds this process, and all that it starts, to a filter; there is no way back.

    Raises:
        OSError: the kernel has no filters.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    call("prctl", PR_SET_SECCOMP, ctypes.c_ulong(MODE_FILTER), ctypes.c_char_p(head),
         ctypes.c_ulong(0), ctypes.c_ulong(0))
