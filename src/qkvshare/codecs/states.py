"""States of layers without keys, as bytes: as they are, or in 8 or 4 bits a number.

A recurrent state has one row for each direction that a token can be looked up by, and a compressed
one has a row for each entry. Each row has a scale, by which its largest number is the largest code.
Every token adds to the same numbers of a recurrent state, so an error stays for as long as the
layer remembers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..card import StateTensor
from ..card.contents import MOST_IDS, Contents
from ..card.digest import Bytes
from ..card.errors import CardFormatError
from ..card.geometry import SCALE_BYTES, state_nbytes
from .finite import require_finite


def encode_states(
    tensors: Sequence[Tensor], states: Sequence[StateTensor], bits: int | None
) -> Bytes:
    """One blob of all ``tensors``, each of its ``shape``, one behind the other.

    ``bits`` is 8 or 4, or None for all bytes as they are.
    """
    parts = []
    for tensor, state in zip(tensors, states, strict=True):
        here = tensor.detach().cpu().contiguous()
        if state.coded(bits):
            assert bits is not None
            parts += _rounded(here.float().view(-1, here.shape[-1]), bits)
        else:
            parts.append(here.view(-1))
    return np.concatenate([part.view(torch.uint8).numpy() for part in parts])


def decode_states(blob: Bytes, states: Sequence[StateTensor], bits: int | None) -> list[Tensor]:
    """What `encode_states` was given, on the CPU; ``states`` are of known shapes, see
    `Manifest.snapshot`. Raises `CardFormatError` for a forged blob."""
    expected = state_nbytes(states, bits)
    if len(blob) != expected:
        raise CardFormatError(
            f"the state has {len(blob)} bytes, expected {expected}. Get the card again."
        )
    out, at = [], 0
    for state in states:
        size = state.nbytes(bits)
        part, at = torch.from_numpy(blob[at : at + size].copy()), at + size
        dtype: torch.dtype = getattr(torch, state.dtype)
        if size == 0:  # PyTorch cannot view nothing as another number format
            tensor = torch.empty(state.shape, dtype=dtype)
        elif state.coded(bits):
            assert bits is not None
            tensor = _numbers(part, state, bits).to(dtype).view(state.shape)
        else:
            tensor = part.view(dtype).view(state.shape)
        _require_numbers(tensor)
        out.append(tensor)
    return out


def check_states(card: Contents) -> None:
    """Raise `CardFormatError` unless all states of ``card`` decode to finite numbers."""
    for number, segment in enumerate(card.manifest.segments):
        states = card.manifest.snapshot(segment)
        decode_states(card.state_blob(number), states, segment.state_bits)


def _rounded(rows: Tensor, bits: int) -> list[Tensor]:
    """Scales and codes of ``rows [rows, dim]``."""
    most = 2 ** (bits - 1) - 1
    scales = (rows.abs().amax(1) / most).bfloat16()
    steps = scales.float().clamp(min=torch.finfo(torch.float32).tiny)
    codes = (rows / steps[:, None]).round().clamp(-most, most).to(torch.int8).view(-1)
    if bits == 4:
        pairs = torch.nn.functional.pad(codes, (0, len(codes) % 2)).view(-1, 2)
        codes = (pairs[:, 0] & 15) | (pairs[:, 1] << 4)
    return [scales, codes]


def _numbers(part: Tensor, state: StateTensor, bits: int) -> Tensor:
    """The numbers of `_rounded`, float32 ``[rows, dim]``."""
    split = SCALE_BYTES * state.rows
    scales, codes = part[:split].view(torch.bfloat16).float(), part[split:].view(torch.int8)
    if bits == 4:
        codes = torch.stack([codes << 4 >> 4, codes >> 4], 1).view(-1)[: state.numbers]
    return codes.view(-1, state.shape[-1]).float() * scales[:, None]


def _require_numbers(tensor: Tensor) -> None:
    if tensor.is_floating_point():
        require_finite(tensor.float(), tensor.dtype, "states")
    elif tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < MOST_IDS:
        raise CardFormatError(
            f"the state has token ids from {int(tensor.min())} to {int(tensor.max())}; expected 0 "
            f"to {MOST_IDS - 1}. The card was assembled by hand."
        )
