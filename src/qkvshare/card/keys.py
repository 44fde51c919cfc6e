"""Keys that cards are sealed with, and what is derived from them."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .digest import is_digest
from .errors import SecretError
from .private import read_private, require_cryptography, write_private

VARIABLE = "QKVSHARE_KEY"


@dataclass(frozen=True, repr=False)
class Key:
    """32 secret bytes; whoever has them can read and write what was sealed with them.

    Everything else is derived from them by HKDF-SHA256 (RFC 5869) with a label of its own.
    """

    secret: bytes

    def __post_init__(self) -> None:
        """Refuse what is no key. Raises `SecretError`."""
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
        """Which key it is, not the key."""
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
