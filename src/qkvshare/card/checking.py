"""What a manifest must say beyond its types: runs that follow each other and fit the layers."""

from __future__ import annotations

from .digest import empty_chain
from .errors import CardDigestError, CardFormatError
from .manifest import Layer, Manifest, Run, Segment, runs_of


def check_segments(manifest: Manifest) -> None:
    """Segments must follow each other without gap, overlap or foreign prefix."""
    for number, layer in enumerate(manifest.layers):
        if (layer.kind == "sliding") != (layer.window is not None):
            raise CardFormatError(f"layer {number} is {layer.kind} with window {layer.window}.")
    end, chain = 0, empty_chain(manifest.salt)
    layers = len(manifest.layers)
    for index, segment in enumerate(manifest.segments):
        where = f"segment {index}, tokens [{segment.start}, {segment.end})"
        if segment.start != end or segment.end <= segment.start:
            raise CardFormatError(f"{where}: expected a run that starts at token {end}.")
        if segment.prefix != chain:
            raise CardDigestError(
                f"{where} was encoded behind another prefix: it names {segment.prefix[:12]}…, "
                f"the tokens before it have {chain[:12]}…. Segments cannot be mixed between cards."
            )
        _check_blobs(segment, layers, where)
        _check_parts(segment, layers, where)
        for run in runs_of(index, segment):
            _check_first(run, manifest.layers, where)
        end, chain = segment.end, segment.chain


def _check_blobs(segment: Segment, layers: int, where: str) -> None:
    sizes = segment.sizes
    if sizes is not None and (len(sizes) != layers or segment.parts is not None):
        raise CardFormatError(
            f"{where}: sizes of {len(sizes)} layers{' and parts' if segment.parts else ''}, "
            f"expected {layers} and no parts."
        )
    if sizes is not None and 0 in sizes:
        raise CardFormatError(
            f"{where}: layer {sizes.index(0)} has no bytes; each layer holds a token at least."
        )
    if len(segment.blobs) != (layers if sizes is None else 1):
        raise CardFormatError(f"{where}: {len(segment.blobs)} blobs for {layers} layers.")


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
