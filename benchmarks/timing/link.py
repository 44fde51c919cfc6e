"""A link of a given speed: a loopback socket whose sender keeps to a rate."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from threading import Thread

_PIECE = 1 << 16  # bytes


def cross(source: Path, target: Path, megabits: float) -> None:
    """Send file ``source`` through a TCP connection to ``target``, ``megabits`` Mbit a second."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = Thread(target=_send, args=(server, source, 1e6 * megabits / 8))
        sender.start()
        with socket.create_connection(server.getsockname()) as wire, target.open("wb") as file:
            while piece := wire.recv(_PIECE):
                file.write(piece)
        sender.join()


def _send(server: socket.socket, source: Path, rate: float) -> None:
    """``rate`` in bytes a second: a piece leaves when the link would have carried it."""
    with server.accept()[0] as wire, source.open("rb") as file:
        due = time.perf_counter()
        while piece := file.read(_PIECE):
            due += len(piece) / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            wire.sendall(piece)
