"""Calibration with ModelOpt: what is exported is what was measured, in every format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import dequantize, round_input
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from unit.quant.conftest import BATCH_SIZE, MAX_LENGTH, Export, calibrate

from trtx.errors import VerificationFailed
from trtx.models.formats import ALGORITHMS, Algorithm, QuantFormat
from trtx.quant.modelopt import check_damage, quantize_checkpoint
from trtx.quant.perplexity import mean_nats, perplexity_of
from trtx.recipe.schema import AS_STORED
from trtx.recipe.schema import Algorithm as RecipeAlgorithm

FORMATS = [name for name in get_args(RecipeAlgorithm) if name not in ("none", AS_STORED)]
MakeExport = Callable[..., Export]


def stored_as(algorithm: str) -> str:
    """GPTQ finds other numbers for the same format."""
    return "int4_wo" if algorithm == "int4_gptq" else algorithm


def stored_weight(algorithm: str, tensors: dict[str, Tensor], module: str) -> Tensor:
    """The matrix [N, K] that a linear of an export stands for; what its input is multiplied with is apart."""
    value = dequantize(tensors, module, stored_as(algorithm))
    return value / tensors.get(f"{module}.pre_quant_scale", torch.ones(value.shape[1]))


def error_bound(algorithm: str, tensors: dict[str, Tensor], module: str, value: Tensor) -> Tensor:
    """The largest distance that rounding to the nearest number of the format can make."""
    scale, size = tensors[f"{module}.weight_scale"], value.abs()
    if algorithm in ("fp8", "fp8_dynamic"):  # three bits of mantissa; below 2^-6 steps of 2^-9
        return (size / 15).maximum(scale.reshape(-1, 1) * 2**-10)
    if algorithm in ("fp8_block_wo", "mxfp8"):
        return (size / 15).maximum(size.max() * 2**-18)
    if algorithm in ("nvfp4", "nvfp4_awq", "mxfp4"):  # 0, 0.5, … 4, 6
        is_mx = algorithm == "mxfp4"
        steps = torch.exp2(scale.float() - 127) if is_mx else scale.float() * tensors[f"{module}.weight_scale_2"]
        return (size / 4).maximum(steps.repeat_interleave(32 if is_mx else 16, dim=1) / 4)
    if algorithm.startswith("int8"):
        return (scale / 2)[:, None].expand_as(value)
    return (scale / 2).repeat_interleave(128, dim=1)


# The norm that can take the smoothing scale of a linear's input.
NORMS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "input_layernorm"),
    **dict.fromkeys(("gate_proj", "up_proj"), "post_attention_layernorm"),
}


def input_factor(tensors: dict[str, Tensor], original: dict[str, Tensor], module: str) -> Tensor:
    """By what [K] the export multiplies a linear's input: its own scale, and one folded into the norm before it."""
    layer, _, part = module.rsplit(".", 2)
    factor = tensors.get(f"{module}.pre_quant_scale", torch.ones(original[f"{module}.weight"].shape[1])).float()
    if part not in NORMS:
        return factor
    norm = f"{layer}.{NORMS[part]}.weight"
    return factor * tensors[norm] / original[norm]


def linears(tensors: dict[str, Tensor]) -> list[str]:
    return [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]


@pytest.mark.parametrize("algorithm", [name for name in FORMATS if name != "int4_gptq"])
def test_every_matrix_is_the_original_within_the_format_s_rounding(
    export: MakeExport, model: Path, algorithm: str
) -> None:
    tensors, original = export(algorithm).tensors, load_file(model / "model.safetensors")
    assert len(linears(tensors)) == 2 * 7
    # AWQ's scale of this input goes into the rows of up_proj here.
    folded = ("up_proj", "down_proj") if algorithm == "nvfp4_awq" else ()
    for module in (name for name in linears(tensors) if name.rpartition(".")[2] not in folded):
        factor = input_factor(tensors, original, module)
        stored = stored_weight(algorithm, tensors, module)
        wanted = original[f"{module}.weight"] / factor  # the export smooths columns before rounding
        bound = error_bound(algorithm, tensors, module, wanted)
        assert ((stored - wanted).abs() <= bound * 1.001 + 1e-7).all(), module


