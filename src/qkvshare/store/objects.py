"""Objects behind an fsspec URL: the few calls that a store needs, every failure with a name.

The only place that knows fsspec. Listings are never cached, for others write too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..card.container import write_bytes
from ..card.errors import CardNotFoundError, QKVShareError, StoreError
from .ranged import RangedTensors

A = TypeVar("A")
B = TypeVar("B")

# Requests at a time: most of one is waiting.
PARALLEL = 8


def parallel(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """``function`` of every item, some at a time; the first error is raised."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(function, items))


class Objects:
    """What is below ``url``; names are relative to it, with "/" between their parts."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        """Open the file system of ``url`` with fsspec's ``options``. Raises `StoreError`."""
        try:
            from fsspec.core import url_to_fs

            self._system, root = url_to_fs(url, use_listings_cache=False, **options)
        except ImportError as error:
            raise StoreError(
                f"the store {url} needs a package that is not installed: {error}. "
                "For S3: pip install 'qkvshare[remote]'; for others, the one that is named here."
            ) from error
        except ValueError as error:
            raise StoreError(
                f"no store can be at {url!r}: {error}. Expected a URL such as s3://bucket/folder."
            ) from error
        self.root = str(root).rstrip("/")
        self._url = url
        self._local = bool(getattr(self._system, "local_file", False))

    def path(self, name: str) -> Path:
        """Where an object is, for messages."""
        return Path(self.root, name)

    def size(self, name: str) -> int | None:
        """Bytes of an object, None where there is none."""
        with self._named_errors():
            try:
                return int(self._system.info(self._at(name))["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str, start: int, end: int) -> bytes:
        """Bytes ``[start, end)`` by one ranged read, fewer where the object ends before.

        Raises `CardNotFoundError` where it is not there any more.
        """
        with self._named_errors():
            try:
                return bytes(self._system.cat_file(self._at(name), start=start, end=end))
            except FileNotFoundError as error:
                raise CardNotFoundError(
                    f"{self.path(name)} was removed while it was being read. Get the card again."
                ) from error

    def tensors(self, name: str) -> RangedTensors:
        """The tensors of an object. Raises as `RangedTensors` does."""
        return RangedTensors(self.path(name), self.size(name), partial(self.read, name))

    def write(self, name: str, data: bytes) -> None:
        """Make or replace an object, whole or not at all, where the service can do that.

        Object storage can, and files on this machine can; other file systems (sftp, …) may show a
        part of it meanwhile.
        """
        with self._named_errors():
            if not self._local:
                self._system.pipe_file(self._at(name), data)
                return
            path = self.path(name)
            for folder in [*reversed(path.relative_to(self.root).parents)]:
                Path(self.root, folder).mkdir(mode=0o700, parents=True, exist_ok=True)
            write_bytes(path, data)

    def ls(self, folder: str) -> dict[str, int]:
        """Names and bytes of all objects below ``folder``."""
        with self._named_errors():
            try:
                found = self._system.find(self._at(folder), detail=True)
            except FileNotFoundError:
                return {}
        cut = len(self.root) + 1
        return {path[cut:]: int(info["size"] or 0) for path, info in found.items()}

    def modified(self, name: str) -> float | None:
        """When an object was written, by the service's clock; seconds since 1970, None if gone."""
        with self._named_errors():
            try:
                return float(self._system.modified(self._at(name)).timestamp())
            except FileNotFoundError:
                return None

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._named_errors(), suppress(FileNotFoundError):
            self._system.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Every service has errors of its own, with no base in common but `Exception`."""
        try:
            yield
        except QKVShareError:
            raise
        except Exception as error:
            raise StoreError(
                f"the store {self._url} does not answer as it should: "
                f"{type(error).__name__}: {str(error)[:300]}. Check the address, the credentials "
                "and their rights to list, read, write and delete, then do the same again."
            ) from error
