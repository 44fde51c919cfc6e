"""Cards made by hand, without a model, and files taken apart and put together wrongly."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qkvshare.card import (
    Allocation,
    CacheCard,
    Hop,
    Identity,
    Layer,
    Manifest,
    Segment,
    StateBits,
    StateTensor,
)
from qkvshare.card.container import MAGIC, Array, blob_name, ids_name
from qkvshare.card.digest import Bytes, digest_bytes, empty_chain, extend_chain
from qkvshare.codecs import BitMap, Codec, LayerBits, LayerKV, Raw, Tiered
from qkvshare.codecs.states import encode_states

IDENTITY = Identity(
    weights="1" * 64,
    config="2" * 64,
    adapter=None,
    rope='{"rope_theta":10000.0,"rope_type":"default"}',
    dtype="float32",
    tokenizer="3" * 64,
    chat_template="4" * 64,
)
LAYERS = [
    Layer(kind="full", kv_heads=2, head_dim=8, v_head_dim=8),
    Layer(kind="sliding", kv_heads=2, head_dim=8, v_head_dim=8, window=4),
]
STATES = [
    StateTensor(layer=1, kind="conv", index=0, shape=[6, 4], dtype="float32"),
    StateTensor(layer=1, kind="recurrent", index=0, shape=[2, 3, 5], dtype="float32"),
    StateTensor(layer=2, kind="conv", index=1, shape=[3], dtype="int64"),
    StateTensor(layer=2, kind="recurrent", index=1, shape=[4, 8], dtype="bfloat16"),
]

WINDOWS = [
    StateTensor(layer=1, kind="compressed", index=0, shape=[8], dtype="float32", every=4),
    StateTensor(layer=1, kind="open", index=0, shape=[3], dtype="float32", every=4),
    StateTensor(layer=1, kind="overlap", index=0, shape=[4, 3], dtype="float32"),
]


def every_width(codec: Codec, layers: list[LayerKV]) -> BitMap | None:
    """A bit map with all of a codec's tiers in turn."""
    if not isinstance(codec, Tiered):
        return None
    tiers = torch.tensor(codec.tiers, dtype=torch.uint8)

    def turn(part: torch.Tensor, first: int) -> torch.Tensor:
        heads, tokens = part.shape[:2]
        return tiers[(torch.arange(heads * tokens) + first) % len(tiers)].view(heads, tokens)

    return [LayerBits(turn(layer.keys, 0), turn(layer.values, 3)) for layer in layers]


def encode(codec: Codec, layers: list[LayerKV], bits: BitMap | None = None) -> list[Bytes]:
    """Each layer's bytes, by default with all of a codec's tiers in turn."""
    if isinstance(codec, Tiered):
        return list(codec.encode(layers, bits or every_width(codec, layers)))
    return list(codec.encode(layers))


