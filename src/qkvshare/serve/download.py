"""A card's file as a response: all of it, or one range of its bytes."""

from __future__ import annotations

import re

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ..card import CacheCard
from ..card.container import MEDIA_TYPE

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def card_response(card: CacheCard, request: Request) -> Response:
    """The file of ``card``, verified tensor by tensor as it goes out.

    Raises `HTTPException` 416 for a range that is outside the file.
    """
    file, head = card.stream(), request.method == "HEAD"
    wanted = None if head else request.headers.get("range")
    part = _range(wanted, file.nbytes)
    headers = {
        "Content-Length": str(len(part)),
        "ETag": f'"{card.digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, immutable",
        "Content-Disposition": f'attachment; filename="{card.digest}.card"',
    }
    if head:
        return Response(None, 200, headers, MEDIA_TYPE)
    status = 200
    if len(part) < file.nbytes:
        status = 206
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{file.nbytes}"
    return StreamingResponse(file(part.start, part.stop), status, headers, MEDIA_TYPE)


def _range(wanted: str | None, length: int) -> range:
    """The bytes that a Range header asks for; all of them unless it asks for one valid range."""
    found = _RANGE.fullmatch(wanted or "")
    if found is None or found[1] == found[2] == "":
        return range(length)
    first, last = _number(found[1]), _number(found[2])
    if found[1] == "":  # the last bytes
        start, stop = max(0, length - last), length
    else:
        start, stop = first, min(length, last + 1) if found[2] else length
        if found[2] and last < first:
            return range(length)
    if start >= stop:
        headers = {"Content-Range": f"bytes */{length}"}
        raise HTTPException(416, f"the card has {length:,} bytes, none in that range.", headers)
    return range(start, stop)


def _number(digits: str) -> int:
    """A number that a client wrote, at most as large as any file; "" is 0."""
    return min(int(digits[-19:] or 0), 1 << 62) if len(digits.lstrip("0")) < 19 else 1 << 62
