"""What trtllm-build would refuse in a checkpoint folder, or warn of. Reads headers only; imports no torch.

Sources, of 1.3.0rc3: models/modeling_utils.py (from_checkpoint, load: a missing tensor is an error, an unknown one a
warning), mapping.py, and layout.py for the tensors. Checkpoints of ModelOpt's export and of convert_checkpoint.py are
read as well as trtx's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trtx.backends.tensorrt_llm.checkpoint.config import CONFIG_NAME, MANDATORY, CheckpointConfig, read_config
from trtx.backends.tensorrt_llm.checkpoint.formats import GROUPED, QUANT_ALGOS, WEIGHT_ONLY, CheckpointFormat
from trtx.backends.tensorrt_llm.checkpoint.header import read_header
from trtx.backends.tensorrt_llm.checkpoint.layout import rank_tensors
from trtx.backends.tensorrt_llm.checkpoint.share import check_groups, check_release, num_files
from trtx.backends.tensorrt_llm.checkpoint.sizes import ARCHITECTURES, QWEN2
from trtx.errors import UsageProblem, VerificationFailed
from trtx.files import read_json
from trtx.models.linear_layout import TensorSpec

# error: trtllm-build stops. warning: it goes on, with a message at most. unchecked: nothing is known of it here.
Severity = Literal["error", "warning", "unchecked"]
RANK_FILE = re.compile(r"rank(\d+)\.safetensors")
# Newer loaders merge these two into kv_cache_scaling_factor; ModelOpt writes all three.
SEPARATE_KV = ("k_cache_scaling_factor", "v_cache_scaling_factor")


@dataclass(frozen=True)
class Problem:
    """One finding: what, why, and the file of the folder that it is about."""

    severity: Severity
    what: str
    why: str = ""
    file: str = CONFIG_NAME


def check_checkpoint(folder: Path, release: str | None = None) -> list[Problem]:
    """Everything that trtllm-build would refuse or warn of, config.json first, then the files by rank.

    With `release` also what only that release refuses. An empty list is a checkpoint without any problem.
    """
    try:
        content = read_json(folder / CONFIG_NAME)
    except FileNotFoundError:
        return [Problem("error", f"{CONFIG_NAME} is missing", f"{folder} is no checkpoint")]
    except (OSError, ValueError) as error:
        return [Problem("error", f"{CONFIG_NAME} is not JSON", str(error).splitlines()[0])]
    if not isinstance(content, dict):
        return [Problem("error", f"{CONFIG_NAME} holds no object")]
    if missing := [key for key in MANDATORY if content.get(key) is None]:
        return [Problem("error", f"{CONFIG_NAME} has no {key}", "it has no default") for key in missing]
    found = list(_check_names(content))
    try:
        config = read_config(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        return [*found, Problem("error", f"{CONFIG_NAME} does not describe a checkpoint", why)]
    return [*found, *_check_config(config, release), *_check_files(folder, config)]


def _check_names(content: Mapping[str, Any]) -> Iterator[Problem]:
    architecture = content["architecture"]
    if architecture == QWEN2 and "qwen_type" not in content:
        yield Problem("error", f"{CONFIG_NAME} has no qwen_type", "the layers of Qwen2 read it; quantize.py adds it")
    if "rotary_base" not in content and str(content.get("position_embedding_type", "")).startswith("rope"):
        why = "10000 is taken, whatever the model has; ModelOpt's export leaves it out"
        yield Problem("warning", f"{CONFIG_NAME} has no rotary_base", why)


def _check_config(config: CheckpointConfig, release: str | None) -> Iterator[Problem]:
    algo = config.form.quant_algo
    if config.sizes.architecture not in ARCHITECTURES:
        yield Problem("unchecked", f"the tensors of {config.sizes.architecture} are not known here")
    if algo is not None and algo not in QUANT_ALGOS:
        yield Problem("unchecked", f"the tensors of {algo} are not known here")
    try:
        if release is not None:
            check_release(config.sizes, config.form, config.ranks, release)
        if not config.sizes.num_experts:
            check_groups(config.sizes, config.form, config.ranks)
    except UsageProblem as error:
        yield Problem("error", error.what, error.why)


def _check_files(folder: Path, config: CheckpointConfig) -> Iterator[Problem]:
    count = num_files(config.ranks)
    for path in sorted(folder.glob("rank*.safetensors")):
        number = RANK_FILE.fullmatch(path.name)
        if number is None or int(number[1]) >= count:
            yield Problem("warning", f"{path.name} is not read", f"there are {count} ranks", path.name)
    for rank in range(count):
        name = f"rank{rank}.safetensors"
        try:
            header = read_header(folder / name)
        except VerificationFailed as error:
            what = f"{name} is {'missing' if not (folder / name).exists() else 'damaged'}"
            why = error.why or f"mapping asks for {config.ranks.tensor} · {config.ranks.pipeline} rank files"
            yield Problem("error", what, why, name)
            continue
        yield from _check_rank(config, rank, header, name)


def _check_rank(config: CheckpointConfig, rank: int, header: Mapping[str, TensorSpec], file: str) -> Iterator[Problem]:
    if config.sizes.architecture not in ARCHITECTURES or config.form.quant_algo not in (None, *QUANT_ALGOS):
        return
    form = replace(config.form, packed=_is_packed(config.form, header))
    try:
        specs = rank_tensors(
            config.sizes, form, config.dtype, config.ranks, rank, parallel_embedding=config.parallel_embedding
        )
    except UsageProblem as error:
        if rank == 0:
            yield Problem("error", error.what, error.why)
        return
    expected = {spec.name: spec for spec in specs}
    yield from _check_missing(expected, header, file)
    for name, spec in sorted(header.items()):
        if name not in expected:
            if not name.endswith(SEPARATE_KV) or config.form.kv_cache is None:
                yield Problem("warning", f"{name} is not required", "the loader would ignore it", file)
        elif why := _difference(expected[name], spec, form):
            yield Problem("error", f"{name} does not fit", why, file)


def _check_missing(
    expected: Mapping[str, TensorSpec], header: Mapping[str, TensorSpec], file: str
) -> Iterable[Problem]:
    for name in sorted(expected.keys() - header.keys()):
        if name == "lm_head.weight" and "transformer.vocab_embedding.weight" in header:
            why = "the loader accepts that for a shared embedding table, which releases from 0.16 no longer have"
            yield Problem("warning", f"{name} is missing", why, file)
        elif name.endswith(".kv_cache_scaling_factor") and all(
            f"{name.rpartition('.')[0]}.{each}" in header for each in SEPARATE_KV
        ):
            yield Problem("warning", f"{name} is missing", "only newer loaders make it of k_ and v_", file)
        else:
            yield Problem("error", f"{name} is missing", "required but not provided", file)


def _difference(expected: TensorSpec, found: TensorSpec, form: CheckpointFormat) -> str:
    # The loader makes a vector of one number out of a scalar.
    shapes = (
        expected.shape,
        () if expected.shape == (1,) else expected.shape,
        (1,) if expected.shape == () else expected.shape,
    )
    if found.shape not in shapes:
        return f"it is {list(found.shape)} and should be {list(expected.shape)}"
    kinds = {expected.dtype}
    if expected.dtype == "float8_e4m3fn" and expected.name.endswith(".weight"):
        kinds.add("int8")  # Older exports have the bytes of FP8 under that name.
    if found.dtype in kinds:
        return ""
    hint = "; only int8 is repacked" if form.quant_algo in GROUPED and found.dtype == "uint8" else ""
    return f"it is {found.dtype} and should be {expected.dtype}{hint}"


def _is_packed(form: CheckpointFormat, header: Mapping[str, TensorSpec]) -> bool:
    """Whether weight-only numbers are in the kernels' layout, as convert_checkpoint.py writes them."""
    return form.quant_algo in WEIGHT_ONLY and any(name.endswith(".per_channel_scale") for name in header)
