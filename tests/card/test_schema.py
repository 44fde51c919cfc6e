"""docs/cachecard.schema.json: the JSON Schema of a card's header, for readers in other languages.

``python -m tests.card.test_schema`` writes it anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from qkvshare.card.manifest import Envelope, Manifest

from ..cards import edit_manifest, make_card, read_envelope
from .test_golden import FOLDER

SCHEMA = Path(__file__).parents[2] / "docs" / "cachecard.schema.json"


def schema() -> dict[str, Any]:
    """Of what stands in the file's metadata under ``qkvshare.cachecard``."""
    _, parts = msgspec.json.schema_components([Envelope, Manifest])
    # To msgspec the manifest is a run of bytes, whose digest is taken before it is parsed.
    parts["Envelope"]["properties"]["manifest"] = {"$ref": "#/$defs/Manifest"}
    for part in parts.values():
        part["description"] = " ".join(part["description"].split())
    text = json.dumps(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "The header of a CacheCard",
            "$ref": "#/$defs/Envelope",
            "$defs": parts,
        },
        indent=1,
    )
    # As ECMA-262 writes the beginning and the end of a text.
    return dict(json.loads(text.replace("\\\\A", "^").replace("\\\\Z", "$")))


def test_the_schema_is_up_to_date() -> None:
    assert json.loads(SCHEMA.read_text()) == schema(), "run python -m tests.card.test_schema"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.card")), ids=lambda path: path.stem)
def test_golden_headers_fit_it(path: Path) -> None:
    try:
        header = read_envelope(path)
    except KeyError:
        return  # sealed: its header is not in the clear
    jsonschema.validate(header, schema())


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest.update(more=1),
        lambda manifest: manifest.pop("layers"),
        lambda manifest: manifest["segments"][0].update(prefix="0" * 63),
        lambda manifest: manifest["layers"][0].update(kind="other"),
    ],
)
def test_other_headers_do_not(edit: Any, tmp_path: Path) -> None:
    path = make_card().save(tmp_path / "card")
    jsonschema.validate(read_envelope(path), schema())
    edit_manifest(path, edit)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(read_envelope(path), schema())


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(schema(), indent=2, ensure_ascii=False) + "\n")
