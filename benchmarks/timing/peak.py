"""Peak memory of opening and injecting, measured in a process that does nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from qkvshare.card.errors import QKVShareError

from .cards import ROUTES, Card, CardFile, CardHalf
from .routes import Route

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MEASURED = (Card, CardFile, CardHalf)  # a full file is mapped, and read by the model


def peak_extra_bytes(model: str, route: Route, profile: Path | None) -> int | None:
    """Bytes at the peak of `Route.open` and `Route.inject`, less those of the cache they make.

    None for other routes than a card's, and where the system does not count (Linux does).
    """
    if type(route) not in _MEASURED or not _RESET.exists():
        return None
    known = None if profile is None else str(profile.absolute())
    asked = [model, known, route.name, str(route.folder), route.ids.tolist(), route.new]
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(
        command, input=msgspec.json.encode(asked), capture_output=True, check=False
    )
    if done.returncode:
        raise QKVShareError(f"peak memory of {route.name!r}: {done.stderr.decode()[-500:]}")
    return int(done.stdout)


def _measure(
    name: str, profile: str | None, kind: str, folder: str, ids: list[int], new: list[int]
) -> int:
    from qkvshare.hf.cache import pages
    from qkvshare.hf.model.load import load_model
    from qkvshare.profile import Profile

    if profile is not None:
        Profile.load(Path(profile)).keep()
    model, _ = load_model(name)
    context = np.array(ids, np.int32)
    route = ROUTES[kind](model, context, new, Path(folder), None)
    route.ready(None)
    with torch.no_grad():
        for _ in range(2):  # the first time kernels are loaded and the model's digest is taken
            route.drop()
            pages.forget()
            _RESET.write_text("5")
            before = _high_water()
            route.open()
            route.inject()
            after = _high_water()
    cache: Any = route._given["past_key_values"]
    made: list[Any] = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    # Below 0 where what the process had and did not need was enough.
    return max(0, after - before - int(sum(part.nbytes for part in made)))


def _high_water() -> int:
    """The most bytes that the process has had."""
    return 1024 * int(_STATUS.read_text().split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    print(_measure(*msgspec.json.decode(sys.stdin.buffer.read())))
