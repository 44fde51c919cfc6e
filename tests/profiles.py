"""Profiles for the transform codec, fitted to made-up layers that predict each other."""

from __future__ import annotations

import torch

from qkvshare.codecs import LayerKV
from qkvshare.codecs.fitting import fit
from qkvshare.profile import Profile

HEADS, DIM = 2, 8


def made_up_layers(count: int, tokens: int, seed: int = 0, shift: float = 0) -> list[LayerKV]:
    """Layers ``[heads, tokens, dim]`` that grow out of one another, with means of their own, all
    of them ``shift`` larger."""
    world = torch.Generator().manual_seed(7)
    draw = torch.Generator().manual_seed(seed)
    columns = HEADS * DIM
    stream, layers = torch.randn(tokens, columns, generator=draw), []
    for _ in range(count):
        parts = []
        for _ in "kv":
            mix = torch.randn(columns, columns, generator=world) / columns**0.5
            mean = 3 * torch.randn(columns, generator=world) + shift
            noise = 0.3 * torch.randn(tokens, columns, generator=draw)
            parts.append((stream @ mix + mean + noise).view(tokens, HEADS, DIM).transpose(0, 1))
        layers.append(LayerKV(*parts))
        stream = stream + 0.3 * torch.randn(tokens, columns, generator=draw)
    return layers


def made_up_profile(count: int = 3, apart: bool = False, shift: float = 0) -> Profile:
    """Of weights ``1…``; with ``apart`` no layer predicts another."""
    layers = made_up_layers(count, 600, seed=1, shift=shift)
    flat = [
        (layer.keys.transpose(0, 1).flatten(1), layer.values.transpose(0, 1).flatten(1))
        for layer in layers
    ]
    ones = torch.ones(HEADS * DIM)
    sources = [
        () if apart else tuple(at for at in (number - 1, number - 2) if at >= 0)
        for number in range(count)
    ]
    return Profile("1" * 64, fit(flat, [(ones, ones)] * count, sources, 1.5))
