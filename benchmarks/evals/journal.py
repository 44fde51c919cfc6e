"""Results kept as they are found, so that a killed evaluation can go on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from qkvshare.card.errors import QKVShareError
from qkvshare.card.files import replace

T = TypeVar("T")


class JournalError(QKVShareError):
    """The journal is of another evaluation, damaged, or in the way of a new one."""


class Journal:
    """One JSON line for what is measured, then one for each result.

    Without a path nothing is kept. A last line that was cut off is measured again.
    """

    def __init__(self, path: Path | None, measured: dict[str, Any], resume: bool) -> None:
        """``measured`` must be what an old journal at ``path`` says. Raises `JournalError`."""
        self._path, self._found = path, dict[str, msgspec.Raw]()
        if path is None:
            return
        if path.exists():
            if not resume:
                raise JournalError(
                    f"{path} holds results of an evaluation that was cut off. Go on with it by "
                    "--resume, or delete it."
                )
            self._read(path, measured)
        else:
            self._append([measured])

    def get(self, key: str, kind: type[T]) -> T | None:
        """The result kept as ``key``, or None."""
        if key not in self._found:
            return None
        return msgspec.json.decode(self._found[key], type=kind)

    def put(self, key: str, result: Any) -> None:
        """Keep ``result``: it outlives this process at once."""
        self._append([key, result])

    def close(self) -> None:
        """All is written elsewhere: the journal is not needed any more."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _append(self, record: list[Any]) -> None:
        assert self._path is not None or len(record) == 2
        if self._path is not None:
            try:
                with self._path.open("ab") as file:
                    file.write(msgspec.json.encode(record) + b"\n")
            except OSError as error:
                raise JournalError(f"{self._path} cannot be written: {error}.") from error

    def _read(self, path: Path, measured: dict[str, Any]) -> None:
        try:
            *lines, rest = path.read_bytes().split(b"\n")
            (said,) = msgspec.json.decode(lines[0], type=tuple[msgspec.Raw])
            kept = [msgspec.json.decode(line, type=tuple[str, msgspec.Raw]) for line in lines[1:]]
        except (OSError, IndexError, msgspec.DecodeError) as error:
            raise JournalError(
                f"{path} is not a journal of an evaluation: {error!r}. Delete it."
            ) from error
        if msgspec.json.decode(said) != msgspec.json.decode(msgspec.json.encode(measured)):
            raise JournalError(
                f"{path} holds results of another evaluation: {bytes(said).decode()[:300]}. Give "
                "the same options, or delete it."
            )
        self._found = dict(kept)
        if rest:
            whole = b"".join(line + b"\n" for line in lines)
            replace(path, lambda part: part.write_bytes(whole), error=JournalError)
