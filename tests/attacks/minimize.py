"""Keep of many inputs the smallest that together go every way through the code that any goes.

``python -m tests.attacks.minimize FOUND``: of those in ``FOUND`` and in the corpus, into the
corpus.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from .target import Target

CORPUS = Path(__file__).parent / "corpus"
WATCHED = ("/qkvshare/card/", "/qkvshare/codecs/", "/qkvshare/cli/inspect")

Arc = tuple[str, int, int]  # file, line, the line after it


def arcs_of(target: Target, data: bytes) -> set[Arc]:
    """The steps from line to line that an execution takes."""
    found: set[Arc] = set()

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        file, last = frame.f_code.co_filename, 0
        if not any(part in file for part in WATCHED):
            return None

        def step(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal last
            found.add((file, last, frame.f_lineno))
            last = frame.f_lineno
            return step

        return step

    sys.settrace(enter)
    threading.settrace(enter)
    try:
        target(data)
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
    return found


def main(folder: Path) -> None:
    """Replace the corpus."""
    files = {file for at in (folder, CORPUS) for file in at.iterdir()}
    inputs = sorted({file.read_bytes() for file in files}, key=lambda data: (len(data), data))
    seen: set[Arc] = set()
    kept = []
    with tempfile.TemporaryDirectory() as scratch:
        target = Target(Path(scratch) / "card")
        for data in inputs:
            found = arcs_of(target, data)
            if not found <= seen:
                seen |= found
                kept.append(data)
    for file in CORPUS.iterdir():
        file.unlink()
    for data in kept:
        (CORPUS / hashlib.blake2s(data, digest_size=8).hexdigest()).write_bytes(data)
    size = sum(map(len, kept))
    print(f"{len(inputs)} inputs, {len(seen)} arcs; kept {len(kept)} inputs of {size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
