"""Opens local paths, and URLs through fsspec, in the same way.

Errors of storage libraries are raised as `OSError`; what may pass is tried several times before.
"""

from __future__ import annotations

import io
import lzma
import os
import posixpath
import stat
import tempfile
import time
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

import fsspec
import pyarrow as pa
import xxhash
from fsspec import AbstractFileSystem

from core.errors import PassingError, UserError
from data.readers.records import (
    CUT_OFF,
    MAX_RECORD_BYTES,
    READ_BYTES,
    Damage,
    failure_kind,
    is_of_storage,
)

T = TypeVar("T")

REMOTE_BLOCK_BYTES = 8 << 20
REMOTE_TIMEOUT_SECS = 60.0
REMOTE_ATTEMPTS = 4
RETRY_SECS = 1.0            # before the second attempt; doubles from one to the next
MAX_RETRY_AFTER_SECS = 120  # that a server may ask for
SALVAGE_BYTES = 256         # read at once where a file is damaged
# HTTP's answers after which the same request may succeed: a server that is slow, busy or broken.
PASSING_STATUSES = (408, 425, 429, 500, 502, 503, 504)
BROKEN_OFF = ("ClientPayloadError", "ServerDisconnectedError")     # of aiohttp

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub",
            "http": "aiohttp", "https": "aiohttp"}
MAGICS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2",
          b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4"}
MIN_PADDING_BYTES = 8       # of zeros that are not a file's own end
CHECKSUMS = ("ETag", "etag", "checksum", "md5Hash", "md5", "crc32c", "sha256", "blob_id")
CHANGE_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created")


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


def is_page(path: str) -> bool:
    """Whether a path is a URL of the web, where a question mark begins the query."""
    return path.startswith(("http://", "https://"))


def is_folder(path: str) -> bool:
    """Whether there is a folder at a path; on the web, where any page may hold links, / ends one.

    Raises:
        OSError: the storage refuses the answer.
    """
    if is_page(path):
        return path.endswith("/")
    files, name = locate(path)
    return attempt(lambda: files.isdir(name))


def exists(path: str) -> bool:
    """Whether there is a file at a path; raises `OSError` if the storage refuses the answer."""
    files, name = locate(path)
    try:
        attempt(lambda: files.info(name))
    except FileNotFoundError:
        return False
    return True


