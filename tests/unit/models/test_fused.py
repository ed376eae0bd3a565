"""The decoder of a GPU's program beside the plain one: the same numbers, by operators in plain torch."""

from __future__ import annotations

import pytest
import torch
from support.modules import flatten
from torch import Tensor

from trtx.backends.inductor.module import make_module
from trtx.kernels import ops
from trtx.models.attention import AttentionKind
from trtx.models.config import ModelConfig, read_model_config
from trtx.models.decoder import Decoder
from trtx.models.formats import QuantFormat
from trtx.models.fused import FusedDecoder, can_fuse
from trtx.models.layout import make_shard
from trtx.quant.linear import linear_factory
from trtx.quant.linear_cuda import CUDA_LINEARS
from trtx.runtime.card import Rank

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
FP8 = QuantFormat(algorithm="fp8", kv_cache="fp8", exclude=("lm_head",))
FORMATS = [
    QuantFormat(algorithm="none", kv_cache="auto"),
    FP8,
    QuantFormat(algorithm="fp8_dynamic", kv_cache="int8", exclude=("lm_head",)),
    QuantFormat(algorithm="int8_wo", kv_cache="auto", exclude=("lm_head",)),
]


def fill(name: str, tensor: Tensor) -> Tensor:
    if "norm" in name:
        return torch.rand(tensor.shape).add(0.5).to(tensor.dtype)
    if name.endswith("input_scale"):
        return torch.full(tensor.shape, 0.01)
    if name.endswith("weight_scale"):
        return torch.rand(tensor.shape) * 0.01 + 0.001
    if name.endswith(("k_scale", "v_scale")):
        return torch.full(tensor.shape, 0.02)
    if tensor.dtype == torch.int8:
        return torch.randint(-127, 128, tensor.shape, dtype=torch.int8)
    drawn = torch.randn(tensor.shape) * (40 if tensor.dtype == torch.float8_e4m3fn else 0.2)
    return drawn.clamp(-448, 448).to(tensor.dtype)


def make_both(
    raw: dict[str, object], quantization: QuantFormat, attention: AttentionKind
) -> tuple[FusedDecoder, Decoder]:
    """The fused module and the plain one, over the same weights."""
    config = read_model_config(raw)
    fused = make_module(config, quantization, "bfloat16", Rank(), 64, attention, "cuda")
    assert isinstance(fused, FusedDecoder)
    shard = make_shard(config, 1, 1, 0)
    with torch.device("meta"):
        linears = linear_factory(config, quantization, "bfloat16", shard, CUDA_LINEARS)
        plain = Decoder(config, shard, quantization.kv_cache, torch.bfloat16, linears, 64, attention)
    torch.manual_seed(3)
    weights = {name: fill(name, tensor) for name, tensor in fused.state_dict().items()}
    for module in (fused, plain):
        module.load_state_dict(weights, strict=True, assign=True)
    return fused, plain.eval()


def make_pools(config: ModelConfig, kv_cache: str) -> list[Tensor]:
    dtype = {"auto": torch.bfloat16, "fp8": torch.uint8, "int8": torch.int8}[kv_cache]
    shape = (5, 8, config.num_kv_heads, config.head_dim)
    return [torch.zeros(shape, dtype=dtype) for _ in range(2 * config.num_layers)]


@pytest.mark.parametrize("attention", ["native", "gather"])
@pytest.mark.parametrize("quantization", FORMATS, ids=lambda one: one.algorithm)
@pytest.mark.parametrize("raw", [LLAMA, QWEN2], ids=["llama", "qwen2"])
def test_fused_layers_compute_what_plain_ones_do(
    raw: dict[str, object], quantization: QuantFormat, attention: AttentionKind
) -> None:
    config = read_model_config(raw)
    ops.use_namespace(ops.DEFAULT_NAMESPACE)
    modules = make_both(raw, quantization, attention)
    pools = [make_pools(config, quantization.kv_cache) for _ in modules]
    tables = torch.tensor([[1, 2], [3, 4]])
    tokens = torch.randint(0, 64, (2, 10), generator=torch.Generator().manual_seed(4))
    answers: list[list[Tensor]] = [[], []]
    with torch.inference_mode():
        for start, end in ((0, 6), (6, 9), (9, 10)):
            inputs = flatten(list(tokens[:, start:end]), [start, start], tables, 8)
            select = torch.tensor([end - start - 1, 2 * (end - start) - 1])
            for module, own, answer in zip(modules, pools, answers, strict=True):
                answer.append(module.step(*inputs, select, *own))
    found, expected = (torch.stack(answer) for answer in answers)
    # Sums are rounded to bfloat16 elsewhere; where numbers are then rounded to 8 bits, some take the next step.
    bound = 0.1 if "fp8" in quantization.algorithm else 0.02
    assert (found - expected).norm() < bound * expected.norm()
    # The first layer's keys and values are before all that.
    layers = config.num_layers
    assert all(torch.equal(pools[0][index], pools[1][index]) for index in (0, layers))


def test_a_fused_program_can_be_exported() -> None:
    fused, _ = make_both(LLAMA, FP8, "native")
    pools = make_pools(read_model_config(LLAMA), "fp8")
    inputs = flatten([torch.arange(3), torch.arange(4)], [0, 0], torch.tensor([[1], [2]]), 8)
    fused.forward = fused.step  # type: ignore[assignment]
    with torch.no_grad():
        graph = torch.export.export(fused, (*inputs, torch.tensor([2, 6]), *pools), strict=False)
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    layer = ["rotate_and_attend", "add_rms_norm", "gated_linear", "linear_e4m3"]
    counts = {name: sum(f".{name}." in target for target in called) for name in layer}
    assert counts == {
        "rotate_and_attend": 2,
        "add_rms_norm": 4,
        "gated_linear": 2,
        "linear_e4m3": 6,
    }
    # Nothing of a layer is left to the compiler but the rows that are chosen at its end.
    assert not [target for target in called if "index_put" in target or "silu" in target or "clamp" in target]


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu_pytorch_tanh"},
        {"num_attention_heads": 5, "hidden_size": 60, "num_key_value_heads": 5},
        {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16},
    ],
    ids=["another activation", "heads of 12 channels", "norms of heads"],
)
def test_layers_of_another_form_stay_plain(change: dict[str, object]) -> None:
    config = read_model_config(LLAMA | change)
    assert can_fuse(read_model_config(LLAMA), make_shard(read_model_config(LLAMA), 1, 1, 0), "bfloat16")
    assert not can_fuse(config, make_shard(config, 1, 1, 0), "bfloat16")


def test_only_bfloat16_is_fused() -> None:
    config = read_model_config(LLAMA)
    assert not can_fuse(config, make_shard(config, 1, 1, 0), "float32")
