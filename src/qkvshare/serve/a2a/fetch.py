"""Download a card from the URL that another agent names, without trusting that URL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx

from ...card.errors import CardFetchError


@dataclass(frozen=True)
class Fetch:
    """Where cards may come from. Without it, a URL could make us ask any address.

    Attributes:
        origins: ``scheme://host[:port]`` that cards may be fetched from, besides the origin of the
            agent that was asked.
        limit: the most bytes of a card.
        seconds: the most time that a download may take.
        trust: public keys, as `CacheCard.load` takes them; None to take unsigned cards, too.
    """

    origins: tuple[str, ...] = ()
    limit: int = 1 << 30
    seconds: float = 60.0
    trust: Iterable[str] | str | Path | None = None

    def refuses(self, url: str, size: int) -> str:
        """Why ``url``, announced with ``size`` bytes, is not fetched; empty if it may be."""
        if size > self.limit:
            return f"the card has {size:,} bytes, more than the {self.limit:,} that are allowed."
        if not url:
            return ""
        allowed = {origin(each) for each in self.origins} - {None}
        if origin(url) not in allowed:
            return (
                f"the card is at {url[:200]!r}, and cards are taken from "
                f"{', '.join(sorted(map(str, allowed))) or 'nowhere'} only. Add its origin to "
                "Fetch(origins=…) if it is to be trusted."
            )
        return ""

    async def write(
        self, into: Callable[[bytes], object], url: str, size: int, client: httpx.AsyncClient
    ) -> None:
        """Give ``into`` the ``size`` bytes at ``url``, piece by piece.

        Raises `CardFetchError`, and what ``into`` does.
        """
        try:
            async with asyncio.timeout(self.seconds):
                await self._write(into, url, size, client)
        except TimeoutError as error:
            raise CardFetchError(
                f"the card at {url} was not there after {self.seconds:g} seconds. Try again, or "
                "give it more: Fetch(seconds=…)."
            ) from error
        except (httpx.HTTPError, OSError) as error:
            kind = type(error).__name__
            raise CardFetchError(
                f"the card at {url} cannot be fetched: {kind} {error}. Ask its agent again."
            ) from error

    async def _write(
        self, into: Callable[[bytes], object], url: str, size: int, client: httpx.AsyncClient
    ) -> None:
        # Uncompressed: a compressed body could unpack to more than was announced.
        plain = {"Accept-Encoding": "identity"}
        async with client.stream(
            "GET", url, headers=plain, follow_redirects=False, timeout=self.seconds
        ) as response:
            if response.status_code != 200:
                raise CardFetchError(
                    f"{url} answers {response.status_code}"
                    f"{' and sends us elsewhere' if response.is_redirect else ''}; expected 200 "
                    "and the card. It may be gone there; ask its agent again."
                )
            got = 0
            async for chunk in response.aiter_raw():
                got += len(chunk)
                if got > size:
                    break
                await asyncio.to_thread(into, chunk)
            if got != size:
                raise CardFetchError(
                    f"{url} gave {'more than' if got > size else f'{got:,} bytes of'} the "
                    f"{size:,} bytes that were announced. Ask its agent again."
                )


def origin(url: str) -> str | None:
    """``scheme://host:port`` of an HTTP address, parsed as the HTTP client parses it."""
    try:
        at = httpx.URL(url)
        host, port = at.host.lower(), at.port or {"http": 80, "https": 443}.get(at.scheme)
    except (httpx.InvalidURL, ValueError):
        return None
    return f"{at.scheme}://{host}:{port}" if host and at.scheme in ("http", "https") else None
