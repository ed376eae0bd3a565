"""Each damage of a checkpoint that trtllm-build refuses or warns of is found, with the file and the reason."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.trtllm_folders import make_folder
from torch import Tensor

from trtx.backends.tensorrt_llm.checkpoint.check import Problem, check_checkpoint
from trtx.backends.tensorrt_llm.checkpoint.read import read_weights
from trtx.backends.tensorrt_llm.checkpoint.write import convert_folder
from trtx.backends.tensorrt_llm.releases import known_releases
from trtx.backends.tensorrt_llm.spec import Ranks
from trtx.errors import UsageProblem, VerificationFailed
from trtx.models.formats import QuantFormat

Make = Callable[..., Path]
LAYER = "transformer.layers.0"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a checkpoint of a small model."""

    def write(
        architecture: str = "LlamaForCausalLM", algorithm: str = "none", ranks: Ranks | None = None, **more: Any
    ) -> Path:
        folder = make_folder(tmp_path / "hf", architecture, algorithm, kv_cache="fp8" if algorithm == "fp8" else "auto")
        output = tmp_path / "out"
        ranks = ranks or Ranks(tensor=2)
        convert_folder(folder.path, output, release="1.2.1", ranks=ranks, dtype="bfloat16", **more)
        return output

    return write


def edit_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    merged = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in merged.items() if value is not ...}))


def edit_rank(folder: Path, rank: int, **entries: Tensor | None) -> None:
    path = folder / f"rank{rank}.safetensors"
    named = {name.replace("__", "."): value for name, value in entries.items()}
    tensors = {name: value for name, value in (load_file(path) | named).items() if value is not None}
    save_file(tensors, path)


def only(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize("release", [None, *known_releases()])
def test_what_is_written_has_no_problem_in_any_release(make: Make, release: str | None) -> None:
    assert check_checkpoint(make(), release) == []


def test_a_missing_tensor_is_an_error_and_an_unknown_one_a_warning(make: Make) -> None:
    folder = make()
    edit_rank(folder, 1, **{f"{LAYER}.mlp.fc.weight": None, f"{LAYER}.mlp.extra.weight": torch.ones(2)})
    missing, extra = check_checkpoint(folder)
    assert missing == Problem(
        "error", f"{LAYER}.mlp.fc.weight is missing", "required but not provided", "rank1.safetensors"
    )
    assert (extra.severity, extra.what) == ("warning", f"{LAYER}.mlp.extra.weight is not required")


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.ones(96, 64, dtype=torch.bfloat16), "it is [96, 64] and should be [48, 64]"),
        (torch.ones(48, 64), "it is float32 and should be bfloat16"),
    ],
)
def test_tensors_of_another_shape_or_dtype_are_errors(make: Make, tensor: Tensor, why: str) -> None:
    folder = make()
    edit_rank(folder, 0, **{f"{LAYER}.mlp.gate.weight": tensor})
    assert only(check_checkpoint(folder)) == Problem(
        "error", f"{LAYER}.mlp.gate.weight does not fit", why, "rank0.safetensors"
    )


def test_a_missing_rank_is_an_error_and_one_too_many_a_warning(make: Make) -> None:
    folder = make()
    (folder / "rank1.safetensors").rename(folder / "rank2.safetensors")
    warning, error = check_checkpoint(folder)
    assert (warning.severity, warning.file, warning.why) == ("warning", "rank2.safetensors", "there are 2 ranks")
    assert (error.severity, error.what, error.file) == (
        "error",
        "rank1.safetensors is missing",
        "rank1.safetensors",
    )