def locate(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or URL, and the name of the file in it.

    Raises:
        UserError: the scheme is unknown, or its package is not installed.
    """
    if not is_remote(path):
        return fsspec.filesystem("file"), path
    scheme = path.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(path, **_options(scheme))
    except ImportError as error:
        package = PACKAGES.get(scheme, str(error))
        raise UserError(f"inputs={path!r}", f"{scheme}:// needs the package {package}",
                        f"pip install {package}") from None
    except ValueError as error:
        raise UserError(f"inputs={path!r}", f"cannot be opened ({error})",
                        "give a local path, or s3://, gs://, hf://, https://") from None


def _options(scheme: str) -> dict[str, Any]:
    if scheme not in ("http", "https"):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=REMOTE_TIMEOUT_SECS,
                                    sock_read=REMOTE_TIMEOUT_SECS)
    # Bytes, sizes and ranges of the file itself, not of a compressed transfer.
    return {"client_kwargs": {"timeout": timeout}, "headers": {"Accept-Encoding": "identity"}}


def size_bytes(path: str) -> int | None:
    """Size of a file; None where a server does not report it, or gives the file only whole.

    Raises:
        OSError: the file does not exist, or the storage refuses the answer.
    """
    if not is_remote(path):
        return os.stat(path).st_size
    files, name = locate(path)
    info = attempt(lambda: files.info(name))
    return info.get("size") if info.get("partial", True) else None


def open_binary(path: str) -> BinaryIO:
    """Opens a file for reading and seeking.

    Raises:
        OSError: the file cannot be opened.
        Damage: it is not a regular file (a pipe would block).
    """
    if is_remote(path):
        return io.BufferedReader(_Remote(path), READ_BYTES)
    if os.path.islink(path) and not os.path.exists(path):
        raise Damage("a link to nothing", 0)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Damage("not a regular file", 0)
    return open(path, "rb")


def as_passing(error: OSError, path: str) -> PassingError:
    """The line for an error of the disk or network while `path` was looked up or read."""
    reason = ("it is gone" if isinstance(error, FileNotFoundError) else
              "timed out" if isinstance(error, TimeoutError) else error.strerror or repr(error))
    remedy = ("make it readable" if isinstance(error, PermissionError) else
              "run the same command again, which reads what is missing")
    return PassingError(str(error.filename or path), f"cannot be read ({reason})",
                        f"{remedy}, or leave it out of the inputs")


def codec_of(file: BinaryIO) -> str | None:
    """Compression of a file, detected by its first bytes."""
    file.seek(0)
    head = file.read(6)
    file.seek(0)
    return next((codec for magic, codec in MAGICS.items() if head.startswith(magic)), None)


def decompress(file: BinaryIO, codec: str) -> BinaryIO:
    """A stream of the decompressed bytes of all members of a file.

    Where the file is damaged or cut off, the stream raises `Damage` when what stands before has
    been read (by lines, or by `read1`: a `read` of many bytes loses its first part).
    """
    return io.BufferedReader(_Decompressed(file, codec), READ_BYTES)


def is_padding(file: BinaryIO, start: int) -> bool:
    """Whether a file has nothing but zeros from `start` on, as tapes and block devices add."""
    file.seek(start)
    has_any = False
    while chunk := file.read(READ_BYTES):
        if any(chunk):
            return False
        has_any = True
    return has_any


def read_whole(path: str, max_bytes: int = MAX_RECORD_BYTES) -> bytes | None:
    """Decompressed bytes of a file; None when they are more than `max_bytes`.

    Raises:
        OSError: the file cannot be read.
        Damage: it cannot be decompressed.
    """
    with open_binary(path) as file:
        codec = codec_of(file)
        stream = decompress(file, codec) if codec else file
        content = stream.read(max_bytes + 1)
    return content if len(content) <= max_bytes else None


def is_empty(path: str) -> bool:
    """Whether a file, decompressed, holds no byte; raises `Damage`, or `OSError`."""
    with open_binary(path) as file:
        codec = codec_of(file)
        with decompress(file, codec) if codec else file as stream:
            return not stream.read(1)


def fingerprint(path: str, *, by_time: bool = False) -> str:
    """Fingerprint of a file's content; see `data.readers.units.content_fingerprint`."""
    if is_remote(path):
        files, name = locate(path)
        info = attempt(lambda: files.info(name))
        marks = next(([f"{key}={info[key]}"] for key in CHECKSUMS if info.get(key)), None)
        marks = marks or [f"{key}={info[key]}" for key in CHANGE_TIMES if info.get(key)][:1]
        return " ".join([*marks, f"size={info['size']}"])
    if by_time:
        return version(path)
    state = xxhash.xxh3_128()
    try:
        with open_binary(path) as file:
            while chunk := file.read(READ_BYTES):
                state.update(chunk)
    except Damage as error:
        return str(error)
    return state.hexdigest()


def version(path: str) -> str:
    """What differs after a local file was written to; of a remote one its fingerprint."""
    if is_remote(path):
        return ""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return "gone"
    return f"{status.st_size} {status.st_mtime_ns}"


def list_files(folder: str) -> dict[str, int]:
    """Size of every file below a folder by its relative path, sorted, without `.git`.

    Raises:
        OSError: a folder cannot be read.
    """
    return walk(folder)[0]


def walk(folder: str) -> tuple[dict[str, int], dict[str, str]]:
    """The files of `list_files`, and the links to folders that are not followed, with the reason.

    Links are followed, but a folder is entered once, and none that holds `folder`.
    """
    if is_remote(folder):
        files, name = locate(folder)
        root = name.rstrip("/")
        sizes = {path[len(root):].lstrip("/"): info["size"] or 0 for path, info in
                 attempt(lambda: files.find(root, detail=True)).items()}
        return {path: sizes[path] for path in sorted(sizes)
                if ".git" not in path.split("/")}, {}
    above, start = os.path.join(os.path.realpath(folder), ""), len(os.path.join(folder, ""))
    sizes, left_out, entered, folders, links = {}, {}, set(), [folder], []
    while folders or links:     # links last: of two ways to a folder, the one without is taken
        place = folders.pop() if folders else links.pop(0)
        target = os.path.realpath(place)
        if target in entered or (place != folder and above.startswith(os.path.join(target, ""))):
            left_out[place[start:]] = "link to a folder that is read already"
            continue
        entered.add(target)
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = entry.path[start:]
                if entry.is_dir():
                    if entry.name != ".git":
                        (links if entry.is_symlink() else folders).append(entry.path)
                else:   # a link to nothing is listed, so that it is reported when it is read
                    is_lost = entry.is_symlink() and not os.path.exists(entry.path)
                    sizes[name] = 0 if is_lost else entry.stat().st_size
    return dict(sorted(sizes.items())), left_out


def join(folder: str, path: str) -> str:
    """A path below a folder or URL."""
    return posixpath.join(folder, path)


class _Remote(io.RawIOBase):
    """A remote file, opened on the first read; each read is tried several times.

    Of a server that gives no ranges the whole file is fetched, into a temporary one.
    """

    def __init__(self, path: str):
        self._path, self._position, self._file = path, 0, None
        self._size = size_bytes(path)
        if self._size is None:
            self._attempt(self._fetch_whole)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer) -> int:
        data = self._attempt(lambda: self._read(len(buffer)))
        buffer[:len(data)] = data
        self._position += len(data)
        return len(data)

    def _attempt(self, call: Callable[[], T]) -> T:
        try:
            return attempt(call)
        except OSError as error:
            error.filename = self._path
            raise

    def _read(self, num_bytes: int) -> bytes:
        if self._file is None:
            files, name = locate(self._path)
            self._file = files.open(name, "rb", block_size=REMOTE_BLOCK_BYTES,
                                    cache_type="readahead")
        try:
            self._file.seek(self._position)
            data = self._file.read(num_bytes)
        except ValueError:      # fsspec's answer to a server that ignores ranges
            self._fetch_whole()
            self._file.seek(self._position)
            data = self._file.read(num_bytes)
        if num_bytes and not data and self._position < self._size:
            raise OSError(0, "the server sends less than it announced")
        return data

    def _fetch_whole(self) -> None:
        files, name = locate(self._path)
        copy = tempfile.TemporaryFile()     # noqa: SIM115 -- closed by `close`
        files.get_file(name, copy)
        if self._size not in (None, copy.tell()):
            copy.close()
            raise OSError(0, "the server sends less than it announced")
        self._file, self._size = copy, copy.tell()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


