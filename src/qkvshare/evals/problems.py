"""Problems with a number for an answer, in GSM8K's form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .text import TextError

_NOTE = re.compile(r"<<.*?>>")  # GSM8K's calculator annotations
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Problem:
    """``solution`` without annotations and without the line of the answer."""

    question: str
    solution: str
    answer: str


def read_problems(path: Path) -> list[Problem]:
    """All problems of a JSONL file with ``question`` and ``answer``. Raises `TextError`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [_problem(msgspec.json.decode(line)) for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise TextError(
            f"{path} cannot be read as problems: {error!r}. Expected JSONL whose records have "
            "'question' and 'answer', which ends with '#### NUMBER'."
        ) from error


def _problem(record: dict[str, str]) -> Problem:
    solution, mark, answer = record["answer"].rpartition("####")
    number = last_number(answer)
    if not mark or number is None:
        raise KeyError("####")
    return Problem(record["question"].strip(), _NOTE.sub("", solution).strip(), number)


def first_number(text: str) -> str | None:
    """The first number in ``text``, written plainly; None if there is none."""
    found = _NUMBER.search(text)
    return None if found is None else _plain(found[0])


def last_number(text: str) -> str | None:
    """The last number in ``text``, as the usual exact match on GSM8K takes it."""
    found = _NUMBER.findall(text)
    return _plain(found[-1]) if found else None


def _plain(number: str) -> str:
    plain = number.replace("$", "").replace(",", "")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return plain
