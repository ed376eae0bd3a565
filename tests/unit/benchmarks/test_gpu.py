"""What the benchmark of GPUs computes without one: weights, limits, words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from trtx.backends.inductor.module import make_module
from trtx.backends.inductor.spec import make_card
from trtx.quant.linear import dequantize_int4
from trtx.runtime.card import EngineCard

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
FORMATS = ["bf16", "fp8", "int4_awq", "int8_wo"]


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[ModuleType, ModuleType]]:
    """benchmarks/gpu.py and benchmarks/gpu_engines.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import gpu
        import gpu_engines

        yield gpu, gpu_engines


def small_card(engines: ModuleType, name: str) -> EngineCard:
    spec = engines.make_spec(name, 1)
    model = spec.model.model_copy(update={"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 300})
    model = model.model_copy(update={"num_heads": 4, "num_kv_heads": 2, "head_dim": 128})
    return make_card(spec.model_copy(update={"model": model}), {}, {}, "")


def test_the_benchmark_has_these_formats(modules: tuple[ModuleType, ModuleType]) -> None:
    assert list(modules[1].FORMATS) == FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_random_weights_of_every_format_are_those_of_the_module_and_alike_in_size(
    modules: tuple[ModuleType, ModuleType], name: str
) -> None:
    _, engines = modules
    card = small_card(engines, name)
    weights = engines.make_weights(card, device="cpu")
    module = make_module(card.model, card.quantization, card.dtype, card.rank, 64, device="cuda")
    module.load_state_dict(weights, strict=True, assign=True)
    for linear in ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down"):
        weight, scale = weights[f"layers.0.{linear}.weight"], weights.get(f"layers.0.{linear}.weight_scale")
        if weight.dtype == torch.uint8:
            assert scale is not None
            numbers = dequantize_int4(weight, scale)
        else:
            numbers = weight.float() if scale is None else weight.float() * scale[:, None]
        assert numbers.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(numbers.mean().item()) < 0.001


def test_fewer_bits_have_a_higher_limit_and_prompts_are_computed_in_bf16(
    modules: tuple[ModuleType, ModuleType],
) -> None:
    gpu, engines = modules
    built = engines.Built(Path(), small_card(engines, "int8_wo"), 0.0, ())
    ceilings = gpu.Ceilings(4.0, 800.0, 1600.0)
    few, many = gpu.LOADS[0], gpu.replace(gpu.LOADS[0], input_tokens=500)
    size = sum(tensor.nbytes for tensor in engines.make_weights(built.card, device="cpu").values())
    assert gpu.limit_tokens_s(few, built, size // 2, ceilings) > gpu.limit_tokens_s(few, built, size, ceilings)
    slower = gpu.replace(ceilings, bf16_tflop_s=1.0)
    assert gpu.limit_tokens_s(many, built, size, slower) < gpu.limit_tokens_s(many, built, size, ceilings)
    assert gpu.limit_tokens_s(many, built, size, gpu.replace(ceilings, fp8_tflop_s=1.0)) == gpu.limit_tokens_s(
        many, built, size, ceilings
    )


def test_figures_are_written_as_soon_as_they_are_known(
    modules: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu, engines = modules
    monkeypatch.setattr(gpu, "measure_ceilings", lambda: gpu.Ceilings(4.0, 800.0, 1600.0))
    monkeypatch.setattr(gpu, "describe_machine", lambda: {"gpu": "none"})
    monkeypatch.setattr(gpu, "build_engine", lambda name, *_: engines.Built(tmp_path, None, 1.23, (f"built {name}",)))

    def measure_format(name: str, *_: object, with_profiles: bool) -> list[dict[str, object]]:
        if name == "int8_wo":
            raise RuntimeError("no memory")
        return [{"format": name, "profiles": with_profiles}]

    monkeypatch.setattr(gpu, "measure_format", measure_format)
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    out = tmp_path / "figures.json"
    monkeypatch.setattr(
        "sys.argv", ["gpu.py", "--out", str(out), "--formats", "fp8,int8_wo", "--no-profile", "--no-start"]
    )
    with pytest.raises(RuntimeError, match="no memory"):
        gpu.main()
    found = json.loads(out.read_text())
    assert found["rows"] == [{"format": "fp8", "profiles": False}]
    assert found["builds"] == {name: {"seconds": 1.2, "log": [f"built {name}"]} for name in ("fp8", "int8_wo")}
    assert set(found["parts_s"]) == {"ceilings", "builds", "measuring fp8"}


def test_a_format_without_a_goal_has_none(modules: tuple[ModuleType, ModuleType]) -> None:
    gpu, _ = modules
    assert gpu.describe_goal(10.0, None) == "no goal"
    assert gpu.describe_goal(10.0, 20.0) == "goal 20 missed"
    assert gpu.describe_goal(30.0, 20.0) == "goal 20 reached"
    for load in gpu.LOADS:
        assert set(load.goals) == {"bf16", "fp8"}
        assert load.shorten(waves=2).requests <= load.requests
