"""Evaluation text: plain files, or JSONL with ``text`` or ``question`` and ``answer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..card.errors import QKVShareError


class TextError(QKVShareError):
    """The text for an evaluation is missing, malformed or too short."""


def read_text(path: Path) -> str:
    """All of a text file, or the records of a JSONL file joined. Raises `TextError`."""
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix != ".jsonl":
            return content
        records = [msgspec.json.decode(line) for line in content.splitlines() if line.strip()]
        return "\n\n".join(_record(record) for record in records)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise TextError(
            f"{path} cannot be read as text: {error!r}. Expected UTF-8, or JSONL whose records "
            "have 'text', or 'question' and 'answer'."
        ) from error


def _record(record: dict[str, Any]) -> str:
    if "text" in record:
        return str(record["text"])
    return f"Question: {record['question']}\nAnswer: {record['answer']}"


def windows(ids: list[int], count: int, length: int) -> list[list[int]]:
    """The first ``count`` runs of ``length`` ids, one after the other. Raises `TextError`."""
    if len(ids) < count * length:
        raise TextError(
            f"the text has {len(ids)} tokens; {count} contexts of {length} need {count * length}. "
            "Give more text, or ask for fewer or shorter contexts."
        )
    return [ids[start : start + length] for start in range(0, count * length, length)]
