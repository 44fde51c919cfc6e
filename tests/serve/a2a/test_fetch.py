"""Another agent's word on where a card is, is not trusted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from qkvshare.card.errors import CardFetchError
from qkvshare.serve.a2a import Fetch
from qkvshare.serve.a2a.wire import origin

from .agents import run

URL = "http://agent.test/cards/x"


def gives(data: bytes, **headers: str) -> httpx.Response:
    return httpx.Response(200, headers=headers, stream=httpx.ByteStream(data))


def fetch(path: Path, answer: Callable[..., Any], size: int, fetch: Fetch | None = None) -> None:
    async def work() -> None:
        async with httpx.AsyncClient(
            transport=httpx.MockTransport(answer), follow_redirects=True
        ) as client:
            with path.open("wb") as file:
                await (fetch or Fetch()).write(file.write, URL, size, client)

    run(work())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://agent.test/cards/1", "http://agent.test:80"),
        ("HTTPS://Agent.Test", "https://agent.test:443"),
        ("http://agent.test:8080/a?b#c", "http://agent.test:8080"),
        ("http://agent.test@evil.test/", "http://evil.test:80"),
        ("http://[::1]:8000/", "http://::1:8000"),
        ("file:///etc/passwd", None),
        ("ftp://agent.test/", None),
        ("//agent.test/", None),
        ("/cards/1", None),
        ("http://", None),
        ("http://agent.test:port/", None),
        ("http://\x00/", None),
        ("", None),
    ],
)
def test_origins(url: str, expected: str | None) -> None:
    assert origin(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://agent.test:81/",
        "https://agent.test/",
        "http://agent.test.evil.test/",
        "http://agent.test@169.254.169.254/latest",
        "http://127.0.0.1/",
        "file:///etc/passwd",
        "not a url",
    ],
)
def test_nothing_is_fetched_from_other_origins(url: str) -> None:
    allowed = Fetch(origins=("http://agent.test/a2a", "not an origin"))
    assert allowed.refuses(URL, 10) == ""
    assert "origin" in allowed.refuses(url, 10)
    assert "nowhere" in Fetch().refuses(url, 10)


def test_nothing_is_fetched_that_is_too_large() -> None:
    allowed = Fetch(origins=(URL,), limit=10)
    assert allowed.refuses(URL, 10) == ""
    assert "11" in allowed.refuses(URL, 11)


def test_what_is_as_announced_is_written(tmp_path: Path) -> None:
    fetch(tmp_path / "card", lambda _: gives(b"12345"), 5)
    assert (tmp_path / "card").read_bytes() == b"12345"


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(302, headers={"Location": "http://other.test/secret"})

    with pytest.raises(CardFetchError, match="302 and sends us elsewhere"):
        fetch(tmp_path / "card", answer, 5)
    assert asked == ["agent.test"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(404), "404"),
        (gives(b"1234"), "4 bytes of the 5"),
        (gives(b"123456"), "more than the 5"),
    ],
    ids=["gone", "short", "long"],
)
def test_what_is_not_as_announced_is_an_error(
    tmp_path: Path, answer: httpx.Response, message: str
) -> None:
    with pytest.raises(CardFetchError, match=message):
        fetch(tmp_path / "card", lambda _: answer, 5)


def test_no_more_is_read_than_was_announced(tmp_path: Path) -> None:
    given = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            given.append(1)
            yield b"x" * 100

    with pytest.raises(CardFetchError, match="more than"):
        fetch(tmp_path / "card", lambda _: httpx.Response(200, content=endless()), 250)
    assert len(given) == 3
    assert (tmp_path / "card").stat().st_size <= 250


def test_what_is_packed_is_not_unpacked(tmp_path: Path) -> None:
    packed = gives(b"12345", **{"Content-Encoding": "gzip"})
    fetch(tmp_path / "card", lambda _: packed, 5)
    assert (tmp_path / "card").read_bytes() == b"12345"


def test_what_takes_too_long_is_given_up(tmp_path: Path) -> None:
    async def slow(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    with pytest.raises(CardFetchError, match="0.01 seconds"):
        fetch(tmp_path / "card", slow, 5, Fetch(seconds=0.01))


def test_what_does_not_answer_is_an_error(tmp_path: Path) -> None:
    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(CardFetchError, match="ConnectError refused"):
        fetch(tmp_path / "card", broken, 5)
