"""The command line of the release's convert_checkpoint.py, one script a family of models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from trtx.backends.tensorrt_llm.commands import Command, CommandLine
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import CheckpointSpec
from trtx.errors import UsageProblem

# Names in config.json's `architectures` → folder of the script, by the models that each script's README names.
FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "BaichuanForCausalLM": "baichuan",
        "BaiChuanForCausalLM": "baichuan",
        "BloomForCausalLM": "bloom",
        "ChatGLMModel": "chatglm",
        "CohereForCausalLM": "commandr",
        "DbrxForCausalLM": "dbrx",
        "DeepseekForCausalLM": "deepseek_v1",
        "DeepseekV2ForCausalLM": "deepseek_v2",
        "FalconForCausalLM": "falcon",
        "GPT2LMHeadModel": "gpt",
        "GPTBigCodeForCausalLM": "gpt",
        "GPTJForCausalLM": "gptj",
        "GPTNeoXForCausalLM": "gptneox",
        "Grok1ModelForCausalLM": "grok",
        "InternLM2ForCausalLM": "internlm2",
        "InternLMForCausalLM": "llama",
        "LlamaForCausalLM": "llama",
        "MPTForCausalLM": "mpt",
        "MistralForCausalLM": "llama",
        "MixtralForCausalLM": "llama",
        "NemotronForCausalLM": "gpt",
        "OPTForCausalLM": "opt",
        "Phi3ForCausalLM": "phi",
        "PhiForCausalLM": "phi",
        "PhiMoEForCausalLM": "phi",
        "QWenLMHeadModel": "qwen",
        "Qwen2ForCausalLM": "qwen",
        "Qwen2MoeForCausalLM": "qwen",
        "Qwen3ForCausalLM": "qwen",
        "Qwen3MoeForCausalLM": "qwen",
        "Starcoder2ForCausalLM": "gpt",
    }
)
WEIGHT_ONLY: Mapping[str, str] = MappingProxyType(
    {"int8_wo": "int8", "int4_wo": "int4", "int4_gptq": "int4_gptq", "int4_awq": "int4_awq"}
)
# These read scales from a checkpoint that was quantized before.
FROM_QUANTIZED = frozenset({"int4_gptq", "int4_awq"})
FP8_FLAGS: Mapping[str, str] = MappingProxyType({"fp8": "use_fp8", "fp8_dynamic": "use_fp8_rowwise"})
OTHERWISE = "write engine.converter: trtx, choose another format, or another release"
# SmoothQuant's strength: what ModelOpt's INT8_SMOOTHQUANT_CFG and the READMEs of the scripts use.
SMOOTHQUANT_ALPHA = 0.5


def find_script(spec: CheckpointSpec, release: Release) -> str:
    """The script's key in the release's tables. Raises UsageProblem when no script of the release reads the model."""
    family = FAMILIES.get(spec.shape.architecture)
    key = f"{family}/convert_checkpoint.py"
    if family is None or key not in release.tools:
        raise UsageProblem(
            f"no convert_checkpoint.py of TensorRT-LLM {release.version} is known to read {spec.shape.architecture}",
            why=f"known are {', '.join(sorted(FAMILIES))}",
            fix="write engine.converter: trtx, or choose another model or release",
        )
    return key


def make_convert_command(
    spec: CheckpointSpec, release: Release, *, checkpoint: Path, output: Path, data: Path | None = None
) -> Command:
    """convert_checkpoint.py for a spec; `data` is a folder of texts for formats that observe activations.

    Raises UsageProblem for what the script of this release cannot do.
    """
    line = CommandLine(release, release.tool(find_script(spec, release)), OTHERWISE)
    ranks = spec.ranks
    line.give("model_dir", str(checkpoint))
    line.give("output_dir", str(output))
    line.give("dtype", spec.dtype)
    line.give("tp_size", ranks.tensor)
    line.give("pp_size", ranks.pipeline)
    if ranks.context > 1:
        line.give("cp_size", ranks.context)
    if spec.shape.num_experts:
        _give_experts(line, spec)
    _give_format(line, spec, checkpoint, data)
    line.pin("embedding_sharding_dim", 0)
    line.pin("load_model_on_cpu", True)
    # One process: several hold the whole model each.
    line.pin("workers", 1)
    line.pin("log_level", "info")
    return line.command()


def _give_experts(line: CommandLine, spec: CheckpointSpec) -> None:
    if spec.ranks.expert > 1 or line.lists("moe_ep_size"):
        line.give("moe_tp_size", spec.ranks.expert_tensor)
        line.give("moe_ep_size", spec.ranks.expert)


def _give_format(line: CommandLine, spec: CheckpointSpec, checkpoint: Path, data: Path | None) -> None:
    algorithm, kv_cache = spec.quantization.algorithm, spec.quantization.kv_cache
    if algorithm in WEIGHT_ONLY:
        line.give("use_weight_only", True)
        line.give("weight_only_precision", WEIGHT_ONLY[algorithm])
        if algorithm in FROM_QUANTIZED:
            line.give("per_group", True)
            line.give("group_size", spec.quantization.columns_per_scale)
            line.pin("quant_ckpt_path", str(checkpoint))
    elif algorithm == "int8_sq":
        line.give("smoothquant", SMOOTHQUANT_ALPHA)
        line.give("per_channel", True)
        line.give("per_token", True)
    elif algorithm in FP8_FLAGS:
        line.give(FP8_FLAGS[algorithm], True)
    elif algorithm.startswith("nvfp4"):
        line.give("use_nvfp4", True)
    elif algorithm != "none":
        raise UsageProblem(
            f"{line.tool.key} of TensorRT-LLM {line.release.version} has no format {algorithm}",
            why=f"it has {', '.join(sorted({'none', 'int8_sq', *WEIGHT_ONLY, *FP8_FLAGS}))}",
            fix="write engine.converter: trtx, or calibrate with quantize.py",
        )
    if kv_cache != "auto":
        line.give("fp8_kv_cache" if kv_cache == "fp8" else "int8_kv_cache", True)
    if data is not None and (algorithm == "int8_sq" or kv_cache == "int8"):
        line.give("calib_dataset", str(data))