def test_files_that_are_cut_off_are_errors(make: Make) -> None:
    folder = make()
    path = folder / "rank0.safetensors"
    whole = path.read_bytes()
    for length, why in ((len(whole) - 3, "and its header says"), (20, ""), (0, "")):
        path.write_bytes(whole[:length])
        problem = only(check_checkpoint(folder))
        assert (problem.severity, problem.what) == ("error", "rank0.safetensors is damaged")
        assert why in problem.why
    path.write_bytes((1 << 60).to_bytes(8, "little") + whole)
    assert "its header would have" in only(check_checkpoint(folder)).why


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ({"architecture": ...}, "config.json has no architecture"),
        ({"dtype": ...}, "config.json has no dtype"),
        ({"dtype": "int3"}, "config.json does not describe a checkpoint"),
        ({"hidden_size": "many"}, "config.json does not describe a checkpoint"),
        ({"quantization": {"kv_cache_quant_algo": "FP3"}}, "config.json does not describe a checkpoint"),
        ({"mapping": {"world_size": 3, "tp_size": 2, "pp_size": 1}}, "config.json does not describe a checkpoint"),
        ({"mapping": {"world_size": 0, "tp_size": 0}}, "config.json does not describe a checkpoint"),
        ({"mapping": {"world_size": 3, "tp_size": 3}}, "the model cannot be cut into 3 tensor-parallel ranks"),
        ({"num_attention_heads": 3}, "the model cannot be cut into 2 tensor-parallel ranks"),
        ({"quantization": {"quant_algo": "W3A3"}}, "TensorRT-LLM 1.2.1 has no quant_algo W3A3"),
        ({"architecture": "TinyForCausalLM"}, "TensorRT-LLM 1.2.1 has no TinyForCausalLM in its engine flow"),
        ({"rotary_base": ...}, "config.json has no rotary_base"),
    ],
)
def test_each_error_of_config_json_is_found(make: Make, entries: dict[str, Any], what: str) -> None:
    folder = make()
    edit_config(folder, **entries)
    assert what in [problem.what for problem in check_checkpoint(folder, "1.2.1")]


