"""Options over the releases: where each exists, what took its place, and one sentence for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trtx.backends.tensorrt_llm.surface import Confidence, Option, Tool, Unresolved
from trtx.backends.tensorrt_llm.tables import known_releases, load_surface
from trtx.errors import nearest


@dataclass(frozen=True)
class Change:
    """Why a flag is not there any more, or not yet, and what to write instead."""

    tool: str
    flag: str
    instead: str
    source: str


# What the tables alone do not say: what took the place of an option.
CHANGES = (
    Change(
        "trtllm-build", "--max_output_len", "write --max_seq_len, which counts input and output", "gone before 0.12"
    ),
    Change("trtllm-build", "--multi_block_mode", "leave it out", "gone before 0.12"),
    Change("trtllm-build", "--use_custom_all_reduce", "leave it out", "gone before 0.12"),
    Change("trtllm-build", "--context_fmha_fp32_acc", "leave it out", "gone before 0.12"),
    Change("trtllm-build", "--paged_kv_cache", "write --kv_cache_type paged", "commands/build.py, 0.13"),
    Change("trtllm-build", "--kv_cache_type", "write --paged_kv_cache enable", "commands/build.py, 0.12"),
    Change(
        "trtllm-build",
        "--builder_force_num_profiles",
        "set the environment variable BUILDER_FORCE_NUM_PROFILES",
        "env_vars of 0.15 and later",
    ),
    Change("trtllm-build", "--builder_opt", "leave it out", "release 0.14"),
    Change("trtllm-build", "--lookup_plugin", "leave it out", "plugin/plugin.py, 0.15"),
    Change("trtllm-build", "--enable_xqa", "leave it out", "plugin/plugin.py, 0.16"),
    Change("trtllm-build", "--auto_parallel", "write tp_size and pp_size when the checkpoint is made", "PR #8329"),
    Change("trtllm-build", "--gpus_per_node", "leave it out; it belonged to --auto_parallel", "PR #8329"),
    Change("trtllm-build", "--cluster_key", "leave it out; it belonged to --auto_parallel", "PR #8329"),
    Change(
        "trtllm-build",
        "--tp_size",
        "it is given when the checkpoint is made",
        "mapping of the checkpoint's config.json",
    ),
    Change(
        "trtllm-build",
        "--pp_size",
        "it is given when the checkpoint is made",
        "mapping of the checkpoint's config.json",
    ),
    Change(
        "quantize.py", "--weight_compression", "write --auto_quantize_bits", "examples/quantization/quantize.py, 0.15"
    ),
    Change(
        "quantize.py", "--auto_quantize_bits", "write --weight_compression", "examples/quantization/quantize.py, 0.14"
    ),
    Change("trtllm-serve", "--config", "write --extra_llm_api_options", "commands/serve.py of autumn 2025"),
    Change("trtllm-serve", "--tensor_parallel_size", "write --tp_size", "commands/serve.py"),
    Change("trtllm-serve", "--pipeline_parallel_size", "write --pp_size", "commands/serve.py"),
    Change("trtllm-serve", "--moe_expert_parallel_size", "write --ep_size", "commands/serve.py"),
    Change(
        "trtllm-serve", "--free_gpu_memory_fraction", "write --kv_cache_free_gpu_memory_fraction", "commands/serve.py"
    ),
    Change("trtllm-bench", "--request_rate", "leave it out", "bench/benchmark, 1.3.0rc3"),
)


@dataclass(frozen=True)
class Presence:
    """Whether one release has an option."""

    release: str
    confidence: Confidence
    option: Option


def history(tool: str, flag: str) -> tuple[Presence, ...]:
    """The releases whose table of a tool (its key) has a flag, oldest first."""
    result = []
    for version in known_releases():
        found = _find_tool(version, tool)
        option = found.option(flag) if found else None
        if option is not None and flag in (*option.flags, *option.off_flags):
            confidence: Confidence = option.confidence
            if option.certain_flags is not None and flag not in option.certain_flags:
                confidence = "unknown"
            result.append(Presence(version, confidence, option))
    return tuple(result)


def _find_tool(version: str, key: str) -> Tool | None:
    """A tool, whether the release has it as a subcommand or alone."""
    tools = load_surface(version).tools
    name = key.partition(" ")[0]
    found = tools.get(key)
    if found is None or (found.subcommands and found.default_command):
        single = tools.get(f"{name} {tools[name].default_command}") if name in tools else None
        return single or found or (tools.get(name) if name in tools and not tools[name].subcommands else None)
    return found


def explain_option(tool: str, flag: str, release: str) -> str:
    """One sentence on a flag of a tool in a release: that it is there, or since when or until when, or the nearest one.

    `tool` is a key, as "trtllm-bench throughput". Raises KeyError for a release without tables.
    """
    present = history(tool, flag)
    here = next((each for each in present if each.release == release), None)
    if here is not None:
        return _describe_present(tool, flag, here)
    order = known_releases()
    index = order.index(release) if release in order else len(order)
    change = next((each for each in CHANGES if each.flag == flag and each.tool == tool.partition(" ")[0]), None)
    hint = f"; {change.instead}" if change else ""
    if present:
        return f"{_describe_absent(tool, flag, present, index)}; {release} does not have it{hint}."
    if change:
        return f"{tool} of {release} has no {flag}{hint}."
    return _describe_unknown(tool, flag, release)


def _describe_absent(tool: str, flag: str, present: Sequence[Presence], index: int) -> str:
    """Since when, until when or where a tool has a flag; `index` is the place of a release that does not have it."""
    order = known_releases()
    sure = [each.release for each in present if each.confidence != "unknown"] or [each.release for each in present]
    if index > order.index(present[-1].release):
        return f"{tool} had {flag} until {sure[-1]}"
    if index < order.index(present[0].release):
        return f"{tool} has {flag} {'since' if sure[0] == present[0].release else 'at the latest since'} {sure[0]}"
    return f"{tool} has {flag} in {spans(sure)}"


def _describe_present(tool: str, flag: str, here: Presence) -> str:
    option = here.option
    if here.confidence == "unknown":
        return f"whether {tool} of {here.release} has {flag} is not established ({option.evidence})."
    default = option.default
    shown = "not fixed" if isinstance(default, Unresolved) else "unset" if default is None else repr(default)
    kind = "deprecated there, " if option.deprecated else ""
    return f"{tool} of {here.release} has {flag} ({kind}default {shown})."


def _describe_unknown(tool: str, flag: str, release: str) -> str:
    if release not in known_releases():
        return f"no release that is known has {flag} in {tool}."
    tools = load_surface(release).tools
    others = sorted(key for key, each in tools.items() if each.option(flag) and flag.startswith("-"))
    found = _find_tool(release, tool)
    close = nearest(flag, [word for option in found.options for word in option.flags]) if found else None
    if close:
        return f"no release of {tool} that is known has {flag}; did you mean {close}?"
    if others:
        return f"{tool} has no {flag}; {others[0]} of {release} has it."
    return f"no release of {tool} that is known has {flag}."


def spans(versions: Sequence[str]) -> str:
    """Releases as ranges: "0.12.0 to 0.15.0, 1.3.0rc3"."""
    order = known_releases()
    groups: list[list[str]] = []
    for version in versions:
        if groups and order.index(version) == order.index(groups[-1][-1]) + 1:
            groups[-1].append(version)
        else:
            groups.append([version])
    return ", ".join(group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}" for group in groups)
