"""Recipe, model and release → the typed value that every command and file of TensorRT-LLM is made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trtx.backends.tensorrt_llm.presets import Case, expand_preset
from trtx.backends.tensorrt_llm.releases import Flow, Release
from trtx.backends.tensorrt_llm.shape import read_dtype
from trtx.backends.tensorrt_llm.spec import (
    Batching,
    CheckpointSpec,
    Container,
    Converter,
    Device,
    Lora,
    Pool,
    Ranks,
    Shape,
    Sizes,
    Speculation,
    TrtllmSpec,
)
from trtx.models.config import DType
from trtx.models.formats import QuantFormat
from trtx.recipe.schema import Engine, Quantization

if TYPE_CHECKING:
    from trtx.backends.tensorrt_llm.refusals.base import Subject

# Of TrtllmSpec.plugins; other options of trtllm-build are plain flags.
SWITCHES = ("enable", "disable")
BLOCK_TOKENS = 32


def resolve_flow(engine: Engine, release: Release) -> Flow:
    """The flow of an engine: what the recipe says, else what the release does by itself."""
    return release.default_flow if engine.flow == "auto" else engine.flow


def resolve_dtype(engine: Engine, config: Mapping[str, Any]) -> DType:
    """`auto` is the checkpoint's own type; 32 bits are served in 16."""
    if engine.dtype != "auto":
        return engine.dtype
    stored = read_dtype(config)
    return "bfloat16" if stored == "float32" else stored


def choose_image(engine: Engine, release: Release) -> str:
    """The image that has the release's tools; empty when none is known."""
    return engine.container or release.image or release.triton_image or ""


def make_format(variant: Quantization) -> QuantFormat:
    """The number formats of a variant."""
    return QuantFormat.model_validate(
        {"algorithm": variant.algorithm, "kv_cache": variant.kv_cache, "exclude": variant.exclude}
    )


def make_checkpoint_spec(
    subject: Subject, converter: Converter, *, dtype: DType = "bfloat16", container: Container | None = None
) -> CheckpointSpec:
    """What the checkpoint of an engine depends on. The subject's model must be known."""
    ways = subject.parallelism
    return CheckpointSpec(
        release=subject.release.version,
        container=container,
        shape=_shape(subject),
        quantization=make_format(subject.variant),
        dtype=dtype,
        ranks=Ranks(tensor=ways.tensor, pipeline=ways.pipeline, context=ways.context, expert=ways.expert),
        converter=converter,
    )


def make_spec(
    subject: Subject, *, dtype: DType, converter: Converter, digest: str | None, probe: str | None
) -> TrtllmSpec:
    """All that a recipe says about one engine. `digest` is its image's, `probe` the SHA-256 of its probe file.

    The subject's model must be known.
    """
    engine, image = subject.engine, choose_image(subject.engine, subject.release)
    name, _, written = image.partition("@")
    container = Container(image=name, digest=written or digest)
    base = make_checkpoint_spec(subject, converter, dtype=dtype, container=container)
    preset = expand_preset(engine.preset, subject.release, subject.flow, _case(subject))
    lora = engine.lora
    return TrtllmSpec(
        **{name: getattr(base, name) for name in CheckpointSpec.model_fields if name not in ("probe", "container")},
        probe=probe,
        container=container,
        flow=subject.flow,
        device=Device(name=subject.gpu.name, sm=subject.sm, memory_bytes=subject.gpu.memory_bytes or 0),
        sizes=_sizes(engine),
        pool=make_pool(engine, subject.release, subject.flow),
        batching=Batching(policy=engine.scheduler.policy, chunked_context=engine.scheduler.chunked_prefill),
        profiles=preset.get("multiple_profiles") == "enable" if engine.profiles is None else engine.profiles,
        speculation=_speculation(engine),
        lora=Lora.model_validate(lora.model_dump()) if lora else None,
        **_flags(subject, preset),
    )


def _shape(subject: Subject) -> Shape:
    if subject.shape is None:
        raise ValueError("the shape of the model is not known")
    return subject.shape


def _case(subject: Subject) -> Case:
    variant = subject.variant
    return Case(subject.algorithm, variant.kv_cache, subject.sm, subject.parallelism.tensor, subject.shape)


def _sizes(engine: Engine) -> Sizes:
    limits = engine.limits
    return Sizes(
        max_batch_size=limits.max_batch_size,
        max_num_tokens=limits.max_num_tokens,
        max_seq_len=limits.max_seq_len,
        max_input_len=limits.max_input_len,
        max_beam_width=limits.max_beam_width,
    )


def make_pool(engine: Engine, release: Release, flow: Flow) -> Pool:
    """The KV cache; blocks have the release's own size where the recipe does not say one."""
    cache = engine.kv_cache
    return Pool(
        tokens_per_block=cache.tokens_per_block or default_block(release, flow),
        memory_fraction=cache.memory_fraction,
        reuse=cache.reuse,
        host_bytes=cache.host_size or 0,
    )


def default_block(release: Release, flow: Flow) -> int:
    """Tokens of a block when nobody says: --tokens_per_block of trtllm-build, or KvCacheConfig's own."""
    if flow == "engine":
        tool = release.tools.get("trtllm-build")
        option = tool.option("tokens_per_block") if tool else None
        default = option.default if option else None
    else:
        known = release.schema_fields("KvCacheConfig") if "KvCacheConfig" in release.schemas else {}
        default = known["tokens_per_block"].default if "tokens_per_block" in known else None
    return default if isinstance(default, int) else BLOCK_TOKENS


def _speculation(engine: Engine) -> Speculation | None:
    wanted = engine.speculative
    if wanted is None:
        return None
    return Speculation(mode=wanted.mode, max_draft_len=wanted.max_draft_len, draft=wanted.draft)


def _flags(subject: Subject, preset: dict[str, Any]) -> dict[str, Any]:
    """`plugins` and `options` of a spec, the preset's below what the recipe states."""
    engine = subject.engine
    if subject.flow == "pytorch":
        # The PyTorch backend ignores a build_config, which the recipe is warned of.
        stated = {name: value for name, value in engine.llm_options.items() if name != "build_config"}
        return {"plugins": {}, "options": {**preset, **stated}}
    own = {*subject.plugins, *engine.build_options, "multiple_profiles"}
    plugins = {name: str(value) for name, value in preset.items() if name not in own}
    return {"plugins": {**plugins, **subject.plugins}, "options": dict(engine.build_options)}
