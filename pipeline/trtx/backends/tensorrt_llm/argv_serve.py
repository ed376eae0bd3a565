"""The command line of trtllm-serve, an OpenAI-compatible server on an engine or on a Hugging Face folder."""

from __future__ import annotations

from trtx.backends.tensorrt_llm.commands import Command, CommandLine
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import TrtllmSpec
from trtx.errors import UsageProblem

TOOL = "trtllm-serve"
OPTIONS_FLAG = "--extra_llm_api_options"


def make_serve_command(
    spec: TrtllmSpec, release: Release, *, model: str, tokenizer: str, options: str | None, host: str, port: int
) -> Command:
    """trtllm-serve for a spec. `model` is the engine folder or the Hugging Face folder, `options` the options file.

    What stands in the options file is not written here again: which of the two wins changed between releases.
    """
    line = CommandLine(release, release.tool(TOOL, "serve"))
    line.place(model)
    line.give("tokenizer", tokenizer)
    line.give("host", host)
    line.give("port", port)
    if release.pytorch_backend:
        line.give("backend", "tensorrt" if spec.flow == "engine" else "pytorch")
    elif spec.flow == "pytorch":
        line.give("backend", "pytorch")
    if options is None:
        _give_sizes(line, spec)
    else:
        line.give(OPTIONS_FLAG, options)
    line.pin("log_level", "info")
    # `serve` is the default command: without the word, the line is the same where there are no subcommands yet.
    return line.command()


def takes_options(release: Release) -> bool:
    """Whether trtllm-serve of a release surely reads an options file."""
    try:
        tool = release.tool(TOOL, "serve")
    except UsageProblem:  # Before 0.15.
        return False
    option = tool.option(OPTIONS_FLAG)
    return option is not None and option.is_certain


def _give_sizes(line: CommandLine, spec: TrtllmSpec) -> None:
    sizes = spec.sizes
    line.give("max_beam_width", sizes.max_beam_width)
    line.give("max_batch_size", sizes.max_batch_size)
    line.give("max_num_tokens", sizes.max_num_tokens)
    line.give("max_seq_len", sizes.max_seq_len)
    # The old spellings are those that every release has.
    line.give("--tp_size", spec.ranks.tensor)
    line.give("--pp_size", spec.ranks.pipeline)
    line.give("--kv_cache_free_gpu_memory_fraction", spec.pool.memory_fraction)
