"""Connections that keep the server waiting, and more of them than it has descriptors for."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from qkvshare.serve import limits, listen
from qkvshare.serve.access import Access
from qkvshare.serve.gate import Gate
from qkvshare.serve.limits import BodyLimit, Limits
from qkvshare.serve.listen import Seldom

from .server import serving

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[..., Any]) -> None:
    """Says yes; at /large with more than sockets hold."""
    if scope["type"] != "http":
        return
    await receive()
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(256 if scope["path"] == "/large" else 0):
        await send({"type": "http.response.body", "body": bytes(1 << 18), "more_body": True})
    await send({"type": "http.response.body", "body": b"yes"})


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A server that is less patient, so that tests are quick."""
    for name in ("HEADER_SECONDS", "LINGER_SECONDS", "READ_SECONDS"):
        monkeypatch.setattr(listen, name, 0.3)
    monkeypatch.setattr(limits, "STALL_SECONDS", 0.3)
    guarded = Gate(BodyLimit(app, Limits()), Access({}), "")
    with serving(guarded) as url:
        at = httpx.URL(url)
        yield at.host, at.port


@contextmanager
def connected(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, 20) as made:
        yield made


def rest(connection: socket.socket) -> bytes:
    """All until the server closes; a socket that is still open after 20 seconds is an error."""
    got = b""
    try:
        while piece := connection.recv(1 << 16):
            got += piece
    except ConnectionResetError:
        pass
    return got


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET[:-2], HEAD + b"X: " + b"x" * 1000],
                         ids=["nothing", "line", "headers", "header"])  # fmt: skip
def test_half_a_head_is_not_waited_for(address: tuple[str, int], sent: bytes) -> None:
    with connected(address) as connection:
        connection.sendall(sent)
        assert rest(connection) == b""


def test_half_of_a_second_request_is_not_waited_for(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        connection.sendall(GET)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(GET[:20])
        rest(connection)


def test_half_a_body_is_not_waited_for(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert rest(connection).startswith(b"HTTP/1.1 408")


def test_a_body_that_trickles_is_not_waited_for(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "JSON_SECONDS", 0.5)
    with connected(address) as connection:
        connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        connection.settimeout(0.1)
        for _ in range(200):
            connection.sendall(b" ")
            try:
                assert connection.recv(4096).startswith(b"HTTP/1.1 408")
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("it was waited for")


def test_the_rest_of_a_body_that_was_refused_is_not_waited_for(address: tuple[str, int]) -> None:
    head = HEAD.replace(b"localhost", b"evil.example") + b"Content-Length: 1000000000\r\n\r\n"
    with connected(address) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 421")
        with suppress(ConnectionError):
            for _ in range(1_000_000):
                connection.sendall(b" " * 1000)
            pytest.fail("it was waited for")


def test_a_client_that_does_not_read_is_not_waited_for(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        connection.sendall(GET.replace(b"/", b"/large", 1))
        with connected(address) as other:  # it holds nobody up
            other.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert b"yes" in rest(other)
        time.sleep(1)
        assert len(rest(connection)) < 256 << 18


def test_connections_are_kept_alive_and_served(address: tuple[str, int]) -> None:
    with connected(address) as connection:
        for _ in range(3):
            connection.sendall(HEAD + b"Content-Length: 2\r\n\r\n{}")
            got = connection.recv(4096)
            while not got.endswith(b"0\r\n\r\n"):
                got += connection.recv(4096)
            assert got.startswith(b"HTTP/1.1 200")


def test_the_oldest_that_asks_nothing_makes_room(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "HEADER_SECONDS", 60)
    monkeypatch.setattr(listen, "CONNECTIONS", 16)
    with ExitStack() as held:
        made = [held.enter_context(connected(address)) for _ in range(40)]
        made[-1].sendall(GET)
        assert made[-1].recv(4096).startswith(b"HTTP/1.1 200")
        for connection in made[:20]:
            assert rest(connection) == b""
        made[-2].sendall(GET)
        assert made[-2].recv(4096).startswith(b"HTTP/1.1 200")


# Without the rest of the package, which takes seconds to import.
SERVER = """
import resource, runpy, sys

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"yes"})

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
runpy.run_path(sys.argv[2])["run"](app, "127.0.0.1", int(sys.argv[1]), "warning")
"""


def test_there_are_no_more_connections_than_descriptors() -> None:
    """Else nobody can be accepted, and asyncio writes a line about it a million times."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = free.getsockname()
    command = [sys.executable, "-c", SERVER, str(place[1]), listen.__file__]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process, ExitStack() as held:
        try:
            while True:
                try:
                    held.enter_context(connected(place))
                    break
                except OSError:
                    assert process.poll() is None
            for _ in range(500):
                held.enter_context(connected(place)).sendall(b"GET / HT")
            assert httpx.get(f"http://127.0.0.1:{place[1]}", timeout=20).text == "yes"
        finally:
            process.kill()
        assert process.stderr is not None
        assert len(process.stderr.read().splitlines()) < 100


def test_the_same_message_is_logged_seldom() -> None:
    seldom = Seldom(3)

    def through(text: str) -> bool:
        record = logging.LogRecord("asyncio", logging.ERROR, "", 0, text, (), None)
        return bool(seldom.filter(record))

    long = "socket.accept() out of system resource" + " " * 50
    passed = [through(f"{long} {number}") for number in range(1000)]
    assert 3 <= sum(passed) <= 6  # a minute may have ended
    assert through("something else")


def test_the_unit_bounds_the_process() -> None:
    unit = (Path(__file__).parents[2] / "deploy/qkvshare.service").read_text()
    found = re.search(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE)
    assert found
    assert int(found[1]) > listen.CONNECTIONS + listen.BACKLOG + 1000
    assert re.search(r"^MemoryMax=\d+%$", unit, re.MULTILINE)
