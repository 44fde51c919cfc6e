"""Codecs of somebody else, who knows nothing but `qkvshare.codecs`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qkvshare.card.errors import CardFormatError, CodecError
from qkvshare.codecs import Codec, Energy, Tiered


@dataclass(frozen=True)
class Bytes(Codec):
    """A byte a number, in units of the largest of the layer's keys, or values."""

    levels: int = 127

    name = "acme-bytes"
    version = 3

    def encode(self, layers):
        for layer in layers:
            blobs = []
            for part in (layer.keys, layer.values):
                numbers = part.detach().float().cpu().numpy()
                unit = np.float32(np.abs(numbers).max() / self.levels or 1)
                codes = np.rint(numbers / unit).astype(np.int8)
                blobs += [unit.tobytes(), codes.tobytes()]
            yield np.frombuffer(b"".join(blobs), np.uint8)

    def decode(self, blobs, into, then=lambda layer: None):
        for blob, layer in zip(blobs, into, strict=True):
            if len(blob) != 8 + layer.keys.numel() + layer.values.numel():
                raise CardFormatError(f"acme-bytes cannot decode {len(blob)} bytes")
            for part in (layer.keys, layer.values):
                unit = blob[:4].copy().view(np.float32)[0]
                if not 0 < unit < 1e30:
                    raise CardFormatError(f"acme-bytes cannot decode a unit of {unit}")
                codes = blob[4 : 4 + part.numel()].view(np.int8).reshape(part.shape)
                part.copy_(torch.from_numpy(codes * unit))
                blob = blob[4 + part.numel() :]
            then(layer)
            yield layer

    def parts(self, shape, nbytes):
        return {"codes": nbytes - 8, "units": 8}


@dataclass(frozen=True)
class Halves(Tiered):
    """16 bits a number for rows that are worth it, and nothing for all others."""

    name = "acme-halves"
    tiers = (0, 16)
    distortion = (1.0, 0.0)

    def encode(self, layers, bits=None):
        if bits is None:
            raise CodecError("acme-halves needs a bit map")
        for layer, widths in zip(layers, bits, strict=True):
            blobs = []
            for part, own in ((layer.keys, widths.keys), (layer.values, widths.values)):
                chosen = (own > 0).cpu()
                rows = part.detach().cpu()[chosen]
                blobs += [chosen.to(torch.uint8).numpy(), rows.half().numpy()]
            yield np.frombuffer(b"".join(blob.tobytes() for blob in blobs), np.uint8)

    def decode(self, blobs, into, then=lambda layer: None):
        for blob, layer in zip(blobs, into, strict=True):
            for part in (layer.keys, layer.values):
                heads, tokens, dim = part.shape
                chosen = blob[: heads * tokens].reshape(heads, tokens) == 1
                end = heads * tokens + 2 * dim * int(chosen.sum())
                if len(blob) < end:
                    raise CardFormatError(f"acme-halves cannot decode {len(blob)} bytes")
                rows = blob[heads * tokens : end].copy().view(np.float16).reshape(-1, dim)
                part.zero_()
                part[torch.from_numpy(chosen)] = torch.from_numpy(rows).to(part.dtype)
                blob = blob[end:]
            then(layer)
            yield layer

    def energies(self, layers):
        parts = ((layer.keys.float(), layer.values.float()) for layer in layers)
        return [Energy(*(part.square().mean(-1) for part in pair)) for pair in parts]

    def row_bits(self, dim, bits):
        return dim * bits

    def overhead(self, shape):
        return 2 * shape.kv_heads * shape.tokens

    def parts(self, shape, nbytes):
        return {"codes": nbytes - self.overhead(shape), "maps": self.overhead(shape)}
