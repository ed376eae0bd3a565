"""random://: models of published shapes with random weights, for machines without a network and for measuring.

`random://llama-3-8b` is the shape of Meta-Llama-3-8B; `random://llama-3-8b?seed=9` other weights. The same name and
seed are the same bytes on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtx.errors import UsageProblem
from trtx.models.sources.base import Progress, Request, Resolved, check_identity, unknown_name

TOOLCHAIN = ("torch", "tokenizers", "safetensors")
# Raise with any change of models/random_model.py that changes what it makes.
VERSION = 2
DEFAULT_SEED = 7


def _llama(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": vocab - 2,
        "eos_token_id": vocab - 1,
        "torch_dtype": "bfloat16",
        **more,
    }


# Sizes of the config.json that their authors publish.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": _llama(4096, 14336, 32, 32, 8, 128256),
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True, head_dim=64),
    "llama-tiny": _llama(256, 512, 2, 4, 2, 1024, max_position_embeddings=1024),
}


def parse(url: str) -> tuple[str, int]:
    """The shape's name and the seed of a URL. Raises UsageProblem."""
    name, _, query = url.removeprefix("random://").partition("?")
    name = name.strip("/")
    if name not in SHAPES:
        raise unknown_name("published shape", name, list(SHAPES))
    if not query:
        return name, DEFAULT_SEED
    key, _, value = query.partition("=")
    if key != "seed" or not value.isdecimal():
        raise UsageProblem(f"'{query}' means nothing in {url}", fix="write ?seed= and a number, or nothing")
    return name, int(value)


def resolve(request: Request) -> Resolved:
    """Pin a random model; nothing is made yet."""
    if request.kind == "dataset":
        raise UsageProblem(f"{request.url} is no dataset", fix="random:// has models; use demo://docs")
    name, seed = parse(request.url)
    return Resolved(request.url, f"{name} seed {seed} version {VERSION}", SHAPES[name], TOOLCHAIN)


def is_at_hand(request: Request, identity: str) -> bool:
    """Always."""
    return True


def fetch(request: Request, identity: str, output: Path, progress: Progress) -> None:
    """Make the model in `output`."""
    check_identity(request, identity, resolve(request).identity, "version of trtx")
    from trtx.models.random_model import write_model

    name, seed = parse(request.url)
    write_model(SHAPES[name], seed, output, progress)
