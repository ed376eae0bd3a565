"""A Hugging Face folder, or the unified folder that ModelOpt exports, as a TensorRT-LLM checkpoint.

Memory holds one matrix of the folder at a time: the rank files of a pipeline stage are written side by side, so that
each matrix is read once and cut for all its ranks. Each file appears when it is whole, config.json last.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

from trtx.backends.tensorrt_llm.checkpoint.check import check_checkpoint
from trtx.backends.tensorrt_llm.checkpoint.config import CONFIG_NAME, check_model, make_config
from trtx.backends.tensorrt_llm.checkpoint.formats import WEIGHT_ONLY
from trtx.backends.tensorrt_llm.checkpoint.layout import rank_tensors
from trtx.backends.tensorrt_llm.checkpoint.pack import Source
from trtx.backends.tensorrt_llm.checkpoint.pack_rank import pack_rank
from trtx.backends.tensorrt_llm.checkpoint.plan import make_format
from trtx.backends.tensorrt_llm.checkpoint.rank_file import RankFile
from trtx.backends.tensorrt_llm.checkpoint.share import make_share, num_files
from trtx.backends.tensorrt_llm.checkpoint.sizes import Sizes, sizes_of_model, sizes_of_shape
from trtx.backends.tensorrt_llm.releases import known_releases
from trtx.backends.tensorrt_llm.spec import CheckpointSpec, Ranks
from trtx.errors import UsageProblem, VerificationFailed
from trtx.files import disk_errors, write_json
from trtx.models.checkpoint import Checkpoint, load_model_config
from trtx.models.config import DType, ModelConfig
from trtx.models.formats import QuantFormat
from trtx.quant.read_format import read_quant_format

Say = Callable[[str], None]
Progress = Callable[[int, int, str], None]


def write_checkpoint(source: Path, output: Path, spec: CheckpointSpec, say: Say, progress: Progress) -> dict[str, Any]:
    """Write config.json and rankN.safetensors into the folder `output`, and return the content of config.json.

    `progress` is called with tensors done, tensors in all and the word for them. Raises UsageProblem for a model,
    format or parallelism that this release's engines have not, VerificationFailed for a damaged folder.
    """
    _check_same_model(source, spec)
    return convert_folder(
        source,
        output,
        release=spec.release,
        ranks=spec.ranks,
        dtype=spec.dtype,
        quantization=spec.quantization,
        say=say,
        progress=progress,
    )


def convert_folder(
    source: Path,
    output: Path,
    *,
    release: str,
    ranks: Ranks,
    dtype: DType,
    quantization: QuantFormat | None = None,
    say: Say = lambda _: None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """What `write_checkpoint` does, without a recipe; no `quantization` leaves the folder its own format."""
    _check_empty(output)
    model = load_model_config(source)
    sizes = sizes_of_model(model)
    for note in check_model(model, release):
        say(note)
    with Checkpoint(source) as checkpoint:
        own = read_quant_format(checkpoint)
        form = make_format(sizes, own, quantization, ranks, release)
        if form.quant_algo in WEIGHT_ONLY:
            say(_weight_only_note(form.quant_algo, dtype, own.algorithm != "none"))
        output.mkdir(parents=True, exist_ok=True)
        try:
            _write_ranks(Source(checkpoint, own, form, dtype), model, sizes, ranks, output, progress)
        except BaseException:
            for rank in range(num_files(ranks)):
                (output / rank_name(rank)).unlink(missing_ok=True)
            raise
    config = make_config(model, sizes, form, dtype, ranks)
    write_json(output / CONFIG_NAME, config)
    _check_written(output, release)
    return config


def rank_name(rank: int) -> str:
    return f"rank{rank}.safetensors"


def _weight_only_note(algo: str, dtype: DType, is_rounded: bool) -> str:
    if is_rounded:
        return (
            f"{algo}: the weights are written as {dtype}, and trtllm-build rounds the folder's INT8 numbers again: "
            "convert the unquantized folder to have them rounded once"
        )
    return f"{algo}: the weights are written as {dtype}; trtllm-build packs them for its GPU"


def _write_ranks(
    source: Source, model: ModelConfig, sizes: Sizes, ranks: Ranks, output: Path, progress: Progress
) -> None:
    layouts = [rank_tensors(sizes, source.form, source.dtype, ranks, rank) for rank in range(num_files(ranks))]
    total, done = sum(map(len, layouts)), 0
    for stage in range(ranks.pipeline):
        numbers = range(stage * ranks.tensor, (stage + 1) * ranks.tensor)
        with ExitStack() as stack:
            files = [stack.enter_context(RankFile(output / rank_name(n), layouts[n])) for n in numbers]
            tensors = [pack_rank(source, model, sizes, make_share(sizes, ranks, n)) for n in numbers]
            for named in zip(*tensors, strict=True):
                for file, (name, tensor) in zip(files, named, strict=True):
                    file.write(name, tensor)
                done += len(named)
                progress(done, total, "tensors")


def _check_same_model(source: Path, spec: CheckpointSpec) -> None:
    """What was planned for one model must not be done with another."""
    planned, found = sizes_of_shape(spec.shape), sizes_of_model(load_model_config(source))
    for field in fields(planned):
        wanted, own = getattr(planned, field.name), getattr(found, field.name)
        if wanted != own and not field.name.endswith("_bias"):  # A Shape has none.
            raise VerificationFailed(
                f"{source} is not the model that was planned",
                why=f"its {field.name} is {own}, and the plan has {wanted}",
                fix="plan again",
            )


def _check_empty(output: Path) -> None:
    with disk_errors(output):
        there = sorted(path.name for path in output.glob("rank*.safetensors")) if output.exists() else []
        if there or (output / CONFIG_NAME).exists():
            raise UsageProblem(
                f"{output} has a checkpoint already",
                why=f"there is {there[0] if there else CONFIG_NAME}",
                fix="choose another folder, or remove it first",
            )


def _check_written(output: Path, release: str) -> None:
    """The second opinion: what was written is read as trtllm-build would read it."""
    known = release if release in known_releases() else None  # A probed one has no shipped table.
    errors = [problem for problem in check_checkpoint(output, known) if problem.severity == "error"]
    if errors:
        raise VerificationFailed(f"{output} is not what trtllm-build reads: {errors[0].what}", why=errors[0].why)
