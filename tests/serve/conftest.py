"""No request of any test here may be answered by a 500."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest


class _Failures(logging.Handler):
    """What servers log of requests that failed in a way nobody foresaw."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if record.name == "qkvshare.serve" and said.startswith("{"):
            line = json.loads(said)
            if line.get("status") == 500 or line.get("refused") == "internal_error":
                self.found.append(said)
        elif record.levelno >= logging.ERROR:
            self.found.append(said + str(record.exc_info or ""))


@pytest.fixture(autouse=True)
def failures() -> Iterator[list[str]]:
    """Fails a test at its end where a server failed; a test that wants it to clears the list."""
    handler, journal = _Failures(), logging.getLogger("qkvshare.serve")
    loggers, level = [journal, logging.getLogger("uvicorn.error")], journal.level
    for logger in loggers:
        logger.addHandler(handler)
    journal.setLevel(logging.INFO)
    yield handler.found
    journal.setLevel(level)
    for logger in loggers:
        logger.removeHandler(handler)
    assert handler.found == []
