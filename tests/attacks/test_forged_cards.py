"""Cards whose digests are all right, and which somebody made to do harm: one test for each way."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from benchmarks.codecs import Kivi, Uniform
from qkvshare import CacheCard
from qkvshare.card import Hop, Layer, Manifest, PartRecord, Segment
from qkvshare.card.digest import empty_chain
from qkvshare.card.errors import CardFormatError, CodecError
from qkvshare.card.header import decode_manifest
from qkvshare.cli import inspect
from qkvshare.codecs import Codec, LayerBits, LayerKV, Packed, Shape, Transform, empty
from qkvshare.codecs.stats import mean_bits
from qkvshare.profile import Profile

from ..cards import IDENTITY, edit_manifest, make_card, put_together, take_apart
from .target import GOLDEN
from .test_malformed_cards import open_fully


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_card(Uniform(4)).save(tmp_path / "card")


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that were allocated at once, at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- what stands in the header ------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["lineage"][0].update(hop=-1),
        lambda m: m["lineage"][0].update(agent="x" * 257),
        lambda m: m["lineage"][0].update(agent=None),
        lambda m: m["lineage"][0].update(parent="0" * 63),
        lambda m: m["lineage"][0].update(tokens_added=2**31),
        lambda m: m["lineage"].extend(m["lineage"] * 5000),
        lambda m: m["identity"].update(adapter={"digest": "0" * 64}),
        lambda m: m["identity"].update(adapter={"digest": "0" * 64, "scale": "1"}),
        lambda m: m["identity"].update(rope=None),
        lambda m: m["segments"][0]["codec"].update(name=""),
        lambda m: m["segments"][0]["codec"].update(name="x" * 65),
        lambda m: m["segments"][0]["codec"].update(version=-1),
        lambda m: m["segments"][0]["codec"].update(parameters={"bits": [4]}),
        lambda m: m["segments"][0]["codec"].update(parameters={"": 4}),
        lambda m: m["segments"][0]["codec"].update(profile="../../profile"),
        lambda m: m["segments"][0]["codec"].update(more=1),
        lambda m: m["segments"][0]["allocation"].update(slope=2**15),
        lambda m: m["segments"][0]["allocation"].update(budget=float("nan")),
        lambda m: m["segments"][0]["allocation"].update(budget=True),
        lambda m: m["segments"][0].update(start=-1),
        lambda m: m["segments"][0].update(end=2**40),
        lambda m: m["segments"][0].update(prefix="A" * 64),
        lambda m: m["segments"][0].update(parts=[]),
        lambda m: m["segments"][0].update(sizes=[-1, 2]),
        lambda m: m["layers"].extend(m["layers"] * 2048),
        lambda m: m["layers"][1].update(window=1),
        lambda m: m.update(expires="2026-13-01T00:00:00Z"),
        lambda m: m.update(created=0),
    ],
)
def test_manifest_that_breaks_a_rule(path: Path, edit: Callable[[Any], Any]) -> None:
    edit_manifest(path, edit)
    with pytest.raises(CardFormatError):
        open_fully(path)


@pytest.mark.parametrize("profile", ["../../profile", "x" * 5000, "a\0b", "", "0" * 64])
def test_profile_among_the_parameters(path: Path, profile: str) -> None:
    """There it would be any text, and a place on the reader's disk."""
    codec = {"name": Transform.name, "version": Transform.version}
    codec["parameters"] = {"profile": profile, "step": 0, "refinements": 0}
    edit_manifest(path, lambda m: m["segments"][0].update(codec=codec))
    with pytest.raises(CardFormatError, match="profile beside the parameters"):
        open_fully(path)


def test_name_that_stands_twice(path: Path) -> None:
    """Readers would not agree on which of the two counts."""
    header, data = take_apart(path)
    text = json.dumps(header)
    again = json.dumps({"kv.0000.0000": header["kv.0000.0001"]})[1:-1]
    put_together(path, (text[:-1] + "," + again + "}").encode(), data)
    with pytest.raises(CardFormatError):
        open_fully(path)


