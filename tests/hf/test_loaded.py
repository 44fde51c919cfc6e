"""Models as people load them: quantized, from GGUF, compiled, offloaded, with adapters on top.

A quantizer that is not installed is skipped; torchao is among the packages of `dev`.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AutoConfig, AutoModelForCausalLM

from qkvshare import CacheCard, Raw, capture, identify
from qkvshare.card.errors import IdentityError, UnsupportedModelError

from ..conftest import greedy, greedy_from_text, some_ids, tiny_model
from ..gguf_file import write_gguf

CONTEXT, NEW, TAIL = some_ids(40), some_ids(7, seed=1), some_ids(5, seed=3)
# Quantizers take groups of 64 numbers.
WIDE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "head_dim": 32,
    "initializer_range": 0.3,
}


def wide() -> Any:
    return tiny_model(**WIDE)


def by_torchao(folder: Path, config: str = "Int8WeightOnlyConfig") -> Any:
    torchao = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    quantization = TorchAoConfig(getattr(torchao, config)())
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization).eval()


def by_quanto(folder: Path, weights: str = "int8") -> Any:
    pytest.importorskip("optimum.quanto")
    from transformers import QuantoConfig

    quantization = QuantoConfig(weights=weights)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization).eval()


def by_bitsandbytes(folder: Path, **how: Any) -> Any:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**how), device_map="cpu"
    )
    for module in model.modules():  # as on a processor without bfloat16
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def by_hqq(folder: Path, bits: int = 4) -> Any:
    hqq = pytest.importorskip("hqq.core.quantize")
    model = AutoModelForCausalLM.from_pretrained(folder)
    how = hqq.BaseQuantizeConfig(nbits=bits, group_size=64)
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    dtype = torch.float32
                    packed = hqq.HQQLinear(linear, how, compute_dtype=dtype, device="cpu")
                    setattr(part, name, packed)
    return model.eval()


LOADS: dict[str, Callable[[Path], Any]] = {
    "torchao int8": by_torchao,
    "torchao int8, activations too": partial(
        by_torchao, config="Int8DynamicActivationInt8WeightConfig"
    ),
    "torchao intx": partial(by_torchao, config="IntxWeightOnlyConfig"),
    "quanto int8": by_quanto,
    "quanto int4": partial(by_quanto, weights="int4"),
    "hqq 4 bits": by_hqq,
    "hqq 8 bits": partial(by_hqq, bits=8),
    "bitsandbytes int8": partial(by_bitsandbytes, load_in_8bit=True, llm_int8_threshold=0.0),
    "bitsandbytes nf4": partial(
        by_bitsandbytes,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    ),
}


@pytest.fixture(scope="module")
def plain() -> Any:
    return wide()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, plain: Any) -> Path:
    path = tmp_path_factory.mktemp("wide")
    plain.save_pretrained(path)
    return path


def hands_over(model: Any, other: Any) -> CacheCard:
    """From ``model`` to ``other``, another load of it; then on with what it generated."""
    assert identify(other) == identify(model)
    card = capture(model, None, CONTEXT, codec=Raw())
    expected = greedy_from_text(model, CONTEXT + NEW)
    assert greedy(other, **card.inputs(other, new=NEW)) == expected
    out = other.generate(
        **card.inputs(other, new=NEW),
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
        return_dict_in_generate=True,
    )
    longer = card.extend(other, out)
    said = greedy_from_text(model, out.sequences[0].tolist() + TAIL)
    assert greedy(model, **longer.inputs(model, new=TAIL)) == said
    assert identify(model) == identify(other) == card.manifest.identity
    capture(model, None, CONTEXT).inputs(other, new=NEW)  # with the default codec
    return card


@pytest.mark.parametrize("name", LOADS)
def test_quantized(name: str, folder: Path, plain: Any) -> None:
    card = hands_over(LOADS[name](folder), LOADS[name](folder))
    own = capture(plain, None, CONTEXT)
    with pytest.raises(IdentityError, match="weights: card has"):
        card.inputs(plain, new=NEW)
    with pytest.raises(IdentityError, match="weights: card has"):
        own.inputs(LOADS[name](folder), new=NEW)


def test_each_quantization_is_a_model_of_its_own(folder: Path) -> None:
    configs = ["Int8WeightOnlyConfig", "IntxWeightOnlyConfig"]
    dynamic = "Int8DynamicActivationInt8WeightConfig"
    one, other, activations = (
        identify(by_torchao(folder, config)) for config in (*configs, dynamic)
    )
    # The codes of the last are those of the first, and their use is not.
    assert len({one.weights, other.weights, activations.weights}) == 3


def test_a_quantized_checkpoint(folder: Path, tmp_path: Path) -> None:
    """Quantized on loading, or saved so and loaded: one identity."""
    model = by_torchao(folder)
    model.save_pretrained(tmp_path)
    hands_over(model, AutoModelForCausalLM.from_pretrained(tmp_path))


@pytest.mark.slow
def test_a_quantized_model_in_another_process(folder: Path, tmp_path: Path) -> None:
    model = by_torchao(folder)
    capture(model, None, CONTEXT, codec=Raw()).save(tmp_path / "c.card")
    script = (
        "import sys; from pathlib import Path; from qkvshare import CacheCard;"
        "from tests.conftest import greedy; from tests.hf.test_loaded import NEW, by_torchao;"
        "model = by_torchao(Path(sys.argv[1])); card = CacheCard.load(sys.argv[2]);"
        "print(greedy(model, **card.inputs(model, new=NEW)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(tmp_path / "c.card")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == str(greedy_from_text(model, CONTEXT + NEW))


def test_a_changed_code_or_scale_is_seen(folder: Path) -> None:
    model = by_torchao(folder)
    weight = model.model.layers[1].mlp.up_proj.weight
    seen = [identify(model)]
    with torch.no_grad():
        weight.qdata[3, 5] += 1
    seen.append(identify(model))
    with torch.no_grad():
        weight.scale.mul_(2)
    seen.append(identify(model))
    assert len({found.weights for found in seen}) == 3


def test_an_adapter_on_quantized_weights(folder: Path) -> None:
    def tuned(seed: int) -> Any:
        model = by_torchao(folder)
        torch.manual_seed(seed)
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return get_peft_model(model, config).eval()

    card = hands_over(tuned(0), tuned(0))
    with pytest.raises(IdentityError, match="adapter: card has"):
        card.inputs(tuned(1), new=NEW)
    assert card.manifest.identity.weights == identify(by_torchao(folder)).weights


def test_an_adapter_on_4_bits(folder: Path) -> None:
    def tuned() -> Any:
        model = LOADS["bitsandbytes nf4"](folder)
        torch.manual_seed(0)
        config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        return get_peft_model(model, config).eval()

    hands_over(tuned(), tuned())


def composed(model: Any, second: float) -> Any:
    """A weight that is made of two tensors."""
    norm = model.model.norm
    two = TwoTensor(norm.weight.detach(), torch.full_like(norm.weight, second))
    norm.weight = torch.nn.Parameter(two, requires_grad=False)
    return model


def test_every_part_of_a_composed_weight_counts() -> None:
    one, same, other = (identify(composed(tiny_model(), second)) for second in (1.0, 1.0, 2.0))
    assert one == same
    assert len({one.weights, other.weights, identify(tiny_model()).weights}) == 3
    model = composed(tiny_model(), 1.0)
    assert identify(model) == one
    model.model.norm.weight.b.fill_(2.0)
    assert identify(model) == other


def test_a_weight_on_several_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoTensor, "device_mesh", None, raising=False)
    with pytest.raises(UnsupportedModelError, match="TwoTensor is spread over several devices"):
        identify(composed(tiny_model(), 1.0))
    model = tiny_model()
    model._tp_size = 2  # where each process has plain tensors, as in older transformers
    with pytest.raises(UnsupportedModelError, match="without tensor parallelism"):
        capture(model, None, CONTEXT)


class _Wrapper:
    """As Triton's kernels want a weight: no parameter, and in no state dict."""

    def __init__(self, data: torch.Tensor) -> None:
        self.storage = {"data": data}


