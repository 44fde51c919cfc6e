"""Files that hold secrets: readable by their owner alone, never overwritten."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import SecretError
from .files import sync_folder

# A key is some hundred bytes; anything much longer is another file.
_MOST = 4096


def require_cryptography() -> None:
    """Raise `SecretError` where the package that does the cryptography is not installed."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise SecretError(
            "keys and signatures need the extra 'crypto': pip install 'qkvshare[crypto]'."
        ) from error


def read_private(path: Path) -> bytes:
    """The content of a secret file. Raises `SecretError`, also where others may read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MOST + 1)
    except OSError as error:
        raise SecretError(f"no key can be read at {path}: {error.strerror}.") from error
    if os.name == "posix" and mode & 0o077:
        raise SecretError(
            f"{path} has mode {mode & 0o777:o}: others on this machine may read or change it. "
            f"Expected 600: chmod 600 {path}, and make a new key if it was not private before."
        )
    if len(content) > _MOST:
        raise SecretError(f"{path} has more than {_MOST} bytes; it is not a key.")
    return content


def write_private(path: Path, content: bytes) -> Path:
    """Write a secret file of mode 600. Raises `SecretError`, also where there is a file already."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)  # part of a key would be in the way of the whole one
            raise
        sync_folder(path.parent)
    except FileExistsError as error:
        raise SecretError(
            f"{path} exists and is left as it is: cards sealed with a lost key are lost. "
            "Choose another name."
        ) from error
    except OSError as error:
        raise SecretError(f"the key cannot be written to {path}: {error.strerror}.") from error
    return path
