"""Adopt a card that came from elsewhere: check all of it, then put it."""

from __future__ import annotations

from collections.abc import Callable

from ..card import CacheCard
from ..card.errors import CardSignatureError, QKVShareError
from .store import Store
from .upload import Upload


def adopt(store: Store, upload: Upload, accept: Callable[[CacheCard], bool]) -> CacheCard:
    """Put the card that has arrived into ``store``.

    Args:
        store: where the card goes.
        upload: all bytes of the card; closed on success.
        accept: looks at header and ids before the rest is read. It raises for a card that is not
            wanted, and says whether prompts may find the card (``vouched``, see `Store.put`).

    Returns:
        The card as the store has it. Its digest is another one where the store's salt is.

    Raises:
        What ``accept`` does, the `CardError` family, `CodecError` for numbers that do not decode,
        `CardSignatureError` for a signed card of another salt, and `StoreError`.
    """
    card = upload.card()
    vouched = accept(card)
    # A thin card can be decoded only together with what the store has.
    checked = card.verified() if card.thin else card.verify()
    card = with_salt_of(store, CacheCard(card.manifest, checked, card.signature))
    upload.close()
    digest = store.put(card, vouched=vouched and not card.thin)
    if card.thin:
        try:
            store.get(digest).verify()
        except QKVShareError:
            store.remove(digest)
            raise
        store.put(card, vouched=vouched)
    return card


def with_salt_of(store: Store, card: CacheCard) -> CacheCard:
    """``card`` under the store's salt. Raises `CardSignatureError` where it would lose its signer.

    A signature is of the digest, and digests under another salt are others.
    """
    if card.manifest.salt == store.salt:
        return card
    if card.signature is not None:
        fitting = "with its salt" if card.manifest.salt else "without a salt"
        raise CardSignatureError(
            "the card is signed, and its digests have another salt than this store: with the "
            "store's the signature would be lost. Capture the card with salt=store.salt and sign "
            f"it then, or put it into a store {fitting}."
        )
    return card.salted(store.salt)
