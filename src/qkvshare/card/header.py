"""The header of a card file: every defect is found before a tensor is read, and has its own error.

The header is the file's metadata, which holds the manifest. Beyond its types, a manifest's runs
must follow each other and fit the layers, and the file must have exactly the tensors it implies.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from . import container
from .container import StoredTensors, blob_name, ids_name
from .digest import digest_bytes, empty_chain
from .errors import CardDigestError, CardFormatError, CardVersionError
from .geometry import GROWING, Layer, state_nbytes
from .manifest import FORMAT_VERSION, Digest, Envelope, Manifest, Run, Segment, runs_of

T = TypeVar("T")


def open_header(tensors: StoredTensors) -> tuple[Manifest, Envelope]:
    """The manifest and its envelope. Magic, version, digest and manifest are checked in this order,
    so that each defect gets its own error.
    """
    path = tensors.path
    if set(tensors.metadata) != {container.MAGIC}:
        raise CardFormatError(
            f"{path} is a safetensors file but not a card: its metadata has "
            f"{sorted(tensors.metadata)[:5]}, expected {container.MAGIC!r} and nothing else."
        )
    written = tensors.metadata[container.MAGIC].encode()
    envelope = _decode(written, Envelope, "card's header")
    if envelope.version != FORMAT_VERSION:
        raise CardVersionError(
            f"{path} has format version {envelope.version}, this package reads {FORMAT_VERSION}. "
            "Capture again, or use the package version that wrote it."
        )
    found = digest_bytes(bytes(envelope.manifest), _decode(envelope.manifest, _Salted).salt)
    if found != envelope.digest:
        raise CardDigestError(
            f"{path}: the manifest has digest {found[:12]}…, the card is named "
            f"{envelope.digest[:12]}…. The header is damaged; get the card again."
        )
    manifest = decode_manifest(bytes(envelope.manifest))
    # Readers do not agree on what a name that stands twice means, and a card has one digest.
    again = msgspec.json.encode(envelope, order="sorted")
    if manifest.encode() != bytes(envelope.manifest) or again != written:
        raise CardFormatError(
            f"{path}: its header is not canonical JSON (keys sorted, each once, defaults left out, "
            "no white space). It was written by something else; get the card again."
        )
    if envelope.thin > len(manifest.segments):
        raise CardFormatError(
            f"{path} says it lacks the bytes of {envelope.thin} segments; it has "
            f"{len(manifest.segments)}. The header is damaged; get the card again."
        )
    return manifest, envelope


def check_tensors(tensors: StoredTensors, manifest: Manifest, thin: int) -> None:
    """Exactly the tensors that the manifest implies, each of the right type and shape."""
    expected: dict[str, tuple[str, int | None]] = {}
    for index, segment in enumerate(manifest.segments):
        expected[ids_name(index)] = ("I32", segment.end - segment.start)
        for at in range(len(segment.blobs) if index >= thin else 0):
            size = None if segment.sizes is None else sum(segment.sizes)
            if at == len(manifest.layers):
                size = state_nbytes(manifest.snapshot(segment), segment.state_bits)
            elif segment.parts is not None:
                size = sum(part.sizes[at] for part in segment.parts)
            expected[blob_name(at, index)] = ("U8", size)
    missing, extra = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise CardFormatError(
            f"{tensors.path}: tensors missing {missing[:3]}, not expected {extra[:3]}. "
            "The file is damaged or was assembled by hand."
        )
    for name, (dtype, length) in expected.items():
        found, shape = tensors.kinds[name]
        if found != dtype or len(shape) != 1 or length not in (None, shape[0]) or not shape[0]:
            raise CardFormatError(
                f"{tensors.path}: tensor {name} is {found} {shape}, expected {dtype} "
                f"[{length or 'bytes'}], at least one."
            )


class _Salted(msgspec.Struct):
    """What must be known of a manifest before its digest can be taken."""

    salt: Digest | None = None


def decode_manifest(data: bytes) -> Manifest:
    """Parse a manifest's JSON; segments must follow each other without gap or foreign prefix.

    Raises `CardFormatError` or `CardDigestError`.
    """
    manifest = _decode(data, Manifest)
    if not manifest.layers and not manifest.states:
        raise CardFormatError("the card has neither layers nor states; expected one at least.")
    for number, layer in enumerate(manifest.layers):
        if (layer.kind == "sliding") != (layer.window is not None):
            raise CardFormatError(f"layer {number} is {layer.kind} with window {layer.window}.")
    for state in manifest.states:
        if (state.kind in GROWING) != (state.every is not None):
            raise CardFormatError(f"a {state.kind} state has an entry every {state.every} tokens.")
    places = [(state.layer, state.kind, state.index) for state in manifest.states]
    if places != sorted(set(places)):
        raise CardFormatError("the states are not sorted by layer, kind and index, each once.")
    end, chain = 0, empty_chain(manifest.salt)
    for index, segment in enumerate(manifest.segments):
        where = f"segment {index}, tokens [{segment.start}, {segment.end})"
        if segment.start != end or segment.end <= segment.start:
            raise CardFormatError(f"{where}: expected a run that starts at token {end}.")
        if segment.prefix != chain:
            raise CardDigestError(
                f"{where} was encoded behind another prefix: it names {segment.prefix[:12]}…, "
                f"the tokens before it have {chain[:12]}…. Segments cannot be mixed between cards."
            )
        _check_blobs(segment, manifest, where)
        _check_parts(segment, len(manifest.layers), where)
        for run in runs_of(index, segment):
            _check_first(run, manifest.layers, where)
        end, chain = segment.end, segment.chain
    return manifest


def _decode(data: bytes | msgspec.Raw, kind: type[T], what: str = "manifest") -> T:
    try:
        return msgspec.json.decode(data, type=kind, strict=True)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CardFormatError(
            f"the {what} is not valid: {error}. Expected the fields of docs/cachecard.md; the "
            "file is damaged or was written by something else."
        ) from error


def _check_blobs(segment: Segment, manifest: Manifest, where: str) -> None:
    layers, states, sizes = len(manifest.layers), bool(manifest.states), segment.sizes
    if not states and segment.state_bits is not None:
        raise CardFormatError(f"{where}: state_bits, and the card has no states.")
    if sizes is not None and (len(sizes) != layers + states or segment.parts is not None):
        raise CardFormatError(
            f"{where}: {len(sizes)} sizes{' and parts' if segment.parts else ''} for {layers} "
            f"layers{' and states' if states else ''}, expected one for each and no parts."
        )
    if sizes is not None and 0 in sizes:
        raise CardFormatError(
            f"{where}: layer {sizes.index(0)} has no bytes; each layer holds a token at least."
        )
    if states and sizes is not None:
        expected = state_nbytes(manifest.snapshot(segment), segment.state_bits)
        if sizes[-1] != expected:
            raise CardFormatError(
                f"{where}: {sizes[-1]} bytes of states, expected {expected} for their shapes."
            )
    if len(segment.blobs) != (layers + states if sizes is None else 1):
        raise CardFormatError(
            f"{where}: {len(segment.blobs)} blobs for {layers} layers"
            f"{' and states' if states else ''}."
        )


def _check_parts(segment: Segment, layers: int, where: str) -> None:
    if segment.parts is None:
        return
    if segment.first is not None:
        raise CardFormatError(f"{where}: both parts and first; parts have firsts of their own.")
    end = segment.start
    for part in segment.parts:
        if part.end <= end or len(part.sizes) != layers or 0 in part.sizes:
            raise CardFormatError(
                f"{where}: a part of {len(part.sizes)} layers that ends at token {part.end}, "
                f"expected {layers} layers with bytes in each, and an end behind token {end}."
            )
        end = part.end
    if end != segment.end:
        raise CardFormatError(f"{where}: its parts end at token {end}, not with the segment.")


def _check_first(run: Run, layers: list[Layer], where: str) -> None:
    if run.first is None:
        return
    if len(run.first) != len(layers):
        raise CardFormatError(f"{where}: {len(run.first)} firsts for {len(layers)} layers.")
    for number, (first, layer) in enumerate(zip(run.first, layers, strict=True)):
        # A sliding layer may forget what no later token can see; a full layer nothing.
        latest = run.start
        if layer.kind == "sliding":
            latest = max(run.start, run.end - (layer.window or 2) + 1)
        if not run.start <= first <= latest:
            raise CardFormatError(
                f"{where}: layer {number} ({layer.kind}) starts at token {first}, "
                f"expected {run.start} to {latest}."
            )