@pytest.mark.parametrize("text", ["[/b]", "[red]x", ":skull:", "\x1b[2J\x1b]0;owned\x07", "\u202e"])
def test_text_that_a_terminal_would_obey(
    path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(path, lambda m: m["lineage"][0].update(agent=text))
    inspect.inspect(path)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert ascii(text)[1:-1] in shown.replace("\n", "")


# --- more memory than the card has bytes --------------------------------------------------------


def test_many_parts_of_many_layers() -> None:
    layers, parts = [Layer("full", 1, 1, 1)] * 500, 400
    codec, allocation = Uniform(4).record(), make_card().manifest.segments[0].allocation
    sizes = [1] * len(layers)
    manifest = Manifest(
        created=datetime(2026, 1, 1, tzinfo=UTC),
        identity=IDENTITY,
        layers=layers,
        segments=[
            Segment(
                start=0,
                end=parts,
                prefix=empty_chain(None),
                chain=empty_chain(None),
                codec=codec,
                allocation=allocation,
                blobs=[empty_chain(None)] * len(layers),
                parts=[PartRecord(n + 1, codec, allocation, sizes) for n in range(parts)],
            )
        ],
        lineage=[Hop(0, "", parts)],
    )
    data = manifest.encode()
    assert peak_of(lambda: decode_manifest(data)) < 6 * len(data)
    known = decode_manifest(data)
    assert peak_of(lambda: known.runs) < 6 * len(data)


def test_inspecting_many_tokens_of_many_layers() -> None:
    """Their product is not in the file, so it must not be in memory."""
    card, tokens, layers = make_card(Uniform(4), (6,), joined=True), 200_000, 500
    segment = msgspec.structs.replace(
        card.manifest.segments[0], end=tokens, sizes=[0] * layers, first=None
    )
    manifest = msgspec.structs.replace(
        card.manifest, layers=[Layer("full", 1, 1, 1)] * layers, segments=[segment]
    )
    large = CacheCard(manifest, card.tensors)
    assert peak_of(lambda: mean_bits(large)) < 10 * 4 * tokens


def many_firsts(manifest: Any) -> None:
    manifest["segments"][0]["first"] = [300 + n % 700 for n in range(2_000_000)]


def many_parameters(manifest: Any) -> None:
    manifest["segments"][0]["codec"]["parameters"] = {f"{n:x}": 1 for n in range(500_000)}


def many_digests(manifest: Any) -> None:
    manifest["segments"][0]["blobs"] = [f"{n:064x}" for n in range(100_000)]


def many_parts(manifest: Any) -> None:
    segment, layers = manifest["segments"][0], 4096
    part = {"codec": segment["codec"], "allocation": segment["allocation"], "sizes": [0] * layers}
    del segment["first"]
    segment |= {"end": 1000, "blobs": ["0" * 64] * layers}
    segment["parts"] = [part | {"end": n + 1} for n in range(1000)]
    manifest |= {"layers": manifest["layers"][:1] * layers, "segments": [segment]}


def many_tensors(header: Any) -> None:
    at = max(tensor["data_offsets"][1] for name, tensor in header.items() if name[0] != "_")
    empty_one = {"dtype": "U8", "shape": [0], "data_offsets": [at, at]}
    header |= {f"x{n}": empty_one for n in range(100_000)}


def many_dimensions(header: Any) -> None:
    header["kv.0000.0000"]["shape"] = [1] * 4_000_000


OPEN = """
import sys
from tests.attacks.fuzz_card import peak, reset_peak
from tests.attacks.test_forged_cards import open_fully, Path
try:
    open_fully(Path(sys.argv[1]))
except Exception: pass
before = reset_peak()
try:
    open_fully(Path(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, peak() - before)
"""


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is watched on Linux")
@pytest.mark.parametrize(
    "edit",
    [many_firsts, many_parameters, many_digests, many_parts, many_tensors, many_dimensions],
    ids=lambda edit: edit.__name__,
)
def test_session_memory_for_headers_near_the_limit(
    path: Path, tmp_path: Path, edit: Callable[[Any], Any]
) -> None:
    """Lists that JSON writes in two bytes an entry; the parsers alone take several times that.

    ``pytest -m nightly -s`` prints how many times.
    """
    forged = make_card(Uniform(4)).save(tmp_path / "forged")
    if edit in (many_tensors, many_dimensions):
        header, data = take_apart(forged)
        edit(header)
        put_together(forged, json.dumps(header, separators=(",", ":")).encode(), data)
    else:
        edit_manifest(forged, edit)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(path), str(forged)],
        capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    error, grown = done.stdout.split()
    size = forged.stat().st_size
    print(f"{edit.__name__}: {size:,} bytes, {int(grown) / size:.1f} times that resident")
    assert error == "CardFormatError"
    assert int(grown) < 24 * size


