"""Who asks: bearer tokens, each of a tenant, and the stores of these tenants."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path

from ..card import CacheCard, Key
from ..card.errors import CardSignatureError, ServeError
from ..card.files import read_text
from ..card.signing import require_signature
from ..store import Store
from ..store.tenant import NOBODY

# A token of this tenant reads /metrics, which count all tenants', and nothing else.
METRICS = "metrics"
_TOKEN = re.compile(r"[\x21-\x7e]{16,512}")


@dataclass(frozen=True)
class Access:
    """Tokens (their SHA-256) and whose they are; empty where nobody needs one."""

    tenants: Mapping[bytes, str]

    @classmethod
    def load(cls, path: Path) -> Access:
        """From a file of lines ``TOKEN TENANT``; ``#`` begins a comment. Raises `ServeError`."""
        try:
            if path.stat().st_mode & 0o077:
                raise ServeError(f"{path} can be read by others; make it yours: chmod 600 {path}")
        except OSError as error:
            raise ServeError(f"the tokens in {path} cannot be read: {error}.") from error
        lines = read_text(path, ServeError).splitlines()
        tenants: dict[bytes, str] = {}
        for number, line in enumerate(lines, 1):
            words = line.split("#")[0].split()
            if not words:
                continue
            if len(words) != 2 or not _TOKEN.fullmatch(words[0]):
                raise ServeError(
                    f"{path}, line {number}: expected a token of 16 to 512 printable characters "
                    "and a tenant's name, with a space between."
                )
            if words[1] == NOBODY:
                raise ServeError(
                    f"{path}, line {number}: {NOBODY!r} is the store of a server without tokens; "
                    "expected another name for the tenant."
                )
            if tenants.setdefault(_digest(words[0]), words[1]) != words[1]:
                raise ServeError(f"{path}, line {number}: this token is another tenant's already.")
        if not tenants:
            raise ServeError(f"{path} has no token; expected lines TOKEN TENANT.")
        return cls(tenants)

    def tenant(self, authorization: str | None) -> str | None:
        """Whose request has this ``Authorization``. None: nobody's, and that is wrong if `needed`.

        Compared by digest: what a comparison takes says nothing about a token.
        """
        scheme, _, token = (authorization or "").partition(" ")
        return self.tenants.get(_digest(token.strip())) if scheme.lower() == "bearer" else None

    @property
    def needed(self) -> bool:
        """Whether requests need a token."""
        return bool(self.tenants)


def is_local(host: str) -> bool:
    """Whether ``host``, a name or an address, is this machine's own and no other's."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def require_host(host: str, access: Access) -> None:
    """Raise `ServeError` for listening where others can reach us while nobody needs a token."""
    if not access.needed and not is_local(host):
        raise ServeError(
            f"without tokens nobody but this machine is served, and {host} can be reached by "
            "others. Name a file of tokens (--tokens; in a program Stores(…, Access.load(file))), "
            "or listen on 127.0.0.1."
        )


@dataclass
class Stores:
    """A store for each tenant, in one folder; opened when it is asked for first.

    ``trust``: a file of public keys. Prompts find a card that came from elsewhere if one of them
    signed it.
    """

    root: Path
    access: Access
    key: Key | None = None
    limit: int | None = None
    trust: Path | None = None

    def trusts(self, card: CacheCard) -> bool:
        """Whether one of the trusted keys signed ``card``. Raises `SecretError`."""
        if self.trust is None:
            return False
        try:
            require_signature(card.digest, card.signature, self.trust)
        except CardSignatureError:
            return False
        return True

    def of(self, tenant: str | None) -> Store:
        """The store of ``tenant``, None where nobody needs a token."""
        return self._open[tenant]

    @cached_property
    def _open(self) -> dict[str | None, Store]:
        # All at once: a folder that cannot be used is found before the first request.
        tenants = set(self.access.tenants.values()) - {METRICS}
        names: list[str | None] = [*sorted(tenants)] if self.access.needed else [None]
        return {
            name: Store(self.root, tenant=name, key=self.key, limit=self.limit) for name in names
        }

    def all(self) -> list[Store]:
        """Every tenant's. Raises `StoreError` for a name that cannot be one."""
        return list(self._open.values())


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
