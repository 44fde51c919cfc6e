"""Remove from a remote store what no card needs, while others put cards there.

Nothing can be locked, so segments go in two steps, by two calls. One that no card names and that is
older than the grace period is condemned: an object says so. One that has been condemned for longer
than the grace period, and still is named by none, is removed. Younger ones stay, for segments are
sent before the card that names them, which may be on its way. A put that finds a condemned segment
sends it again, which makes it young; a put that had begun before has ended after the grace period
and its card names the segment. So no put may take longer than that, and no collector may pause as
long between looking at a segment and removing it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from .names import digest_in, last_part
from .objects import Objects, parallel


def collect(objects: Objects, names: Callable[[str], list[str]], grace: float) -> list[str]:
    """One such call; returns the names of the segments that were removed.

    ``names``: of the segments of a card, by its digest; ``grace`` in seconds. What names cards that
    are gone is cleared away too. Raises `StoreError`.
    """

    def old(name: str) -> bool:
        modified = objects.modified(name)
        return modified is not None and modified < time.time() - grace

    segments = objects.ls("segments")
    condemned = {last_part(name) for name in objects.ls("condemned")}
    index = [*objects.ls("prefixes"), *objects.ls("agents")]
    files = objects.ls("cards")  # after the others: the cards they are of are written by now
    cards = {digest for name in files if (digest := digest_in(name))}
    used = {name for each in parallel(names, cards) for name in each}
    unnamed = {name: at for at in segments if (name := digest_in(at)) and name not in used}
    removed = []
    for name, at in unnamed.items():
        mark = f"condemned/{name}"
        if name not in condemned and old(at):
            objects.write(mark, b"")
        elif name in condemned and old(mark) and old(at):
            objects.remove(at)
            objects.remove(mark)
            removed.append(name)
    stale = [name for name in index if name.rpartition("-")[2] not in cards]
    stale += [f"condemned/{name}" for name in condemned - unnamed.keys()]
    stale += [name for name in (*files, *segments) if name.endswith(".part")]
    parallel(objects.remove, [name for name in stale if old(name)])
    return removed
