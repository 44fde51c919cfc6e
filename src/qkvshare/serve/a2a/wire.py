"""HTTP to other agents: only known origins are asked, and what comes is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import httpx

from ...card.errors import AgentError, CardFetchError
from ..limits import VALUES, values

MOST = 16 << 20  # bytes of an answer; larger cards go by URL


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
        # Uncompressed: a compressed body could unpack to more than was announced.
        plain, got = {"Accept-Encoding": "identity"}, 0
        try:
            async with (
                asyncio.timeout(self.seconds),
                client.stream(
                    "GET", url, headers=plain, follow_redirects=False, timeout=self.seconds
                ) as response,
            ):
                if response.status_code != 200:
                    raise CardFetchError(
                        f"{url} answers {response.status_code}"
                        f"{' and sends us elsewhere' if response.is_redirect else ''}; expected "
                        "200 and the card. It may be gone there; ask its agent again."
                    )
                async for chunk in response.aiter_raw():
                    got += len(chunk)
                    if got > size:
                        break
                    await asyncio.to_thread(into, chunk)
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


def careful(
    client: httpx.AsyncClient, home: str, origins: Iterable[str], seconds: float, *, whole: bool
) -> httpx.AsyncClient:
    """``client``, but safe against what another agent names.

    Requests go only to the origins of ``home`` and ``origins``. The client's own headers, cookies
    and credentials go only to ``home``. No redirect is followed.

    Args:
        client: sends the requests; it stays open.
        home: the URL that the credentials are for.
        origins: other URLs whose origins may be asked.
        seconds: the most time for an answer to arrive, once it has begun.
        whole: read answers at once, at most `MOST` bytes, and no compressed ones.
    """
    return httpx.AsyncClient(
        transport=_Careful(client, home, origins, seconds if whole else None),
        timeout=client.timeout,
        headers={"Accept-Encoding": "identity"},
    )


class _Careful(httpx.AsyncBaseTransport):
    def __init__(
        self, client: httpx.AsyncClient, home: str, origins: Iterable[str], seconds: float | None
    ) -> None:
        self._client, self._home, self._seconds = client, origin(home), seconds
        self._origins = {self._home, *map(origin, origins)} - {None}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        at = origin(str(request.url))
        if at not in self._origins:
            raise AgentError(
                f"the agent names {str(request.url)[:200]!r}, which is not its own origin. "
                "Add it to Fetch(origins=…) if it is to be trusted."
            )
        if at == self._home:
            body = await request.aread()
            own = self._client.build_request(
                request.method,
                request.url,
                headers=request.headers,
                content=body,
                extensions=request.extensions,
            )
            response = await self._client.send(own, stream=True, follow_redirects=False)
        else:  # without the headers and credentials of the client
            response = await self._client.send(
                request, stream=True, follow_redirects=False, auth=None
            )
        if self._seconds is None:
            return httpx.Response(
                response.status_code, headers=response.headers, stream=_Rest(response)
            )
        try:
            async with asyncio.timeout(self._seconds):
                body = await _bounded(response)
        except TimeoutError as error:
            raise AgentError(
                f"the answer of {at} was not complete {self._seconds:g} seconds after it began. "
                "Ask again, or allow more: Fetch(seconds=…)."
            ) from error
        finally:
            await response.aclose()
        return httpx.Response(response.status_code, headers=response.headers, content=body)


class _Rest(httpx.AsyncByteStream):
    """An answer's body, passed on piece by piece."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in _raw(self._response):
            yield piece

    async def aclose(self) -> None:
        await self._response.aclose()


def _raw(response: httpx.Response) -> httpx.AsyncByteStream:
    """The raw bytes; `aiter_raw` refuses answers that are in memory already."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return response.stream


async def _bounded(response: httpx.Response) -> bytes:
    packed = response.headers.get("content-encoding", "identity")
    if packed.lower() != "identity":
        raise AgentError(
            f"the agent's answer is compressed by {packed[:40]!r}; expected no compression."
        )
    body = bytearray()
    async for piece in _raw(response):
        body += piece
        if len(body) > MOST:
            raise AgentError(
                f"the agent's answer has more than {MOST:,} bytes; expected larger cards as URLs."
            )
    if values(body) > VALUES:
        raise AgentError(f"the agent's answer has more than {VALUES:,} values; expected fewer.")
    return bytes(body)
