"""Texts to calibrate with: plain, or JSONL with ``text`` or ``question`` and ``answer``; and many
languages."""

from __future__ import annotations

from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import msgspec
from transformers import PreTrainedTokenizerBase

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


def languages(tokenizer: PreTrainedTokenizerBase, contexts: int, tokens: int) -> list[list[int]]:
    """``contexts`` runs of ``tokens`` ids in many languages, spread over all of `languages.txt`.

    A model's own text and most given texts lack them. The passages were written for this package;
    none is in French, which docs/results/rate.md measures as a language that calibration has not
    seen. Where the passages are too short, runs overlap, and begin again at the first one.
    """
    text = resources(__package__).joinpath("languages.txt").read_text(encoding="utf-8")
    ids: list[int] = tokenizer(text)["input_ids"]
    around = ids * (1 + -(-tokens // len(ids)))
    starts = (run * len(ids) // contexts for run in range(contexts))
    return [around[start : start + tokens] for start in starts]
