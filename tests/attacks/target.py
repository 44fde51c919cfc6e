"""One execution of the fuzzer: bytes in, and what must come out is success or a `QKVShareError`.

The first byte says what the rest is: a card's file as it is (`FILE`); a file whose digests are made
again before it is read, as a forger would do (`FORGED`); the blobs of a codec (`BLOBS`); a sealed
file as it is (`SEALED`); a file that is forged and then sealed, by who has the key (`RESEALED`); or
what is changed in a profile (`PROFILE`).
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import torch

from benchmarks.codecs import Kivi, Uniform
from qkvshare import profile
from qkvshare.card import CacheCard, Key
from qkvshare.card.container import MAGIC, blob_name, ids_name, to_bytes
from qkvshare.card.digest import Bytes, digest_bytes, empty_chain, extend_chain, is_digest
from qkvshare.card.errors import CardThinError, QKVShareError
from qkvshare.card.sealing import ENVELOPE, seal
from qkvshare.cli import inspect
from qkvshare.codecs import (
    DTYPES,
    Codec,
    Packed,
    Raw,
    Shape,
    Transform,
    Trimmable,
    decode_runs,
    empty,
    shapes_of,
    stats,
)
from qkvshare.codecs.states import decode_states
from qkvshare.codecs.stats import describe
from qkvshare.profile import Profile

from ..cards import canonical
from ..profiles import made_up_layers, made_up_profile
from .profile_input import changed

NAMES = ("files", "forged", "blobs", "sealed", "resealed", "profiles")
FILE, FORGED, BLOBS, SEALED, RESEALED, PROFILE = range(len(NAMES))
GOLDEN = Path(__file__).parents[1] / "card" / "golden"
# Decoded numbers of an execution: a receiver compares a card's geometry with its model first.
MOST_NUMBERS = 1 << 18
DIMS = (1, 2, 3, 5, 7, 8, 12, 16, 24, 33, 64, 80, 96, 128, 256, 320, 512)
KEY = Key(b"Z" * 32)  # that of the golden sealed card
MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


class SilentDamage(Exception):
    """A file that was not forged decodes, and to other numbers than the card it names."""


@dataclass
class Target:
    """Runs inputs; cards are written to ``path``.

    ``bytes_in`` and ``bytes_out`` are those of the last execution: read, and decoded as float32;
    ``used``: whether it decoded with a changed profile.
    """

    names: ClassVar[tuple[str, ...]] = NAMES

    path: Path
    bytes_in: int = 0
    bytes_out: int = 0
    used: bool = False
    genuine: dict[str, str] = field(default_factory=dict)
    parents: list[CacheCard] = field(default_factory=list)
    profiles: list[str] = field(default_factory=list)
    coded: list[Bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        made_of = Profile.load(GOLDEN / "transform.safetensors"), made_up_profile(3)
        self.profiles = [profile.keep() for profile in made_of]
        for file in sorted(GOLDEN.glob("*.card")):
            card = CacheCard.load(file)
            self.genuine[card.digest] = digest_bytes(b"".join(contents(card)))
            self.parents.append(card)
        codec = Transform(self.profiles[1])
        self.coded = list(codec.at(codec.basis.reference).encode(made_up_layers(3, 6)))

    def __call__(self, data: bytes) -> None:
        """Raises anything but `QKVShareError`, where it is a defect."""
        self.bytes_in, self.bytes_out = len(data), 0
        kind, rest = (data[0] % len(NAMES), data[1:]) if data else (FILE, b"")
        if kind in (BLOBS, PROFILE):
            with suppress(QKVShareError):
                (self._decode if kind == BLOBS else self._profile)(rest)
            return
        content = forge(rest) if kind in (FORGED, RESEALED) else rest
        if kind == RESEALED:
            content = resealed(content)
        self.bytes_in = len(content)
        self.path.write_bytes(content)
        with suppress(QKVShareError):
            self._read(kind, shown=digest_bytes(data) < "02")

    def _read(self, kind: int, shown: bool) -> None:
        """Load, verify, inspect, reshape and decode, each whatever became of the one before it."""
        key = KEY if kind in (SEALED, RESEALED) else None
        card = CacheCard.load(self.path, key=key)
        shapes = [shape for run in card.manifest.runs for shape in shapes_of(card, run)]
        numbers = sum(s.kv_heads * s.tokens * (s.head_dim + s.v_head_dim) for s in shapes)
        snapshots = map(card.manifest.snapshot, card.manifest.segments)
        numbers += sum(state.numbers for states in snapshots for state in states)
        # More than that a byte `verify` refuses, without a model to compare geometry with.
        self.bytes_out = 4 * min(numbers, 256 * self.bytes_in)
        with suppress(QKVShareError):
            card.verify()
        with suppress(QKVShareError):
            card.require_fresh()
        with suppress(QKVShareError):
            describe(card)
            stats.mean_bits(card)
            msgspec.json.encode(card.manifest.names)
            _ = card.digest, card.bits_per_value, card.thin
        with suppress(QKVShareError):
            stats.token_bits(card)
        with suppress(QKVShareError):
            _ = card.compact().digest
        with suppress(QKVShareError):
            _ = card.salted("5" * 64).digest
        if shown:  # a table takes longer than all the rest
            with redirect_stdout(io.StringIO()), suppress(QKVShareError):
                inspect.inspect(self.path, key=None)
                inspect.inspect(self.path, json="-", key=None)
        if card.thin:
            card = self._whole(card)
        if numbers > MOST_NUMBERS:
            return
        found = digest_bytes(b"".join(contents(card)))
        if kind in (FILE, SEALED) and self.genuine.get(card.digest) != found:
            raise SilentDamage(card.digest)

    def _whole(self, card: CacheCard) -> CacheCard:
        """With the bytes that it lacks from a golden card, where one has them."""
        for parent in self.parents:
            with suppress(CardThinError):
                return card.whole(parent)
        return card

    def _profile(self, data: bytes) -> None:
        """A changed profile, from a file now and then, and decoding with it."""
        take = _Taker(data)
        flags, number = take.byte(), take.byte() % 2
        made = changed(Profile.find(self.profiles[1]), take.byte)
        self.bytes_in = sum(array.nbytes for array in made.arrays.values())
        # Tables of all classes, whatever is decoded; then what is.
        self.bytes_out = 4 * 168 * 4096 + 4 * 3 * 2 * 6 * 16
        if flags % 8 == 0:
            made.save(self.path)
            made = Profile.load(self.path)
        digest, self.used = made.keep(), False
        try:
            codec = Transform(digest)
            at = codec.basis.reference if number else 2 * (take.byte() - 128)
            shapes = [Shape(2, 6, 8, 8)] * 3
            for _ in codec.at(at).decode(self.coded, empty(shapes, torch.float32)):
                pass
            self.used = True
        finally:
            if digest not in self.profiles:
                profile._known.pop(digest)
            for known in self.profiles:  # so that their tables stay, and cost no later execution
                _ = Transform(known).basis

    def _decode(self, data: bytes) -> None:
        """Geometry, codec and number format from the first bytes, then what is to be decoded."""
        take = _Taker(data)
        which, dtype, flags = take.byte() % 5, list(DTYPES.values())[take.byte() % 3], take.byte()
        tokens = 1 + (take.byte() | take.byte() << 8) % 1100
        heads, dim, v_dim = (
            1 + take.byte() % 4, DIMS[take.byte() % len(DIMS)], DIMS[take.byte() % len(DIMS)],
        )  # fmt: skip
        parameter = take.byte()
        shape, count = Shape(heads, tokens, dim, v_dim), 1 + flags % 2
        codec: Codec = Raw()
        if which in (1, 2):
            codec = (Uniform if which == 1 else Kivi)((2, 3, 4, 8)[parameter % 4])
        elif which == 3:
            codec = Packed()
        elif which == 4:
            number = flags & 1
            base = Transform(self.profiles[number])
            at = base.basis.reference + parameter - 128
            codec = replace(base.at(at), refinements=flags >> 4 & 3)
            shape, count = Shape(2, tokens, 8, 8), len(base.basis.parts)
        numbers = count * shape.kv_heads * tokens * (shape.head_dim + shape.v_head_dim)
        if numbers > MOST_NUMBERS:
            return
        make = _fitting if flags & 4 else _as_they_are
        blobs = list(make(take, codec, shape, dtype, count))
        self.bytes_in, self.bytes_out = sum(map(len, blobs)), 4 * numbers
        for blob in blobs:
            codec.parts(shape, len(blob))
            with suppress(QKVShareError):
                codec.token_bits(blob, shape)
            if isinstance(codec, Trimmable):
                with suppress(QKVShareError):
                    codec.level_bytes(blob, shape)
        for _ in codec.decode(blobs, empty([shape] * count, dtype)):
            pass


@dataclass
class _Taker:
    """Bytes one after the other; behind the end they begin again."""

    data: bytes
    at: int = 0

    def byte(self) -> int:
        return int(self.bytes(1)[0])

    def bytes(self, count: int) -> Bytes:
        data = self.data or b"\0"
        start = self.at % len(data)
        self.at += count
        times = -(-(start + count) // len(data))
        return np.frombuffer(data * times, np.uint8)[start : start + count].copy()

    def rest(self) -> Bytes:
        return np.frombuffer(self.data[self.at :], np.uint8).copy()


def _as_they_are(
    take: _Taker, codec: Codec, shape: Shape, dtype: torch.dtype, count: int
) -> Iterable[Bytes]:
    """What is left, in equal parts."""
    return np.array_split(take.rest(), count)


def _fitting(
    take: _Taker, codec: Codec, shape: Shape, dtype: torch.dtype, count: int
) -> Iterator[Bytes]:
    """Blobs of the right size and with lawful heads, so that what is behind them is reached."""
    for _ in range(count):
        if isinstance(codec, Transform):
            yield _transform_blob(take, shape.tokens, 1 + codec.refinements)
        elif isinstance(codec, Packed):
            yield _packed_blob(take, codec, shape)
        elif isinstance(codec, Uniform):
            keys = codec._key_sizes if isinstance(codec, Kivi) else None
            sizes = keys(shape) if keys else codec._sizes(shape.keys)
            yield take.bytes(sum(sizes) + sum(codec._sizes(shape.values)))
        else:
            numbers = shape.kv_heads * shape.tokens * (shape.head_dim + shape.v_head_dim)
            yield take.bytes(numbers * dtype.itemsize)


def _packed_blob(take: _Taker, codec: Packed, shape: Shape) -> Bytes:
    rows = shape.kv_heads * shape.tokens
    parts = [take.bytes(codec.overhead(shape) - 2 * (2 + rows))]
    for dim in (shape.head_dim, shape.v_head_dim):
        top = -300 + (take.byte() | take.byte() << 8) % 685
        info = take.bytes(rows)
        bits = int(np.array(codec.tiers)[info & 7].sum())
        parts += [np.frombuffer(struct.pack("<h", top), np.uint8), info]
        parts += [take.bytes(bits * -(-dim // 8))]
    return np.concatenate(parts)


def _transform_blob(take: _Taker, tokens: int, levels: int) -> Bytes:
    # All exponents 0: one symbol that has all slots, so its stream needs no words.
    symbol, slots, state = 31, 4096, 1 << 16
    exponents = np.frombuffer(struct.pack("<BHHI", 1, symbol, slots, state), np.uint8)
    parts = [exponents]
    for _ in range(-(-tokens // 512) * 2 * levels):
        parts += [take.bytes(16 + 2 * take.byte()), take.bytes(take.byte() % 8)]
    head = np.frombuffer(struct.pack(f"<{len(parts)}I", *map(len, parts)), np.uint8)
    return np.concatenate([head, *parts])


def contents(card: CacheCard) -> Iterator[bytes]:
    """Token ids, then keys and values of all runs and layers, then the states of all segments."""
    yield card.token_ids.tobytes()
    tensors = [part for run in decode_runs(card) for at in run for part in (at.keys, at.values)]
    for number, segment in enumerate(card.manifest.segments):
        if states := card.manifest.snapshot(segment):
            tensors += decode_states(card.state_blob(number), states, segment.state_bits)
    for tensor in tensors:
        yield tensor.contiguous().view(torch.uint8).numpy().tobytes()


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a file. Raises `ValueError` where it has none."""
    if len(content) < 8:
        raise ValueError("no header")
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("no object")
    return header, content[8 + length :]


