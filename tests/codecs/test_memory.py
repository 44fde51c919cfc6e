"""Peak memory of encoding and decoding: a few layers, whatever the number of layers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
import torch
from qkvshare.codecs import LayerKV, Packed, Shape, empty
from qkvshare.codecs import LayerBits

what, dtype = sys.argv[1], getattr(torch, sys.argv[2])
torch.set_num_threads(2)  # layers are made ahead on both
shape, layers = Shape(8, 4096, 128, 128), 12
size = 2 * 8 * 4096 * 128 * torch.finfo(dtype).bits // 8
bits = LayerBits(*(torch.randint(0, 7, (8, 4096), dtype=torch.uint8) for _ in "kv"))
codec, source = Packed(), torch.randn(2, 8, 4096, 128).to(dtype)


def high_water():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def given(count):
    # As capture makes them: keys taken back from RoPE are new, values the cache's own.
    return (LayerKV(source[0].clone(), source[1]) for _ in range(count))


blob = next(iter(codec.encode(given(1), [bits])))


kept = 0


def work(count):
    global kept
    if what == "encode at once":
        # From where a cache has them; what comes out is there at once.
        kept = count * blob.nbytes
        return codec.encode([LayerKV(*source)] * count, [bits] * count)
    if what == "encode":
        return codec.encode(given(count), [bits] * count)
    return codec.decode([blob] * count, empty([shape] * count, dtype))


for _ in work(2):
    pass
del _
Path("/proc/self/clear_refs").write_text("5")
before = high_water()
encoded = work(layers)
while next(encoded, None) is not None:
    pass  # what comes out is the caller's, and dropped
print((high_water() - before - kept) / size)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's counters")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", ["encode", "encode at once", "decode"])
def test_peak_memory_is_at_most_three_layers(what: str, dtype: str) -> None:
    command = [sys.executable, "-c", SCRIPT, what, dtype]
    # Without it glibc keeps what is freed, in an arena for each thread.
    alike = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alike)
    assert done.returncode == 0, done.stderr
    layers = float(done.stdout)
    assert 0.2 < layers <= 3
