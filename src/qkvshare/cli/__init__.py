"""The command line: one file per verb."""

from __future__ import annotations


def plain(text: str) -> str:
    """``text`` with control characters escaped, so that no terminal obeys a card."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
