"""The A2A extension: what an agent declares, which cards it can use, and cards in messages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from a2a.extensions.common import find_extension_by_uri
from a2a.types.a2a_pb2 import AgentCard, AgentExtension, Part
from google.protobuf.json_format import MessageToDict, MessageToJson
from msgspec import Meta

from ...card import CacheCard, Identity, Manifest
from ...card.container import MEDIA_TYPE
from ...card.errors import CardFormatError, IdentityError, PromptError
from ...card.manifest import Digest
from ...codecs import codec_names, find_codec, takes_profile
from ...profile import Profile

URI = "urn:qkvshare:a2a-extension:cachecard:v1"


class Receiver(msgspec.Struct, frozen=True):
    """The model in memory, and the codecs that can be decoded here.

    Attributes:
        identity: the identity of the model and its tokenizer.
        codecs: ``name/version``, or ``name/version/profile`` for each profile that is here.
    """

    identity: Identity
    codecs: list[str]

    @classmethod
    def of(cls, identity: Identity) -> Receiver:
        """This installation, with a model of ``identity`` in memory."""
        profiles, found = Profile.usable(identity.weights), list[str]()
        for name in codec_names():
            kind = find_codec(name)
            label = f"{name}/{kind.version}"
            named = [f"{label}/{digest}" for digest in profiles]
            found += named if takes_profile(kind) else [label]
        return cls(identity, found)

    @classmethod
    def declared(cls, card: AgentCard) -> Receiver | None:
        """The declaration in another agent's card; None if there is none that can be read."""
        extension = find_extension_by_uri(card, URI)
        if extension is None:
            return None
        try:
            return msgspec.convert(MessageToDict(extension.params), cls)
        except msgspec.ValidationError:
            return None

    def extension(self) -> AgentExtension:
        """The declaration, for the agent card."""
        params: dict[str, Any] = {**msgspec.to_builtins(self), "media_type": MEDIA_TYPE}
        return AgentExtension(
            uri=URI,
            description="Answers carry the KV cache of the conversation as a CacheCard.",
            required=False,
            params=params,
        )

    def refuses(self, identity: Identity, codecs: Iterable[str]) -> str:
        """Why a card of ``identity``, written by ``codecs``, cannot be used; empty if it can."""
        try:
            identity.require(self.identity)
        except IdentityError as error:
            return str(error)
        lacking = sorted(set(codecs) - set(self.codecs))
        if lacking:
            return (
                f"the card was written by {', '.join(lacking[:8])}, the receiver decodes "
                f"{', '.join(self.codecs)}. Use one of these codecs, or copy the profile."
            )
        return ""


def codecs_of(manifest: Manifest) -> list[str]:
    """The codecs that a receiver of the card needs, named as in `Receiver`."""
    found = set[str]()
    for codec in (run.codec for run in manifest.runs):
        label = f"{codec.name}/{codec.version}"
        found.add(label if codec.profile is None else f"{label}/{codec.profile}")
    return sorted(found)


class Announced(msgspec.Struct, frozen=True):
    """The metadata of a card part, under the extension's URI.

    Numbers travel as text there, since A2A turns them into floats.
    """

    digest: Digest
    tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    bytes: Annotated[int, Meta(ge=8, le=2**53)]
    identity: Identity
    codecs: Annotated[list[Annotated[str, Meta(max_length=256)]], Meta(max_length=10_000)]

    @classmethod
    def of(cls, card: CacheCard) -> Announced:
        """The announcement of ``card``."""
        manifest = card.manifest
        return cls(card.digest, card.tokens, card.nbytes, manifest.identity, codecs_of(manifest))

    @classmethod
    def read(cls, part: Part) -> Announced:
        """The announcement in ``part``. Raises `CardFormatError`."""
        try:
            return msgspec.convert(_metadata(part), cls, strict=False)
        except msgspec.ValidationError as error:
            raise CardFormatError(
                f"the card part's metadata under {URI} is not valid: {error}. "
                "Expected digest, tokens, bytes, identity and codecs, as in docs/a2a.md."
            ) from error

    def metadata(self) -> dict[str, Any]:
        """The part's metadata."""
        return {
            URI: {**msgspec.to_builtins(self), "tokens": str(self.tokens), "bytes": str(self.bytes)}
        }


def answer_parts(text: str, card: CacheCard | None, base_url: str, inline: int) -> list[Part]:
    """The parts of an artifact.

    A card of at most ``inline`` bytes is in its part; a larger one is a URL below ``base_url``.
    Raises `CardDigestError`.
    """
    if card is None:
        return [Part(text=text, media_type="text/plain")]
    announced = Announced.of(card)
    described: dict[str, Any] = {
        "media_type": MEDIA_TYPE,
        "filename": f"{card.digest[:12]}.card",
        "metadata": announced.metadata(),
    }
    return [
        Part(text=text, media_type="text/plain", metadata={URI: {"instead_of": card.digest}}),
        Part(raw=card.to_bytes(), **described)
        if announced.bytes <= inline
        else Part(url=f"{base_url}/cards/{card.digest}", **described),
    ]


def card_part(parts: Iterable[Part]) -> Part | None:
    """The part that is a card, if any. Raises `CardFormatError` if there are several."""
    found = [part for part in parts if part.media_type == MEDIA_TYPE]
    if len(found) > 1:
        raise CardFormatError(
            f"there are {len(found)} cards in one message or task; expected one, since a model "
            "continues one conversation. Send the card to continue from."
        )
    return found[0] if found else None


def text_of(parts: Iterable[Part], besides: str | None = None) -> str:
    """All text, one part a line, without parts that only repeat the card ``besides`` (a digest).

    Reads text and JSON in parts of any kind, and skips cards. Raises `PromptError` for any other
    part: an answer to the rest would answer another message.
    """
    return "\n".join(
        _text(part)
        for part in parts
        if part.media_type != MEDIA_TYPE
        and (besides is None or _metadata(part).get("instead_of") != besides)
    )


def _text(part: Part) -> str:
    kind, media = part.WhichOneof("content"), part.media_type.partition(";")[0].strip().lower()
    if kind == "text":
        return part.text
    if kind == "data":
        # A2A turns all numbers into floats, and loses the order of members.
        value = json.loads(MessageToJson(part.data), parse_float=_number)
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    if kind == "raw" and (media.startswith("text/") or media == "application/json"):
        try:
            return part.raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise PromptError(
                f"a part of type {media!r} is not UTF-8: {error}. Send its text as a text part."
            ) from error
    raise PromptError(
        f"there is a part that cannot be read: {kind or 'nothing'} of type {media[:80]!r}. "
        "Expected text, JSON data, a file of text (text/* or application/json, in the message "
        "itself and not as a URL), or a card."
    )


def _number(text: str) -> float | int:
    return int(text[:-2]) if text.endswith(".0") else float(text)


def _metadata(part: Part) -> dict[str, Any]:
    found = MessageToDict(part.metadata).get(URI)
    return found if isinstance(found, dict) else {}
