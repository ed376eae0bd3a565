"""`trtx serve`: the OpenAI API over an engine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from trtx.cli.options import OutputFormat
from trtx.errors import EnvironmentProblem, UsageProblem


class Policy(StrEnum):
    """The scheduler's policies, as on the command line."""

    MAX_UTILIZATION = "max-utilization"
    GUARANTEED_NO_EVICT = "guaranteed-no-evict"


class ToolCallParser(StrEnum):
    """How models write tool calls (trtx.serve.tool_formats)."""

    AUTO = "auto"
    NONE = "none"
    HERMES = "hermes"
    LLAMA3_JSON = "llama3_json"
    MISTRAL = "mistral"


def command(
    context: typer.Context,
    engine: Annotated[Path, typer.Argument(help="A deployment folder, or the engine folder inside it.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8000,
    model_name: Annotated[
        str | None, typer.Option(help="Name that clients call the model by; by default the folder's.")
    ] = None,
    kv_cache_size: Annotated[
        str | None, typer.Option(help="Memory for the KV cache, such as 1GiB; by default a part of what is free.")
    ] = None,
    memory_fraction: Annotated[
        float, typer.Option(help="Part of the free memory for weights and KV cache when no size is given.")
    ] = 0.9,
    policy: Annotated[
        Policy, typer.Option(help="What a request must find free in the KV cache to start: its prompt, or all of it.")
    ] = Policy.MAX_UTILIZATION,
    chunked_prefill: Annotated[
        bool, typer.Option("--chunked-prefill/--no-chunked-prefill", help="Split prompts over several steps.")
    ] = True,
    prefix_reuse: Annotated[
        bool,
        typer.Option("--prefix-reuse/--no-prefix-reuse", help="Compute the beginning that prompts share only once."),
    ] = True,
    tool_call_parser: Annotated[
        ToolCallParser, typer.Option(help="How the model writes tool calls; auto: as its chat template says.")
    ] = ToolCallParser.AUTO,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of API keys, one a line; /v1 then needs one of them.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of an environment variable that holds an API key.")
    ] = None,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Requests that may wait for a place in the batch; more get status 429.")
    ] = 1024,
    max_body_size: Annotated[
        str, typer.Option(help="Largest body of a request; a larger one gets status 413.")
    ] = "8MiB",
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Write a line of JSON a request to stderr, without its prompt.")
    ] = False,
    overlap: Annotated[
        bool, typer.Option("--overlap/--no-overlap", help="Run programs in a thread of their own, beside other work.")
    ] = False,
    drain: Annotated[str, typer.Option(help="How long requests in flight may go on after a stop signal.")] = "30s",
    output: Annotated[
        OutputFormat, typer.Option("-o", "--output", help="json: one document on stdout as soon as requests are taken.")
    ] = OutputFormat.TABLE,
) -> None:
    """Serve an engine with the OpenAI API: completions, chat completions, models, health and metrics."""
    import gc
    import importlib
    import os

    from trtx.recipe.units import BadUnit, parse_bytes, parse_seconds
    from trtx.serve.keys import read_api_keys

    try:
        kv_cache_bytes = None if kv_cache_size is None else parse_bytes(kv_cache_size)
        drain_s = parse_seconds(drain)
        max_body_bytes = parse_bytes(max_body_size)
    except BadUnit as error:
        raise UsageProblem(str(error), fix=error.fix) from error
    if not 0 < memory_fraction <= 1:
        raise UsageProblem(f"--memory-fraction must be above 0 and at most 1, not {memory_fraction}")
    api_keys = read_api_keys(api_key_file, api_key_env, os.environ)
    try:
        # By name, because the control plane must not depend on torch.
        server = importlib.import_module("trtx.serve.main")
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "this installation of trtx cannot serve",
            why=f"the package {error.name} is not installed",
            fix="pip install 'trtx[engine]'",
        ) from error
    gc.set_threshold(700, 10, 10)  # Python's own, which short commands raise: cycles may hold tensors.
    server.serve_engine(
        engine,
        host=host,
        port=port,
        model_name=model_name,
        kv_cache_bytes=kv_cache_bytes,
        memory_fraction=memory_fraction,
        scheduler={"policy": policy.value, "chunked_prefill": chunked_prefill, "prefix_reuse": prefix_reuse},
        overlap=overlap,
        tool_call_parser=tool_call_parser.value,
        api_keys=api_keys,
        max_waiting=max_waiting,
        max_body_bytes=max_body_bytes,
        log_requests=log_requests,
        drain_s=drain_s,
        say=context.obj.say,
        announce=context.obj.json if output is OutputFormat.JSON else None,
    )
