"""What each rank of a TensorRT-LLM checkpoint holds, and which models and ranks fit. Imports no torch.

Rank files count tp · pp: rank = pipeline stage · tp + tensor rank; ranks of context parallelism share a file. Of a
mixture of experts, rank t of tp holds experts by t mod ep and columns of them by t div ep (tensorrt_llm/mapping.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from trtx.backends.tensorrt_llm.checkpoint.formats import GROUPED, NVFP4_GROUP, CheckpointFormat
from trtx.backends.tensorrt_llm.checkpoint.sizes import Sizes
from trtx.backends.tensorrt_llm.releases import Release, is_before, known_releases
from trtx.backends.tensorrt_llm.spec import Ranks
from trtx.errors import UsageProblem

# Up to 0.17 Mapping.pp_layers leaves out the layers that do not divide; the first stages get one more since pull
# request 4399 of May 2025. In between it changed more than once, and no source dates that.
UNEVEN_LAYERS_FROM = "0.21.0"


@dataclass(frozen=True)
class Share:
    """One rank's part, as half-open ranges of global numbers.

    `intermediate` are rows of the MLP, or of each expert of `experts`; `vocab` rows of the padded vocabulary.
    """

    rank: int
    tensor: int
    is_first: bool
    is_last: bool
    layers: range
    heads: range
    kv_heads: range
    intermediate: range
    experts: range
    vocab: range


def num_files(ranks: Ranks) -> int:
    """How many rank files a checkpoint has."""
    return ranks.tensor * ranks.pipeline


def padded_vocab(vocab_size: int, tensor: int) -> int:
    """Rows of the vocabulary, filled up to a multiple of tp."""
    return -(-vocab_size // tensor) * tensor


def make_share(sizes: Sizes, ranks: Ranks, rank: int) -> Share:
    """The part of rank file `rank`. Raises UsageProblem for sizes that the ranks do not divide."""
    check_ranks(sizes, ranks)
    stage, index = divmod(rank, ranks.tensor)
    if not 0 <= stage < ranks.pipeline:
        raise UsageProblem(f"there is no rank file {rank} among {ranks.tensor} × {ranks.pipeline}")
    # Fewer key and value heads than ranks are repeated: tp / heads ranks in a row have the same one.
    kv_parts = min(ranks.tensor, sizes.num_kv_heads)
    is_mixture = sizes.num_experts > 0
    mlp_parts, mlp_index = (ranks.expert_tensor, index // ranks.expert) if is_mixture else (ranks.tensor, index)
    return Share(
        rank=rank,
        tensor=ranks.tensor,
        is_first=stage == 0,
        is_last=stage == ranks.pipeline - 1,
        layers=split(sizes.num_layers, ranks.pipeline, stage),
        heads=split(sizes.num_heads, ranks.tensor, index),
        kv_heads=split(sizes.num_kv_heads, kv_parts, index * kv_parts // ranks.tensor),
        intermediate=split(sizes.intermediate_size, mlp_parts, mlp_index),
        experts=split(sizes.num_experts, ranks.expert, index % ranks.expert),
        vocab=split(padded_vocab(sizes.vocab_size, ranks.tensor), ranks.tensor, index),
    )


def split(count: int, parts: int, index: int) -> range:
    """Part `index` of `range(count)`; the first parts are one longer where it does not divide."""
    size, longer = divmod(count, parts)
    start = index * size + min(index, longer)
    return range(start, start + size + (index < longer))


def check_ranks(sizes: Sizes, ranks: Ranks) -> None:
    """Raise UsageProblem for sizes that the ranks do not divide, by tensorrt_llm/mapping.py and layers/attention.py."""
    tensor, kv = ranks.tensor, sizes.num_kv_heads
    if ranks.tensor % ranks.expert or (ranks.expert > 1 and not sizes.num_experts):
        raise UsageProblem(
            f"expert parallelism {ranks.expert} does not fit",
            why=f"it must divide tensor parallelism {tensor}" if sizes.num_experts else "the model has no experts",
            fix="set parallelism.expert to 1, or to a divisor of parallelism.tensor",
        )
    if ranks.expert > 1 and ranks.context > 1:
        raise UsageProblem("context and expert parallelism exclude each other", why="tensorrt_llm/mapping.py says so")
    cut = ranks.expert_tensor if sizes.num_experts else tensor
    uneven = [
        f"{count} {what} by {parts}"
        for what, count, parts, fits in (
            ("attention heads", sizes.num_heads, tensor, sizes.num_heads % tensor == 0),
            ("key-value heads", kv, tensor, kv % tensor == 0 or tensor % kv == 0),
            ("intermediate columns", sizes.intermediate_size, cut, sizes.intermediate_size % cut == 0),
            ("experts", sizes.num_experts, ranks.expert, sizes.num_experts % ranks.expert == 0),
        )
        if not fits
    ]
    if uneven:
        raise UsageProblem(
            f"the model cannot be cut into {tensor} tensor-parallel ranks",
            why=f"they would divide {' and '.join(uneven)}",
            fix="choose a parallelism that divides them",
        )
    if sizes.num_layers < ranks.pipeline:
        raise UsageProblem(
            f"the model cannot be cut into {ranks.pipeline} pipeline stages", why=f"it has {sizes.num_layers} layers"
        )


def check_release(sizes: Sizes, form: CheckpointFormat, ranks: Ranks, release: str) -> None:
    """Raise UsageProblem for a format or model that a release has not, and for layers that it would leave out."""
    if release in known_releases():  # A probed one may have no shipped table.
        known = Release.load(release)
        if form.quant_algo is not None and form.quant_algo not in known.quant_algos:
            raise UsageProblem(
                f"TensorRT-LLM {release} has no quant_algo {form.quant_algo}",
                why="its QuantAlgo does not list it",
                fix="choose a later release, or another format",
            )
        if sizes.architecture not in known.architectures("engine"):
            raise UsageProblem(
                f"TensorRT-LLM {release} has no {sizes.architecture} in its engine flow",
                why="its MODEL_MAP does not list it",
                fix="choose a later release, or flow: pytorch",
            )
    if sizes.num_layers % ranks.pipeline and is_before(release, UNEVEN_LAYERS_FROM):
        raise UsageProblem(
            f"TensorRT-LLM {release} cannot divide {sizes.num_layers} layers by {ranks.pipeline} pipeline stages",
            why=f"releases before {UNEVEN_LAYERS_FROM} leave out what does not divide, or divide otherwise",
            fix=f"choose stages that divide the layers, or release {UNEVEN_LAYERS_FROM} or later",
        )


def check_groups(sizes: Sizes, form: CheckpointFormat, ranks: Ranks) -> None:
    """Raise UsageProblem for matrices that do not divide into groups on every rank.

    Of W4A16_AWQ and W4A8_AWQ the loader wants padded tensors where inputs or outputs are no multiple of tp times the
    group, 64 or, for W4A8_AWQ, 128, whichever is most (quantization/layers.py, WeightOnlyGroupwiseQuantLinear). NVFP4
    has groups of inputs alone, which only dense and proj cut.
    """
    if form.quant_algo not in (*GROUPED, "NVFP4"):
        return
    least = NVFP4_GROUP
    if form.quant_algo in GROUPED:
        least = max(form.group_size, 128 if form.quant_algo == "W4A8_AWQ" else 64)
    heads, each = sizes.num_heads * sizes.head_dim, least * ranks.tensor
    repeated = max(ranks.tensor // sizes.num_kv_heads, 1)
    wanted = [
        ("attention heads · head_dim", heads, each),
        ("intermediate_size", sizes.intermediate_size, each),
        ("hidden_size", sizes.hidden_size, each if form.quant_algo in GROUPED else least),
    ]
    if form.quant_algo in GROUPED:
        wanted.append(("rows of q, k and v", heads + 2 * sizes.num_kv_heads * repeated * sizes.head_dim, each))
    for what, size, multiple in wanted:
        if size % multiple:
            raise UsageProblem(
                f"{form.quant_algo} does not fit {what} {size} on {ranks.tensor} tensor-parallel ranks",
                why=f"TensorRT-LLM takes multiples of {multiple} there: whole groups on every rank",
                fix="lower tensor parallelism, or choose fp8 or int8_wo",
            )
