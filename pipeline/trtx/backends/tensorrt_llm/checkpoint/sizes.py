"""The sizes that decide which tensors a TensorRT-LLM checkpoint has. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from trtx.backends.tensorrt_llm.spec import Shape
from trtx.errors import UsageProblem
from trtx.models.config import ModelConfig, load_architecture

# Architectures whose tensors are known here; the rest is the release's own converter's work.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen2ForCausalLM")
QWEN2 = "Qwen2ForCausalLM"


@dataclass(frozen=True)
class Sizes:
    """A model's sizes by Hugging Face's meaning. `num_experts` is 0 for a dense model.

    `intermediate_size` is of one expert where there are some. `out_bias` is about the attention's output projection.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False

    @property
    def qkv_rows(self) -> int:
        """Rows of the whole fused query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


def sizes_of_model(config: ModelConfig) -> Sizes:
    """The sizes of a model that a Hugging Face config.json describes. Raises UsageProblem for other architectures."""
    if config.architecture not in ARCHITECTURES:
        raise UsageProblem(
            f"trtx writes no TensorRT-LLM checkpoint of {config.architecture}",
            why=f"it knows the tensors of {', '.join(ARCHITECTURES)}",
            fix="convert with the release's own convert_checkpoint.py (converter: release)",
        )
    return Sizes(
        architecture=config.architecture,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.expert_size or config.intermediate_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        num_experts=config.num_experts,
        qkv_bias=config.attention_bias,
        out_bias=config.attention_bias and load_architecture(config.architecture).out_has_bias,
        mlp_bias=config.mlp_bias,
    )


def sizes_of_shape(shape: Shape) -> Sizes:
    """The sizes of a recipe's model. A Shape does not tell biases apart: Qwen2 has them on q, k and v, others none."""
    return Sizes(
        architecture=shape.architecture,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        num_experts=shape.num_experts,
        qkv_bias=shape.architecture == QWEN2,
    )