@pytest.mark.parametrize("content", [None, "{", "[]", '"text"'])
def test_a_folder_without_a_readable_config_json_is_no_checkpoint(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert only(check_checkpoint(tmp_path)).severity == "error"


def test_old_releases_leave_out_layers_that_do_not_divide(make: Make) -> None:
    folder = make(ranks=Ranks(pipeline=2))
    assert check_checkpoint(folder, "0.21.0") == []
    for release in ("0.12.0", "0.16.0", "0.20.0"):
        what = only(check_checkpoint(folder, release)).what
        assert what == f"TensorRT-LLM {release} cannot divide 3 layers by 2 pipeline stages"


def test_architectures_and_formats_that_are_not_known_here_are_said_to_be_unchecked(make: Make) -> None:
    folder = make()
    edit_config(folder, architecture="FalconForCausalLM")
    assert only(check_checkpoint(folder, "0.16.0")).severity == "unchecked"
    with pytest.raises(UsageProblem, match="cannot be read back"):
        list(read_weights(folder))
    edit_config(folder, architecture="LlamaForCausalLM", quantization={"quant_algo": "W8A8_SQ_PER_TENSOR_PLUGIN"})
    assert (
        only(check_checkpoint(folder, "0.16.0")).what == "the tensors of W8A8_SQ_PER_TENSOR_PLUGIN are not known here"
    )


def test_weight_only_checkpoints_of_convert_checkpoint_are_read_too(make: Make) -> None:
    """Its matrices are transposed and packed, with a scale in the model's dtype for each output."""
    folder = make(quantization=QuantFormat(algorithm="int8_wo"), ranks=Ranks())
    path, packed = folder / "rank0.safetensors", ("qkv", "dense", "fc", "gate", "proj")
    plain = load_file(path)
    for width, algo in ((1, "W8A16"), (2, "W4A16")):
        tensors = dict(plain)
        for name in [name for name in plain if name.rpartition(".")[0].endswith(packed)]:
            n, k = plain[name].shape
            tensors[name] = torch.zeros(k, n // width, dtype=torch.int8)
            tensors[name.replace(".weight", ".per_channel_scale")] = torch.ones(n, dtype=torch.bfloat16)
        save_file(tensors, path)
        edit_config(folder, quantization={"quant_algo": algo})
        assert check_checkpoint(folder, "0.16.0") == []
    with pytest.raises(UsageProblem, match="kernels' layout cannot be read back"):
        list(read_weights(folder))


def test_only_int8_bytes_of_int4_are_repacked(make: Make) -> None:
    folder = make(algorithm="int4_awq")
    name = f"{LAYER}.mlp.proj.weight"
    tensor = load_file(folder / "rank0.safetensors")[name]
    edit_rank(folder, 0, **{name: tensor.view(torch.uint8)})
    assert only(check_checkpoint(folder)).why == "it is uint8 and should be int8; only int8 is repacked"


def test_sizes_that_the_loader_would_want_padded_are_errors(make: Make) -> None:
    folder = make(algorithm="int4_awq")
    edit_config(folder, intermediate_size=384)
    assert "W4A16_AWQ does not fit intermediate_size 384 on 2" in check_checkpoint(folder)[0].what


def test_scalars_pass_for_vectors_of_one_and_bytes_for_fp8(make: Make) -> None:
    folder = make(algorithm="fp8")
    tensors = load_file(folder / "rank0.safetensors")
    weight, scale = f"{LAYER}.mlp.fc.weight", f"{LAYER}.mlp.fc.weights_scaling_factor"
    edit_rank(folder, 0, **{weight: tensors[weight].view(torch.int8), scale: tensors[scale].reshape(())})
    assert check_checkpoint(folder) == []


def test_scales_of_the_cache_may_stand_apart_for_newer_loaders(make: Make) -> None:
    folder = make(algorithm="fp8")
    here = f"{LAYER}.attention"
    edit_rank(folder, 0, **{f"{here}.{which}_cache_scaling_factor": torch.ones(1) for which in "kv"})
    assert check_checkpoint(folder) == []
    edit_rank(folder, 0, **{f"{here}.kv_cache_scaling_factor": None})
    assert only(check_checkpoint(folder)).severity == "warning"


def test_a_head_may_be_missing_where_the_embedding_is(make: Make) -> None:
    folder = make(ranks=Ranks())
    edit_rank(folder, 0, lm_head__weight=None)
    assert only(check_checkpoint(folder)).severity == "warning"
    assert "lm_head.weight" not in dict(read_weights(folder))


def test_experts_of_another_expert_parallelism_are_found(make: Make) -> None:
    folder = make("MixtralForCausalLM", ranks=Ranks(tensor=2, expert=2))
    edit_config(folder, mapping={"world_size": 2, "tp_size": 2, "moe_tp_size": 2, "moe_ep_size": 1})
    whys = {problem.why for problem in check_checkpoint(folder)}
    assert "it is [2, 192, 64] and should be [4, 96, 64]" in whys
    edit_config(folder, mapping={"world_size": 2, "tp_size": 2, "moe_tp_size": 2, "moe_ep_size": 2})
    assert only(check_checkpoint(folder)).why == "ValueError: moe_tp_size 2 · moe_ep_size 2 is not tp_size 2"


def test_ranks_that_contradict_each_other_are_not_read_back(make: Make) -> None:
    folder = make(ranks=Ranks(tensor=4))
    for name, change, message in (
        (f"{LAYER}.input_layernorm.weight", slice(None), "is not alike on all ranks"),
        # The first two ranks share the first key-value head: rows 16 to 32 of the fused matrix are its keys.
        (
            f"{LAYER}.attention.qkv.weight",
            slice(16, 32),
            "ranks that share rows of model.layers.0.self_attn.k_proj differ",
        ),
    ):
        whole = load_file(folder / "rank1.safetensors")[name]
        changed = whole.clone()
        changed[change] += 1
        edit_rank(folder, 1, **{name: changed})
        with pytest.raises(VerificationFailed, match=message):
            list(read_weights(folder))
        edit_rank(folder, 1, **{name: whole})
    edit_rank(folder, 1, **{f"{LAYER}.input_layernorm.weight": None})
    with pytest.raises(VerificationFailed, match="is missing"):
        list(read_weights(folder))


def test_the_check_and_the_layout_need_no_torch() -> None:
    """The plan and stand-ins of trtllm-build use them."""
    modules = ("blocks", "check", "config", "exclude", "formats", "header", "layout", "plan", "share", "sizes")
    names = ", ".join(f"trtx.backends.tensorrt_llm.checkpoint.{module}" for module in modules)
    code = f"import sys, {names}; sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
