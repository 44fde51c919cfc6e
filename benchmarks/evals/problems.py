"""Problems with a number for an answer, in GSM8K's form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkvshare.hf.calibrate.texts import TextError, read_records

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
    return [_problem(record, path) for record in read_records(path)]


def _problem(record: dict[str, Any], path: Path) -> Problem:
    question, answer = record.get("question"), record.get("answer")
    if isinstance(question, str) and isinstance(answer, str):
        solution, mark, last = answer.rpartition("####")
        number = last_number(last)
        if mark and number is not None:
            return Problem(question.strip(), _NOTE.sub("", solution).strip(), number)
    raise TextError(
        f"{path}: a record has {', '.join(record)[:80] or 'nothing'}; expected texts 'question' "
        "and 'answer', which ends with '#### NUMBER'."
    )


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
