"""What a recipe says to TensorRT-LLM, in one typed value: the plan makes it, every command and file is made from it.

It holds no path and no secret, so its canonical JSON is a factor of the steps that use it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trtx.backends.tensorrt_llm.releases import Flow
from trtx.models.config import DType
from trtx.models.formats import QuantFormat

Policy = Literal["guaranteed-no-evict", "max-utilization"]
# Who writes the checkpoint that trtllm-build reads: trtx's own writer, or the release's scripts in its container.
Converter = Literal["trtx", "release"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shape(Frozen):
    """What refusals and commands need of a model: the sizes of config.json by Hugging Face's meaning.

    `architecture` is its `architectures` entry. `num_experts` is 0 for a dense model; `max_position_embeddings`
    includes no RoPE factor, `rope_factor` is that factor (1 where there is none). `expert_size` is the experts'
    intermediate size, `latent_channels` what one token keeps in one layer's KV cache with multi-head latent attention
    (0 for plain heads), `draft_layers` its layers for multi-token prediction, `stored_as` the algorithm that the
    checkpoint is already quantized by ("none": it is not).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_factor: float = 1.0
    num_experts: int = 0
    experts_per_token: int = 0
    num_parameters: int = 0
    expert_size: int = 0
    latent_channels: int = 0
    draft_layers: int = 0
    stored_as: str = "none"


class Ranks(Frozen):
    """The recipe's parallelism. `expert` is how many groups of ranks hold different experts (EP), 1 for none."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1

    @property
    def world_size(self) -> int:
        """Ranks of one engine, and so its GPUs: tp · pp · cp."""
        return self.tensor * self.pipeline * self.context

    @property
    def expert_tensor(self) -> int:
        """Ranks that share each expert: moe_tp · moe_ep = tp."""
        return self.tensor // self.expert


class Device(Frozen):
    """The target's GPU: its name in the catalogue, compute capability as 90, memory in bytes."""

    name: str
    sm: int
    memory_bytes: int


class Container(Frozen):
    """The image that runs the release's tools. `digest` is `sha256:…`, None while no registry has said it."""

    image: str
    digest: str | None = None


class Sizes(Frozen):
    """Limits of an engine. None leaves a size to the release, and the command names the default it has there."""

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    max_input_len: int | None = None
    max_beam_width: int = 1


class Pool(Frozen):
    """The KV cache. `host_bytes` is the second level in the host's memory; 0 for none."""

    tokens_per_block: int
    memory_fraction: float
    reuse: bool
    host_bytes: int = 0


class Batching(Frozen):
    """How requests are put into steps."""

    policy: Policy
    chunked_context: bool


class Speculation(Frozen):
    """Speculative decoding. `draft` is a model's source for the modes that have one."""

    mode: Literal["draft-target", "medusa", "eagle", "eagle3", "lookahead", "mtp", "ngram"]
    max_draft_len: int
    draft: str | None = None


class Lora(Frozen):
    """Adapters served beside the base model."""

    max_rank: int
    target_modules: tuple[str, ...]
    max_adapters: int


class CheckpointSpec(Frozen):
    """What a checkpoint of TensorRT-LLM depends on: nothing of the GPU and of limits, so that engines share it.

    `probe` is the SHA-256 of the probe file that replaces the shipped tables, None for the shipped ones. `container` is
    None where trtx writes the checkpoint itself.
    """

    release: str
    probe: str | None = None
    container: Container | None
    shape: Shape
    quantization: QuantFormat
    dtype: DType
    ranks: Ranks
    converter: Converter = "trtx"


class TrtllmSpec(CheckpointSpec):
    """One engine of TensorRT-LLM, or one set of options of its PyTorch backend.

    `profiles` asks for several optimization profiles. `plugins` and `options` are flags of trtllm-build by name
    without dashes (`gemm_plugin`), `options` in the PyTorch flow keys of the options file; both hold the preset's,
    expanded.
    """

    flow: Flow
    container: Container
    device: Device
    sizes: Sizes
    pool: Pool
    batching: Batching
    profiles: bool = False
    speculation: Speculation | None = None
    lora: Lora | None = None
    plugins: dict[str, str] = {}
    options: dict[str, Annotated[Any, Field()]] = {}

    @property
    def checkpoint(self) -> CheckpointSpec:
        """The part that the engine's checkpoint depends on."""
        chosen = {name: getattr(self, name) for name in CheckpointSpec.model_fields}
        return CheckpointSpec(**{**chosen, "container": None if self.converter == "trtx" else self.container})
