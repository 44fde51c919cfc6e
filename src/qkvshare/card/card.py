"""`CacheCard`: what is handed over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from . import container, reshape
from .container import Array, CardStream, FileTensors, StoredTensors
from .contents import Contents
from .engine import Inputs, KVFormat, engine
from .errors import CardExpiredError
from .header import check_tensors, open_header
from .keys import Key
from .manifest import Hop, Segment
from .sealing import SealedTensors, open_file, seal
from .signing import Signer, require_signature


@dataclass(frozen=True, eq=False)
class CacheCard(Contents):
    """The KV cache of one sequence, encoded, with everything needed to use it safely.

    Immutable. Made by `qkvshare.capture` or `CacheCard.load`; used by `inputs`.
    """

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        key: Key | None = None,
        trust: Iterable[str] | str | Path | None = None,
    ) -> CacheCard:
        """Open a card file: header and token ids are read and verified, the rest on demand.

        Args:
            path: the file.
            key: what the card is sealed with. With a key a plain card is refused.
            trust: public keys (64 hex digits each), or a file with one a line: only a card that
                one of them signed is loaded. Without it a signature says nothing.

        Raises `CardNotFoundError`, `CardFormatError`, `CardVersionError`, `CardDigestError`,
        `CardKeyError`, `CardTagError` or `CardSignatureError`.
        """
        card = cls.opened(open_file(FileTensors(Path(path)), key))
        if trust is not None:
            require_signature(card.digest, card.signature, trust)
        return card

    @classmethod
    def opened(cls, tensors: StoredTensors) -> CacheCard:
        """The card in a file or object, header and token ids verified. Raises as `load`."""
        manifest, envelope = open_header(tensors)
        check_tensors(tensors, manifest, envelope.thin)
        card = cls(manifest, tensors, envelope.signature, tensors)
        _ = card.token_ids  # verified now, so that a wrong prefix is never found too late
        return card

    def save(self, path: str | Path, *, key: Key | None = None) -> Path:
        """Write the card atomically, sealed if there is a ``key``.

        Readers see the old file or the whole new one. Raises `CardWriteError`, or
        `CardDigestError` rather than write damaged bytes. Returns the path.
        """
        target, tensors, metadata = Path(path), self.verified(), self.metadata()
        if key is not None:
            tensors, metadata = seal(tensors, metadata, key)
        container.write(target, tensors, metadata)
        return target

    def to_bytes(self) -> bytes:
        """The file that `save` would write. Raises `CardDigestError`."""
        return container.to_bytes(self.verified(), self.metadata())

    def stream(self) -> CardStream:
        """The file that `save` would write, to be sent piece by piece."""
        return CardStream(self.tensors, self.metadata(), self.tensor)

    def signed(self, signer: Signer) -> CacheCard:
        """The same card with ``signer``'s signature; what is derived from it carries none."""
        return replace(self, signature=signer.sign(self.digest), file=None)

    @property
    def sealed(self) -> bool:
        """Whether it was loaded from a sealed file."""
        return isinstance(self.file, SealedTensors)

    def __deepcopy__(self, _: object) -> CacheCard:
        """Immutable, so a copy of whatever refers to it may share it."""
        return self

    def __repr__(self) -> str:
        """In short: ``CacheCard(1024 tokens, 30 layers, 4.0 bits per value, 11.8 MB)``."""
        agent, what = self.manifest.lineage[-1].agent, f"{len(self.manifest.states)} states"
        if self.manifest.layers:
            what = f"{len(self.manifest.layers)} layers, {self.bits_per_value:.1f} bits per value"
        return (
            f"CacheCard({self.tokens} tokens, {what}, {self.nbytes / 1e6:.1f} MB"
            f"{agent and f', agent {agent!r}'})"
        )

    def inputs(
        self,
        model: Any,
        tokenizer: Any = None,
        new: Any = "",
        *,
        prompt_ids: Any = None,
        new_only: bool = False,
        kv_format: KVFormat = "model",
        cached: Any = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Inputs:
        """Arguments of ``model.generate`` that go on from this card.

        The cache among them is a new one at each call. ``generate`` changes it, so call this again
        for another ``generate``. With no new token at all, the card's last token is read again,
        since a model can only go on from a token that it reads.

        Args:
            model: the ``transformers`` model that the card was captured from, weight for weight.
            tokenizer: the model's. It is compared with the card's; a text needs it.
            new: what follows the card's tokens: a text, which is tokenized without special tokens,
                or ids ``[new]`` or ``[1, new]``.
            prompt_ids: instead of ``new``: the whole prompt, which must begin with the card's ids.
            new_only: ``input_ids`` are ``[1, new]``, for a plain forward: ``model(**inputs)``. For
                ``generate`` they are ``[1, context + new]``, since its penalties, length limits
                and stop rules look at all of them.
            kv_format: how the cache holds the card's tokens in layers with full attention.
                "model": in the model's number format. "bfloat16": in half the memory, for models
                in float32; not for `Raw`. "codes": as the card's bytes, each layer decoded
                whenever it is read; not for `Transform`. `qkvshare.attention` reads both as they
                are, which makes tokens faster with "bfloat16".
            cached: a cache from this method for a card that this one was captured from, with one
                sequence. What both share is copied instead of decoded, and need not be in this
                card, see `without`.
            cancelled: asked before each layer; once it is true, `CancelledError` is raised.

        Returns:
            The arguments. Their cache raises `PromptError` when it is read with other ids.

        Raises:
            IdentityError: the model or the tokenizer is another.
            PromptError: the prompt does not continue the card, or the model cannot read it.
            CardError: the card is damaged, expired or thin.
            CodecError: the codec is unknown, or cannot be kept in ``kv_format``.
            UnsupportedModelError: a card cannot carry the model's state.
            CancelledError: the caller called it off.
        """
        found: Inputs = engine().inputs(
            self,
            model,
            tokenizer,
            new,
            prompt_ids=prompt_ids,
            new_only=new_only,
            kv_format=kv_format,
            cached=cached,
            cancelled=cancelled,
        )
        return found

    def extend(
        self, model: Any, out: Any, *, agent: str = "", bits: float | None = None
    ) -> CacheCard:
        """A child of this card with what the model has read and said since.

        Args:
            model: the model that `inputs` was called with.
            out: what ``model.generate(**inputs, return_dict_in_generate=True)`` returned.
            agent: the name of the child's agent in its lineage.
            bits: bits per value of the child's file, as `qkvshare.capture` takes them.

        Raises `CaptureError`, and what `qkvshare.capture` raises.
        """
        child: CacheCard = engine().extend(self, model, out, agent=agent, bits=bits)
        return child

    def require_fresh(self) -> None:
        """Raise `CardExpiredError` once the card's time has passed."""
        expires = self.manifest.expires
        if expires is not None and datetime.now(UTC) >= expires:
            raise CardExpiredError(f"the card expired at {expires}. Capture a new one.")

    def fork(self, agent: str = "") -> CacheCard:
        """A child for one of several receivers: the same segments and bytes, one more hop."""
        return self.child(self.manifest.segments, self.tensors, agent)

    def without(self, parent: CacheCard) -> CacheCard:
        """The same card without the bytes that ``parent`` has: a thin card, of the same digest.

        For a receiver who has the parent; ids stay. Raises `CardError` for a card that does not
        begin with the parent's segments.
        """
        return CacheCard(self.manifest, reshape.without(self, parent), self.signature)

    def whole(self, parent: CacheCard) -> CacheCard:
        """A thin card with the bytes it lacks taken from ``parent``, checked when they are read.

        Raises `CardThinError` where the parent does not have them.
        """
        return CacheCard(self.manifest, reshape.whole(self, parent), self.signature)

    def head(self, tokens: int) -> CacheCard:
        """A child with the first ``tokens`` tokens, for a prompt that goes on otherwise from there.

        Raises `CardError` unless a segment ends there.
        """
        return self.child(*reshape.head(self, tokens), "head")

    def compact(self) -> CacheCard:
        """All segments as one: a smaller header; bytes are moved, nothing is encoded again.

        The segment has another name than those it was made of, so a receiver who has them cannot
        use them for it. Raises `CardThinError`.
        """
        segment, tensors = reshape.merge(self)
        return self.child([segment], tensors, "compact")

    def salted(self, salt: str | None) -> CacheCard:
        """The same card for another tenant: every digest of its own is taken anew under ``salt``.

        ``salt``: 64 hex digits; None for none. Bytes stay and are verified, nothing is decoded; the
        lineage names parents as they were. Raises `CardError` for what is no salt, `CardThinError`.
        """
        if self.thin:
            self._blob(0, 0)  # raises: digests of bytes that are elsewhere cannot be taken
        checked = self.verified()
        return CacheCard(reshape.resalt(self.manifest, checked, salt), checked)

    def child(self, segments: list[Segment], tensors: Mapping[str, Array], agent: str) -> CacheCard:
        """A card of other ``segments`` and their ``tensors`` for the same tokens, one hop on."""
        lineage = self.manifest.lineage
        hop = Hop(hop=len(lineage), agent=agent, tokens_added=0, parent=self.digest)
        manifest = msgspec.structs.replace(
            self.manifest,
            created=datetime.now(UTC).replace(microsecond=0),
            segments=segments,
            lineage=[*lineage, hop],
        )
        return CacheCard(manifest, tensors)