class _Experts(torch.nn.Module):
    def __init__(self, data: torch.Tensor) -> None:
        super().__init__()
        self.gate_up = _Wrapper(data)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.gate_up.storage["data"].T


def test_weights_that_a_module_hides_count() -> None:
    def with_experts(change: float) -> Any:
        model = tiny_model()
        data = model.lm_head.weight.detach().clone()
        data[5, 3] += change
        model.lm_head = _Experts(data)
        return model.eval()

    model = with_experts(0)
    first = identify(model)
    assert first == identify(with_experts(0))
    assert first.weights != identify(with_experts(1)).weights
    model.lm_head.gate_up.storage["data"][5, 3] += 1
    assert identify(model) == identify(with_experts(1))


def test_numbers_of_a_replaced_module_count() -> None:
    def with_slope(slope: float) -> Any:
        model = tiny_model()
        model.model.layers[0].mlp.act_fn = torch.nn.LeakyReLU(slope)
        return model.eval()

    assert identify(with_slope(0.1)) == identify(with_slope(0.1)) != identify(with_slope(0.2))


@pytest.mark.parametrize("frozen", [True, False])
def test_quanto_beside_frozen_weights_is_refused(llama: Any, frozen: bool) -> None:
    quanto = pytest.importorskip("optimum.quanto")
    card, model = capture(llama, None, CONTEXT), wide()
    activations = quanto.qint8 if frozen else None
    quanto.quantize(model, weights=quanto.qint8, activations=activations)
    if frozen:
        quanto.freeze(model)
    model.eval()
    reason = "quantizes what its cache is made of" if frozen else "Call optimum.quanto.freeze"
    for call in (lambda: capture(model, None, CONTEXT), lambda: card.inputs(model, new=NEW)):
        with pytest.raises(UnsupportedModelError, match=reason):
            call()