def test_gptq_finds_numbers_that_matter_less_than_the_nearest_ones(export: MakeExport) -> None:
    nearest, found = export("int4_wo"), export("int4_gptq")
    for module in linears(found.tensors):
        assert not torch.equal(found.tensors[f"{module}.weight"], nearest.tensors[f"{module}.weight"])
    assert found.report["perplexity"]["after"] < nearest.report["perplexity"]["after"]


class Rounded(nn.Module):
    """A linear computing with exactly the numbers of an export."""

    def __init__(self, algorithm: str, tensors: dict[str, Tensor], module: str) -> None:
        super().__init__()
        self.algorithm, self.tensors, self.module = stored_as(algorithm), tensors, module
        self.weight = dequantize(tensors, module, self.algorithm)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(round_input(self.tensors, self.module, self.algorithm, x), self.weight)


@pytest.mark.parametrize("algorithm", FORMATS)
def test_the_perplexity_after_is_that_of_the_exported_numbers(export: MakeExport, model: Path, algorithm: str) -> None:
    made = export(algorithm)
    tensors, rounded = made.tensors, AutoModelForCausalLM.from_pretrained(model)
    rounded.load_state_dict({name: tensor for name, tensor in tensors.items() if "norm" in name}, strict=False)
    for module in linears(tensors):
        parent, _, name = module.rpartition(".")
        setattr(rounded.get_submodule(parent), name, Rounded(algorithm, tensors, module))
    windows = load_file(made.folder / "trtx_heldout.safetensors")["tokens"]
    nats = mean_nats(lambda tokens: rounded(input_ids=tokens).logits, windows, BATCH_SIZE)
    # ModelOpt rounds the weights of W4A8 twice, the second time to fp8.
    close = 3e-3 if algorithm == "w4a8_awq" else 2e-4
    assert perplexity_of(nats) == pytest.approx(made.report["perplexity"]["after"], rel=close)


@pytest.mark.parametrize("algorithm", ["none", *FORMATS])
def test_perplexity_is_recorded_before_and_after(export: MakeExport, algorithm: str) -> None:
    report = export(algorithm).report
    before, after = report["perplexity"]["before"], report["perplexity"]["after"]
    assert before == export("none").report["perplexity"]["after"]
    assert (before == after) == (algorithm == "none")
    assert after == pytest.approx(before, rel=0.1)
    assert report["bits_per_byte"]["before"] < 3.9
    assert (report["modelopt"] is None) == (algorithm == "none")
    assert json.loads((export(algorithm).folder / "trtx_calibration.json").read_text()) == report


@pytest.mark.parametrize("algorithm", ["none", *FORMATS])
def test_the_export_names_its_format(export: MakeExport, algorithm: str) -> None:
    facts = export(algorithm).quantization
    assert facts["quant_algo"] == ALGORITHMS[algorithm].hf_quant_algo
    assert facts["kv_cache_quant_algo"] is None
    assert facts.get("group_size") in (ALGORITHMS[algorithm].group_size, None)


@pytest.mark.parametrize(
    ("algorithm", "kv_cache"), [("none", "fp8"), ("fp8", "fp8"), ("none", "int8"), ("mxfp4", "int8")]
)
def test_a_kv_cache_of_eight_bits_brings_its_scales(export: MakeExport, algorithm: str, kv_cache: str) -> None:
    made = export(algorithm, kv_cache)
    assert made.quantization["kv_cache_quant_algo"] == kv_cache.upper()
    assert made.quantization["quant_algo"] == ALGORITHMS[algorithm].hf_quant_algo
    for layer in range(2):
        for which in "kv":
            scale = made.tensors[f"model.layers.{layer}.self_attn.{which}_proj.{which}_scale"]
            assert scale.numel() == 1
            assert 0 < scale.item() < 1
    assert made.report["perplexity"]["after"] != made.report["perplexity"]["before"]


