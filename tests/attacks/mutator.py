"""How the fuzzer changes a card's file: by its parts, so that most of what comes out is a card."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

from qkvshare.card.container import MAGIC

from .target import BLOBS, MALFORMED, NAMES, PROFILE, joined, split

Mutate = Callable[[bytes, int], bytes]

NUMBERS = (
    0, 1, -1, 2, 3, 4, 7, 8, 9, 63, 64, 65, 255, 256, 511, 512, 4095, 4096, 65535, 1 << 20,
    (1 << 20) + 1, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30,
    -(1 << 31), -(1 << 63), 0.5, -0.0, 1e308, 5e-324,
)  # fmt: skip
TEXTS = (
    "", "a", "\0", "é" * 40, "x" * 64, "x" * 300, "0" * 64, "f" * 63, "[/b]", "[red]", "\x1b[31m",
    "../../x", "full", "sliding", "float32", "float16", "bfloat16", "raw", "uniform", "kivi",
    "packed", "transform", "bits", "step", "refinements", "profile", "2026-01-01T00:00:00Z",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "U8", "I32", "F64", "BOOL", "F8_E4M3",
)  # fmt: skip
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [0, 0], [0] * 300)
CODECS: tuple[dict[str, Any], ...] = (
    {"name": "raw", "version": 1, "parameters": {}},
    {"name": "uniform", "version": 1, "parameters": {"bits": 2}},
    {"name": "kivi", "version": 1, "parameters": {"bits": 8}},
    {"name": "packed", "version": 2, "parameters": {}},
    {"name": "transform", "version": 2, "parameters": {"step": 0, "refinements": 1}},
)


def mutate(data: bytes, most: int, seed: int, plainly: Mutate) -> bytes:
    """Another input of at most ``most`` bytes; ``plainly`` changes bytes that mean nothing."""
    draw = random.Random(seed)
    if len(data) < 2 or data[0] % len(NAMES) in (BLOBS, PROFILE) or draw.random() < 0.2:
        return plainly(data, most)
    try:
        header, body = split(data[1:])
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            edit = draw.choice((_edit_manifest, _edit_manifest, _edit_header, _edit_tensor))
            header, body = edit(header, body, draw, plainly)
        made = data[:1] + joined(header, body)
    except (*MALFORMED, RecursionError):
        return plainly(data, most)
    return made if len(made) <= most else plainly(data, most)


def _edit_manifest(
    header: dict[str, Any], body: bytes, draw: random.Random, plainly: Mutate
) -> tuple[dict[str, Any], bytes]:
    envelope = json.loads(header["__metadata__"][MAGIC])
    if draw.random() < 0.1:
        envelope = _edit_json(envelope, draw)
    elif draw.random() < 0.1:
        segment = draw.choice(envelope["manifest"]["segments"])
        segment["codec"] |= copy.deepcopy(draw.choice(CODECS))
    else:
        envelope["manifest"] = _edit_json(envelope["manifest"], draw)
    header["__metadata__"][MAGIC] = json.dumps(envelope)
    return header, body


def _edit_header(
    header: dict[str, Any], body: bytes, draw: random.Random, plainly: Mutate
) -> tuple[dict[str, Any], bytes]:
    names = [name for name in header if name != "__metadata__"]
    if draw.random() < 0.5:
        one, other = draw.choice(names), draw.choice(names)
        header[one], header[other] = header[other], header[one]
        return header, body
    return _edit_json(header, draw), body


def _edit_tensor(
    header: dict[str, Any], body: bytes, draw: random.Random, plainly: Mutate
) -> tuple[dict[str, Any], bytes]:
    """Change one tensor's bytes, and lay them all out again."""
    names = sorted(
        (name for name in header if name != "__metadata__"),
        key=lambda name: header[name]["data_offsets"],
    )
    chosen, parts, at = draw.choice(names), [], 0
    for name in names:
        start, end = header[name]["data_offsets"]
        part = body[start:end]
        size = len(part)
        if name == chosen:
            part = plainly(part, max(1, 2 * len(part)))
            part = part[: len(part) // 4 * 4] if header[name]["dtype"] == "I32" else part
            if draw.random() < 0.7:  # most often of the same size, which most codecs insist on
                part = part[:size].ljust(size, b"\0")
        parts.append(part)
        header[name]["data_offsets"] = [at, at := at + len(part)]
        header[name]["shape"] = [len(part) // (4 if header[name]["dtype"] == "I32" else 1)]
    return header, b"".join(parts)


def _edit_json(value: Any, draw: random.Random) -> Any:
    """``value`` with one thing changed somewhere in it."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(list(value))
        dice = draw.random()
        if dice < 0.06:
            del value[name]
        elif dice < 0.1:
            value[draw.choice([*TEXTS, *value])] = copy.deepcopy(value[name])
        else:
            value[name] = _edit_json(value[name], draw)
        return value
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        dice = draw.random()
        if dice < 0.1:
            del value[at]
        elif dice < 0.2:
            value.insert(at, copy.deepcopy(value[at]))
        elif dice < 0.25:
            draw.shuffle(value)
        else:
            value[at] = _edit_json(value[at], draw)
        return value
    if isinstance(value, int) and draw.random() < 0.6:
        return value + draw.choice((-2, -1, 1, 2, value))
    kind: tuple[Any, ...] = draw.choice((NUMBERS, TEXTS, OTHERS))
    return copy.deepcopy(draw.choice(kind))
