"""trtx's checkpoints against those of ModelOpt's own exporter, of the same quantized models; and where they differ."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.trtllm_folders import make_folder
from torch import Tensor
from transformers import AutoModelForCausalLM

from trtx.backends.tensorrt_llm.checkpoint.check import check_checkpoint
from trtx.backends.tensorrt_llm.checkpoint.write import convert_folder
from trtx.backends.tensorrt_llm.spec import Ranks
from trtx.errors import UsageProblem
from trtx.models.formats import ALGORITHMS, QuantFormat
from trtx.quant.modelopt import export_checkpoint, insert_quantizers, known_warnings, make_config

RELEASE = "1.2.1"
SIZES = {"vocab_size": 64, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
DECODERS = {"LlamaForCausalLM": "llama", "MixtralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen"}
FP8 = torch.float8_e4m3fn
# What AWQ leaves behind in the norms, and TensorRT-LLM wants of every matrix.
FOLDED = ("attention.qkv", "mlp.fc", "mlp.gate")


@dataclass(frozen=True)
class Exported:
    """A quantized model that ModelOpt can still export, and its unified folder."""

    model: Any
    folder: Path


class Forward:
    """Runs the model over a few random tokens, as calibration does."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def pass_through(self, tokens: Tensor) -> Any:
        return self.model(input_ids=tokens, use_cache=False)


def tokens() -> list[Tensor]:
    return [torch.randint(0, 64, (2, 32), generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(architecture: str) -> Path:
        if architecture not in made:
            # transformers' usual initialization: with larger weights all of a tiny model's scales are alike.
            folder = tmp_path_factory.mktemp("plain")
            rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
            rope |= {"original_max_position_embeddings": 64, "rope_theta": 500000.0}
            make_folder(folder, architecture, initializer_range=0.02, rope_parameters=rope, **SIZES)
            made[architecture] = folder
        return made[architecture]

    return make


@pytest.fixture(scope="module")
def exported(
    plain: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str, str], Exported]:
    """A model quantized as the calibrate stage does; one asked for again is not made again."""
    made: dict[tuple[str, str, str], Exported] = {}

    def make(architecture: str, algorithm: str, kv_cache: str = "auto") -> Exported:
        key = (architecture, algorithm, kv_cache)
        if key not in made:
            model = load(plain(architecture))
            form = QuantFormat(algorithm=algorithm, kv_cache=kv_cache)
            folder = plain(architecture)
            if algorithm != "none":
                insert_quantizers(model, form, Forward(model), tokens())
                folder = tmp_path_factory.mktemp("unified")
                with known_warnings():
                    export_checkpoint(copy.deepcopy(model), folder, form)
            made[key] = Exported(model, folder)
        return made[key]

    return make


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def export_by_modelopt(model: Any, output: Path, tensor: int = 1, pipeline: int = 1) -> dict[str, Any]:
    """config.json of what export_tensorrt_llm_checkpoint writes; it changes the model, so it gets a copy."""
    from modelopt.torch.export import export_tensorrt_llm_checkpoint

    with warnings.catch_warnings():
        # It looks for TensorRT-LLM to make config.json with, and says that it is not there.
        warnings.simplefilter("ignore")
        export_tensorrt_llm_checkpoint(
            copy.deepcopy(model),
            DECODERS[type(model).__name__.removeprefix("Quant")],
            dtype=torch.bfloat16,
            export_dir=output,
            inference_tensor_parallel=tensor,
            inference_pipeline_parallel=pipeline,
        )
    config: dict[str, Any] = json.loads((output / "config.json").read_text())
    return config


CASES = [
    ("LlamaForCausalLM", "none", "auto"),
    ("LlamaForCausalLM", "fp8", "fp8"),
    ("LlamaForCausalLM", "fp8_dynamic", "auto"),
    ("LlamaForCausalLM", "int8_sq", "auto"),
    ("LlamaForCausalLM", "int4_awq", "auto"),
    ("LlamaForCausalLM", "w4a8_awq", "auto"),
    ("LlamaForCausalLM", "nvfp4", "auto"),
    ("Qwen2ForCausalLM", "none", "auto"),
    ("Qwen2ForCausalLM", "fp8", "auto"),
    ("Qwen2ForCausalLM", "int4_awq", "auto"),
]


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 2)])
@pytest.mark.parametrize(("architecture", "algorithm", "kv_cache"), CASES)
def test_both_write_the_same_tensors(
    exported: Callable[..., Exported],
    tmp_path: Path,
    architecture: str,
    algorithm: str,
    kv_cache: str,
    tensor: int,
    pipeline: int,
) -> None:
    made = exported(architecture, algorithm, kv_cache)
    theirs_config = export_by_modelopt(made.model, tmp_path / "theirs", tensor, pipeline)
    ranks = Ranks(tensor=tensor, pipeline=pipeline)
    ours_config = convert_folder(made.folder, tmp_path / "ours", release=RELEASE, ranks=ranks, dtype="bfloat16")
    for rank in range(tensor * pipeline):
        ours, theirs = (load_file(tmp_path / who / f"rank{rank}.safetensors") for who in ("ours", "theirs"))
        assert set(ours) ^ set(theirs) == different_names(ours, theirs, algorithm)
        for name in sorted(set(ours) & set(theirs)):
            assert ours[name].dtype == theirs[name].dtype, name
            assert ours[name].shape == theirs[name].shape, name
            assert_same_numbers(name, ours, theirs)
    assert_same_config(ours_config, theirs_config)


