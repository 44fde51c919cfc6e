"""The load of `load`, each client's acts once; docs/serve.md has the long run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from .load import Load, run, server
from .server import talker


@pytest.mark.slow
def test_no_answer_is_wrong_among_rude_clients(tmp_path: Path) -> None:
    session = talker()
    with server(tmp_path, session, "2MB") as (address, pid):
        load = Load(address, session, seed=0)
        asyncio.run(run(load, clients=4, seconds=0, pid=pid))
    assert load.wrong == []
    assert load.counts["answers 200"] > 10
    assert load.counts["too long 413"] + load.counts["too long: closed"] == 4
    assert load.counts["no token 401"] == 4
