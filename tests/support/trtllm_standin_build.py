"""The stand-in for trtllm-build: it refuses and overrides as the real one does, and writes no engine worth the name."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.trtllm_standin_check import find_problems
from support.trtllm_standins import Wrong

from trtx.backends.tensorrt_llm.releases import Release
from trtx.files import sha256_file

FP8_FORMATS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "MIXED_PRECISION")
INTEGER_FORMATS = ("W8A16", "W4A16", "W8A8_SQ_PER_CHANNEL", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN")
REDUCE_FUSION = ("LlamaForCausalLM", "Gemma2ForCausalLM", "MedusaForCausalLM")


def local_sm() -> int:
    """The compute capability of the stand-in's nvidia-smi."""
    answer = subprocess.run(
        [str(shutil.which("nvidia-smi")), "--query-gpu=compute_cap,name"], capture_output=True, text=True, check=True
    )
    return int(answer.stdout.partition(",")[0].replace(".", ""))


def run_build(release: Release, values: Mapping[str, Any]) -> None:
    checkpoint, output = Path(values["checkpoint_dir"]), Path(values["output_dir"])
    if problems := find_problems(checkpoint, release):
        raise Wrong("RuntimeError: " + "; ".join(problems))
    config = json.loads((checkpoint / "config.json").read_text())
    sm = local_sm()
    refuse(config, values, sm)
    plugins = make_plugins(release, config, values, sm)
    build = make_build_config(release, config, values)
    output.mkdir(parents=True, exist_ok=True)
    engine = {
        "version": release.version,
        "pretrained_config": config,
        "build_config": {**build, "plugin_config": plugins, "lora_config": {}},
        "stand_in": "no engine is in these files",
    }
    (output / "config.json").write_text(json.dumps(engine, indent=1))
    for rank in range(config["mapping"]["world_size"]):
        source = checkpoint / f"rank{rank // config['mapping'].get('cp_size', 1)}.safetensors"
        text = {"stand_in": True, "release": release.version, "sm": sm, "weights_sha256": sha256_file(source)}
        (output / f"rank{rank}.engine").write_text(json.dumps(text))
    Path(values["output_timing_cache"]).write_text("stand-in\n")
    print("[TRT-LLM] [I] Total time of building all engines: 00:00:00")


def refuse(config: Mapping[str, Any], values: Mapping[str, Any], sm: int) -> None:
    """What the builder ends with: commands/build.py and builder.py of 1.3.0rc3."""
    algorithm = config["quantization"].get("quant_algo")
    if 100 <= sm < 120 and algorithm in INTEGER_FORMATS:
        raise Wrong(f"RuntimeError: {algorithm} is not supported on SM {sm}")
    if values.get("opt_num_tokens") and values["multiple_profiles"] == "enable":
        raise Wrong("ValueError: opt_num_tokens cannot be set when multiple_profiles is enabled")
    if values["streamingllm"] == "enable":
        raise Wrong("AssertionError: streamingllm is not supported")
    draft = values["max_draft_len"]
    if draft and values["max_num_tokens"] < values["max_batch_size"] * (draft + 1):
        raise Wrong("AssertionError: max_num_tokens is too small for max_draft_len")


def make_plugins(
    release: Release, config: Mapping[str, Any], values: Mapping[str, Any], sm: int
) -> dict[str, bool | int | str | None]:
    """plugin_config, with what the builder switches off by itself."""
    algorithm = config["quantization"].get("quant_algo")
    plugins: dict[str, bool | int | str | None] = {"dtype": config["dtype"]}
    for option in release.tools["trtllm-build"].options:
        choices = option.choices if isinstance(option.choices, tuple) else ()
        value = values[option.name]
        if option.name.endswith("_plugin"):
            plugins[option.name] = None if value == "disable" else value
        elif {"enable", "disable"} <= set(choices):
            plugins[option.name] = value == "enable"
    plugins["tokens_per_block"] = values["tokens_per_block"]
    if sm < 89 or config["quantization"].get("kv_cache_quant_algo") != "FP8":
        plugins["use_fp8_context_fmha"] = False
    if config["quantization"].get("kv_cache_quant_algo") == "INT8":
        plugins["use_paged_context_fmha"] = False
    if algorithm not in (None, *FP8_FORMATS) and "use_fused_mlp" in plugins:
        plugins["use_fused_mlp"] = False
    if config["mapping"]["tp_size"] == 1 or config["architecture"] not in REDUCE_FUSION:
        plugins["reduce_fusion"] = False
    if not plugins.get("reduce_fusion") and "user_buffer" in plugins:
        plugins["user_buffer"] = False
    return plugins


def make_build_config(release: Release, config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """build_config, with the sizes that the builder changes by itself: _common.py and builder.py of 1.3.0rc3."""
    draft = values["max_draft_len"]
    max_seq_len = (values["max_seq_len"] or config["max_position_embeddings"]) + draft
    most = max_seq_len * values["max_batch_size"]
    max_num_tokens = max(min(values["max_num_tokens"], most), values["tokens_per_block"])
    wanted = {
        "max_input_len": min(values["max_input_len"], max_seq_len),
        "max_seq_len": max_seq_len,
        "max_batch_size": values["max_batch_size"],
        "max_beam_width": values["max_beam_width"],
        "max_num_tokens": max_num_tokens,
        "opt_num_tokens": values["opt_num_tokens"]
        or min(values["max_batch_size"] * values["max_beam_width"], max_num_tokens),
        "max_draft_len": draft,
        "speculative_decoding_mode": 1 if not values["speculative_decoding_mode"] else 2,
        "kv_cache_type": "PAGED",
        "strongly_typed": True,
    }
    known = release.schema_fields("BuildConfig") if "BuildConfig" in release.schemas else wanted
    return {name: value for name, value in wanted.items() if name in known}
