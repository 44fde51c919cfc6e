"""Signatures: who vouches for a card, by Ed25519 (RFC 8032) over its digest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .digest import is_digest
from .errors import CardSignatureError, SecretError
from .files import read_text
from .keys import read_private, require_cryptography, write_private
from .manifest import Signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, repr=False, eq=False)
class Signer:
    """A private key that signs cards."""

    private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Signer:
        """A new random key. Raises `SecretError`."""
        require_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: str | Path) -> Signer:
        """Read a private key: unencrypted PKCS #8 in PEM, mode 600. Raises `SecretError`."""
        require_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            private = load_pem_private_key(read_private(Path(path)), password=None)
            if not isinstance(private, Ed25519PrivateKey):
                raise TypeError(f"it is a {type(private).__name__}")
        except (ValueError, TypeError) as error:
            raise SecretError(
                f"{path} holds no Ed25519 key in PEM. Make one: qkvshare key signer FILE."
            ) from error
        return cls(private)

    def save(self, path: str | Path) -> Path:
        """Write the private key to a new file of mode 600. Raises `SecretError`."""
        from cryptography.hazmat.primitives import serialization as form

        content = self.private.private_bytes(
            form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
        )
        return write_private(Path(path), content)

    def __repr__(self) -> str:
        return f"<Signer {self.public}>"

    @cached_property
    def public(self) -> str:
        """The public key, 64 hex digits: what receivers trust."""
        return self.private.public_key().public_bytes_raw().hex()

    def sign(self, digest: str) -> Signature:
        """The signature of the card with this digest."""
        return Signature(self.public, self.private.sign(_message(digest)).hex())


def require_signature(
    digest: str, signature: Signature | None, trust: Iterable[str] | str | Path
) -> None:
    """Raise `CardSignatureError` unless one of ``trust`` signed the card with this digest."""
    known = read_trust(trust) if isinstance(trust, str | Path) else _checked(trust, "trust=")
    if signature is None:
        raise CardSignatureError(
            f"the card {digest[:12]}… is not signed; expected a signature by one of the "
            f"{len(known)} trusted keys. Ask its sender to sign it."
        )
    if signature.key not in known:
        raise CardSignatureError(
            f"the card {digest[:12]}… is signed by {signature.key}, who is none of the "
            f"{len(known)} trusted keys. Trust that key, if you know whose it is."
        )
    require_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
        public.verify(bytes.fromhex(signature.value), _message(digest))
    except (InvalidSignature, ValueError) as error:
        raise CardSignatureError(
            f"the signature is not {signature.key[:12]}…'s of the card {digest[:12]}…: it was "
            "forged, or is another card's. Get the card again from its sender."
        ) from error


def read_trust(path: str | Path) -> set[str]:
    """Public keys, one a line; what follows ``#`` is a comment. Raises `SecretError`."""
    lines = read_text(Path(path), SecretError).splitlines()
    return _checked(filter(None, (line.partition("#")[0].strip() for line in lines)), str(path))


def _checked(keys: Iterable[str], where: str) -> set[str]:
    known = set(keys)
    for key in known:
        if not is_digest(key):
            raise SecretError(f"{where}: {key[:80]!r} is no public key; expected 64 hex digits.")
    return known


def _message(digest: str) -> bytes:
    """What is signed; the label keeps it from being taken for a signature of something else."""
    return b"qkvshare card 1\0" + bytes.fromhex(digest)
