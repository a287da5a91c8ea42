"""Opens local paths, and URLs through fsspec, in the same way.

Errors of storage libraries are raised as `OSError`, after several attempts.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import time
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import xxhash
from fsspec import AbstractFileSystem

from core.errors import UserError
from data.readers.records import READ_BYTES

REMOTE_BLOCK_BYTES = 8 << 20
REMOTE_TIMEOUT_SECS = 60.0
REMOTE_ATTEMPTS = 3
RETRY_SECS = 1.0

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub",
            "http": "aiohttp", "https": "aiohttp"}
MAGICS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
CHECKSUMS = ("ETag", "etag", "checksum", "md5Hash", "md5", "crc32c", "sha256", "blob_id")
CHANGE_TIMES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created")


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


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
    return {"client_kwargs": {"timeout": timeout}}


def size_bytes(path: str) -> int:
    """Size of a file.

    Raises:
        OSError: the file does not exist, or its size is unknown.
    """
    if not is_remote(path):
        return os.stat(path).st_size
    files, name = locate(path)
    size = _attempt(lambda: files.info(name))["size"]
    if size is None:
        raise OSError(0, "the server does not report the size of the file", path)
    return size


def open_binary(path: str) -> BinaryIO:
    """Opens a file for reading and seeking.

    Raises:
        OSError: the file cannot be opened, or is not a regular file (a pipe would block).
    """
    if is_remote(path):
        return io.BufferedReader(_Remote(path), READ_BYTES)
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(0, "is not a regular file", path)
    return open(path, "rb")


def codec_of(file: BinaryIO) -> str | None:
    """Compression of a file, detected by its first bytes."""
    file.seek(0)
    head = file.read(4)
    file.seek(0)
    return next((codec for magic, codec in MAGICS.items() if head.startswith(magic)), None)


def decompress(file: BinaryIO, codec: str) -> BinaryIO:
    """A stream of the decompressed bytes of all members; raises `OSError` for damage."""
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), codec), READ_BYTES)


def fingerprint(path: str) -> str:
    """Fingerprint of a file's content; see `data.readers.units.content_fingerprint`."""
    if is_remote(path):
        files, name = locate(path)
        info = _attempt(lambda: files.info(name))
        marks = next(([f"{key}={info[key]}"] for key in CHECKSUMS if info.get(key)), None)
        marks = marks or [f"{key}={info[key]}" for key in CHANGE_TIMES if info.get(key)][:1]
        return " ".join([*marks, f"size={info['size']}"])
    state = xxhash.xxh3_128()
    with open_binary(path) as file:
        while chunk := file.read(READ_BYTES):
            state.update(chunk)
    return state.hexdigest()


def list_files(folder: str) -> dict[str, int]:
    """Size of every file below a folder by its relative path, sorted, without `.git`.

    Raises:
        OSError: a folder cannot be read.
    """
    if is_remote(folder):
        files, name = locate(folder)
        root = name.rstrip("/")
        sizes = {path[len(root):].lstrip("/"): info["size"] or 0 for path, info in
                 _attempt(lambda: files.find(root, detail=True)).items()}
        return {path: sizes[path] for path in sorted(sizes) if ".git" not in path.split("/")}
    sizes = {}
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if name != ".git"]
        for name in names:
            path = os.path.join(place, name)
            sizes[os.path.relpath(path, folder)] = os.lstat(path).st_size
    return dict(sorted(sizes.items()))


def join(folder: str, path: str) -> str:
    """A path below a folder or URL."""
    return posixpath.join(folder, path)


def _raise(error: OSError) -> None:
    raise error


class _Remote(io.RawIOBase):
    """A remote file, opened on the first read; each read is tried several times."""

    def __init__(self, path: str):
        self._path, self._position, self._file = path, 0, None
        self._size = size_bytes(path)

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
        data = _attempt(lambda: self._read(len(buffer)))
        buffer[:len(data)] = data
        self._position += len(data)
        return len(data)

    def _read(self, num_bytes: int) -> bytes:
        if self._file is None:
            files, name = locate(self._path)
            self._file = files.open(name, "rb", block_size=REMOTE_BLOCK_BYTES,
                                    cache_type="readahead")
        self._file.seek(self._position)
        return self._file.read(num_bytes)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


def _attempt(call):
    """The result of `call`, tried several times; raises the last failure as `OSError`."""
    for attempt in range(REMOTE_ATTEMPTS):
        try:
            return call()
        except (FileNotFoundError, PermissionError, UserError):
            raise
        except Exception as error:  # storage libraries have no common base class of errors
            failure = error if isinstance(error, OSError) else OSError(0, repr(error))
        time.sleep(RETRY_SECS * attempt)
    raise failure
