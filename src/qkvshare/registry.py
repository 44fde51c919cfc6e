"""Strategies by name: those of this package, then entry points of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar, cast

from .card.errors import CodecError, QKVShareError

T = TypeVar("T")

_MOST = 1_000_000  # a larger one is a slip of the finger


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
        right = isinstance(found, type) and issubclass(found, base) and is_dataclass(found)
        if right and cast(Any, found).name == name:
            return cast(type[T], found)
        raise error(
            f"the entry point {point.value} is not a dataclass derived from {base.__name__} that "
            f"is named {name!r}."
        )
    others = (point.name for point in entry_points(group=f"qkvshare.{kind}s"))
    raise error(f"there is no {kind} {name!r}; known: {', '.join(sorted({*known, *others}))}.")


def build(text: str, find_kind: Callable[[str], type[T]], error: type[QKVShareError]) -> T:
    """An instance from ``name`` or ``name:field=value,…``, as a command line gives it.

    Fields are those of the dataclass, numbers all. Raises ``error`` with the fields there are.
    """
    name, _, given = text.partition(":")
    kind = find_kind(name)
    known = {
        field.name: field
        for field in fields(cast(Any, kind))
        if isinstance(field.default, int | float)
    }
    values: dict[str, Any] = {}
    for part in filter(None, given.split(",")):
        field, _, value = part.partition("=")
        try:
            values[field] = cast(Any, type(known[field].default))(value)
            if not 0 <= values[field] <= _MOST:  # NaN is not, either
                raise ValueError
        except (KeyError, ValueError, TypeError):
            names = ", ".join(known) or "none"
            raise error(
                f"{part!r} is no parameter of {name!r}; expected field=number, a number from 0 to "
                f"{_MOST:,}, fields: {names}."
            ) from None
    return kind(**values)


def label(strategy: Any) -> str:
    """The text that `build` makes ``strategy`` of: its name, and numbers that are not default."""
    changed = [
        f"{field.name}={value:g}"
        for field in fields(strategy)
        if isinstance(value := getattr(strategy, field.name), int | float)
        and value != field.default
    ]
    return ":".join([str(strategy.name), *([",".join(changed)] if changed else [])])


def require_range(strategy: Any, *names: str, low: float = 1, high: float = _MOST) -> None:
    """Raise `CodecError` unless the parameters ``names`` of a strategy are from low to high."""
    for name in names:
        value = getattr(strategy, name)
        if not low <= value <= high:
            raise CodecError(
                f"{name}={value} is no parameter of {strategy.name!r}; expected a number from "
                f"{low:g} to {high:,g}."
            )
