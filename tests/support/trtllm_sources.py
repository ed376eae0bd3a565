"""A stand-in for an installed TensorRT-LLM: sources in its idioms, written for the tests; read and never imported."""

from __future__ import annotations

import textwrap
from pathlib import Path

VERSION = "9.8.7"

FILES = {
    "tensorrt_llm/version.py": f'__version__ = "{VERSION}"\n',
    "tensorrt_llm/__init__.py": 'raise RuntimeError("these sources must not be imported")\n',
    "tensorrt_llm/models/__init__.py": """
        from .llama.model import LLaMAForCausalLM

        MODEL_MAP = {
            "LlamaForCausalLM": LLaMAForCausalLM,
            "MixtralForCausalLM": LLaMAForCausalLM,
        }
    """,
    "tensorrt_llm/_torch/models/modeling_llama.py": """
        from .modeling_utils import register_auto_model

        NAME = "MistralForCausalLM"

        @register_auto_model("LlamaForCausalLM")
        class LlamaForCausalLM:
            pass

        @register_auto_model(NAME)
        class MistralForCausalLM:
            pass

        @register_vision_encoder(LlamaForCausalLM)
        class Other:
            pass
    """,
    "tensorrt_llm/quantization/mode.py": """
        import os
        from enum import IntFlag, auto
        from .._utils import BaseEnumMeta, StrEnum

        class QuantAlgo(StrEnum, metaclass=BaseEnumMeta):
            W8A16 = auto()
            FP8 = auto()
            INT8 = auto()
            NVFP4 = auto()

        QUANT_ALGO_LIST = list(set(QuantAlgo) - {QuantAlgo.INT8})
        KV_CACHE_QUANT_ALGO_LIST = [QuantAlgo.FP8, QuantAlgo.INT8]
        FORCED = os.environ.get("OVERRIDE_QUANT_ALGO", None)
        if "TLLM_SWITCH" in os.environ or os.getenv("TLLM_OTHER"):
            FORCED = os.environ["TLLM_THIRD"]
        UNNAMED = os.environ.get(FORCED)
    """,
    "tensorrt_llm/builder.py": """
        from dataclasses import dataclass, field
        from pydantic import Field
        from .llmapi.utils import StrictBaseModel
        from .plugin.plugin import PluginConfig

        DEFAULT_MAX_TOKENS = 4 * 1024

        class BuildConfig(StrictBaseModel):
            max_input_len: int = Field(default=1024)
            max_num_tokens: int = DEFAULT_MAX_TOKENS * 2
            opt_batch_size: int = Field(default=8, description="text")
            plugin_config: PluginConfig = Field(default_factory=PluginConfig)
    """,
    "tensorrt_llm/kv_cache_type.py": """
        import enum

        class KVCacheType(enum.Enum):
            CONTINUOUS = "continuous"
            PAGED = "paged"
    """,
    "tensorrt_llm/plugin/plugin.py": """
        from typing import Literal, Optional
        from pydantic import BaseModel, Field

        DefaultPluginDtype = Literal["auto", "float16", None]
        cli_plugin_args = ["gemm_plugin", "nccl_plugin", "gemm_swiglu_plugin", "context_fmha", "tokens_per_block"]

        class PluginConfig(BaseModel):
            dtype: str = Field(default="float16")
            gemm_plugin: Optional[DefaultPluginDtype] = Field(default=None)
            nccl_plugin: Optional[DefaultPluginDtype] = Field(default="auto")
            gemm_swiglu_plugin: Optional[Literal["fp8", None]] = Field(default=None)
            context_fmha: bool = Field(default=True)
            hidden_switch: bool = Field(default=False)
            tokens_per_block: int = Field(default=32)

        def add_plugin_argument(parser):
            for name, info in PluginConfig.model_fields.items():
                if name not in cli_plugin_args:
                    continue
                if name == "gemm_plugin":
                    fallback = info.default
                else:
                    fallback = info.default or "disable"
                parser.add_argument("--" + name, default=fallback, help=info.description)
            return parser
    """,
    "tensorrt_llm/commands/build.py": """
        import argparse
        import os
        from argparse import SUPPRESS
        from tensorrt_llm.builder import BuildConfig
        from tensorrt_llm.kv_cache_type import KVCacheType
        from tensorrt_llm.lora_helper import add_lora_arguments
        from tensorrt_llm.plugin.plugin import add_plugin_argument

        LEVELS = {"info": 20, "debug": 10}

        def enum_type(kind):
            return lambda word: kind(word)

        def parse_arguments():
            parser = argparse.ArgumentParser()
            parser.add_argument("--checkpoint_dir", type=str, default=None)
            parser.add_argument("--max_input_len", type=int, default=BuildConfig.model_fields["max_input_len"].default)
            parser.add_argument("--max_num_tokens", type=int, default=BuildConfig.max_num_tokens)
            parser.add_argument("--workers", type=int, default=os.cpu_count())
            parser.add_argument("--kv_cache_type", type=KVCacheType, default=SUPPRESS)
            parser.add_argument("--log_level", default="info", choices=LEVELS.keys())
            parser.add_argument("--cluster", choices=make_clusters(), default=None)
            parser.add_argument("--seed", type=int, nargs="?", const=-1, default=-1 * 7)
            parser.add_argument("--fast", "-f", action="store_true")
            parser.add_argument("--strip", action=argparse.BooleanOptionalAction, default=True)
            parser.add_argument("--old", default=None, help="Deprecated: not used any more")
            for side in ("encoder", "decoder"):
                parser.add_argument(f"--{side}_len", type=int, default=1)
            try:
                extra = parser.add_argument_group("Further arguments")
                extra.add_argument("--names", type=str, nargs="+", default=["a", *("b", "c")])
            finally:
                pass
            if os.name == "posix":
                extra.add_argument("--ratio", type=float, default=1 / 4)
            add_lora_arguments(parser)
            plugins = parser.add_argument_group("Plugin config arguments")
            add_plugin_argument(plugins)
            return parser

        def main():
            parse_arguments()
    """,
    "tensorrt_llm/lora_helper.py": """
        def lora_modules():
            return {"attn_q": "q_proj", "attn_k": "k_proj"}

        MODULES = ["attn_q", "attn_k"]

        def add_lora_arguments(parser):
            parser.add_argument("--lora_target_modules", nargs="+", default=None, choices=MODULES)
    """,
    "tensorrt_llm/commands/serve.py": """
        import click
        from tensorrt_llm.llmapi import BuildConfig
        from tensorrt_llm.commands.shared import ChoiceWithAlias, tagged_option, with_log_level

        GPUS = 8

        def help_info_with_stability_tag(text, tag):
            return f"{tag} {text}"

        @click.command("serve")
        @click.argument("model", type=str)
        @click.option("--backend", default="pytorch",
                      type=ChoiceWithAlias(["pytorch", "tensorrt"], {"trt": "tensorrt"}),
                      help=help_info_with_stability_tag("text", "beta"))
        @click.option("--tensor_parallel_size", "--tp_size", type=int, default=1)
        @click.option("--max_num_tokens", type=int, default=BuildConfig.model_fields["max_num_tokens"].default)
        @click.option("--gpus", type=click.IntRange(min=1, max=GPUS), default=None)
        @click.option("--chunked/--no-chunked", "enable_chunked", default=True)
        @click.option("--trust_remote_code", is_flag=True, default=False)
        @click.option("--modules", type=click.Path(exists=True), multiple=True)
        @click.option("--fraction", default=0.9)
        @tagged_option("--role", type=click.Choice(["a", "b"], case_sensitive=False), status="prototype")
        @with_log_level
        def serve(**kwargs):
            pass

        @click.command()
        @click.option("-c", "--config_file", required=True, type=str)
        def disaggregated(config_file):
            pass

        class DefaultGroup(click.Group):
            def resolve_command(self, ctx, args):
                if not args or args[0] not in self.commands:
                    args = ["serve", *args]
                return super().resolve_command(ctx, args)

        main = DefaultGroup(commands={"serve": serve, "disaggregated": disaggregated})
    """,
    "tensorrt_llm/commands/shared.py": """
        import click

        class ChoiceWithAlias(click.Choice):
            pass

        def tagged_option(*names, status, **settings):
            return click.option(*names, **settings)

        def with_log_level(function):
            function = click.option("--log_level", type=click.Choice(["info", "debug"]), default="info")(function)
            return function
    """,
    "tensorrt_llm/commands/bench.py": """
        from pathlib import Path
        import click
        from tensorrt_llm.bench.build import build_command
        from tensorrt_llm.bench.data import prepare_dataset

        @click.group(name="trtllm-bench", context_settings={"show_default": True})
        @click.option("--model", "-m", required=True, type=str)
        @click.option("--workspace", "-w", default="/tmp", type=click.Path(writable=True))
        @click.pass_context
        def main(ctx, **params):
            pass

        main.add_command(build_command)
        main.add_command(prepare_dataset)
    """,
    "tensorrt_llm/bench/build.py": """
        import click
        from click_option_group import optgroup

        @click.command(name="build")
        @optgroup.group("Engine", help="text")
        @optgroup.option("--tp_size", "-tp", type=int, default=1)
        @optgroup.option("--pp_size", "-pp", type=int, default=1)
        def build_command(**params):
            pass
    """,
    "tensorrt_llm/bench/data.py": """
        import click

        @click.group(name="prepare-dataset")
        @click.option("--output", required=True, type=str)
        def prepare_dataset(output):
            pass

        @prepare_dataset.command("token-norm-dist")
        @click.option("--num-requests", required=True, type=int)
        @click.option("--input-mean", required=True, type=int)
        def token_norm_dist(**params):
            pass
    """,
    "tensorrt_llm/llmapi/__init__.py": "from ..builder import BuildConfig\n",
    "tensorrt_llm/llmapi/utils.py": """
        from pydantic import BaseModel

        class StrictBaseModel(BaseModel):
            class Config:
                extra = "forbid"
    """,
    "tensorrt_llm/llmapi/llm_args.py": """
        import torch
        from enum import Enum
        from typing import ClassVar, List, Literal, Optional, Union
        from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr
        from .utils import StrictBaseModel

        FormatName = Literal["auto", "dummy"]

        class CapacityPolicy(str, Enum):
            MAX_UTILIZATION = "MAX_UTILIZATION"
            STATIC_BATCH = "STATIC_BATCH"

        class KvCacheConfig(StrictBaseModel):
            enable_block_reuse: bool = Field(default=True, description="text")
            free_gpu_memory_fraction: Optional[float] = Field(default=0.9, ge=0, le=1)
            policy: CapacityPolicy = CapacityPolicy.STATIC_BATCH

        class DecodingBaseConfig(StrictBaseModel):
            max_draft_len: Optional[int] = None
            speculative_model: Optional[str] = Field(
                default=None, validation_alias=AliasChoices("speculative_model", "speculative_model_dir"))

        class MedusaDecodingConfig(DecodingBaseConfig):
            decoding_type: ClassVar[str] = "Medusa"
            num_heads: int

        class Unrelated(StrictBaseModel):
            anything: int = 1

        class BaseLlmArgs(StrictBaseModel):
            model: Union[str, "Path"] = Field(description="text")
            load_format: Union[FormatName, Literal["other"]] = "auto"
            tensor_parallel_size: int = Field(default=1)
            gpus: int = Field(default=torch.cuda.device_count())
            _private: int = PrivateAttr(default=1)

        class TorchLlmArgs(BaseLlmArgs):
            kv_cache_config: KvCacheConfig = Field(default_factory=KvCacheConfig)
            speculative_config: Optional[DecodingBaseConfig] = None
            attn_backend: str = Field(default="TRTLLM", json_schema_extra={"status": "beta"})
            stops: "List[int]" = Field(default_factory=list)
    """,
    "examples/quantization/quantize.py": """
        import argparse
        if __name__ == "__main__":
            parser = argparse.ArgumentParser(description=__doc__)
            parser.add_argument("--model_dir", default=None)
            parser.add_argument("--qformat", default="full_prec", choices=["fp8", "nvfp4", "full_prec"])
            parser.add_argument("--tp_size", type=int, default=1)
            args = parser.parse_args()
    """,
    "examples/models/core/llama/convert_checkpoint.py": """
        import argparse

        def parse_arguments():
            parser = argparse.ArgumentParser()
            parser.add_argument("--model_dir", type=str, default=None)
            parser.add_argument("--dtype", type=str, default="auto", choices=["auto", "float16", "bfloat16"])
            parser.add_argument("--weight_only_precision", const="int8", type=str, nargs="?", default="int8",
                                choices=["int8", "int4"])
            return parser.parse_args()
    """,
    "examples/models/core/broken/convert_checkpoint.py": "def parse_arguments(:\n",
}


def write_sources(folder: Path, *, package: str = "", scripts: str = "") -> Path:
    """Write the stand-in below a folder; `package` and `scripts` are where an image would have its two parts."""
    for name, text in FILES.items():
        place = folder / (scripts if name.startswith("examples/") else package) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(textwrap.dedent(text).lstrip("\n"))
    return folder
