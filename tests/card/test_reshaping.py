"""Cards that share segments: forked, thin, whole again, compacted."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks.codecs import Kivi, Uniform
from qkvshare import CacheCard
from qkvshare.card.container import blob_name
from qkvshare.card.errors import (
    BudgetError,
    CardDigestError,
    CardError,
    CardFormatError,
    CardThinError,
)
from qkvshare.codecs import Packed, Raw, decode_runs, trim
from tests.cards import edit_manifest, make_card, read_envelope, write_envelope


def decoded(card: CacheCard) -> list[list[tuple[bytes, bytes]]]:
    return [
        [(layer.keys.numpy().tobytes(), layer.values.numpy().tobytes()) for layer in run]
        for run in decode_runs(card)
    ]


def parent_and_child() -> tuple[CacheCard, CacheCard]:
    """The child has the parent's two segments and one more."""
    child = make_card(Packed(), (6, 3, 4))
    manifest = msgspec.structs.replace(
        child.manifest, segments=child.manifest.segments[:2], lineage=child.manifest.lineage[:2]
    )
    kept = {name: child.tensors[name] for name in child.tensors if not name.endswith("0002")}
    return CacheCard(manifest, kept), child


def test_forks_share_bytes_and_tell_themselves_apart() -> None:
    card = make_card()
    children = [card.fork(f"worker {n}") for n in range(3)]
    assert len({child.digest for child in [card, *children]}) == 4
    for number, child in enumerate(children):
        assert child.manifest.segments == card.manifest.segments
        assert all(child.tensors[name] is card.tensors[name] for name in card.tensors)
        hop = child.manifest.lineage[-1]
        assert (hop.hop, hop.agent, hop.tokens_added) == (2, f"worker {number}", 0)
        assert hop.parent == card.digest


def test_thin_card_has_the_digest_of_the_whole_and_is_small(tmp_path: Path) -> None:
    parent, child = parent_and_child()
    thin = CacheCard.load(child.without(parent).save(tmp_path / "thin"))
    assert (thin.thin, child.thin) == (2, 0)
    assert thin.digest == child.digest
    assert thin.token_ids.tolist() == child.token_ids.tolist()
    assert thin.nbytes == (tmp_path / "thin").stat().st_size < child.nbytes
    assert thin.blob(0, 2).tobytes() == child.blob(0, 2).tobytes()
    with pytest.raises(CardThinError, match="first 2 segments"):
        thin.blob(0, 1)
    whole = thin.whole(CacheCard.load(parent.save(tmp_path / "parent")))
    assert whole.save(tmp_path / "whole").read_bytes() == child.save(tmp_path / "c").read_bytes()


def test_thin_card_refuses_another_parent() -> None:
    parent, child = parent_and_child()
    other = make_card(seed=1)
    with pytest.raises(CardError, match="does not begin"):
        child.without(other)
    thin = child.without(parent)
    for lacking in (other, thin):
        with pytest.raises(CardThinError, match="does not have"):
            thin.whole(lacking)


def test_parent_with_damaged_bytes_is_found_when_they_are_read() -> None:
    parent, child = parent_and_child()
    tensors = dict(parent.tensors)
    tensors[blob_name(1, 0)] = tensors[blob_name(1, 0)] ^ 1
    whole = child.without(parent).whole(CacheCard(parent.manifest, tensors))
    with pytest.raises(CardDigestError):
        whole.verify()


def claim_thin(path: Path, count: int) -> None:
    edit_manifest(path, lambda manifest: None)  # digest of the manifest as it is written here
    write_envelope(path, read_envelope(path) | {"thin": count})


@pytest.mark.parametrize("count", [4, 10_000])
def test_file_that_lacks_more_than_it_has_is_refused(tmp_path: Path, count: int) -> None:
    path = make_card().save(tmp_path / "card")
    claim_thin(path, count)
    with pytest.raises(CardFormatError, match="lacks the bytes"):
        CacheCard.load(path)


def test_thin_file_with_the_bytes_it_says_it_lacks_is_refused(tmp_path: Path) -> None:
    path = make_card().save(tmp_path / "card")
    claim_thin(path, 1)
    with pytest.raises(CardFormatError, match="not expected"):
        CacheCard.load(path)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("codec", [Raw(), Uniform(4), Kivi(4), Packed()], ids=lambda at: at.name)
def test_compacted_chain_decodes_to_the_same_and_has_a_smaller_header(
    tmp_path: Path, codec: Raw, joined: bool
) -> None:
    card = make_card(codec, (6, 3, 1, 4), joined=joined)
    small = CacheCard.load(card.compact().save(tmp_path / "small"))
    assert decoded(small) == decoded(card)
    assert len(small.manifest.segments) == 1
    assert small.token_ids.tolist() == card.token_ids.tolist()
    assert small.header_bytes < card.header_bytes
    assert sum(map(sum, small.blob_bytes)) == sum(map(sum, card.blob_bytes))
    assert small.manifest.lineage[-1].parent == card.digest
    again = small.compact()
    assert again.manifest.segments == small.manifest.segments
    assert decoded(again) == decoded(card)


