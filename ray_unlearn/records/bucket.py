"""A folder in a bucket or on another file system that is not this machine's: list, read, fetch, store.

Places: s3:// (with ?region=, ?scheme=, ?endpoint_override= and ?tls_ca_file_path= for stores that are not Amazon's),
whatever else pyarrow opens (gs://, abfs://, hdfs://, file://), and what fsspec opens. Credentials are found by those
libraries in the environment and its files; a URI with credentials in it is refused, because URIs are written down."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, unquote, urlsplit

from ray_unlearn.config import UserError
from ray_unlearn.wording import first_line

PART_BYTES = 8 * 2**20
UNFINISHED, LOG = ".unfinished", "log.txt"
"""Ends of names: of what nobody reads yet, and of what grows all the time."""
S3_SETTINGS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
SECRETS = ("key", "secret", "token", "password", "signature", "sas")
OBJECT_STORES = ("s3", "gcs", "abfs")
"""File systems (by pyarrow's names) that need no folders, and where a file appears whole."""


def is_uri(text: str) -> bool:
    return "://" in text


def join(uri: str, name: str) -> str:
    head, mark, query = uri.partition("?")
    return f"{head.rstrip('/')}/{name}{mark}{query}"


def split(uri: str) -> tuple[str, str]:
    """What `join` has joined."""
    head, mark, query = uri.partition("?")
    parent, _, name = head.rstrip("/").rpartition("/")
    return parent + mark + query, name


@dataclass(frozen=True)
class Place:
    """A folder on a file system that is not this machine's. Methods raise whatever the file system does."""

    uri: str
    filesystem: Any
    """pyarrow.fs.FileSystem."""
    path: str

    def listed(self, folder: str = "") -> dict[str, tuple[int, int | None]]:
        """By name within the folder, that of all: size in bytes, time of writing in whole seconds (None where the
        store does not say)."""
        from pyarrow.fs import FileSelector, FileType

        found = {}
        path = f"{self.path}/{folder}".rstrip("/")
        for info in self.filesystem.get_file_info(FileSelector(path, allow_not_found=True, recursive=True)):
            name = str(PurePosixPath(info.path.lstrip("/")).relative_to(path.lstrip("/")))
            # Whoever writes into the bucket must not write elsewhere on this machine.
            if info.type == FileType.File and ".." not in name.split("/") and not _is_hidden(name):
                found[name] = info.size, int(info.mtime.timestamp()) if info.mtime else None
        return found

    def read(self, name: str) -> bytes | None:
        """None where it is not there."""
        from pyarrow.fs import FileType

        path = f"{self.path}/{name}"
        if self.filesystem.get_file_info(path).type == FileType.NotFound:
            return None
        with self.filesystem.open_input_stream(path) as source:
            return bytes(source.read())

    def get(self, name: str, target: Path) -> None:
        """Fetch a file. It appears whole, with the time of writing that it has here."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        path = f"{self.path}/{name}"
        with self.filesystem.open_input_stream(path) as source, temporary.open("wb") as file:
            while part := source.read(PART_BYTES):
                file.write(part)
        if (mtime := self.filesystem.get_file_info(path).mtime) is not None:
            os.utime(temporary, (mtime.timestamp(), mtime.timestamp()))
        temporary.replace(target)

    def put(self, name: str, source: BinaryIO) -> None:
        """Store a file. It appears whole."""
        target = place = f"{self.path}/{name}"
        has_folders = self.filesystem.type_name not in OBJECT_STORES
        if has_folders:
            parent, _, last = target.rpartition("/")
            self.filesystem.create_dir(parent, recursive=True)
            place = f"{parent}/.{last}.tmp"
        with self.filesystem.open_output_stream(place) as sink:
            while part := source.read(PART_BYTES):
                sink.write(part)
        if has_folders:
            self.filesystem.move(place, target)

    def remove(self, name: str) -> None:
        self.filesystem.delete_file(f"{self.path}/{name}")


def open_place(uri: str) -> Place:
    """Raises UserError where the URI cannot be opened; whether the place can be written is not known yet."""
    if not is_uri(uri):
        raise UserError(f"--copy-to {uri}: is no URI. Give one such as s3://bucket/prefix")
    parts = urlsplit(uri)
    named = [key for key, _ in parse_qsl(parts.query) if any(word in key.lower() for word in SECRETS)]
    if parts.password is not None or named or (parts.scheme == "s3" and parts.username is not None):
        raise UserError(
            f"{parts.scheme}://...: has credentials in it, and it will be written down. Leave them to the environment "
            "or the configuration files"
        )
    with _failures_named(uri, "cannot be opened"):
        filesystem, path = (_open_s3 if parts.scheme == "s3" else _open_other)(uri)
    return Place(uri, filesystem, path.rstrip("/"))


def _open_s3(uri: str) -> tuple[Any, str]:
    from pyarrow.fs import S3FileSystem, resolve_s3_region

    parts = urlsplit(uri)
    settings = dict(parse_qsl(parts.query))
    if unknown := set(settings) - set(S3_SETTINGS):
        raise UserError(f"{uri}: {min(unknown)} is not known. It may have {', '.join(S3_SETTINGS)} behind the ?")
    elsewhere = ("endpoint_override" in settings) or any(name.startswith("AWS_ENDPOINT_URL") for name in os.environ)
    if "region" not in settings and not elsewhere:
        settings["region"] = resolve_s3_region(parts.netloc)
    # In the background a whole model would be held in memory, part by part.
    filesystem = S3FileSystem(
        **settings, background_writes=False, allow_delayed_open=True, connect_timeout=5, request_timeout=30
    )
    return filesystem, parts.netloc + unquote(parts.path)


def _open_other(uri: str) -> tuple[Any, str]:
    import fsspec
    import pyarrow as pa
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        filesystem, path = FileSystem.from_uri(uri)
        return filesystem, path
    except pa.ArrowInvalid:  # none that pyarrow knows
        filesystem, path = fsspec.core.url_to_fs(uri)
        return PyFileSystem(FSSpecHandler(filesystem)), path


@contextlib.contextmanager
def _failures_named(uri: str, what: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise UserError(
            f"{uri}: {what} ({reason_of(error)}). Check the place, the credentials and the network"
        ) from None


def reason_of(error: Exception) -> str:
    """What a store's error says, without the number of its request."""
    return re.sub(r" \(Request ID: .*\)", "", first_line(error)).rstrip(". ")


def _is_hidden(name: str) -> bool:
    """Locks, files that are not whole yet, and what is not finished."""
    return any(part.startswith(".") or part.endswith(UNFINISHED) for part in name.split("/"))
