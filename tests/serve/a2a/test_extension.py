"""What an agent declares, and who may go on from whose card."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from a2a.client.card_resolver import parse_agent_card
from a2a.extensions.common import find_extension_by_uri
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentExtension
from google.protobuf.json_format import MessageToDict

from qkvshare import Packed, capture
from qkvshare.card import Adapter, Identity
from qkvshare.codecs import CODECS, Transform
from qkvshare.profile import Profile
from qkvshare.serve.a2a import MEDIA_TYPE, URI, Receiver
from qkvshare.serve.a2a.extension import codecs_of
from qkvshare.store import Store

from ...conftest import tiny_model, tiny_tokenizer
from .agents import HERE, run, served, tiny_resident

IDENTITY = Identity("w" * 64, "c" * 64, None, '{"rope_theta":1e4}', "float32", "t" * 64, "h" * 64)


def sent(extension: AgentExtension) -> AgentCard:
    """An agent card with it, after a trip as JSON."""
    card = AgentCard(capabilities=AgentCapabilities(extensions=[extension]))
    return parse_agent_card(json.loads(json.dumps(MessageToDict(card))))


@pytest.mark.parametrize("adapter", [None, Adapter("a" * 64, 2.0), Adapter("a" * 64, 0.1)])
def test_what_is_declared_is_what_others_read(adapter: Adapter | None) -> None:
    receiver = Receiver(msgspec.structs.replace(IDENTITY, adapter=adapter), ["raw/1"])
    assert Receiver.declared(sent(receiver.extension())) == receiver


def test_an_agent_card_names_uri_model_codecs_and_media_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qkvshare.profile._known", {})  # what other tests have made known
    session = tiny_resident()

    async def card() -> dict[str, object]:
        async with served(session, Store(tmp_path)) as client:
            return dict((await client.get(f"{HERE}/.well-known/agent-card.json")).json())

    found = parse_agent_card(run(card()))
    extension = find_extension_by_uri(found, URI)
    assert extension is not None
    assert not extension.required
    params = MessageToDict(extension.params)
    assert params["media_type"] == MEDIA_TYPE
    assert params["identity"] == msgspec.to_builtins(session.identity)
    plain = {f"{name}/{CODECS[name].version}" for name in ("raw", "packed")}
    assert plain <= set(params["codecs"])
    assert not [codec for codec in params["codecs"] if codec.startswith("transform/")]
    assert MEDIA_TYPE in found.default_output_modes


@pytest.mark.parametrize(
    "params",
    [{}, {"identity": "x", "codecs": []}, {"identity": {"weights": "w"}, "codecs": []}],
)
def test_what_cannot_be_read_declares_nothing(params: dict[str, object]) -> None:
    assert Receiver.declared(sent(AgentExtension(uri=URI, params=params))) is None
    assert Receiver.declared(sent(AgentExtension(uri=URI + "0", params=params))) is None
    assert Receiver.declared(AgentCard()) is None


@pytest.mark.parametrize(
    "field", ["weights", "config", "rope", "dtype", "tokenizer", "chat_template"]
)
def test_another_identity_is_refused_by_name(field: str) -> None:
    receiver = Receiver(IDENTITY, ["raw/1"])
    assert receiver.refuses(IDENTITY, ["raw/1"]) == ""
    other = msgspec.structs.replace(IDENTITY, **{field: "other"})
    assert field.replace("_", " ") in receiver.refuses(other, ["raw/1"])


def test_a_codec_that_is_not_here_is_refused_by_name() -> None:
    receiver = Receiver(IDENTITY, ["raw/1"])
    assert "raw/2" in receiver.refuses(IDENTITY, ["raw/1", "raw/2"])


@pytest.mark.parametrize("where", ["process", "folder"])
def test_a_codec_with_a_profile_needs_that_profile(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("qkvshare.profile._known", {})
    monkeypatch.setenv("QKVSHARE_PROFILES", str(tmp_path))
    profile = Profile(IDENTITY.weights, {"one": np.ones(1, np.float32)})
    card = f"transform/{Transform.version}/{profile.digest}"
    assert card in Receiver.of(IDENTITY).refuses(IDENTITY, [card])
    if where == "process":
        profile.keep()
    else:
        profile.save(tmp_path / f"{profile.digest}.safetensors")
        profile.save(tmp_path / "by-another-name.safetensors")
    assert Receiver.of(IDENTITY).refuses(IDENTITY, [card]) == ""
    assert not [each for each in Receiver.of(IDENTITY).codecs if "another" in each]
    other = msgspec.structs.replace(IDENTITY, weights="v" * 64)
    assert card not in Receiver.of(other).codecs


def test_codecs_of_a_card_are_named_as_receivers_name_theirs() -> None:
    card = capture(tiny_model(), tiny_tokenizer(), "hello", codec=Packed())
    assert codecs_of(card.manifest) == [f"packed/{Packed.version}"]
    assert set(codecs_of(card.manifest)) <= set(Receiver.of(IDENTITY).codecs)