def test_compacted_card_cannot_be_trimmed_and_says_so() -> None:
    with pytest.raises(BudgetError, match="0 refinements"):
        trim(make_card().compact(), 0.5)


def test_thin_card_cannot_be_compacted() -> None:
    parent, child = parent_and_child()
    with pytest.raises(CardThinError):
        child.without(parent).compact()


@pytest.mark.parametrize("codec", [Raw(), Uniform(4), Packed()], ids=lambda at: at.name)
def test_layers_in_one_blob_are_those_of_their_own(tmp_path: Path, codec: Raw) -> None:
    apart, joined = (make_card(codec, (9, 3), joined=way) for way in (False, True))
    joined = CacheCard.load(joined.save(tmp_path / "card"))
    assert decoded(joined) == decoded(apart)
    assert joined.blob_bytes == apart.blob_bytes
    assert joined.header_bytes < apart.header_bytes
    assert [blob.tobytes() for blob in joined.blobs(0)] == [
        apart.blob(layer, 0).tobytes() for layer in range(2)
    ]
    assert joined.nbytes == (tmp_path / "card").stat().st_size
    thin = joined.without(joined)
    assert (thin.thin, sum(map(sum, thin.blob_bytes))) == (2, 0)
    assert decoded(thin.whole(joined)) == decoded(apart)


def damage_of_joined(manifest: dict[str, object]) -> None:
    manifest["segments"][0]["sizes"].append(0)  # type: ignore[index]


def joined_longer_than_its_blob(manifest: dict[str, object]) -> None:
    manifest["segments"][0]["sizes"][1] += 1  # type: ignore[index]


def joined_with_a_blob_too_many(manifest: dict[str, object]) -> None:
    manifest["segments"][0]["blobs"] *= 2  # type: ignore[index]


def joined_with_parts(manifest: dict[str, object]) -> None:
    segment = manifest["segments"][0]  # type: ignore[index]
    part = {key: segment[key] for key in ("end", "codec", "allocation", "sizes")}
    segment["parts"] = [part]
    del segment["first"]


@pytest.mark.parametrize(
    "edit",
    [
        damage_of_joined,
        joined_longer_than_its_blob,
        joined_with_a_blob_too_many,
        joined_with_parts,
    ],
)
def test_forged_sizes_are_refused_on_opening(tmp_path: Path, edit: object) -> None:
    path = make_card(joined=True).save(tmp_path / "card")
    edit_manifest(path, edit)
    with pytest.raises(CardFormatError):
        CacheCard.load(path)


def part_ends_early(manifest: dict[str, object]) -> None:
    manifest["segments"][0]["parts"].pop()  # type: ignore[index]


def part_goes_back(manifest: dict[str, object]) -> None:
    manifest["segments"][0]["parts"][1]["end"] = 6  # type: ignore[index]


def part_without_a_layer(manifest: dict[str, object]) -> None:
    manifest["segments"][0]["parts"][0]["sizes"].pop()  # type: ignore[index]


def part_longer_than_its_blob(manifest: dict[str, object]) -> None:
    manifest["segments"][0]["parts"][0]["sizes"][0] += 1  # type: ignore[index]


def part_that_forgot_too_much(manifest: dict[str, object]) -> None:
    manifest["segments"][0]["parts"][0]["first"][0] = 2  # type: ignore[index]


def firsts_beside_parts(manifest: dict[str, object]) -> None:
    manifest["segments"][0]["first"] = [0, 0]  # type: ignore[index]


@pytest.mark.parametrize(
    "edit",
    [
        part_ends_early,
        part_goes_back,
        part_without_a_layer,
        part_longer_than_its_blob,
        part_that_forgot_too_much,
        firsts_beside_parts,
    ],
)
def test_forged_parts_are_refused_on_opening(tmp_path: Path, edit: object) -> None:
    path = make_card().compact().save(tmp_path / "card")
    edit_manifest(path, edit)
    with pytest.raises(CardFormatError):
        CacheCard.load(path)


def test_sizes_moved_between_parts_are_refused_when_decoded(tmp_path: Path) -> None:
    def move(manifest: dict[str, object]) -> None:
        one, two = manifest["segments"][0]["parts"]  # type: ignore[index]
        one["sizes"][0] += 8
        two["sizes"][0] -= 8

    path = make_card().compact().save(tmp_path / "card")
    edit_manifest(path, move)
    card = CacheCard.load(path)
    with pytest.raises(CardFormatError), torch.inference_mode():
        [list(run) for run in decode_runs(card)]
