"""A tenant's files: cards without their segments, and segments, each named by its digest.

A file appears under its name whole or not at all (written beside it, synced, renamed), so what is
there needs no index to be understood.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path

from ..card import CacheCard, Key, Segment, container
from ..card.container import Array, FileTensors, LazyTensors, StoredTensors, blob_name, ids_name
from ..card.digest import digest_bytes
from ..card.errors import CardError, CardFormatError, CardNotFoundError, CardWriteError
from ..card.sealing import open_file, seal

SEGMENT = container.MAGIC  # a segment file says its name where a card file has its manifest
Blobs = Mapping[str, Array]  # a segment's bytes, named as in a card whose only segment it is


@dataclass(frozen=True)
class Folder:
    """Cards and segments below ``root``, private to the user; sealed where there is a ``key``."""

    root: Path
    key: Key | None = None

    def card_path(self, digest: str) -> Path:
        """Where a card's header and token ids are; 256 folders, so that none gets long."""
        return self.root / "cards" / digest[:2] / f"{digest}.card"

    def segment_path(self, name: str) -> Path:
        """Where a segment's bytes are."""
        return self.root / "segments" / name[:2] / f"{name}.segment"

    def write_card(self, card: CacheCard) -> None:
        """Write header and ids. Raises `CardWriteError`."""
        path = self.card_path(card.digest)
        _make(path.parent)
        without_segments(card).save(path, key=self.key)

    def write_segment(self, name: str, blobs: Blobs) -> None:
        """Write a segment's bytes. Raises `CardWriteError`."""
        path = self.segment_path(name)
        _make(path.parent)
        tensors, metadata = blobs, {SEGMENT: name}
        if self.key is not None:
            tensors, metadata = seal(blobs, metadata, self.key)
        container.write(path, tensors, metadata)

    def open_card(self, digest: str, tokens: int | None = None) -> CacheCard:
        """A card, or its first ``tokens`` tokens; bytes are read and verified on demand.

        Its files are open from here on, so it stays readable when somebody removes them. Raises
        the `CardError` family.
        """
        card = CacheCard.load(self.card_path(digest), key=self.key)
        if card.digest != digest:
            raise CardFormatError(
                f"{self.card_path(digest)} holds the card {card.digest[:12]}…; "
                "expected the one that it is named after. Somebody moved files by hand."
            )
        if tokens not in (None, card.tokens):
            card = card.head(tokens)  # only ids are here yet, so nothing is read for it
        names, segments = card.manifest.names, card.manifest.segments
        opened = [self._open_segment(*pair) for pair in zip(names, segments, strict=True)]
        return CacheCard(card.manifest, Assembled(card.tensors, opened), card.signature)

    def _open_segment(self, name: str, segment: Segment) -> StoredTensors:
        try:
            tensors = open_file(FileTensors(self.segment_path(name)), self.key)
        except CardNotFoundError as error:
            raise CardNotFoundError(f"the segment {name[:12]}… is not there: {error}") from error
        require_segment(tensors, name, segment)
        return tensors

    def has_card(self, card: CacheCard) -> bool:
        """Whether the card's own file is there and whole; reads it.

        False also where the file lacks the signature that ``card`` has.
        """
        try:
            found = CacheCard.load(self.card_path(card.digest), key=self.key)
        except CardError:
            return False
        signed = found.signature is not None or card.signature is None
        return found.digest == card.digest and signed

    def has_segment(self, name: str, segment: Segment, salt: str | None) -> bool:
        """Whether a segment's file is there and whole, to the last byte; reads it."""
        try:
            tensors = self._open_segment(name, segment)
            found = (digest_bytes(tensors[blob_name(at, 0)], salt) for at in range(len(tensors)))
            return all(map(eq, found, segment.blobs))
        except CardError:
            return False

    def lost(self, digest: str) -> bool:
        """Whether a card's file was removed.

        False where the folder that it was in is away, too: behind a mount, it comes back.
        """
        path = self.card_path(digest)
        try:
            path.stat()
        except FileNotFoundError:
            return path.parent.is_dir()
        except OSError:
            pass
        return False

    def cards(self) -> Iterator[str]:
        """Digests of all cards that have a file."""
        yield from (path.stem for path in self.root.glob("cards/??/*.card"))

    def segments(self) -> Iterator[str]:
        """Names of all segments that have a file."""
        yield from (path.stem for path in self.root.glob("segments/??/*.segment"))

    def unfinished(self) -> Iterator[Path]:
        """What writers that were killed left behind, or others are writing now.

        Both ours (``.….part``) and those of safetensors (``.tmp…``).
        """
        yield from self.root.glob("*/??/.*")


def without_segments(card: CacheCard) -> CacheCard:
    """What a card's own file has: header and ids."""
    names = [ids_name(number) for number in range(len(card.manifest.segments))]
    return CacheCard(card.manifest, {name: card.tensors[name] for name in names}, card.signature)


def own_segments(card: CacheCard) -> dict[str, Blobs]:
    """The segments whose bytes are in the card, by name. Raises `CardDigestError` for damage."""
    tensors, names, own = card.verified(), card.manifest.names, dict[str, Blobs]()
    for number, segment in enumerate(card.manifest.segments[card.thin :], card.thin):
        layers = range(len(segment.blobs))
        own[names[number]] = {blob_name(at, 0): tensors[blob_name(at, number)] for at in layers}
    return own


def segment_bytes(blobs: Blobs) -> int:
    """Bytes of a segment's file, but for what sealing adds."""
    header = container.header_bytes(blobs, {SEGMENT: "0" * 64})
    return header + sum(blob.nbytes for blob in blobs.values())


def require_segment(tensors: StoredTensors, name: str, segment: Segment) -> None:
    """Raise `CardFormatError` unless a file has the name and the blobs of ``segment``."""
    blobs = {blob_name(at, 0) for at in range(len(segment.blobs))}
    flat = all(kind == "U8" and len(shape) == 1 for kind, shape in tensors.kinds.values())
    if tensors.metadata != {SEGMENT: name} or tensors.keys() != blobs or not flat:
        raise CardFormatError(
            f"{tensors.path} is not the segment that it is named after: metadata "
            f"{str(tensors.metadata)[:100]}, tensors {sorted(tensors)[:3]}."
        )


def _make(folder: Path) -> None:
    """Make a folder. Raises `CardWriteError`."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise CardWriteError(f"nothing can be written to {folder}: {error.strerror}.") from error


class Assembled(LazyTensors):
    """A card's tensors, ids from one file and each segment's blobs from a file of its own."""

    def __init__(self, ids: Mapping[str, Array], segments: Sequence[LazyTensors]) -> None:
        """``segments`` in the card's order."""
        self._ids = ids
        self._blobs = {
            blob_name(layer, number): (segment, blob_name(layer, 0))
            for number, segment in enumerate(segments)
            for layer in range(len(segment))
        }
        self.kinds = {name: container.kind_of(ids, name) for name in ids}
        self.kinds |= {name: segment.kinds[inner] for name, (segment, inner) in self._blobs.items()}

    def __getitem__(self, name: str) -> Array:
        """Read one tensor."""
        if name not in self._blobs:
            return self._ids[name]
        segment, inner = self._blobs[name]
        return segment[inner]
