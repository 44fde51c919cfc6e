"""What happens to a `transform` card whose layers are predicted from what is later cut away.

    python -m benchmarks.results.rate_drift --text gsm8k-test.jsonl --profile smollm2.profile

Every layer is encoded with features at the full rate; then the decoder is given its numbers at a
coarser step, as if their last bits had been cut. The error is compared with that of a card encoded
at that step: mean square in the codec's own metric, sinks left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qkvshare import Transform
from qkvshare.codecs.entropy import DEAD
from qkvshare.codecs.predictor import Predictor
from qkvshare.hf.calibrate.texts import read_text, windows
from qkvshare.hf.capture.reading import read
from qkvshare.hf.model.load import load_model
from qkvshare.kernels import rans
from qkvshare.profile import Profile

SINKS, TOKENS = 4, 1024


def quantized(walk: Predictor, kind: int, z: Any) -> Any:
    """``z`` as a decoder of ``walk`` would see it."""
    rows, table = walk.context(kind)
    values, out = np.empty(z.shape, np.int32), np.empty(z.shape, np.float32)
    activity = np.empty(len(z), np.int32)
    points = walk.basis.tables.points
    z = np.ascontiguousarray(z)
    rans.quantize(z, rows, table, walk.units, np.float32(DEAD), points, values, out, activity)
    walk.activity[walk.layer, kind] = activity
    return out


def errors(layers: Any, codec: Transform, octaves: int) -> tuple[float, float]:
    """Of a card encoded ``octaves`` coarser, and of one cut to it."""
    assert codec.step is not None
    coarser = codec.step + 64 * octaves
    fine, cut, coarse = (Predictor(codec.basis, at) for at in (codec.step, coarser, coarser))
    own, sums = np.zeros(TOKENS, np.int32), [0.0, 0.0]
    for number, layer in enumerate(layers):
        for walk in (fine, cut, coarse):
            walk.enter(number, own)
        for kind, part in enumerate((layer.keys, layer.values)):
            basis = fine.part(kind)
            x = part.float().transpose(0, 1).flatten(1) - basis.center
            known = {}
            for name, walk in (("fine", fine), ("coarse", coarse)):
                guess = walk.predict(kind, TOKENS)
                z = quantized(walk, kind, ((x - guess) @ basis.forward).numpy())
                known[name] = guess + torch.from_numpy(z) @ basis.back
                if walk is fine:
                    less = torch.from_numpy(quantized(cut, kind, z))
            known["cut"] = cut.predict(kind, TOKENS) + less @ basis.back
            for name, walk in (("fine", fine), ("coarse", coarse), ("cut", cut)):
                walk.keep(kind, known[name])
            for at, name in enumerate(("coarse", "cut")):
                off = (x - known[name])[SINKS:] @ basis.forward
                sums[at] += off.square().mean().item()
    return sums[0], sums[1]


def main() -> None:
    """Print the ratio for one and two octaves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--profile", type=Path, required=True)
    given = parser.parse_args()
    model, tokenizer = load_model("smollm2-135m")
    codec = Transform.of(Profile.load(given.profile))
    codec = codec.at(codec.basis.reference)
    (ids,) = windows(tokenizer(read_text(given.text))["input_ids"], 1, TOKENS)
    state = read(model, ids)
    layers = [state.layer(number, 0, True) for number in range(len(state.layers))]
    for octaves in (1, 2):
        encoded, cut = errors(layers, codec, octaves)
        print(f"step × {2**octaves}: cut ÷ encoded, mean squared error: {cut / encoded:.1f}")


if __name__ == "__main__":
    main()