class _Decompressed(io.RawIOBase):
    """The bytes of a compressed file up to damage, which is raised when they have been read."""

    def __init__(self, file: BinaryIO, codec: str):
        self._file, self._codec, self._position = file, codec, 0
        self._stream = _open_codec(file, codec)
        self._end: Damage | None = None     # what follows `_rest`, once that is known
        self._rest: memoryview | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if self._rest is None:
            try:
                data = self._stream.read(len(buffer))
                self._position += len(data)
            except (OSError, pa.ArrowException) as error:
                if is_of_storage(error):
                    raise
                self._rest = memoryview(self._salvage(failure_kind(error)))
        if self._rest is not None:
            if not self._rest and self._end is not None:
                raise self._end
            data, self._rest = self._rest[:len(buffer)], self._rest[len(buffer):]
        buffer[:len(data)] = data
        return len(data)

    def _salvage(self, reason: str) -> bytes:
        """What stands between the position and the damage: pyarrow drops it with its error.

        How much is missing of a file that is cut off is unknown: it counts as much as is there.
        """
        self._file.seek(0)
        stream = _open_codec(_Trickle(self._file), self._codec)
        parts, skipped = [], 0
        try:
            while skipped < self._position:
                skipped += len(stream.read(min(READ_BYTES, self._position - skipped)))
            while part := stream.read(1):       # the read that fails gives nothing
                parts.append(part)
        except (OSError, pa.ArrowException) as error:
            if is_of_storage(error):
                raise
        place = self._file.tell()
        size = self._file.seek(0, io.SEEK_END)
        if reason == CUT_OFF:
            self._end = Damage(reason, size)
        elif not is_padding(self._file, min(place, max(size - MIN_PADDING_BYTES, 0))):
            self._end = Damage(reason, max(size - place, 1))
        return b"".join(parts)


def _open_codec(file: BinaryIO, codec: str) -> BinaryIO:
    """A stream that raises `OSError` for damage."""
    return _Xz(file) if codec == "xz" else pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)


class _Xz(lzma.LZMAFile):
    """The bytes of an xz file, which pyarrow does not read."""

    def read(self, size: int = -1) -> bytes:
        """As many bytes as asked, unless the file ends before."""
        parts, missing = [], size
        try:
            while missing and (part := super().read(missing)):
                parts.append(part)
                missing -= len(part) if size >= 0 else 0
        except EOFError:
            raise OSError("truncated") from None
        except lzma.LZMAError as error:
            raise OSError(str(error)) from None
        return b"".join(parts)


class _Trickle(io.RawIOBase):
    """A file that gives few bytes at a time, so that little is unpacked beside damage."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, SALVAGE_BYTES))


def attempt(call: Callable[[], T]) -> T:
    """The result of a request to a storage.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: any other failure, the last one if it might have passed.
    """
    for number in range(REMOTE_ATTEMPTS):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:  # storage libraries have no common base class of errors
            answer = _find_answer(error)
            failure = _as_os_error(error, answer)
            lasts = isinstance(failure, FileNotFoundError | PermissionError) or (
                answer is not None and answer.status not in PASSING_STATUSES)
            if lasts or number == REMOTE_ATTEMPTS - 1:
                raise failure from error
        time.sleep(max(RETRY_SECS * 2**number, _retry_after_secs(answer)))
    raise AssertionError("the last attempt returns or raises")


def _find_answer(error: BaseException | None) -> Any:
    """The exception with the status of HTTP: fsspec raises others, missing files, from it."""
    while error is not None and not isinstance(getattr(error, "status", None), int):
        error = error.__cause__
    return error


def _as_os_error(error: Exception, answer: Any) -> OSError:
    if answer is not None and answer.status not in (404, 410):
        return OSError(0, f"the server answers {answer.status} {answer.message}".rstrip())
    if type(error).__name__ in BROKEN_OFF:
        return OSError(0, "the connection broke off")
    return error if isinstance(error, OSError) else OSError(0, repr(error))


def _retry_after_secs(answer: Any) -> float:
    """Seconds that a busy server asks to wait (RFC 9110, 10.2.3); its form of a date is ignored."""
    asked = str((getattr(answer, "headers", None) or {}).get("Retry-After", ""))
    return min(int(asked), MAX_RETRY_AFTER_SECS) if asked.isdecimal() else 0.0
