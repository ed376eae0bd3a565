"""Which tensors one linear stores, by number format: shapes and dtypes, never values. Imports no torch.

quant/linear.py says what they mean, quant/pack_linear.py makes them of a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtx.errors import UsageProblem
from trtx.models.config import DType
from trtx.models.formats import ALGORITHMS, WHOLE_ROW, Algorithm, QuantFormat

Cut = Literal["rows", "columns"]

# Formats whose inputs ModelOpt scales before they are rounded, where no norm can take the scale.
AWQ = ("int4_awq", "w4a8_awq", "nvfp4_awq")


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
    the source's input columns that this rank holds. `quantization` is the linear's own:
    that of no algorithm where it is excluded. `fused` says that the checkpoint has q, k and v in one, `is_expert`
    that this is one of many (see ExpertLinears).
    """

    name: str
    sources: tuple[str, ...]
    rows: tuple[range, ...]
    columns: range
    cut: Cut
    bias: bool
    quantization: QuantFormat
    fused: bool = False
    is_expert: bool = False

    @property
    def algorithm(self) -> Algorithm:
        return self.quantization.algorithm

    @property
    def group_size(self) -> int | None:
        """Columns that share one scale; None for formats without groups."""
        group = self.quantization.columns_per_scale
        return self.in_features if group == WHOLE_ROW else group

    @property
    def in_features(self) -> int:
        return len(self.columns)

    @property
    def out_features(self) -> int:
        return sum(len(rows) for rows in self.rows)


@dataclass(frozen=True)
class ExpertLinears:
    """One linear of every expert of a layer, all of one shape and format.

    The engine keeps each of their tensors in one, [experts, …].
    """

    name: str
    experts: tuple[LinearSpec, ...]

    @property
    def first(self) -> LinearSpec:
        return self.experts[0]


def expert_tensors(linears: ExpertLinears, dtype: DType) -> tuple[TensorSpec, ...]:
    """The tensors that one linear of all experts stores. Raises UsageProblem as linear_tensors does."""
    count, here = len(linears.experts), linears.first.name
    return tuple(
        TensorSpec(linears.name + tensor.name.removeprefix(here), (count, *tensor.shape), tensor.dtype)
        for tensor in linear_tensors(linears.first, dtype)
    )


def linear_tensors(spec: LinearSpec, dtype: DType) -> tuple[TensorSpec, ...]:
    """The tensors that one linear stores; quant/linear.py says what they mean.

    Raises UsageProblem when the input columns do not divide into groups.
    """
    n, k = spec.out_features, spec.in_features
    group = spec.group_size
    if group and (k % group or (group % 2 and _is_int4(spec))):
        raise UsageProblem(
            f"{spec.name} cannot be quantized with {spec.algorithm}",
            why=f"its {k} input columns on a rank do not divide into groups of {group}",
            fix="exclude it, lower tensor parallelism, or choose another algorithm",
        )
    shapes = {"weight": _weight(spec, dtype)} | _scales(spec)
    if spec.bias:
        shapes["bias"] = ((n,), dtype)
    return tuple(TensorSpec(f"{spec.name}.{name}", shape, kind) for name, (shape, kind) in shapes.items())


def _weight(spec: LinearSpec, dtype: DType) -> tuple[tuple[int, ...], str]:
    n, k = spec.out_features, spec.in_features
    if _is_int4(spec):
        return (n, k // 2), "uint8"
    stored = {"fp8": "float8_e4m3fn", "fp8_dynamic": "float8_e4m3fn", "int8_sq": "int8", "int8_wo": "int8"}
    return (n, k), stored.get(spec.algorithm, dtype)


def _scales(spec: LinearSpec) -> dict[str, tuple[tuple[int, ...], str]]:
    """What stands beside a weight, all but the column order in float32."""
    n, k, group = spec.out_features, spec.in_features, spec.group_size
    facts, algorithm = ALGORITHMS[spec.algorithm], spec.algorithm
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    if algorithm != "none" and not facts.dequantized:
        shapes["weight_scale"] = ((n, k // group) if group else (n,), "float32")
        if spec.quantization.zero_points:
            shapes["weight_offset"] = (shapes["weight_scale"][0], "float32")
        if spec.quantization.reordered:
            shapes["input_order"] = ((k,), "int32")
    if algorithm in ("fp8", "int8_sq", "w4a8_awq", "nvfp4", "nvfp4_awq"):
        shapes["input_scale"] = ((), "float32")
    # ModelOpt folds the AWQ scales of qkv and gate_up into the norm before them, but not where the checkpoint has them
    # in one. Formats with zero points are others' AWQ, which folds all of them. ModelOpt scales no inputs of experts.
    folded = (spec.cut == "rows" and not spec.fused) or spec.quantization.zero_points or spec.is_expert
    if algorithm == "int8_sq" or (algorithm in AWQ and not folded):
        shapes["pre_quant_scale"] = ((k,), "float32")
    return shapes


def _is_int4(spec: LinearSpec) -> bool:
    return spec.algorithm.startswith("int4") or spec.algorithm == "w4a8_awq"
