"""A profile: what `qkvshare calibrate` learned about one model, in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .card.errors import ProfileError

_FORMAT = "qkvshare-profile-1"


@dataclass(frozen=True, eq=False)
class Profile:
    """Float32 arrays by name, and the digest of the weights that they were learned with."""

    weights: str
    arrays: Mapping[str, npt.NDArray[np.float32]]

    def require(self, weights: str) -> None:
        """Raise `ProfileError` unless the profile is of the model with these ``weights``."""
        if weights != self.weights:
            raise ProfileError(
                f"the profile was calibrated with weights {self.weights[:12]}…, the model has "
                f"{weights[:12]}…. Run qkvshare calibrate with this model."
            )

    def save(self, path: Path) -> None:
        """Raises `ProfileError`; ``path`` is replaced as a whole or not at all."""
        part = path.with_name(f".{path.name}.part")
        try:
            metadata = {"format": _FORMAT, "weights": self.weights}
            save_file(dict(self.arrays), part, metadata=metadata)
            part.replace(path)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise ProfileError(f"the profile cannot be written to {path}: {error}.") from error

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Raises `ProfileError`."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ProfileError(f"{path} cannot be read as a profile: {error}.") from error
        if metadata.get("format") != _FORMAT or "weights" not in metadata:
            raise ProfileError(
                f"{path} has format {metadata.get('format')!r}, expected {_FORMAT!r}. Make "
                "profiles with qkvshare calibrate."
            )
        return cls(metadata["weights"], arrays)