def different_names(ours: dict[str, Tensor], theirs: dict[str, Tensor], algorithm: str) -> set[str]:
    """Deliberate differences: separate scales of keys and values, which loaders merge; and AWQ's ones (pack.py)."""
    separate = {name for name in theirs if name.endswith((".k_cache_scaling_factor", ".v_cache_scaling_factor"))}
    if algorithm not in ("int4_awq", "w4a8_awq"):
        return separate
    folded = {name for name in ours if name.endswith(tuple(f"{module}.prequant_scaling_factor" for module in FOLDED))}
    assert folded
    assert all((ours[name] == 1).all() for name in folded)
    return separate | folded


def assert_same_numbers(name: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    if ours[name].dtype == FP8 and name.endswith(".weight"):
        assert_same_fp8(name, ours, theirs)
    elif (
        name.endswith(("mlp.fc.weights_scaling_factor", "mlp.gate.weights_scaling_factor")) and ours[name].numel() == 1
    ):
        # FP8: ModelOpt gives fc and gate one scale, as trtllm-build does when it fuses them.
        here = name.rpartition(".mlp.")[0]
        assert theirs[name] == max(ours[f"{here}.mlp.{each}.weights_scaling_factor"] for each in ("fc", "gate")), name
    else:
        assert torch.equal(ours[name].reshape(-1).view(torch.uint8), theirs[name].reshape(-1).view(torch.uint8)), name


def assert_same_fp8(name: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Numbers times scales.

    ModelOpt's unified export divides by the scale in bfloat16, the other in float32: what is in the middle of two
    numbers of FP8 goes either way. Fused matrices are rounded once more, by the largest of their scales (pack.py).
    """
    module = name.removesuffix(".weight")
    scale = "weights_scaling_factor" if f"{module}.weights_scaling_factor" in ours else "per_channel_scale"
    scales = [each[f"{module}.{scale}"].reshape(-1, 1) for each in (ours, theirs)]
    mine, other = (each[name].float() * own for each, own in zip((ours, theirs), scales, strict=True))
    difference = (mine - other).abs()
    assert (difference <= other.abs() / 7 + scales[1] * 2**-9).all(), name
    if torch.equal(*scales) and not name.endswith("qkv.weight"):
        assert (difference > 0).float().mean() < 0.07, name


def assert_same_config(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    shared = set(ours) & set(theirs)
    different = {key for key in shared if ours[key] != theirs[key]}
    # Both wrote who they are. ModelOpt makes logits float16, where TensorRT-LLM and its converters have float32.
    assert different <= {"producer", "logits_dtype", "quantization"}
    assert ours["logits_dtype"] == "float32"
    assert set(ours) - set(theirs) <= {
        *("rotary_base", "rotary_scaling", "attn_bias", "mlp_bias"),
        *("qwen_type", "moe_intermediate_size", "moe_shared_expert_intermediate_size"),
    }
    excluded = theirs["quantization"].pop("exclude_modules", None)
    mine = dict(ours["quantization"])
    # ModelOpt excludes only the head, although the loader's own list ends where another begins.
    assert (excluded is None) == (mine.pop("exclude_modules", None) is None)
    assert mine == theirs["quantization"]
    # The rotary base and scaling are lost there, and the loader takes 10000 and none.
    assert ours["rotary_base"] == 500000.0
    assert ours["rotary_scaling"]["type"] == "llama3"


@pytest.mark.parametrize("algorithm", ["int4_awq", "w4a8_awq"])
def test_models_that_were_not_folded_have_all_the_names(
    plain: Callable[[str], Path], exported: Callable[..., Exported], tmp_path: Path, algorithm: str
) -> None:
    """The way of quantize.py: ModelOpt's quantization, then its export, without the fusing of its unified export."""
    import modelopt.torch.quantization as mtq

    model = load(plain("LlamaForCausalLM"))
    config = make_config(mtq, QuantFormat(algorithm=algorithm), ["lm_head"])
    with known_warnings():
        mtq.quantize(model, config, lambda m: [m(input_ids=batch, use_cache=False) for batch in tokens()])
    export_by_modelopt(model, tmp_path / "theirs", tensor=2)
    folder = exported("LlamaForCausalLM", algorithm).folder
    convert_folder(folder, tmp_path / "ours", release=RELEASE, ranks=Ranks(tensor=2), dtype="bfloat16")
    for rank in range(2):
        ours, theirs = (load_file(tmp_path / who / f"rank{rank}.safetensors") for who in ("ours", "theirs"))
        described = [{name: (t.shape, t.dtype) for name, t in each.items()} for each in (ours, theirs)]
        assert described[0] == described[1]
    # Theirs is then what trtllm-build reads, but for what its config.json lacks.
    assert [problem.what for problem in check_checkpoint(tmp_path / "theirs", RELEASE)] == [
        "config.json has no rotary_base"
    ]


@pytest.mark.parametrize(
    ("architecture", "algorithm", "kv_cache", "errors"),
    [
        ("LlamaForCausalLM", "none", "auto", []),
        ("LlamaForCausalLM", "fp8", "fp8", []),
        ("LlamaForCausalLM", "int8_sq", "auto", []),
        ("LlamaForCausalLM", "nvfp4", "auto", []),
        # quantize.py adds it to config.json afterwards.
        ("Qwen2ForCausalLM", "none", "auto", ["config.json has no qwen_type"]),
        # Scales that were folded into norms are missing, although config.json says pre_quant_scale.
        (
            "LlamaForCausalLM",
            "int4_awq",
            "auto",
            [f"transformer.layers.{i}.{m}.prequant_scaling_factor is missing" for i in range(2) for m in FOLDED],
        ),
    ],
)
def test_the_check_reads_what_modelopt_writes(
    exported: Callable[..., Exported],
    tmp_path: Path,
    architecture: str,
    algorithm: str,
    kv_cache: str,
    errors: list[str],
) -> None:
    export_by_modelopt(exported(architecture, algorithm, kv_cache).model, tmp_path)
    problems = check_checkpoint(tmp_path, RELEASE)
    assert sorted(problem.what for problem in problems if problem.severity == "error") == sorted(errors)
    assert "config.json has no rotary_base" in [problem.what for problem in problems if problem.severity == "warning"]


def test_int8_weight_only_of_modelopt_is_nothing_that_trtllm_build_reads(
    exported: Callable[..., Exported], tmp_path: Path
) -> None:
    made = exported("LlamaForCausalLM", "int8_wo")
    export_by_modelopt(made.model, tmp_path / "theirs")
    errors = [p for p in check_checkpoint(tmp_path / "theirs", RELEASE) if p.severity == "error"]
    assert len(errors) == 2 * 5
    assert errors[0].why == "it is int8 and should be bfloat16"
    convert_folder(made.folder, tmp_path / "ours", release=RELEASE, ranks=Ranks(), dtype="bfloat16")
    assert check_checkpoint(tmp_path / "ours", RELEASE) == []


def test_modelopt_changes_the_vocabulary_of_awq_and_trtx_does_not(plain: Callable[[str], Path], tmp_path: Path) -> None:
    """Words that do not exist would get logits of zero, and be chosen where all others are below."""
    import modelopt.torch.quantization as mtq

    folder = tmp_path / "hf"
    make_folder(folder, "LlamaForCausalLM", initializer_range=0.02, **(SIZES | {"vocab_size": 70}))
    model, form = load(folder), QuantFormat(algorithm="int4_awq")
    with known_warnings():
        config = make_config(mtq, form, ["lm_head"])
        mtq.quantize(model, config, lambda m: [m(input_ids=batch, use_cache=False) for batch in tokens()])
        export_checkpoint(copy.deepcopy(model), tmp_path / "unified", form)
    theirs = export_by_modelopt(model, tmp_path / "theirs")
    assert theirs["vocab_size"] == 128
    ours = convert_folder(tmp_path / "unified", tmp_path / "ours", release=RELEASE, ranks=Ranks(), dtype="bfloat16")
    assert ours["vocab_size"] == 70
    heads = [load_file(tmp_path / who / "rank0.safetensors")["lm_head.weight"] for who in ("ours", "theirs")]
    assert torch.equal(heads[0], heads[1][:70])
    assert not heads[1][70:].any()


def test_mxfp4_of_modelopt_has_half_the_hidden_size_and_trtx_refuses_it(
    exported: Callable[..., Exported], tmp_path: Path
) -> None:
    made = exported("LlamaForCausalLM", "mxfp4")
    assert export_by_modelopt(made.model, tmp_path / "theirs")["hidden_size"] == SIZES["hidden_size"] // 2
    found = [problem.what for problem in check_checkpoint(tmp_path / "theirs", RELEASE)]
    assert f"TensorRT-LLM {RELEASE} has no quant_algo mxfp4" in found
    with pytest.raises(UsageProblem, match="engine flow has no format for mxfp4"):
        convert_folder(made.folder, tmp_path / "ours", release=RELEASE, ranks=Ranks(), dtype="bfloat16")


def test_mixtures_of_modelopt_reach_engines_only_through_the_unified_folder(
    tmp_path: Path,
) -> None:
    """export_tensorrt_llm_checkpoint expects the experts of transformers 4; the unified export takes those of 5."""
    folder = tmp_path / "hf"
    make_folder(folder, "MixtralForCausalLM", initializer_range=0.02, **SIZES)
    model, form = load(folder), QuantFormat(algorithm="fp8", kv_cache="fp8")
    insert_quantizers(model, form, Forward(model), tokens())
    with known_warnings():
        export_checkpoint(copy.deepcopy(model), tmp_path / "unified", form)
    ranks = Ranks(tensor=2, expert=2)
    convert_folder(tmp_path / "unified", tmp_path / "ours", release=RELEASE, ranks=ranks, dtype="bfloat16")
    assert check_checkpoint(tmp_path / "ours", RELEASE) == []
    with pytest.raises(TypeError, match="has no len"):
        export_by_modelopt(model, tmp_path / "theirs")


def test_every_algorithm_is_written_or_refused_by_name() -> None:
    from trtx.backends.tensorrt_llm.checkpoint.formats import ALGOS

    refused = {"fp8_block_wo", "int8_gptq", "nvfp4_awq", "mxfp4", "mxfp8"}
    assert set(ALGORITHMS) == set(ALGOS) | refused