def test_smoothing_scales_stay_where_no_norm_can_take_them(export: MakeExport) -> None:
    smoothed = {name.split(".")[-2] for name in export("int8_sq").tensors if name.endswith("pre_quant_scale")}
    awq = {name.split(".")[-2] for name in export("int4_awq").tensors if name.endswith("pre_quant_scale")}
    assert smoothed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert awq == {"o_proj", "down_proj"}
    blocks = {name.split(".")[-2] for name in export("nvfp4_awq").tensors if name.endswith("pre_quant_scale")}
    assert blocks == {"o_proj"}


def test_without_quantization_the_weights_are_the_same_file(export: MakeExport, model: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        assert (export("none").folder / name).read_bytes() == (model / name).read_bytes()


@pytest.mark.parametrize("algorithm", ["none", "int8_wo"])
def test_the_tokenizer_comes_along_and_is_readable_by_older_releases(
    export: MakeExport, model: Path, algorithm: str
) -> None:
    folder = export(algorithm).folder
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "special_tokens_map.json"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_held_out_windows_are_saved_and_give_the_figure_again(export: MakeExport, model: Path) -> None:
    made = export("none")
    windows = load_file(made.folder / "trtx_heldout.safetensors")["tokens"]
    assert windows.dtype == torch.int64
    assert windows.shape[1] == MAX_LENGTH + 1
    assert made.report["tokens"] == windows.shape[0] * MAX_LENGTH
    assert torch.equal(windows[1:, 0], windows[:-1, -1])
    reference = AutoModelForCausalLM.from_pretrained(model)
    nats = mean_nats(lambda tokens: reference(input_ids=tokens).logits, windows, 3)
    assert perplexity_of(nats) == pytest.approx(made.report["perplexity"]["before"], rel=1e-5)


def test_the_same_seed_gives_the_same_bytes(export: MakeExport, model: Path, data: Path, tmp_path: Path) -> None:
    again = calibrate(model, data, tmp_path / "again", algorithm="int4_awq")
    first = export("int4_awq")
    for path in sorted(first.folder.iterdir()):
        assert (again.folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_excluded_modules_keep_their_numbers_and_the_kv_cache_its_scales(
    model: Path, data: Path, tmp_path: Path
) -> None:
    made = calibrate(
        model,
        data,
        tmp_path / "out",
        algorithm="int8_wo",
        kv_cache="fp8",
        exclude=("lm_head", "down_proj", "*layers.0*"),
    )
    original = load_file(model / "model.safetensors")
    matrices = [name for name in original if "proj" in name]
    kept = {name for name in matrices if name.removesuffix(".weight") not in linears(made.tensors)}
    assert kept == {name for name in matrices if "layers.0." in name or "down_proj" in name}
    assert all(torch.equal(made.tensors[name], original[name]) for name in kept)
    assert sum(name.endswith(("k_scale", "v_scale")) for name in made.tensors) == 4
    assert made.quantization["exclude_modules"]


@pytest.mark.parametrize("after", [math.nan, math.inf, 1.0 + math.log(2.1)])
def test_a_ruined_model_is_a_failed_step(after: float) -> None:
    with pytest.raises(VerificationFailed, match="destroyed the model") as caught:
        check_damage(1.0, after)
    assert caught.value.fix
    check_damage(1.0, 1.0 + math.log(1.9))


@pytest.mark.parametrize("algorithm", ["none", "fp8", "int4_awq", "int4_gptq", "mxfp4"])
def test_progress_counts_every_forward_pass_up_to_its_total(
    model: Path, data: Path, tmp_path: Path, algorithm: Algorithm
) -> None:
    seen: list[tuple[int, int, str]] = []
    quantize_checkpoint(
        model,
        data,
        tmp_path,
        QuantFormat(algorithm=algorithm),
        max_length=MAX_LENGTH,
        batch_size=BATCH_SIZE,
        seed=7,
        say=lambda text: None,
        progress=lambda *report: seen.append(report),
    )
    assert [done for done, _, _ in seen] == list(range(1, seen[0][1] + 1))
