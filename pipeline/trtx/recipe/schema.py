"""The recipe language `trtx/v1`: closed, frozen models. A field's description is its help, in editors and in errors.

Defaults stand here and nowhere else. Checks that look at more than one field are in trtx.recipe.checks; what the
language has and this version cannot do is in trtx.recipe.unavailable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, model_validator

from trtx.recipe.measure import Benchmark, Gates
from trtx.recipe.partial import make_partial, merge
from trtx.recipe.parts import Many, Name, Part, Positive, Text, Url, section
from trtx.recipe.runners import Job, Runner
from trtx.recipe.tensorrt_llm import (
    IMAGE_FILE,
    FlagValue,
    Lora,
    OptionName,
    PluginValue,
    Preset,
    Speculative,
    take_composed,
    with_aliases,
)
from trtx.recipe.units import ByteSize

SCHEMA = "trtx/v1"
# Versions that `trtx migrate` brings to this one, oldest first.
OLDER = ("trtx/v0",)
DEMO = "demo://"
RANDOM = "random://"
# Tokens in one block of the embedded backend's KV cache when a recipe does not say.
BLOCK_TOKENS = 16
DEMO_DATASET = "demo://docs"

# The algorithm that keeps the numbers of the checkpoint, whatever they are.
AS_STORED = "checkpoint"

Algorithm = Literal[
    "none",
    "checkpoint",
    "fp8",
    "fp8_dynamic",
    "fp8_block_wo",
    "int8_sq",
    "int8_wo",
    "int4_wo",
    "int4_awq",
    "int4_gptq",
    "w4a8_awq",
    "nvfp4",
    "nvfp4_awq",
    "mxfp4",
    "mxfp8",
]

# Grammar of image references: https://pkg.go.dev/github.com/distribution/reference
_COMPONENT = r"[a-z0-9]+((\.|__?|-+)[a-z0-9]+)*"
_DOMAIN = r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?"
_IMAGE = rf"({_DOMAIN}/)?{_COMPONENT}(/{_COMPONENT})*"
IMAGE_PATTERN = rf"^{_IMAGE}$"
BASE_PATTERN = rf"^{_IMAGE}(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?$"
CONTAINER_PATTERN = f"{BASE_PATTERN}|{IMAGE_FILE}"
if TYPE_CHECKING:
    AnyAlgorithm = Algorithm
else:
    AnyAlgorithm = with_aliases(Algorithm, get_args(Algorithm))


class Model(Part):
    """The model to compile."""

    source: Url = Field(
        description="Where the model is: hf://owner/name, file:///folder, demo://tiny-llama, any fsspec URL, or "
        "random://llama-3-8b, a published shape with random weights."
    )
    revision: Text = Field(
        default="main", description="Branch, tag or commit of an hf:// source; a commit is the only one that stays."
    )
    allow_pickle: bool = Field(
        default=False,
        description="Accept *.bin weights, which can run code when they are loaded, if nothing else is there.",
    )


class Calibration(Part):
    """The text that activations are observed on, and the held-out text that perplexity is measured on."""

    dataset: Url = Field(
        default=DEMO_DATASET,
        description="Texts: hf://owner/name, file:///path (.txt, .jsonl or a folder), demo://docs. Must be given for "
        "algorithms that need calibration, unless the model is a demo:// or random:// one.",
    )
    revision: Text = Field(default="main", description="Branch, tag or commit of an hf:// dataset.")
    split: Text = Field(default="train", description="Split of a hub dataset.")
    column: Text = Field(default="text", description="Column that holds the text.")
    samples: Positive = Field(default=512, description="Rows to calibrate with.")
    heldout: Positive = Field(default=32, description="Other rows, to measure perplexity before and after.")
    max_length: Annotated[int, Field(ge=2)] = Field(default=512, description="Tokens per row; longer rows are cut.")
    batch_size: Positive = Field(default=8, description="Rows per forward pass.")
    seed: Annotated[int, Field(ge=0)] = Field(default=7, description="Seed that draws the rows.")


class Quantization(Part):
    """One variant: how weights, activations and the KV cache are stored."""

    _composed = model_validator(mode="before")(take_composed)

    algorithm: AnyAlgorithm = Field(
        description="none: not quantized; checkpoint: as the model's files are, which may be quantized already by "
        "ModelOpt, AutoAWQ, GPTQ or compressed-tensors (found by config.json); _wo: weights only; _sq: SmoothQuant; "
        "_awq: activation-aware. ModelOpt's own names are taken too: fp8_pb_wo is fp8_block_wo, fp8_default-kv_fp8 is "
        "fp8 with such a KV cache."
    )
    kv_cache: Literal["auto", "fp8", "int8"] = Field(
        default="auto",
        description="Number format of the KV cache; auto is the engine's dtype, or a quantized checkpoint's own.",
    )
    exclude: Annotated[tuple[Text, ...], Field(strict=False)] = Field(
        default=("lm_head",), description="Modules that stay unquantized, by name or glob."
    )
    calibration: Calibration = section("Calibration and held-out text.")


class Limits(Part):
    """What the engine is compiled for. Requests beyond them are refused."""

    max_batch_size: Positive = Field(default=8, description="Sequences in one step.")
    max_num_tokens: Positive = Field(default=2048, description="Tokens in one step.")
    max_seq_len: Annotated[int, Field(ge=2)] = Field(
        default=2048, description="Tokens of one sequence, prompt and answer together."
    )
    max_input_len: Positive | None = Field(
        default=None, description="Tokens of one prompt; the release's default, at most max_seq_len, when left out."
    )
    max_beam_width: Positive = Field(default=1, description="Beams of beam search; 1 is none.")


class KvCache(Part):
    """The paged KV cache."""

    tokens_per_block: Literal[8, 16, 32, 64, 128] | None = Field(
        default=None, description="Tokens in one block; 16 when left out, or with tensorrt-llm the release's own."
    )
    memory_fraction: Annotated[float, Field(gt=0, le=0.95)] = Field(
        default=0.9, description="Share of the memory that is free after loading. Not together with `size`."
    )
    size: ByteSize | None = Field(
        default=None, description="Fixed size, with unit, instead of `memory_fraction`; of each rank."
    )
    reuse: bool = Field(
        default=True, description="Keep full blocks of ended requests for later ones that begin with the same tokens."
    )
    host_size: ByteSize | None = Field(
        default=None, description="Host memory for blocks that the GPU has no room for, with unit; none when left out."
    )

    @property
    def block_tokens(self) -> int:
        """Tokens in one block of the embedded backend."""
        return BLOCK_TOKENS if self.tokens_per_block is None else self.tokens_per_block


class Scheduler(Part):
    """How requests are put into batches."""

    policy: Literal["guaranteed-no-evict", "max-utilization"] = Field(
        default="max-utilization",
        description="guaranteed-no-evict starts a request only when its longest answer fits into the KV cache; "
        "max-utilization starts it as soon as its prompt does, and may have to pause it and compute it again.",
    )
    chunked_prefill: bool = Field(
        default=True,
        description="Split prompts over several steps, beside the tokens of others. Without it no prompt may be longer "
        "than max_num_tokens.",
    )


class Engine(Part):
    """What is compiled and how it runs."""

    backend: Literal["inductor", "tensorrt-llm"] = Field(default="inductor", description="Compiler and runtime.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Type of activations and unquantized weights; auto is the checkpoint's."
    )
    limits: Limits = section("What the engine is compiled for.")
    kv_cache: KvCache = section("The paged KV cache.")
    scheduler: Scheduler = section("How requests are put into batches.")
    release: Text | None = Field(
        default=None, description="Release of TensorRT-LLM, such as 1.2.1: it decides flags, image, CUDA and driver."
    )
    flow: Literal["auto", "engine", "pytorch"] = Field(
        default="auto",
        description="engine: trtllm-build makes TensorRT engines; pytorch: a checkpoint and an options file, since "
        "1.0; auto is what the release does by default.",
    )
    probe: Text | None = Field(
        default=None,
        description="File of `trtx probe IMAGE --write FILE`, relative to the recipe: what the release really accepts, "
        "in place of the shipped tables.",
    )
    container: Annotated[str, Field(pattern=CONTAINER_PATTERN)] | None = Field(
        default=None,
        description="Image that has the release's tools, in place of NVIDIA's; or the path of a .sif or .sqsh.",
    )
    converter: Literal["auto", "trtx", "release"] = Field(
        default="auto",
        description="Who quantizes and writes the checkpoint that trtllm-build reads: trtx itself, without a GPU, or "
        "the release's own scripts in its container. auto is trtx where it can.",
    )
    preset: Preset | None = Field(
        default=None, description="A documented set of the release's flags; what is set beside it goes before it."
    )
    profiles: bool | None = Field(
        default=None,
        description="Several optimization profiles: slower builds, better kernels at mixed batch sizes. The preset "
        "decides when left out; without one there is one profile.",
    )
    plugins: dict[OptionName, PluginValue] = Field(
        default={}, description="Plugins of trtllm-build by name: {gemm_plugin: auto, reduce_fusion: enable}."
    )
    build_options: dict[OptionName, FlagValue] = Field(
        default={}, description="Further flags of the release's trtllm-build by name, without dashes."
    )
    llm_options: dict[OptionName, Any] = Field(
        default={}, description="Further keys of the release's LLM options file, in the pytorch flow."
    )
    speculative: Speculative | None = Field(default=None, description="Speculative decoding; none when left out.")
    lora: Lora | None = Field(default=None, description="Adapters served beside the model; none when left out.")
    strict_gpu: bool = Field(
        default=False,
        description="Build for this very GPU, and not for all of its compute capability: TensorRT tunes on the one it "
        "runs on.",
    )


if TYPE_CHECKING:
    EngineOverride = Engine
else:
    EngineOverride = make_partial(Engine)


class Parallelism(Part):
    """How one engine is spread over devices."""

    tensor: Positive = Field(default=1, description="Ranks that share each layer.")
    pipeline: Positive = Field(default=1, description="Groups of layers.")
    context: Positive = Field(default=1, description="Ranks that share each long prompt.")
    expert: Positive = Field(
        default=1, description="Groups of the tensor ranks that hold different experts; a divisor of `tensor`."
    )
    gpus_per_node: Positive = Field(default=8, description="GPUs of one node, which more ranks are spread over.")


class Target(Part):
    """One kind of machine of the fleet."""

    gpu: Text = Field(
        description="Device of the catalogue: h100-sxm-80gb, l40s-48gb, cpu, …; `trtx doctor` lists them."
    )
    parallelism: Parallelism = section("How one engine is spread over devices.")
    quantization: Many[Name] | None = Field(
        default=None, description="Variants to build for this target; all of them when left out."
    )
    engine: EngineOverride = section("What differs from the recipe's `engine`; maps merge.")
    runner: Name = Field(
        default="local", description="Where the steps of this target run: a name in `runners`; `local` is this machine."
    )
    job: Job = section("What the jobs of this target ask for, over what its runner says.")


class Package(Part):
    """The deployment folder."""

    image: Annotated[str, Field(pattern=IMAGE_PATTERN)] | None = Field(
        default=None, description="Name of the container image without tag, such as registry.example.com/llm/chat."
    )
    base: Annotated[str, Field(pattern=BASE_PATTERN)] = Field(
        default="docker.io/library/python:3.12-slim-bookworm",
        description="Base image with a tag, best with @sha256:… so that it cannot change under you.",
    )
    emit: Many[Literal["compose", "kubernetes", "triton"]] = Field(
        default=("compose",), description="Deployment files to write."
    )
    triton_base: Annotated[str, Field(pattern=BASE_PATTERN)] = Field(
        default="nvcr.io/nvidia/tritonserver:25.08-py3",
        description="Image of Triton Inference Server, for triton in `emit`; its Python must be 3.11 or later.",
    )

    @property
    def images(self) -> tuple[str, ...]:
        """The images that containers of the package are built on."""
        return (self.base, self.triton_base) if "triton" in self.emit else (self.base,)


class Serving(Part):
    """How a packaged engine serves."""

    api: Literal["openai"] = Field(default="openai", description="HTTP interface.")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(default=8000, description="TCP port.")


class Recipe(Part):
    """One recipe: a model, its variants, and the fleet to build them for."""

    model_config = ConfigDict(defer_build=False)

    schema_: Literal["trtx/v1"] = Field(alias="schema", description="Version of the recipe language.")
    name: Name = Field(description="Name of the recipe, used in image names and reports.")
    description: str | None = Field(default=None, description="Free text for readers.")
    model: Model = Field(description="The model to compile.")
    quantization: Annotated[dict[Name, Quantization], Field(min_length=1)] = Field(description="Variants by name.")
    engine: Engine = section("What is compiled and how it runs.")
    targets: Annotated[dict[Name, Target], Field(min_length=1)] = Field(description="Kinds of machines by name.")
    benchmark: Benchmark | None = Field(default=None, description="What is measured; nothing when left out.")
    gates: Gates | None = Field(default=None, description="Conditions for GO.")
    package: Package = section("The deployment folder.")
    serving: Serving = section("How a packaged engine serves.")
    runners: dict[Name, Runner] = Field(
        default={},
        description="Where steps run, by name, over the site's; `local` is always there.",
    )

    def engine_for(self, target_name: str) -> Engine:
        """The engine of one target: the recipe's with the target's differences merged in."""
        return merge(self.engine, self.targets[target_name].engine)

    def variants_of(self, target_name: str) -> tuple[str, ...]:
        """Names of the variants built for a target, in the order of the recipe."""
        chosen = self.targets[target_name].quantization
        return tuple(self.quantization) if chosen is None else chosen