def test_weights_that_the_first_reading_unpacks_are_refused_before_it(llama: Any) -> None:
    """As compressed-tensors does, whose hook has this name."""
    card, model = capture(llama, None, CONTEXT), tiny_model()

    def unpack(module: Any, arguments: Any) -> None:
        del model.ct_decompress_hook

    model.ct_decompress_hook = model.register_forward_pre_hook(unpack)
    hook = model.ct_decompress_hook
    for call in (lambda: capture(model, None, CONTEXT), lambda: card.inputs(model, new=NEW)):
        with pytest.raises(UnsupportedModelError, match="Let it read a token first"):
            call()
    assert vars(model)["ct_decompress_hook"] is hook  # nothing was read
    model(torch.tensor([[5]]))
    hook.remove()
    assert greedy(model, **card.inputs(model, new=NEW))


def test_weights_that_reading_changes_are_refused(llama: Any, folder: Path) -> None:
    model = LOADS["bitsandbytes nf4"](folder)
    for module in model.modules():  # as on a processor with bfloat16
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    with pytest.raises(UnsupportedModelError, match="bitsandbytes packs 4-bit weights anew"):
        capture(model, None, CONTEXT)
    with pytest.raises(UnsupportedModelError, match="bitsandbytes packs 4-bit weights anew"):
        capture(llama, None, CONTEXT).inputs(model, new=NEW)


def test_gguf(tmp_path: Path, plain: Any) -> None:
    """Its weights are plain ones once it is loaded: neither file nor name count."""
    for name in ("one.gguf", "other.gguf"):
        write_gguf(tmp_path / name, plain)
    model, other = (
        AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=name, dtype=torch.float32).eval()
        for name in ("one.gguf", "other.gguf")
    )
    card = hands_over(model, other)
    settings = model.config.to_dict()
    del settings["quantization_config"]
    fresh = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).eval()
    fresh.load_state_dict(model.state_dict())
    assert identify(fresh) == identify(model)
    with pytest.raises(IdentityError, match="weights: card has"):
        card.inputs(plain, new=NEW)


def offloaded(folder: Path, disk: Path) -> Any:
    parts = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.norm", "lm_head")
    places = dict.fromkeys(parts, "cpu") | {"model.layers.1": "disk", "model.layers.2": "disk"}
    return AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=disk
    ).eval()


def test_offloaded_layers_are_hashed_from_where_they_are(
    folder: Path, plain: Any, tmp_path: Path
) -> None:
    model = offloaded(folder, tmp_path)
    assert model.model.layers[2].mlp.up_proj.weight.is_meta
    hands_over(model, plain)
    hands_over(plain, model)
    other = copy.deepcopy(plain)
    with torch.no_grad():
        other.model.layers[2].mlp.up_proj.weight[3, 5] += 1e-3
    with pytest.raises(IdentityError, match="weights: card has"):
        capture(other, None, CONTEXT).inputs(model, new=NEW)


def test_an_offloaded_embedding_is_refused(llama: Any) -> None:
    from accelerate import cpu_offload

    card = capture(llama, None, CONTEXT)
    model = cpu_offload(tiny_model(), execution_device=torch.device("cpu"))
    for call in (lambda: capture(model, None, CONTEXT), lambda: card.inputs(model, new=NEW)):
        with pytest.raises(UnsupportedModelError, match="first weights .* are offloaded"):
            call()


def _in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


COMPILED: dict[str, Callable[[Any], Any]] = {
    "wrapped": partial(torch.compile, backend="eager"),
    "in place": _in_place,
    "whole graph": partial(torch.compile, backend="eager", fullgraph=True),
}


@pytest.mark.parametrize("how", ["wrapped", pytest.param("in place", marks=pytest.mark.slow)])
def test_a_compiled_model_takes_cards(how: str, llama: Any) -> None:
    compiled, few = COMPILED[how](tiny_model()), 4
    expected = greedy_from_text(llama, CONTEXT + NEW, few)
    card = capture(llama, None, CONTEXT, codec=Raw())
    assert greedy(compiled, few, **card.inputs(compiled, new=NEW)) == expected
    card = capture(compiled, None, CONTEXT, codec=Raw())
    assert greedy(llama, few, **card.inputs(llama, new=NEW)) == expected


@pytest.mark.parametrize("how", COMPILED)
def test_tokens_are_scored_as_without_compiling(how: str, llama: Any) -> None:
    compiled = COMPILED[how](tiny_model())
    for ids in (CONTEXT, CONTEXT + NEW):
        one, other = (capture(at, None, ids).manifest.segments for at in (compiled, llama))
        assert one == other
