"""How our servers listen: by uvicorn, with bounds on what a connection may hold and for how long.

uvicorn ends connections that are idle, but waits for ever for the rest of a request, and for a
client that does not read its answer. Each such connection holds one of the process's descriptors.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20.0  # for a request's line and headers
LINGER_SECONDS = 5.0  # for the rest of a request that has its answer already
READ_SECONDS = 60.0  # for a client to read some of its answer
CONNECTIONS = 512
BACKLOG = 64
_SPARE = 96  # descriptors for the model, the store and the log


class Patience(H11Protocol):
    """HTTP/1.1, where a client that keeps us waiting loses its connection.

    While a body is awaited by the application, `BodyLimit` minds the time.
    """

    _timer: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None
    _since = 0.0  # when we began to wait for a request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; one that others waited with for longest makes room."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._wait(HEADER_SECONDS)
        if len(self.connections) > most_connections():
            self.logger.warning("too many connections; those without a request are closed")
            waiting = [
                each
                for each in self.connections
                if isinstance(each, Patience) and each.conn.their_state is h11.IDLE
            ]
            min(waiting, key=lambda each: each._since).drop()

    def data_received(self, data: bytes) -> None:
        """Take what came, and wait for the rest no longer than is right."""
        begins = self.conn.their_state is h11.IDLE and self._timer is None
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            if begins:
                self._wait(HEADER_SECONDS)
        elif not self._answered():
            self._stop()

    def on_response_complete(self) -> None:
        """The rest of a body that nobody wants is not waited for without end."""
        super().on_response_complete()
        self._since = self.loop.time()
        if self._answered():
            self._wait(LINGER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop()
        self._stop_reader()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client is slower than we are; it must read on."""
        super().pause_writing()
        self._reader = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It did."""
        self._stop_reader()
        super().resume_writing()

    def drop(self) -> None:
        """Close the connection at once, and count it no more."""
        self.connections.discard(self)
        self.transport.abort()

    def _answered(self) -> bool:
        """Whether the request was answered before all of it came."""
        done = (h11.DONE, h11.MUST_CLOSE)
        return self.conn.our_state in done and self.conn.their_state is h11.SEND_BODY

    def _wait(self, seconds: float) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None


class Seldom(logging.Filter):
    """Let the same message through ``times`` in a minute: a full disk of log helps nobody."""

    def __init__(self, times: int = 10) -> None:
        """``times``: how often."""
        super().__init__()
        self._times, self._minute = times, 0
        self._seen: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log it; the last one says that more are left out."""
        minute = int(time.monotonic() / 60)
        if minute != self._minute or len(self._seen) > 1000:
            self._minute, self._seen = minute, {}
        # Messages that differ in a number or an address only are the same one.
        what = f"{record.name} {record.msg}"[:80]
        seen = self._seen[what] = self._seen.get(what, 0) + 1
        if seen == self._times:
            record.msg = f"{record.msg} (more of this within a minute are left out)"
        return seen <= self._times


def most_connections() -> int:
    """As many as there are descriptors for: a process without one can accept nobody."""
    if sys.platform == "win32":
        return CONNECTIONS
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS if soft < 0 else max(16, min(CONNECTIONS, soft - BACKLOG - _SPARE))


def config(app: Any, host: str, port: int, log_level: str) -> uvicorn.Config:
    """What uvicorn needs to listen as described above."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level=log_level,
        access_log=False,
        http=Patience,
        ws="none",
        backlog=BACKLOG,
        timeout_keep_alive=5,
        h11_max_incomplete_event_size=64 << 10,
        server_header=False,
    )


def run(app: Any, host: str, port: int, log_level: str) -> None:
    """Serve ``app`` until the process is told to stop."""
    server = uvicorn.Server(config(app, host, port, log_level))
    for name in ("asyncio", "uvicorn.error"):
        logging.getLogger(name).addFilter(Seldom())
    server.run()
