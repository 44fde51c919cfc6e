"""The fuzzer of the native entries, for a moment and without sanitizers: see docs/fuzzing.md."""

from __future__ import annotations

import pytest

from .fuzz_kernels import ENTRIES, main


def test_runs_reach_the_kernels_and_the_checks(capsys: pytest.CaptureFixture[str]) -> None:
    counts = main(["--runs", "400", "--seed", "0"])
    assert "400 runs, no finding" in capsys.readouterr().out
    for entry in ENTRIES:
        assert counts[entry.__name__, True] > 10, entry
        assert counts[entry.__name__, False] > 0 or entry.__name__ == "look", entry
