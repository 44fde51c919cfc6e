"""Encode and decode a small card with the package that is installed.

``python -m tests.round_trip``, from the folder that has ``tests``, is what every wheel is tested
with. It needs no package but QKVShare itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import qkvshare
from qkvshare import CacheCard, Packed
from qkvshare.card.digest import digest_bytes
from qkvshare.codecs import decode_runs
from qkvshare.kernels.native import native

from .cards import make_card

GOLDEN = Path(__file__).parent / "card" / "golden"


def decoded(card: CacheCard) -> list[str]:
    """The digest of each layer's keys, and of its values."""
    return [
        digest_bytes(part.contiguous().numpy().tobytes())
        for run in decode_runs(card)
        for layer in run
        for part in (layer.keys, layer.values)
    ]


def round_trip(folder: Path) -> list[str]:
    """Digests of a card's file and of what it decodes to, equal wherever the same torch runs."""
    path = make_card(Packed(), runs=(200, 9)).save(folder / "small.card")
    return [digest_bytes(path.read_bytes()), *decoded(CacheCard.load(path))]


def main() -> None:
    golden = CacheCard.load(GOLDEN / "packed.card")
    if decoded(golden) != json.loads((GOLDEN / "packed.json").read_text())["decoded"]:
        sys.exit("the golden card does not decode to the bits that it must give")
    with TemporaryDirectory() as folder:
        digests = round_trip(Path(folder))
    print(json.dumps({"package": qkvshare.__file__, "digests": digests}))
    if native is None:
        sys.exit("this installation has no native kernels")


if __name__ == "__main__":
    main()
