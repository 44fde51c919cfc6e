"""The A2A extension: what an agent declares, and which cards it can use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from a2a.extensions.common import find_extension_by_uri
from a2a.types.a2a_pb2 import AgentCard, AgentExtension
from google.protobuf.json_format import MessageToDict

from ...card import Identity, Manifest
from ...card.container import MEDIA_TYPE
from ...card.errors import IdentityError
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
