"""What TensorRT-LLM's code refuses, overrides or only warns of, as data: with the condition and where it stands.

Files and lines are those of 1.3.0rc3. That older releases have a rule, too, is not established unless `since` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtx.backends.tensorrt_llm.releases import Flow, Release
from trtx.backends.tensorrt_llm.surface import Confidence

# error: the tool fails. override: it goes on with another value than asked for. warning: it only says so.
Effect = Literal["error", "override", "warning"]


@dataclass(frozen=True)
class HardRule:
    """One rule. `condition` says when it holds, `outcome` what happens then, `source` the file and lines."""

    id: str
    flow: Flow
    effect: Effect
    condition: str
    outcome: str
    source: str
    options: tuple[str, ...] = ()


def _engine(id: str, effect: Effect, condition: str, outcome: str, source: str, *options: str) -> HardRule:
    return HardRule(id, "engine", effect, condition, outcome, source, options)


BUILDER, BUILD, COMMON = "tensorrt_llm/builder.py", "tensorrt_llm/commands/build.py", "tensorrt_llm/_common.py"
SM100_PLUGINS = (
    "gemm_swiglu_plugin",
    "fp8_rowwise_gemm_plugin",
    "low_latency_gemm_plugin",
    "low_latency_gemm_swiglu_plugin",
)

RULES: tuple[HardRule, ...] = (
    _engine(
        "sm100-integer-formats",
        "error",
        "100 <= SM < 120 with INT8 or INT4 weight-only, INT8 KV cache, SmoothQuant, per-channel or per-token scaling",
        "the build fails",
        f"{BUILDER}:1113-1124",
    ),
    _engine(
        "sm100-plugins",
        "error",
        "SM 100 exactly, with one of these plugins or bert_context_fmha_fp32_acc",
        "the build fails",
        "tensorrt_llm/plugin/plugin.py:367-382",
        *SM100_PLUGINS,
        "bert_context_fmha_fp32_acc",
    ),
    _engine(
        "fp8-fmha-sm",
        "override",
        "use_fp8_context_fmha with SM < 89",
        "it is switched off",
        f"{BUILDER}:1081",
        "use_fp8_context_fmha",
    ),
    _engine(
        "paged-fmha-int8-kv",
        "override",
        "use_paged_context_fmha with an INT8 KV cache",
        "it is switched off",
        BUILDER,
        "use_paged_context_fmha",
    ),
    _engine(
        "w4a8-sm",
        "error",
        "INT4 AWQ or GPTQ with FP8 activations and SM < 89",
        "there is no such kernel",
        "docs/source/features/quantization.md",
    ),
    _engine(
        "world-size",
        "error",
        "tp * pp * cp is not world_size",
        "the checkpoint is refused",
        "tensorrt_llm/mapping.py:108-130",
    ),
    _engine(
        "moe-world-size",
        "error",
        "moe_tp * moe_ep * moe_cluster is not the world of the experts",
        "the checkpoint is refused",
        "tensorrt_llm/mapping.py:108-130",
    ),
    _engine(
        "heads-tp",
        "error",
        "attention heads % tp != 0",
        "the layer is refused",
        "tensorrt_llm/layers/attention.py:413-418",
    ),
    _engine(
        "kv-heads-tp",
        "error",
        "KV heads >= tp and KV heads % tp != 0",
        "the layer is refused; fewer KV heads than tp are duplicated",
        "tensorrt_llm/layers/attention.py:413-418",
    ),
    _engine(
        "vocab-tp",
        "override",
        "vocabulary % tp != 0",
        "lm_head is padded to a multiple of tp",
        "tensorrt_llm/_utils.py:655",
    ),
    _engine(
        "layers-pp",
        "override",
        "layers % pp != 0",
        "the first ranks get one more, or as pp_partition says, whose sum must be the layers",
        "tensorrt_llm/mapping.py:336-353",
    ),
    _engine(
        "max-seq-len",
        "warning",
        "max_seq_len above max_position_embeddings * rope factor",
        "a warning only; without it that product is the default, else 2048",
        f"{BUILDER}:835-858",
        "max_seq_len",
    ),
    _engine(
        "encoder-seq-len",
        "override",
        "an encoder model",
        "max_input_len becomes max_seq_len",
        f"{BUILDER}:833",
        "max_input_len",
    ),
    _engine(
        "max-input-len", "override", "max_input_len > max_seq_len", "it is clipped", f"{BUILDER}:861", "max_input_len"
    ),
    _engine(
        "max-num-tokens",
        "override",
        "max_num_tokens > max_seq_len * max_batch_size, or < tokens_per_block",
        "it is clipped, or raised",
        f"{COMMON}:229-290",
        "max_num_tokens",
    ),
    _engine(
        "max-num-tokens-large", "warning", "max_num_tokens > 16384", "a warning", f"{COMMON}:229-290", "max_num_tokens"
    ),
    _engine(
        "opt-num-tokens",
        "override",
        "opt_num_tokens is not given",
        "it becomes min(max_batch_size * max_beam_width, max_num_tokens)",
        f"{COMMON}:261",
        "opt_num_tokens",
    ),
    _engine(
        "opt-num-tokens-profiles",
        "error",
        "opt_num_tokens together with multiple_profiles",
        "the build fails",
        f"{BUILD}:494",
        "opt_num_tokens",
        "multiple_profiles",
    ),
    _engine(
        "speculative-seq-len",
        "override",
        "speculative decoding",
        "max_draft_len (and EAGLE's layers) are added to max_seq_len",
        f"{BUILDER}:1029-1058",
        "max_seq_len",
        "max_draft_len",
    ),
    _engine(
        "speculative-num-tokens",
        "error",
        "max_num_tokens < max_batch_size * (max_draft_len + 1)",
        "the build fails",
        f"{BUILDER}:1029-1058",
        "max_num_tokens",
        "max_draft_len",
    ),
    _engine(
        "eagle-limits",
        "error",
        "EAGLE with max_batch_size > 512 or max_draft_len > 256",
        "the build fails",
        f"{BUILDER}:1234",
        "max_batch_size",
    ),
    _engine(
        "swiglu-plugins",
        "error",
        "gemm_swiglu_plugin or low_latency_gemm_swiglu_plugin without use_fused_mlp, or with another format than FP8",
        "the build fails",
        f"{BUILDER}:760-772",
        "gemm_swiglu_plugin",
        "low_latency_gemm_swiglu_plugin",
        "use_fused_mlp",
    ),
    _engine(
        "fused-mlp",
        "override",
        "use_fused_mlp with a quantization other than FP8 or mixed",
        "it is switched off",
        f"{BUILDER}:760-772",
        "use_fused_mlp",
    ),
    _engine(
        "pp-reduce-scatter",
        "error",
        "pp_reduce_scatter with another architecture than Mixtral",
        "an assertion fails",
        f"{BUILD}:316-319",
        "pp_reduce_scatter",
    ),
    _engine("streamingllm", "error", "streamingllm", "an assertion fails", f"{BUILD}:316-319", "streamingllm"),
    _engine(
        "reduce-fusion",
        "override",
        "reduce_fusion with tp = 1 or another architecture than Llama, Gemma 2 or Medusa",
        "it is switched off",
        f"{BUILDER}:991-1006",
        "reduce_fusion",
    ),
    _engine(
        "user-buffer",
        "override",
        "user_buffer without reduce_fusion",
        "it is switched off",
        f"{BUILDER}:991-1006",
        "user_buffer",
    ),
    _engine(
        "norm-quant-fusion",
        "override",
        "norm_quant_fusion with another architecture than Llama, another format than NVFP4, or reduce_fusion",
        "it is switched off",
        f"{BUILDER}:991-1006",
        "norm_quant_fusion",
    ),
    _engine("architecture", "error", "the architecture is not in MODEL_MAP", "the build fails", f"{BUILD}:327"),
    _engine(
        "generation-logits",
        "warning",
        "gather_generation_logits",
        "only a warning: it is a flag of the runtime",
        f"{BUILD}:426",
        "gather_generation_logits",
    ),
    _engine(
        "awq-calibration",
        "override",
        "a format with AWQ and calib_size > 32",
        "calib_size becomes 32",
        "tensorrt_llm/quantization/quantize_by_modelopt.py:728-733",
        "calib_size",
    ),
    _engine(
        "quantize-gpu",
        "error",
        "quantize.py on a machine without a GPU",
        "it fails",
        "tensorrt_llm/quantization/quantize_by_modelopt.py:693",
    ),
    _engine(
        "calibration-data",
        "error",
        "calib_dataset is not pileval, scienceqa, cnn_dailymail or a folder with column `text` of a split `train`",
        "quantize.py fails",
        "tensorrt_llm/quantization/quantize_by_modelopt.py:378-422",
        "calib_dataset",
    ),
    HardRule(
        "yaml-unknown-key",
        "pytorch",
        "error",
        "a key in the options file that the schema does not have",
        "the server refuses it",
        "tensorrt_llm/llmapi/llm_args.py:98",
    ),
    HardRule(
        "yaml-and-flag",
        "pytorch",
        "override",
        "a setting in the options file and on the command line",
        "the file wins up to 1.3.0rc3; on later main the command line does",
        "tensorrt_llm/llmapi/llm_args.py:3447",
    ),
    HardRule(
        "yaml-build-config",
        "pytorch",
        "override",
        "build_config in the options file",
        "the PyTorch backend ignores it",
        "tensorrt_llm/llmapi/llm_args.py:3450-3463",
    ),
    HardRule(
        "nvfp4-kv",
        "pytorch",
        "error",
        "an NVFP4 KV cache without FP8 weights and activations made by ModelOpt",
        "it is not supported",
        "docs/source/features/quantization.md",
    ),
)


def hard_rules(release: Release, flow: Flow) -> tuple[tuple[HardRule, Confidence], ...]:
    """The rules of a flow and how sure it is that this release has them, as read in 1.3.0rc3."""
    grade: Confidence = "exact" if release.version == "1.3.0rc3" else "unknown"
    return tuple((rule, grade) for rule in RULES if rule.flow == flow)