def make_card(
    codec: Codec | None = None,
    runs: tuple[int, ...] = (6, 3),
    seed: int = 0,
    joined: bool = False,
    salt: str | None = None,
    states: bool = False,
    state_bits: StateBits | None = None,
    geometry: list[Layer] = LAYERS,
    kept: list[StateTensor] = STATES,
    tokens: Sequence[int] | None = None,
) -> CacheCard:
    """A card of random state: two layers, one segment for each length in ``runs``.

    With ``joined`` a segment's layers are in one blob. With ``states`` each has those of ``kept``.
    ``geometry`` may have fewer layers, or none. Its ids are the first ``tokens``, or count up.
    """
    codec = codec or Raw()
    generator = torch.Generator().manual_seed(seed)
    segments: list[Segment] = []
    lineage: list[Hop] = []
    tensors: dict[str, Array] = {}
    start, chain = 0, empty_chain(salt)
    for index, count in enumerate(runs):
        end = start + count
        ids = np.arange(start, end, dtype=np.int32) + 100 * seed
        if tokens is not None:
            ids = np.array(tokens[start:end], np.int32)
        first = [start, max(start, end - 3)][: len(geometry)]
        layers = []
        for layer, held_from in zip(geometry, first, strict=True):
            shape = (layer.kv_heads, end - held_from, layer.head_dim)
            keys = torch.randn(shape, generator=generator)
            layers.append(LayerKV(keys, torch.randn(shape, generator=generator)))
        blobs = encode(codec, layers)
        if states:
            here = [state.after(max(1, end - 1)) for state in kept]
            made = [random_state(state, generator) for state in here]
            blobs.append(encode_states(made, here, state_bits))
        sizes = [len(blob) for blob in blobs] if joined else None
        if joined:
            blobs = [np.concatenate(blobs)]
        tensors[ids_name(index)] = ids
        tensors |= {blob_name(layer, index): blob for layer, blob in enumerate(blobs)}
        after = extend_chain(chain, ids, salt)
        segments.append(
            Segment(
                start=start,
                end=end,
                prefix=chain,
                chain=after,
                codec=codec.record(),
                allocation=Allocation(),
                blobs=[digest_bytes(blob, salt) for blob in blobs],
                first=first or None,
                sizes=sizes,
                state_bits=state_bits,
            )
        )
        lineage.append(Hop(hop=index, agent="test", tokens_added=count))
        start, chain = end, after
    manifest = Manifest(
        created=datetime(2026, 1, 1, tzinfo=UTC),
        identity=IDENTITY,
        layers=geometry,
        segments=segments,
        lineage=lineage,
        salt=salt,
        states=kept if states else [],
    )
    return CacheCard(manifest, tensors)


def random_state(state: StateTensor, generator: torch.Generator) -> torch.Tensor:
    """Numbers, or token ids, of a state's shape."""
    if state.dtype == "int64":
        return torch.randint(100, state.shape, generator=generator)
    dtype: torch.dtype = getattr(torch, state.dtype)
    return torch.randn(state.shape, generator=generator).to(dtype)


def card_of(
    ids: Array, blobs: list[Array], codec: Codec, layers: list[Layer], identity: Identity = IDENTITY
) -> CacheCard:
    """A card of one segment, encoded by ``codec``."""
    chain = empty_chain(None)
    segment = Segment(
        start=0,
        end=len(ids),
        prefix=chain,
        chain=extend_chain(chain, ids, None),
        codec=codec.record(),
        allocation=Allocation(),
        blobs=[digest_bytes(blob, None) for blob in blobs],
    )
    manifest = Manifest(
        created=datetime(2026, 1, 1, tzinfo=UTC),
        identity=identity,
        layers=layers,
        segments=[segment],
        lineage=[Hop(hop=0, agent="test", tokens_added=len(ids))],
    )
    tensors = {blob_name(layer, 0): blob for layer, blob in enumerate(blobs)}
    return CacheCard(manifest, {ids_name(0): ids, **tensors})


def take_apart(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header (JSON) and data of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(path: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    """The reverse, checking nothing."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def read_envelope(path: Path) -> dict[str, Any]:
    """What stands in the file's metadata: digest, manifest, version."""
    header, _ = take_apart(path)
    envelope: dict[str, Any] = json.loads(header["__metadata__"][MAGIC])
    return envelope


def canonical(value: Any) -> str:
    """JSON as the package writes it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def write_envelope(path: Path, envelope: dict[str, Any] | str) -> None:
    """Replace the metadata, checking nothing."""
    header, data = take_apart(path)
    text = envelope if isinstance(envelope, str) else canonical(envelope)
    header["__metadata__"] = {MAGIC: text}
    put_together(path, header, data)


def edit_manifest(path: Path, edit: Any, resign: bool = True) -> None:
    """Change a card's manifest; with ``resign`` the card digest follows, as a forger would do."""
    envelope = read_envelope(path)
    edit(envelope["manifest"])
    if resign:
        # The envelope has the same text inside.
        salt = envelope["manifest"].get("salt")
        salt = salt if isinstance(salt, str) and re.fullmatch("[0-9a-f]{64}", salt) else None
        envelope["digest"] = digest_bytes(canonical(envelope["manifest"]).encode(), salt)
    write_envelope(path, envelope)
