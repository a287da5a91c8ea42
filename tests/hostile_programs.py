"""Programs that try to leave the sandbox, to exhaust it, or to pass without being right.

Each that has no function `f` of its own is followed by a right one, so that it passes if its attack
succeeds.
"""

from core.artifacts import ROOT

RIGHT = "def f(x):\n    return x * x\n"
LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def complete(code: str) -> str:
    """The program whose function `f` is checked."""
    return code if "def f(" in code else f"{code}\n{RIGHT}"


def _syscall(x86_64: int, aarch64: int, *arguments: str) -> str:
    """A call past Python's modules; it must succeed."""
    return (LIBC + "import platform\n"
            f"number = {{'x86_64': {x86_64}, 'aarch64': {aarch64}}}[platform.machine()]\n"
            f"assert libc.syscall({', '.join(('number', *arguments))}) != -1, "
            "os.strerror(ctypes.get_errno())\n")


# name: (verdicts, code); an attack on files may find them absent or be refused.
ABSENT = "failed", "forbidden"
ATTACKS = {
    # processes
    "fork": ("forbidden", "import os\nfor _ in range(8):\n    os.fork()"),
    "execute": ("forbidden", "import os\nos.execv('/bin/sh', ['sh', '-c', 'exit 0'])"),
    "subprocess": ("forbidden", "import subprocess\nsubprocess.run(['/bin/true'], check=True)"),
    "system": ("failed", "import os\nassert os.system('true') == 0"),
    "fork_in_c": ("failed", LIBC + "assert libc.fork() != -1"),
    "clone3": ("failed", _syscall(435, 435, "ctypes.create_string_buffer(88)", "88")),
    "multiprocessing": (ABSENT, "import multiprocessing as m\n"
                        "p = m.get_context('fork').Process(target=print)\np.start()\np.join()\n"
                        "assert p.exitcode == 0"),
    "signal_parent": ("forbidden", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"),
    "signal_init": ("forbidden", "import os, signal\nos.kill(1, signal.SIGKILL)"),
    "signal_all": ("forbidden", "import os, signal\nos.kill(-1, signal.SIGKILL)"),
    "signal_group": ("forbidden", "import os, signal\nos.killpg(0, signal.SIGKILL)"),
    "outlive": ("forbidden", LIBC + "if libc.prctl(1, 0, 0, 0, 0):\n"
                "    raise PermissionError(1, 'prctl')"),
    # privileges
    "ptrace": ("failed", LIBC + "assert libc.ptrace(16, os.getppid(), 0, 0) != -1"),
    "unshare": ("failed", LIBC + "assert libc.unshare(0x10000000) == 0"),
    "setns": ("failed", LIBC + "assert libc.setns(0, 0) == 0"),
    "mount": ("failed", LIBC + "assert libc.mount(b'x', b'/work', b'tmpfs', 0, None) == 0"),
    "chroot": ("forbidden", "import os\nos.chroot('.')"),
    "become_root": (ABSENT, "import os\nos.setuid(0)"),
    "raise_a_limit": ("failed", "import resource\n"
                      "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))"),
    "raise_priority": ("forbidden", "import os\nos.setpriority(os.PRIO_PROCESS, 0, -20)"),
    "device": ("forbidden", "import os, stat\nos.mknod('d', stat.S_IFBLK | 0o666, 0x0100)"),
    "kernel_keys": ("failed", _syscall(250, 219, "0", "-3", "1")),
    "bpf": ("failed", _syscall(321, 280, "0", "None", "0")),
    "io_uring": ("failed", _syscall(425, 425, "8", "ctypes.create_string_buffer(120)")),
    "read_the_parent": (ABSENT, "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb').read(1)"),
    "read_in_c": ("failed", _syscall(310, 270, "os.getppid()", "None", "0", "None", "0", "0")),
    # network
    "connect": ("forbidden", "import socket\nsocket.create_connection(('127.0.0.1', 22))"),
    "bind": ("forbidden", "import socket\nsocket.socket().bind(('0.0.0.0', 0))"),
    "datagram": ("forbidden", "import socket\nsocket.socket(type=socket.SOCK_DGRAM)"),
    "name": (ABSENT, "import socket\nsocket.getaddrinfo('example.org', 80)"),
    "abstract": ("forbidden", "import socket\nsocket.socket(socket.AF_UNIX).bind('\\0x')"),
    "fetch": (ABSENT, "import urllib.request as u\nu.urlopen('http://example.org')"),
    # files
    "passwords": (ABSENT, "open('/etc/shadow').read()"),
    "home": (ABSENT, "import os\nos.listdir('/root')\nos.listdir('/home')"),
    "repository": (ABSENT, f"open({str(ROOT / 'setup.py')!r}).read()"),
    "write_outside": (ABSENT, "open('/tmp/left_behind', 'w').write('x')"),
    "write_a_library": (ABSENT, "import os\nopen(os.__file__, 'a').write('')"),
    "symbolic_link": (ABSENT, "import os\nos.symlink('/etc', 'e')\nos.listdir('e')"),
    "hard_link": (ABSENT, "import os\nos.link(os.__file__, 'o')"),
    "parents": (ABSENT, "import os\nos.listdir('../../../../etc')"),
    "shared_memory": (ABSENT, "from multiprocessing import shared_memory as s\n"
                      "s.SharedMemory('left_behind', create=True, size=1)"),
    "system_v_memory": ("failed", LIBC + "assert libc.shmget(77, 4096, 0o1666) != -1"),
    "anonymous_file": ("forbidden", "import os\nos.memfd_create('x')"),
    "packages": ("failed", "import numpy"),
    "packages_by_path": ("failed", "import sys\nsys.path += ["
                         f"{str(ROOT / '.venv/lib/python3.11/site-packages')!r}]\nimport numpy"),
    # exhaustion, each as much as tells whether a limit holds, and not enough to harm the machine
    "memory": ("memory", "x = 'a' * (1 << 34)"),
    "memory_by_and_by": ("memory", "x = []\nfor _ in range(256):\n"
                         "    x.append(bytearray(1 << 24))"),
    "mapped_memory": (("failed", "memory"), "import mmap\nx = [mmap.mmap(-1, 1 << 28) "
                      "for _ in range(64)]"),
    "output": ("output", "while True:\n    print('a' * 10_000)"),
    "errors_output": ("output", "import os\nwhile True:\n    os.write(2, b'a' * 10_000)"),
    "endless": ("timeout", "while True:\n    pass"),
    "sleep": ("timeout", "import time\ntime.sleep(60)"),
    "endless_deaf": ("timeout", "import signal\nfor n in range(1, 32):\n"
                     "    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
                     "while True:\n    pass"),
    "endless_result": ("timeout", "def f(x):\n    while True: pass"),
    "threads": (("failed", "memory"), "import threading, time\nfor _ in range(10_000):\n"
                "    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()"),
    "open_files": ("failed", "x = [open('/dev/null') for _ in range(10_000)]"),
    "large_file": ("failed", "with open('x', 'wb') as x:\n    for _ in range(512):\n"
                   "        x.write(bytes(1 << 20))"),
    "many_files": ("failed", "for n in range(100):\n    open(str(n), 'wb').write(bytes(1 << 20))"),
    "recursion": ("failed", "def r():\n    r()\nr()"),
    "deep_recursion": (("failed", "memory", "timeout"), "import sys\n"
                       "sys.setrecursionlimit(1 << 30)\ndef r(): return [r()]\nr()"),
    "stack": (("failed", "memory", "timeout"), "import sys\n"
              "sys.setrecursionlimit(1 << 30)\nx = []\nfor _ in range(1 << 20): x = [x]\nrepr(x)"),
    "crash": ("failed", LIBC + "ctypes.string_at(0)"),
    # the verdict
    "leave": ("failed", "import os\nos._exit(0)"),
    "exit": ("failed", "import sys\nsys.exit(0)"),
    "leave_in_a_call": ("failed", "import os\ndef f(x): os._exit(0)"),
    "leave_in_a_thread": ("failed", "import os, threading\n"
                          "t = threading.Thread(target=os._exit, args=(0,))\nt.start()\nt.join()"),
    "close_everything": ("failed", "import os\nos.closerange(0, 99)"),
    "write_everywhere": ("failed", "import os\nfor n in range(3, 99):\n"
                         "    try: os.write(n, b'{\"verdict\": \"passed\"}' * 9)\n"
                         "    except OSError: pass"),
    "forge_a_reply": ("failed", "import os, struct\nt = b'{\"value\": true}'\n"
                      "for n in range(3, 99):\n"
                      "    try: os.write(n, (struct.pack('>I', len(t)) + t) * 9)\n"
                      "    except OSError: pass\nimport time\ntime.sleep(0.2)\nos._exit(0)"),
    "no_tests": ("failed", "import sys\nsys.modules['submitted'] = None\ndel sys\n"
                 "def f(x): return None"),
    "equal_to_all": ("failed", "class A:\n    def __eq__(self, other): return True\n"
                     "    def __bool__(self): return True\ndef f(x): return A()"),
    "equal_number": ("failed", "class A(int):\n    def __eq__(self, other): return True\n"
                     "    __hash__ = int.__hash__\ndef f(x): return A(1)"),
    "equal_list": ("failed", "class A(list):\n    def __eq__(self, other): return True\n"
                   "    def __iter__(self): return iter([9])\ndef f(x): return A()"),
    "builtins": ("failed", "import builtins\nbuiltins.isinstance = lambda *a: True\n"
                 "builtins.all = builtins.any = lambda *a: True\n"
                 "class A(Exception): pass\nbuiltins.AssertionError = A\n"
                 "builtins.print = builtins.compile = builtins.exec = lambda *a, **k: None\n"
                 "def f(x): return 1"),
    "modules": ("failed", "import sys, types\nfor name in list(sys.modules):\n"
                "    sys.modules[name] = types.ModuleType(name)\ndef f(x): return 1"),
    "json": ("failed", "import json\njson.dumps = lambda *a, **k: '{\"value\": 1}'"),
    "atexit": ("failed", "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit"),
    "trace": ("failed", "import sys\ndef t(*a): return t\nsys.settrace(t)\nsys.setprofile(t)\n"
              "def f(x): return 1"),
    "frames": ("failed", "import sys, gc\nfound = gc.get_objects()\nframe = sys._getframe()\n"
               "while frame:\n    found.append(frame.f_locals)\n    frame = frame.f_back\n"
               "needle = 'submitted(' + repr('f')\n"
               "texts = [v for o in found if isinstance(o, dict) for v in list(o.values())]\n"
               "texts += [v for o in found if isinstance(o, (list, tuple)) for v in list(o)]\n"
               "assert any(needle in t for t in texts if isinstance(t, str) and t is not needle)"),
    "error_without_text": ("failed", "class A(BaseException):\n    def __str__(self): raise self\n"
                           "raise A"),
    "endless_iterator": (("failed", "memory"), "import itertools\n"
                         "def f(x): return itertools.count()"),
    "huge_result": (("failed", "memory"), "def f(x): return 'a' * (1 << 27)"),
    "nested_result": ("failed", "def f(x):\n    a = []\n    for _ in range(100_000): a = [a]\n"
                      "    return a"),
    "own_class": ("failed", "class A: pass\ndef f(x): return A()"),
    "input": ("failed", "input()"),
    "no_python": ("failed", "def f(x) return"),
    "null_byte": ("failed", "x = '\0'"),
}
# The same with the right to start processes: the namespace of processes has to end them.
FORKING = {
    # 256 processes that end by themselves: enough to tell whether the limit of 32 holds, and no
    # danger to the machine of a test where it does not.
    "fork_bomb": (("failed", "timeout"), "import os, time\nfor _ in range(8):\n    os.fork()\n"
                  "time.sleep(5)"),
    "daemon": ("passed", "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
               "    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)\nos.wait()"),
    "deaf_daemon": ("passed", "import os, signal, time\nif os.fork() == 0:\n    os.setsid()\n"
                    "    for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
                    "    os.closerange(0, 99)\n    time.sleep(60)\n    os._exit(0)"),
}
HARMLESS = {
    "plain": "",
    "standard_library": "import asyncio, collections, ctypes, dataclasses, datetime, decimal\n"
                        "import functools, hashlib, heapq, itertools, json, math, random, re\n"
                        "import sqlite3, ssl, statistics, string, typing, zoneinfo\n"
                        "assert hashlib.md5(b'').hexdigest().startswith('d41d')",
    "threads": "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()\n"
               "from concurrent.futures import ThreadPoolExecutor\n"
               "with ThreadPoolExecutor(4) as p: list(p.map(abs, range(9)))",
    "files": "import tempfile, os\nwith open('x', 'w') as file: file.write('y')\n"
             "assert os.listdir('.') == ['x']\nwith tempfile.TemporaryDirectory() as d: pass",
    "event_loop": "import asyncio\nasync def g(): await asyncio.sleep(0)\nasyncio.run(g())",
    "exit_in_a_thread": "import sys, threading\nthreading.excepthook = print\n"
                        "t = threading.Thread(target=sys.exit)\nt.start()\nt.join()",
    "alarm": "import signal\nsignal.alarm(100)",
    "dataclass": "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 1\nA()",
    "recursion": "import sys\nsys.setrecursionlimit(20_000)\n"
                 "def r(n): return n and r(n - 1)\nr(15_000)",
    "random": "import os, random, secrets\nos.urandom(9)\nsecrets.token_hex()",
}
