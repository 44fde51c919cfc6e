"""Keys that cards are sealed with, and files of secrets.

Such a file is readable by its owner alone, and never overwritten.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .digest import is_digest
from .errors import SecretError
from .files import sync_folder

VARIABLE = "QKVSHARE_KEY"
# A key is some hundred bytes; anything much longer is another file.
_MOST = 4096


@dataclass(frozen=True, repr=False)
class Key:
    """32 secret bytes; whoever has them can read and write what was sealed with them.

    Everything else is derived from them by HKDF-SHA256 (RFC 5869) with a label of its own.
    """

    secret: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.secret, bytes) or len(self.secret) != 32:
            raise SecretError("a key is 32 bytes. Make one with Key.generate() or Key.load(path).")

    @classmethod
    def generate(cls) -> Key:
        """A new random key."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def load(cls, source: str | Path) -> Key:
        """Read a key: 64 hex digits in a file of mode 600, or in the variable ``QKVSHARE_KEY``.

        ``source``: the file's path, or ``"env"``. Raises `SecretError`.
        """
        if source == "env":
            text, where = os.environ.get(VARIABLE, ""), f"the variable {VARIABLE}"
        else:
            text, where = read_private(Path(source)).decode("ascii", "replace"), str(source)
        if not is_digest(text.strip().lower()):
            raise SecretError(
                f"{where} holds no key; expected 64 hex digits. Make one: qkvshare key new FILE."
            )
        return cls(bytes.fromhex(text.strip()))

    def save(self, path: str | Path) -> Path:
        """Write the key to a new file of mode 600. Raises `SecretError`."""
        return write_private(Path(path), f"{self.secret.hex()}\n".encode())

    def __repr__(self) -> str:
        return f"<Key {self.id}>"

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits that stand in every file sealed with the key; they tell nothing."""
        return self.derive(b"qkvshare key id 1", length=8).hex()

    def for_tenant(self, name: str) -> Key:
        """One tenant's own key: from it neither this key nor another tenant's can be found."""
        return Key(self.derive(b"qkvshare tenant 1\0" + name.encode()))

    def salt(self) -> str:
        """A salt for the digests of all cards of the key's owner, 64 hex digits."""
        return self.derive(b"qkvshare digest salt 1").hex()

    def derive(self, info: bytes, salt: bytes = b"", length: int = 32) -> bytes:
        """HKDF-SHA256 of the secret; raises `SecretError` without the package for it."""
        require_cryptography()
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return HKDF(SHA256(), length, salt, info).derive(self.secret)


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
