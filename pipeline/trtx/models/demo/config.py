"""The demo model's parameters: all that decides its bytes. Imports no torch, so that planning is instant."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtx.files import canonical_json, sha256_bytes
from trtx.hardware.host import read_cpuinfo

MODEL_NAME = "tiny-llama"
CORPUS_NAME = "docs"
CORPUS_SPLITS = ("train", "validation")

# Raise with any change of corpus.py that changes its documents, or of tokenizer.py or train.py that changes the model.
CORPUS_VERSION = 1
RECIPE_VERSION = 1

TOOLCHAIN = ("torch", "tokenizers", "safetensors")

BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = "<s>", "</s>", "<pad>"
SPECIAL_TOKENS = (BOS_TOKEN, EOS_TOKEN, PAD_TOKEN)  # ids 0, 1, 2


@dataclass(frozen=True)
class DemoConfig:
    """Shape and training of the demo model: 1.1 M parameters, about 20 s on two cores.

    Hidden and intermediate sizes are multiples of 128, the group size of the int4 formats.
    Most steps train on short sequences, whose many documents per batch make it learn fast; the last
    `long_fraction` of the steps on `max_position_embeddings` tokens, so that the model holds over its whole length.
    `learning_rate` is AdamW's (embedding and norms), `matrix_learning_rate` Muon's (all other matrices).
    """

    vocab_size: int = 512
    hidden_size: int = 256
    intermediate_size: int = 384
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    max_position_embeddings: int = 512
    norm_epsilon: float = 1e-5
    rope_theta: float = 10000.0
    seed: int = 7
    steps: int = 400
    tokens_per_step: int = 1024
    short_length: int = 64
    long_fraction: float = 0.2
    warmup_steps: int = 20
    learning_rate: float = 0.02
    matrix_learning_rate: float = 0.03

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


def make_hf_config(demo: DemoConfig) -> dict[str, Any]:
    """The model's config.json (LlamaConfig of transformers 5; `rope_theta` is for transformers 4)."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dtype": "float32",
        "eos_token_id": 1,
        "head_dim": demo.head_dim,
        "hidden_act": "silu",
        "hidden_size": demo.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": demo.intermediate_size,
        "max_position_embeddings": demo.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": demo.num_heads,
        "num_hidden_layers": demo.num_layers,
        "num_key_value_heads": demo.num_kv_heads,
        "pad_token_id": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": demo.norm_epsilon,
        "rope_parameters": {"rope_theta": demo.rope_theta, "rope_type": "default"},
        "rope_theta": demo.rope_theta,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": demo.vocab_size,
    }


def model_identity(demo: DemoConfig) -> str:
    """A readable name of exactly one generated model; the Python version stands for the corpus."""
    recipe = sha256_bytes(canonical_json({"recipe": RECIPE_VERSION, **asdict(demo)}))
    training = f"seed={demo.seed};steps={demo.steps};precision={training_precision()}"
    return f"{MODEL_NAME};{corpus_identity()};{training};recipe={recipe}"


def training_precision(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """bfloat16 where the CPU multiplies it natively; elsewhere it would be emulated, slower than float32."""
    _, flags = read_cpuinfo(cpuinfo)
    return "bfloat16" if "avx512_bf16" in flags else "float32"


def corpus_identity() -> str:
    """The docstrings are those of the running Python's standard library."""
    return f"{CORPUS_NAME}={CORPUS_VERSION};python={platform.python_version()}"