@pytest.mark.parametrize("dim", [257, 4095, 2**16 - 1, 2**20 - 1, 2**20, 8192])
def test_head_dim_with_a_costly_rotation(dim: int) -> None:
    """Rows of no bits: 18 bytes, which would stand for any number of numbers."""
    blob = np.zeros(Packed().overhead(Shape(1, 7, dim, 8)), np.uint8)
    out = list(empty([Shape(1, 7, dim, 8)], torch.float32))
    with pytest.raises(CardFormatError, match=f"no rotation for rows of {dim} numbers"):
        list(Packed().decode([blob], out))
    bits = LayerBits(torch.zeros(1, 7), torch.zeros(1, 7))
    with pytest.raises(CodecError, match=f"no rotation for rows of {dim} numbers"):
        list(Packed().encode([LayerKV(torch.zeros(1, 7, dim), torch.zeros(1, 7, 8))], [bits]))


# --- what stands in a blob ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def transform() -> Transform:
    codec = Transform.of(Profile.load(GOLDEN / "transform.safetensors"))
    return codec.at(codec.basis.reference)


def layer_of(
    exponents: bytes | None = None, codes: bytes | None = None, escapes: bytes = b""
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A blob of one token: all its numbers 0 where nothing else is said."""
    one = struct.pack("<BHHI", 1, 31, 4096, 1 << 16)
    parts = [one if exponents is None else exponents]
    for _ in range(2):
        parts += [struct.pack("<4I", *[1 << 16] * 4) if codes is None else codes, escapes]
    head = struct.pack(f"<{len(parts)}I", *map(len, parts))
    return np.frombuffer(b"".join([head, *parts]), np.uint8).copy()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (layer_of(exponents=b""), "exponents of a wrong size"),
        (layer_of(exponents=b"\xff" + bytes(8)), "exponents of a wrong size"),
        (layer_of(exponents=struct.pack("<BHHI", 1, 63, 4096, 1 << 16)), "out of range"),
        (layer_of(exponents=struct.pack("<BHHI", 1, 31, 4095, 1 << 16)), "out of range"),
        (layer_of(exponents=struct.pack("<B4HI", 2, 31, 31, 2048, 2048, 1 << 16)), "out of range"),
        (layer_of(exponents=struct.pack("<B4HI", 2, 30, 31, 0, 4096, 1 << 16)), "out of range"),
        (layer_of(exponents=struct.pack("<BHHI", 1, 31, 4096, 1 << 17)), "end where it should"),
        (layer_of(exponents=struct.pack("<BHHIH", 1, 31, 4096, 1 << 16, 0)), "end where it should"),
        (layer_of(codes=bytes(14)), "a stream of a wrong size"),
        (layer_of(codes=bytes(17)), "a stream of a wrong size"),
        (layer_of(codes=bytes(16)), "end where it should"),
        (layer_of(codes=b"\xff" * 16), "end where it should"),
        (layer_of(codes=b"\xff" * 4000), "end where it should"),
        (layer_of(escapes=bytes(3)), "end where it should"),
        (layer_of(escapes=b"\xff" * 9), "end where it should"),
        (np.full(20, 255, np.uint8), "20 bytes, expected"),
    ],
)
def test_streams_that_cannot_be(
    transform: Transform, layer: np.ndarray[Any, np.dtype[np.uint8]], message: str
) -> None:
    shape = Shape(2, 1, 8, 8)
    with pytest.raises(CardFormatError, match=message):
        list(transform.decode([layer] * 2, empty([shape] * 2, torch.float32)))


@pytest.mark.parametrize("step", [2561, -2561, 2**63, -(2**63)])
def test_step_that_cannot_be(transform: Transform, step: int) -> None:
    with pytest.raises(CardFormatError, match="expected a number and 0 to 4"):
        list(replace(transform, step=step).decode([], empty([], torch.float32)))


@pytest.mark.parametrize("codec", [Uniform(2), Kivi(3), Packed()], ids=lambda codec: codec.name)
def test_blob_that_is_a_byte_longer_or_shorter(codec: Codec) -> None:
    blob, shape = make_card(codec, (6,)).blob(0, 0), Shape(2, 6, 8, 8)
    for damaged in (blob[:-1], np.append(blob, np.uint8(0))):
        with pytest.raises(CardFormatError, match="its shape needs"):
            list(codec.decode([damaged], empty([shape], torch.float32)))


def test_rows_that_say_they_have_more_codes_than_there_are() -> None:
    shape = Shape(2, 3, 8, 8)
    blob = np.zeros(Packed().overhead(shape), np.uint8)
    for at in (2, len(blob) - 1):  # the first row of keys, the last of values
        damaged = blob.copy()
        damaged[at] = 7
        with pytest.raises(CardFormatError):
            list(Packed().decode([damaged], empty([shape], torch.float32)))
