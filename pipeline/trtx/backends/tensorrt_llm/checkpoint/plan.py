"""What a checkpoint will be like, or why there can be none, before anything is read. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from trtx.backends.tensorrt_llm.checkpoint.exclude import exclude_patterns
from trtx.backends.tensorrt_llm.checkpoint.formats import CheckpointFormat, choose_format
from trtx.backends.tensorrt_llm.checkpoint.share import check_groups, check_ranks, check_release
from trtx.backends.tensorrt_llm.checkpoint.sizes import ARCHITECTURES, Sizes, sizes_of_shape
from trtx.backends.tensorrt_llm.spec import CheckpointSpec, Ranks
from trtx.errors import UsageProblem
from trtx.models.formats import QuantFormat


def plan_checkpoint(spec: CheckpointSpec) -> CheckpointFormat:
    """The format of the checkpoint that `write_checkpoint` makes of a folder calibrated as the recipe says.

    Raises UsageProblem for what it would refuse, as far as a recipe tells.
    """
    if spec.shape.architecture not in ARCHITECTURES:
        raise UsageProblem(
            f"trtx writes no TensorRT-LLM checkpoint of {spec.shape.architecture}",
            why=f"it knows the tensors of {', '.join(ARCHITECTURES)}",
            fix="convert with the release's own convert_checkpoint.py (converter: release)",
        )
    return make_format(sizes_of_shape(spec.shape), spec.quantization, None, spec.ranks, spec.release)


def make_format(
    sizes: Sizes, source: QuantFormat, wanted: QuantFormat | None, ranks: Ranks, release: str
) -> CheckpointFormat:
    """The format of a checkpoint of a folder in `source`; `wanted` is the recipe's, None for the folder's own.

    Raises UsageProblem for a format, a model or ranks that this release's engines have not, or not together.
    """
    check_ranks(sizes, ranks)
    form = choose_format(source, wanted, sizes.num_experts > 0)
    check_release(sizes, form, ranks, release)
    check_groups(sizes, form, ranks)
    if form.quant_algo is None:
        return replace(form, exclude=())
    excluded = source.exclude if source.algorithm != "none" or wanted is None else wanted.exclude
    return replace(form, exclude=exclude_patterns(sizes, excluded, form.quant_algo, ranks.pipeline))
