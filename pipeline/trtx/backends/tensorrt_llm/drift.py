"""What trtllm-build made of what it was told: the engine's own config.json against the spec, setting by setting.

Many of the builder's checks change a setting and only say so in the log (trtx.backends.tensorrt_llm.hard_rules), so
what stands in the engine is the truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm.argv_build import SPECULATION, TOOL, choose_input_len, choose_switches
from trtx.backends.tensorrt_llm.hard_rules import RULES
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.spec import TrtllmSpec
from trtx.backends.tensorrt_llm.support import FORMATS
from trtx.errors import VerificationFailed
from trtx.files import read_json

CONFIG_NAME = "config.json"
# What convert_checkpoint.py makes of --smoothquant --per_channel --per_token, where quantize.py has one name.
CONVERTED = {"int8_sq": "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"}
KV_ALGORITHMS = {"auto": None, "fp8": "FP8", "int8": "INT8"}


@dataclass(frozen=True)
class Drift:
    """One setting that is not what was asked for. `reason` is a known rule of the builder, or empty."""

    field: str
    asked: Any
    got: Any
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.field}: asked for {self.asked!r}, the engine has {self.got!r}" + (
            f" ({self.reason})" if self.reason else ""
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class EngineConfig:
    """Content of an engine folder's config.json: version, pretrained_config and build_config."""

    version: str
    pretrained: Mapping[str, Any]
    build: Mapping[str, Any]

    @property
    def plugins(self) -> Mapping[str, Any]:
        found = self.build.get("plugin_config")
        return found if isinstance(found, dict) else {}


def read_engine_config(engine: Path) -> EngineConfig:
    """Raises VerificationFailed when the folder has no engine's config.json."""
    try:
        data = read_json(engine / CONFIG_NAME)
        return EngineConfig(str(data["version"]), dict(data["pretrained_config"]), dict(data["build_config"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationFailed(
            f"{engine} is no engine folder of TensorRT-LLM",
            why=f"{CONFIG_NAME}: {type(error).__name__}: {error}",
            fix="build it again",
        ) from error


def find_drift(spec: TrtllmSpec, release: Release, config: EngineConfig) -> tuple[Drift, ...]:
    """Every setting of the engine that is not as asked for, with the builder's rule where one is known."""
    return tuple(
        Drift(name, asked, got, _reason(name))
        for name, asked, got in (
            *_version(spec, config),
            *_model(spec, config),
            *_sizes(spec, release, config),
            *_switches(spec, release, config),
        )
    )


Triple = tuple[str, Any, Any]


def _version(spec: TrtllmSpec, config: EngineConfig) -> Iterator[Triple]:
    if config.version != spec.release:
        yield "version", spec.release, config.version


def _model(spec: TrtllmSpec, config: EngineConfig) -> Iterator[Triple]:
    """The checkpoint that was built is the one that the spec describes."""
    shape, found = spec.shape, config.pretrained
    mapping, quantization = found.get("mapping") or {}, found.get("quantization") or {}
    wanted: dict[str, Any] = {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "vocab_size": shape.vocab_size,
        "dtype": spec.dtype,
    }
    for name, value in wanted.items():
        if name in found and found[name] != value:
            yield f"pretrained_config.{name}", value, found[name]
    ranks = spec.ranks
    sizes = {"world_size": ranks.world_size, "tp_size": ranks.tensor, "pp_size": ranks.pipeline}
    if shape.num_experts:
        sizes |= {"moe_tp_size": ranks.expert_tensor, "moe_ep_size": ranks.expert}
    for name, value in sizes.items():
        if mapping.get(name, value) != value:
            yield f"pretrained_config.mapping.{name}", value, mapping[name]
    algorithm = FORMATS[spec.quantization.algorithm].quant_algo
    if quantization.get("quant_algo") not in (algorithm, CONVERTED.get(spec.quantization.algorithm, algorithm)):
        yield "pretrained_config.quantization.quant_algo", algorithm, quantization.get("quant_algo")
    kv_cache = KV_ALGORITHMS[spec.quantization.kv_cache]
    if quantization.get("kv_cache_quant_algo") != kv_cache:
        yield "pretrained_config.quantization.kv_cache_quant_algo", kv_cache, quantization.get("kv_cache_quant_algo")


def _sizes(spec: TrtllmSpec, release: Release, config: EngineConfig) -> Iterator[Triple]:
    sizes = spec.sizes
    wanted: dict[str, Any] = {
        "max_batch_size": sizes.max_batch_size,
        "max_input_len": choose_input_len(spec, release),
        "max_seq_len": sizes.max_seq_len,
        "max_num_tokens": sizes.max_num_tokens,
        "max_beam_width": sizes.max_beam_width,
        "max_draft_len": spec.speculation.max_draft_len if spec.speculation else 0,
    }
    for name, value in wanted.items():
        if name in config.build and config.build[name] != value:
            yield f"build_config.{name}", value, config.build[name]
    mode = SPECULATION.get(spec.speculation.mode) if spec.speculation else None
    found = config.build.get("speculative_decoding_mode")
    # The enumeration is written as its bits, or by name: 1 is none.
    if mode is None and isinstance(found, int) and found != 1:
        yield "build_config.speculative_decoding_mode", None, found


def _switches(spec: TrtllmSpec, release: Release, config: EngineConfig) -> Iterator[Triple]:
    tool = release.tool(TOOL)
    wanted = {**choose_switches(spec, release), "tokens_per_block": spec.pool.tokens_per_block}
    for name, value in wanted.items():
        option = tool.option(name)
        found = config.plugins if name in config.plugins else config.build
        if value is None or name not in found or option is None or (not option.is_certain and name not in spec.plugins):
            continue
        if not _is_same(value, found[name], spec):
            yield f"build_config.{'plugin_config.' if found is config.plugins else ''}{name}", value, found[name]


def _is_same(asked: Any, got: Any, spec: TrtllmSpec) -> bool:
    """Whether config.json says what the command line asked for: words became booleans, `auto` the model's dtype."""
    if asked in (True, "enable"):
        return got in (True, "enable", "True")
    if asked in (False, "disable"):
        return got in (False, None, "disable", "False")
    if asked == "auto":
        return got in ("auto", spec.dtype)
    return bool(asked == got)


def _reason(field: str) -> str:
    """The builder's rule about a setting: what happens, when, and where it stands."""
    name = field.rpartition(".")[2]
    for rule in RULES:
        if rule.flow == "engine" and rule.effect == "override" and name in rule.options:
            return f"{rule.outcome} with {rule.condition}: {rule.source} of 1.3.0rc3"
    return ""
