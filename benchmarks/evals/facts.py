"""Facts for the recall evaluation: random, short, asked for word by word."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NAMES = (
    *("Alice", "Bob", "Carla", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "Jack"),
    *("Karen", "Leo", "Maria", "Nathan", "Olga", "Peter", "Quinn", "Rosa", "Simon", "Tara"),
)
_THINGS = (
    *("boiler", "crane", "dredger", "engine", "furnace", "gate"),
    *("hoist", "kiln", "lathe", "mill", "pump", "turbine"),
)


@dataclass(frozen=True)
class Fact:
    """``statement`` stands in the context; after ``question`` the right text is ``answer``."""

    statement: str
    question: str
    answer: str


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def _code(rng: random.Random, name: str, other: str, thing: str) -> Fact:
    code = _digits(rng, 4)
    asked = f"the access code of {name} is"
    return Fact(f"The access code of {name} is {code}.", f"Reminder: {asked}", f" {code}")


def _key(rng: random.Random, name: str, other: str, thing: str) -> Fact:
    key = "".join(rng.choices(string.ascii_uppercase, k=2)) + "-" + _digits(rng, 3)
    asked = f"the serial key of the {thing} is"
    return Fact(f"The serial key of the {thing} is {key}.", f"Reminder: {asked}", f" {key}")


def _number(rng: random.Random, name: str, other: str, thing: str) -> Fact:
    weight = f"{rng.randint(1, 99)}.{rng.randint(0, 9)}"
    asked = f"the {thing} of {name} weighs"
    return Fact(f"The {thing} of {name} weighs {weight} tons.", f"Reminder: {asked}", f" {weight}")


def _json(rng: random.Random, name: str, other: str, thing: str) -> Fact:
    start = f'{{"part": "{thing}", "owner": "{name}", "stock":'
    count = str(rng.randint(100, 999))
    return Fact(f"{start} {count}}}", f"Record: {start}", f" {count}")


def _pair(rng: random.Random, name: str, other: str, thing: str) -> Fact:
    one, two = _digits(rng, 3), _digits(rng, 3)
    statement = f"The locker of {name} is {one}. The locker of {other} is {two}."
    question = f"Reminder: the lockers of {name} and {other} are"
    return Fact(statement, question, f" {one} and {two}")


_KINDS: tuple[Callable[[random.Random, str, str, str], Fact], ...] = (
    _code,
    _key,
    _number,
    _json,
    _pair,
)


def _record(rng: random.Random, name: str, other: str, thing: str) -> Fact:
    record = {
        "part": thing,
        "serial": "".join(rng.choices(string.ascii_uppercase, k=3)) + "-" + _digits(rng, 4),
        "owner": name,
        "deputy": other,
        "stock": rng.randint(100, 999),
        "price": round(rng.uniform(10, 99), 2),
        "shelves": [rng.randint(10, 99) for _ in range(4)],
        "checked": f"20{_digits(rng, 2)}-0{rng.randint(1, 9)}-1{rng.randint(0, 9)}",
        "status": rng.choice(["ready", "broken", "lent", "ordered"]),
        "codes": {side: _digits(rng, 4) for side in ("front", "back")},
    }
    asked = f"Record of the {thing} as JSON:"
    answer = f" {json.dumps(record)}"
    return Fact(f"{asked}{answer}", asked, answer)


def random_records(seed: int, count: int) -> list[Fact]:
    """``count`` facts of 130 to 200 tokens each: a JSON record, asked for as a whole."""
    return _draw(seed, count, [_record])


def random_facts(seed: int, count: int) -> list[Fact]:
    """``count`` facts, the kinds in turn: code, key, number, JSON value, two at once.

    At most 10, so that no two are about the same person or thing.
    """
    return _draw(seed, count, _KINDS)


def _draw(
    seed: int, count: int, kinds: Sequence[Callable[[random.Random, str, str, str], Fact]]
) -> list[Fact]:
    assert 1 <= count <= 10
    rng = random.Random(seed)
    names, things = rng.sample(NAMES, 2 * count), rng.sample(_THINGS, count)
    return [
        kinds[i % len(kinds)](rng, names[2 * i], names[2 * i + 1], things[i]) for i in range(count)
    ]
