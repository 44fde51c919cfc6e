"""Codecs by name, and from what a manifest records of them."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

import msgspec

from ..card import CodecRecord
from ..card.errors import CardFormatError, CardVersionError, CodecError
from ..profile import Profile
from ..registry import build, find
from .base import Codec, recorded
from .packed import Packed
from .raw import Raw
from .transform import Transform

CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Raw, Packed, Transform)}


def find_codec(name: str) -> type[Codec]:
    """The codec class registered as ``name``. Raises `CodecError` with the names there are."""
    return find(name, Codec, CODECS, "codec", CodecError)  # type: ignore[type-abstract]


def codec_names() -> list[str]:
    """All names that `find_codec` knows."""
    return sorted({*CODECS, *(point.name for point in entry_points(group="qkvshare.codecs"))})


def takes_profile(kind: type[Codec]) -> bool:
    """Whether codecs of this kind need a calibration profile."""
    return "profile" in recorded(kind)


def make_codec(text: str, profile: Profile | None = None) -> Codec:
    """From ``name`` or ``name:field=value,…``; with ``profile`` where the codec takes one.

    Raises `CodecError`.
    """
    codec = build(text, find_codec, CodecError)
    if profile is not None and takes_profile(type(codec)):
        given: Any = {"profile": profile.keep()}
        return replace(codec, **given)  # type: ignore[type-var]
    return codec


def default_codec(weights: str, profile: Profile | None = None) -> Codec:
    """For a card that goes to a file: `Transform` where a profile is given or at hand."""
    if profile is not None and profile.has_basis:
        return Transform.of(profile)
    at_hand = Profile.at_hand(weights)
    return Packed() if at_hand is None else Transform.of(at_hand)


def from_record(record: CodecRecord) -> Codec:
    """The codec that a manifest describes. Raises `CodecError` or the `CardError` family."""
    kind = find_codec(record.name)
    if record.version != kind.version:
        raise CardVersionError(
            f"the card was written by {record.name!r} version {record.version}, this package "
            f"reads version {kind.version}. Capture again, or use the package that wrote it."
        )
    given: dict[str, object] = dict(record.parameters)
    if record.profile is not None:
        given["profile"] = record.profile
    known = set(recorded(kind))
    # A profile among the parameters could be any text, a path too; beside them it is a digest.
    if set(given) != known or "profile" in record.parameters:
        raise CardFormatError(
            f"codec {record.name!r} has parameters {sorted(record.parameters)[:8]} and profile "
            f"{record.profile}, expected {sorted(known)}, with the profile beside the parameters."
        )
    try:
        return msgspec.convert(given, kind, strict=True)
    except (msgspec.ValidationError, TypeError) as error:
        raise CardFormatError(f"codec {record.name!r}: bad parameters: {error}.") from error
