"""Work on other threads comes back in order, and errors where their results would have."""

from __future__ import annotations

import subprocess
import sys
from threading import Event

import pytest
import torch

from qkvshare.codecs.ahead import ahead, at_once


@pytest.mark.parametrize("threads", [1, 2])
def test_ahead_keeps_order_and_raises_in_place(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert list(ahead(lambda x: x * x, range(20))) == [x * x for x in range(20)]
        results = ahead(lambda x: 1 // (3 - x), range(20))
        assert [next(results) for _ in range(3)] == [0, 0, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)
    finally:
        torch.set_num_threads(before)


def test_at_once_begins_with_all_keeps_order_and_raises_in_place() -> None:
    begun = [Event() for _ in range(3)]

    def work(at: int) -> int:
        begun[at].set()
        return 1 // (1 - at)

    results = at_once(work, range(3))
    assert all(one.wait(20) for one in begun)  # before anything is asked for
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []
    assert list(at_once(lambda x: x * x, range(50))) == [x * x for x in range(50)]


def test_a_child_process_has_a_thread_of_its_own() -> None:
    """A fork copies no threads, so work given to the parent's would never be done."""
    script = (
        "import os, signal\n"
        "from qkvshare.codecs.ahead import at_once\n"
        "assert list(at_once(abs, [-1])) == [1]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(20)\n"
        "    os._exit(next(at_once(abs, [-7])))\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
