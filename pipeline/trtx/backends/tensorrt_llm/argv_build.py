"""The command line of trtllm-build. tp, pp and cp are in the checkpoint, not here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trtx.backends.tensorrt_llm.commands import SWITCH, Command, CommandLine
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import TrtllmSpec
from trtx.backends.tensorrt_llm.surface import Option
from trtx.errors import UsageProblem

TOOL = "trtllm-build"
# Speculative modes of a recipe → --speculative_decoding_mode; others belong to the PyTorch flow.
SPECULATION: Mapping[str, str] = MappingProxyType(
    {
        "draft-target": "draft_tokens_external",
        "lookahead": "lookahead_decoding",
        "medusa": "medusa",
        "eagle": "eagle",
    }
)
# What trtx says itself: where files are, and the sizes that stand in the recipe.
OWN = frozenset(
    {
        "checkpoint_dir",
        "output_dir",
        "model_config",
        "build_config",
        "model_cls_file",
        "model_cls_name",
        "input_timing_cache",
        "output_timing_cache",
        "workers",
        "log_level",
        "max_batch_size",
        "max_input_len",
        "max_seq_len",
        "max_beam_width",
        "max_num_tokens",
        "tokens_per_block",
        "kv_cache_type",
        "paged_kv_cache",
        "multiple_profiles",
        "speculative_decoding_mode",
        "max_draft_len",
        "max_lora_rank",
        "lora_target_modules",
        "dry_run",
        "visualize_network",
    }
)
# Of plugins for models that trtx does not build.
FOREIGN = frozenset({"bert_attention_plugin", "bert_context_fmha_fp32_acc"})
FP8 = frozenset({"fp8", "fp8_dynamic", "fp8_block_wo"})
# use_fused_mlp is switched off for other formats: tensorrt_llm/builder.py:760-772 of 1.3.0rc3.
FUSED_MLP = FP8 | {"none"}


def make_build_command(
    spec: TrtllmSpec,
    release: Release,
    *,
    checkpoint: Path,
    output: Path,
    timing_cache: Path,
    earlier_timings: Path | None = None,
) -> Command:
    """trtllm-build for a spec of the engine flow, with every plugin and switch of the release written out.

    Raises UsageProblem for options that the release does not have.
    """
    line = CommandLine(release, release.tool(TOOL))
    line.give("checkpoint_dir", str(checkpoint))
    line.give("output_dir", str(output))
    _give_sizes(line, spec)
    line.give("kv_cache_type" if line.lists("kv_cache_type") else "paged_kv_cache", _paged(line))
    line.give("tokens_per_block", spec.pool.tokens_per_block)
    for name, value in choose_switches(spec, release).items():
        if name in spec.plugins or name in spec.options:
            line.give(name, value)
        else:
            line.pin(name, value)
    _give_speculation(line, spec)
    if spec.lora is not None:
        line.give("max_lora_rank", spec.lora.max_rank)
        line.give("lora_target_modules", spec.lora.target_modules)
    line.give("input_timing_cache", None if earlier_timings is None else str(earlier_timings))
    line.give("output_timing_cache", str(timing_cache))
    line.pin("profiling_verbosity", "layer_names_only")
    line.give("workers", spec.ranks.world_size)
    line.pin("log_level", "info")
    return line.command()


def _paged(line: CommandLine) -> Any:
    return "paged" if line.lists("kv_cache_type") else True


def _give_sizes(line: CommandLine, spec: TrtllmSpec) -> None:
    sizes = spec.sizes
    line.give("max_batch_size", sizes.max_batch_size)
    line.give("max_input_len", choose_input_len(spec, line.release))
    line.give("max_seq_len", sizes.max_seq_len)
    line.give("max_num_tokens", sizes.max_num_tokens)
    line.give("max_beam_width", sizes.max_beam_width)
    # Not together with several profiles: commands/build.py:494 of 1.3.0rc3.
    if not spec.profiles and "opt_num_tokens" not in spec.options:
        line.pin("opt_num_tokens", min(sizes.max_batch_size * sizes.max_beam_width, sizes.max_num_tokens))


def choose_input_len(spec: TrtllmSpec, release: Release) -> int:
    """--max_input_len: the recipe's, or the release's default, which must not be more than a whole sequence."""
    if spec.sizes.max_input_len is not None:
        return spec.sizes.max_input_len
    option = release.tool(TOOL).option("max_input_len")
    default = option.default if option is not None and isinstance(option.default, int) else 1024
    return min(default, spec.sizes.max_seq_len)


def choose_switches(spec: TrtllmSpec, release: Release) -> dict[str, Any]:
    """Every plugin, switch and further option by name: the recipe's, else what the spec asks for, else the default."""
    tool = release.tool(TOOL)
    wanted = {**_implied(spec), **dict(spec.plugins), **spec.options}
    if taken := sorted(OWN & {*spec.plugins, *spec.options}):
        raise UsageProblem(
            f"engine.build_options and engine.plugins cannot set {taken[0]}",
            why="trtx writes it itself, from the recipe's limits, parallelism and folders",
            fix="use the recipe's own setting",
        )
    chosen: dict[str, Any] = {
        option.name: option.default for option in tool.options if _is_switch(option) and option.name not in OWN
    }
    return {**chosen, **{name: value for name, value in wanted.items() if value is not None}}


def _is_switch(option: Option) -> bool:
    """A plugin or an enable/disable switch that means something for a decoder."""
    choices = option.choices if isinstance(option.choices, tuple) else ()
    return option.name not in FOREIGN and (option.name.endswith("_plugin") or set(SWITCH) <= set(choices))


def _implied(spec: TrtllmSpec) -> dict[str, Any]:
    """Switches that other settings of the recipe decide."""
    algorithm, kv_cache = spec.quantization.algorithm, spec.quantization.kv_cache
    # An INT8 KV cache switches paged context attention off: tensorrt_llm/builder.py.
    paged = (spec.batching.chunked_context or spec.pool.reuse) and kv_cache != "int8"
    fp8_attention = algorithm in FP8 and kv_cache == "fp8" and spec.device.sm >= 89
    return {
        "gpt_attention_plugin": "auto",
        # Unset from 0.17 on, which means nvfp4 for NVFP4 and none for others.
        "gemm_plugin": "nvfp4" if algorithm.startswith("nvfp4") else "disable",
        "context_fmha": True,
        "remove_input_padding": True,
        "use_paged_context_fmha": paged,
        "use_fp8_context_fmha": fp8_attention,
        "multiple_profiles": spec.profiles,
        "lora_plugin": "auto" if spec.lora else "disable",
        **({} if algorithm in FUSED_MLP else {"use_fused_mlp": False}),
    }


def _give_speculation(line: CommandLine, spec: TrtllmSpec) -> None:
    if spec.speculation is None:
        line.pin("max_draft_len", 0)
        return
    mode = SPECULATION.get(spec.speculation.mode)
    if mode is None:
        raise UsageProblem(
            f"speculative decoding by {spec.speculation.mode} is not of the engine flow",
            why=f"trtllm-build has {', '.join(SPECULATION)}",
            fix="write engine.flow: pytorch, or choose one of these",
        )
    line.give("speculative_decoding_mode", mode)
    line.give("max_draft_len", spec.speculation.max_draft_len)
