"""Texts to calibrate with: plain, or JSONL with ``text`` or ``question`` and ``answer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ...card import files
from ...card.errors import QKVShareError


class TextError(QKVShareError):
    """A text is missing, malformed or too short."""


def read_text(path: Path) -> str:
    """All of a text file, or the records of a JSONL file joined. Raises `TextError`."""
    if path.suffix == ".jsonl":
        content = "\n\n".join(_text_of(record, path) for record in read_records(path))
    else:
        content = files.read_text(path, TextError)
    if not content:
        raise TextError(f"{path} has no text.")
    return content


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, one a line. Raises `TextError`."""
    records = []
    # Not splitlines: within a JSON string other line separators are allowed as they are.
    for number, line in enumerate(files.read_text(path, TextError).split("\n"), 1):
        try:
            if line.strip():
                records.append(msgspec.json.decode(line, type=dict[str, Any]))
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise TextError(
                f"{path}, line {number}: {error}. Expected JSONL, one JSON object a line."
            ) from error
    return records


def _text_of(record: dict[str, Any], path: Path) -> str:
    if "text" in record:
        return str(record["text"])
    if "question" in record and "answer" in record:
        return f"Question: {record['question']}\nAnswer: {record['answer']}"
    raise TextError(
        f"{path}: a record has {', '.join(record)[:80] or 'nothing'}; expected 'text', or "
        "'question' and 'answer'."
    )


def windows(ids: list[int], count: int, length: int) -> list[list[int]]:
    """The first ``count`` runs of ``length`` ids, one after the other. Raises `TextError`."""
    if len(ids) < count * length:
        raise TextError(
            f"the text has {len(ids)} tokens; {count} contexts of {length} need {count * length}. "
            "Give more text, or ask for fewer or shorter contexts."
        )
    return [ids[start : start + length] for start in range(0, count * length, length)]
