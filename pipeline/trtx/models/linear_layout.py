"""Which tensors one linear stores, by number format: shapes and dtypes, never values. Imports no torch.

quant/linear.py says what they mean, quant/pack_linear.py makes them of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtx.errors import UsageProblem
from trtx.models.config import DType
from trtx.models.formats import ALGORITHMS, Algorithm

Cut = Literal["rows", "columns"]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a rank file; `dtype` is a torch name such as `bfloat16` or `float8_e4m3fn`."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class LinearSpec:
    """One linear of a rank, perhaps fused of several linears of the checkpoint.

    `sources` are their names there (`model.layers.0.self_attn.q_proj`) and `rows` the rows each contributes to
    this rank, as ranges of the source's own rows; a column-cut linear has all rows. `columns` is the range of
    the source's input columns that this rank holds.
    """

    name: str
    sources: tuple[str, ...]
    rows: tuple[range, ...]
    columns: range
    cut: Cut
    bias: bool
    algorithm: Algorithm

    @property
    def in_features(self) -> int:
        return len(self.columns)

    @property
    def out_features(self) -> int:
        return sum(len(rows) for rows in self.rows)


def linear_tensors(spec: LinearSpec, dtype: DType) -> tuple[TensorSpec, ...]:
    """The tensors that one linear stores; quant/linear.py says what they mean.

    Raises UsageProblem when the input columns do not divide into groups.
    """
    n, k = spec.out_features, spec.in_features
    group = ALGORITHMS[spec.algorithm].group_size
    if group and k % group:
        raise UsageProblem(
            f"{spec.name} cannot be quantized with {spec.algorithm}",
            why=f"its {k} input columns on a rank do not divide into groups of {group}",
            fix="exclude it, lower tensor parallelism, or choose another algorithm",
        )
    by_algorithm: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {
        "none": {"weight": ((n, k), dtype)},
        "fp8": {"weight": ((n, k), "float8_e4m3fn"), "weight_scale": ((n,), "float32"), "input_scale": ((), "float32")},
        "int8_sq": {
            "weight": ((n, k), "int8"),
            "weight_scale": ((n,), "float32"),
            "input_scale": ((), "float32"),
            "pre_quant_scale": ((k,), "float32"),
        },
        "int8_wo": {"weight": ((n, k), "int8"), "weight_scale": ((n,), "float32")},
        "int4_wo": _int4_tensors(n, k, group or k),
        "int4_awq": _int4_tensors(n, k, group or k),
    }
    shapes = by_algorithm[spec.algorithm]
    # ModelOpt folds the AWQ scales of qkv and gate_up into the norm before them.
    if spec.algorithm == "int4_awq" and spec.cut == "columns":
        shapes["pre_quant_scale"] = ((k,), "float32")
    if spec.bias:
        shapes["bias"] = ((n,), dtype)
    return tuple(TensorSpec(f"{spec.name}.{name}", shape, kind) for name, (shape, kind) in shapes.items())


def _int4_tensors(n: int, k: int, group: int) -> dict[str, tuple[tuple[int, ...], str]]:
    return {"weight": ((n, k // 2), "uint8"), "weight_scale": ((n, k // group), "float32")}