def joined(header: dict[str, Any], data: bytes) -> bytes:
    """The reverse."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def forge(content: bytes) -> bytes:
    """The file with digests of what is in it; as it is where it is no card at all."""
    try:
        header, data = split(content)
        envelope = json.loads(header["__metadata__"][MAGIC])
        manifest = envelope["manifest"]
    except (*MALFORMED, RecursionError):
        return content
    salt = manifest.get("salt") if isinstance(manifest, dict) else None
    if not (isinstance(salt, str) and is_digest(salt)):
        salt = None
    with suppress(*MALFORMED):
        chain = empty_chain(salt)
        for index, segment in enumerate(manifest["segments"]):
            ids = _data(header, data, ids_name(index))
            segment["prefix"] = chain
            segment["chain"] = chain = extend_chain(chain, np.frombuffer(ids, "<i4"), salt)
            for at in range(len(segment["blobs"])):
                with suppress(*MALFORMED):
                    found = digest_bytes(_data(header, data, blob_name(at, index)), salt)
                    segment["blobs"][at] = found
    with suppress(*MALFORMED):
        envelope["digest"] = digest_bytes(canonical(manifest).encode(), salt)
        header["__metadata__"][MAGIC] = canonical(envelope)
        return joined(header, data)
    return content


def resealed(content: bytes) -> bytes:
    """The file's tensors and metadata, sealed anew; as it is where it has none."""
    with suppress(*MALFORMED, RecursionError, QKVShareError):
        header, data = split(content)
        metadata = header.pop("__metadata__")
        tensors = {
            name: np.frombuffer(_data(header, data, name), np.uint8)
            for name in list(header)
            if name != ENVELOPE
        }
        return to_bytes(*seal(tensors, {MAGIC: metadata[MAGIC]}, KEY))
    return content


def _data(header: dict[str, Any], data: bytes, name: str) -> bytes:
    start, end = header[name]["data_offsets"]
    return data[start:end]
