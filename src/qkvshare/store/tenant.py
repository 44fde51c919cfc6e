"""Whose cards they are. Tenants share neither files nor digests: none can tell what another has."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ..card import Key
from ..card.digest import is_digest
from ..card.errors import StoreError
from ..card.files import replace
from .database import require_locks

_NAME = re.compile("[a-z0-9][a-z0-9._-]{0,63}")
NOBODY = "default"


@dataclass(frozen=True)
class Tenant:
    """A tenant's folder, the salt of its digests, and what its files are sealed with."""

    folder: Path
    salt: str | None
    key: Key | None

    @classmethod
    def of(cls, root: Path, name: str | None, key: Key | None) -> Tenant:
        """The tenant ``name`` of the store in ``root``; None where a store has only one user.

        Its folders are made where they are not there. With ``key`` the tenant's own key and salt
        follow from it; without, a named tenant has a random salt, kept in its folder. Raises
        `StoreError`.
        """
        if name is not None and not _NAME.fullmatch(name):
            raise StoreError(
                f"{name[:80]!r} cannot be a tenant's name; expected up to 64 of a-z, 0-9, '.', "
                "'_' and '-', the first a letter or a digit."
            )
        folder = root / (name or NOBODY)
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for each in (folder, folder / "cards", folder / "segments"):
                each.mkdir(mode=0o700, exist_ok=True)
            if key is not None:
                key = key if name is None else key.for_tenant(name)
                return cls(folder, key.salt(), key)
            return cls(folder, None if name is None else _random_salt(folder), None)
        except OSError as error:
            raise StoreError(
                f"no store can be kept at {folder}: {error.strerror}. "
                "Name a folder that exists or can be made, and is writable."
            ) from error


def _random_salt(folder: Path) -> str:
    """The salt in the folder, made on first use."""
    path = folder / "salt"
    if not path.exists():
        require_locks(folder)
        with FileLock(folder / ".salt.lock", mode=0o600):
            if not path.exists():
                salt = secrets.token_hex(32)
                replace(path, lambda part: part.write_text(salt), mode=0o600, error=StoreError)
    salt = path.read_text()
    if not is_digest(salt):
        raise StoreError(
            f"{path} holds no salt of 64 hex digits. Cards in this store still say theirs: put "
            "`card.manifest.salt` of one of them back into the file."
        )
    return salt
