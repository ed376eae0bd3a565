"""ModelOpt 0.47 and mixtures of experts.

transformers 5 keeps the experts of a layer in two tensors, gate_up_proj [X, 2I, E] and down_proj [X, E, I], of one
module that multiplies with slices of them. ModelOpt gives every expert quantizers for its weights and all of them one
for their inputs, and exports linears of each expert: the names of the checkpoint are the model's own.

Its searches know linears only: with AWQ, experts are rounded as without, and nothing scales their inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from trtx.errors import UsageProblem
from trtx.models.config import read_model_config
from trtx.models.format_checks import check_calibration, check_format
from trtx.models.formats import QuantFormat
from trtx.models.layout import expert_linears
from trtx.models.linear_layout import expert_tensors


def find_experts(model: Any) -> dict[int, str]:
    """Modules that keep the experts of a layer, by layer."""
    names = [name for name, module in model.named_modules() if _is_experts(module)]
    return {int(next(part for part in name.split(".") if part.isdigit())): name for name in names}


def disabled_experts(model: Any, quantization: QuantFormat) -> list[dict[str, Any]]:
    """ModelOpt's rules for experts that `exclude` names, by their names in the checkpoint.

    Raises UsageProblem for a format that ModelOpt or the engine has not for experts, where `exclude` names some experts
    or matrices of a layer only, and where columns do not divide into groups.
    """
    found = find_experts(model)
    if not found:
        return []
    config = read_model_config(model.config.to_dict())
    check_format(config, quantization)
    check_calibration(config, quantization)
    rules: list[dict[str, Any]] = []
    for layer, module in found.items():
        linears = expert_linears(config, quantization, layer)
        kept = [each.first.sources[0] for each in linears if each.first.algorithm == "none"]
        for each in linears:
            expert_tensors(each, "float32")
        if kept and len(kept) != len(linears):
            raise UsageProblem(
                f"{kept[0]} cannot be excluded from quantization alone",
                why="ModelOpt's description of a checkpoint names the experts of a layer as a whole",
                fix="exclude `*experts*` or no expert",
            )
        if kept:
            rules.append({"quantizer_name": f"{module}.*", "enable": False})
    return rules


@contextmanager
def exporting_experts() -> Iterator[None]:
    """Let ModelOpt export experts whose weights have scales for groups of columns; two things of it are in the way.

    - Where a format is called AWQ it averages scales of inputs over a list of experts, and fails at experts that are
      kept in one tensor. They have no such scales: nothing is to be done.
    - A quantizer remembers the shape [2I, groups] of its scales. Those of gate and up are cut out, the shape is not.
    """
    from modelopt.torch.export import unified_export_hf

    list_experts, export_weight = unified_export_hf.get_experts_list, unified_export_hf._export_quantized_weight

    def list_separate_experts(module: Any, model_type: str) -> list[Any]:
        return [] if _is_experts(module.experts) else list_experts(module, model_type)

    def export_with_own_shape(sub_module: Any, *arguments: Any, **named: Any) -> Any:
        quantizer = getattr(sub_module, "weight_quantizer", None)
        if quantizer is not None and hasattr(quantizer, "_amax_shape_for_export"):
            quantizer._amax_shape_for_export = (sub_module.weight.shape[0], -1)
        return export_weight(sub_module, *arguments, **named)

    patches: dict[str, Callable[..., Any]] = {
        "get_experts_list": list_separate_experts,
        "_export_quantized_weight": export_with_own_shape,
    }
    for name, function in patches.items():
        setattr(unified_export_hf, name, function)
    try:
        yield
    finally:
        unified_export_hf.get_experts_list = list_experts
        unified_export_hf._export_quantized_weight = export_weight


def _is_experts(module: nn.Module) -> bool:
    shape = getattr(getattr(module, "gate_up_proj", None), "shape", ())
    return len(shape) == 3
