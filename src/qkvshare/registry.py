"""Strategies by name: those of this package, then entry points of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar, cast

from .card.errors import QKVShareError

T = TypeVar("T")


def find(
    name: str, base: type[T], known: Mapping[str, type[T]], kind: str, error: type[QKVShareError]
) -> type[T]:
    """The dataclass derived from ``base`` that is registered as ``name``.

    Looked up in ``known``, then among the entry points of the group ``qkvshare.<kind>s``. Raises
    ``error`` with the names there are.
    """
    if name in known:
        return known[name]
    for point in entry_points(group=f"qkvshare.{kind}s", name=name):
        found: Any = point.load()
        if isinstance(found, type) and issubclass(found, base) and is_dataclass(found):
            return cast(type[T], found)
        raise error(
            f"the entry point {point.value} is not a dataclass derived from {base.__name__}."
        )
    raise error(f"there is no {kind} {name!r}; known: {', '.join(sorted(known))}.")
