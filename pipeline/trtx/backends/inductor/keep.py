"""A model that is quantized already, kept as it is: what calibration leaves for one that it need not quantize.

Its perplexity is that of transformers with the dequantized weights, so of the stored numbers, and of unrounded
activations: nobody else's figure for the held-out text is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trtx.backends.inductor.check import HELDOUT_NAME
from trtx.backends.inductor.evidence import CALIBRATION_NAME
from trtx.backends.inductor.reference import load_checkpoint
from trtx.errors import VerificationFailed
from trtx.files import link_or_copy, write_json
from trtx.models.checkpoint import Checkpoint, load_model_config
from trtx.models.formats import QuantFormat
from trtx.models.sources.select import QUANT_FORMAT_FILE
from trtx.models.sources.transfer import saving
from trtx.quant.checkpoint_folder import copy_tokenizer, load_tokenizer
from trtx.quant.perplexity import MAX_WINDOW, make_windows, mean_nats, perplexity_of
from trtx.quant.read_format import read_quant_format
from trtx.quant.rows import encode_rows, read_rows


def keep_checkpoint(
    folder: Path,
    data: Path,
    output: Path,
    quantization: QuantFormat,
    *,
    max_length: int,
    batch_size: int,
    say: Callable[[str], None],
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Link the quantized model in `folder` into `output`, with its perplexity and the windows it was measured on.

    `data` holds heldout.jsonl. Returns the content of trtx_calibration.json. Raises VerificationFailed for a model that
    is not in the format of `quantization`, or whose weights are damaged; UsageProblem for a text that is too short.
    """
    with Checkpoint(folder) as checkpoint:
        found = read_quant_format(checkpoint)
    # The packing is the checkpoint's own business, and in no plan.
    if found.model_dump() != quantization.model_dump():
        raise VerificationFailed(
            "the model is not quantized as was planned",
            why=f"planned {quantization.model_dump()}, and its files say {found.model_dump()}",
            fix="plan again: `trtx apply` does both",
        )
    say(f"the model is quantized already, as {found.algorithm}: nothing is calibrated")
    tokenizer, texts = load_tokenizer(folder), read_rows(data / "heldout.jsonl")
    held_out = encode_rows(tokenizer, texts)
    length = min(max_length, load_model_config(folder).max_position_embeddings, MAX_WINDOW)
    windows_KU = make_windows(held_out, length)
    nats = measure(folder, windows_KU, batch_size, progress)
    tokens = windows_KU[:, 1:].numel()
    say(f"perplexity {perplexity_of(nats):.4f} on {tokens} held-out tokens, weights dequantized")
    for path in sorted(folder.glob("*.safetensors*")):
        link_or_copy(path, output / path.name)
    for name in ("config.json", QUANT_FORMAT_FILE):
        if (folder / name).is_file():
            link_or_copy(folder / name, output / name)
    copy_tokenizer(folder, output, tokenizer)
    with saving(output):
        save_file({"tokens": windows_KU}, output / HELDOUT_NAME)
    bits = nats / math.log(2) / (sum(len(text.encode()) for text in texts) / sum(map(len, held_out)))
    report = {
        "kept": True,
        "quantization": found.model_dump(mode="json"),
        "perplexity": {"before": perplexity_of(nats), "after": perplexity_of(nats)},
        "bits_per_byte": {"before": bits, "after": bits},
        "tokens": tokens,
        "window": windows_KU.shape[1] - 1,
        "calibration_tokens": 0,
        "device": "cpu",
        "modelopt": None,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    write_json(output / CALIBRATION_NAME, report)
    return report


def measure(folder: Path, windows_KU: Tensor, batch_size: int, progress: Callable[[int, int, str], None]) -> float:
    """Mean nats per token of a quantized model's dequantized weights. Raises VerificationFailed for NaN."""
    reference = load_checkpoint(folder, windows_KU.shape[1] - 1)
    total, done = math.ceil(len(windows_KU) / batch_size), 0

    def predict(tokens_BT: Tensor) -> Tensor:
        nonlocal done
        logits_BTV = reference.logits(tokens_BT)
        done += 1
        progress(done, total, "forward passes")
        return logits_BTV

    nats = mean_nats(predict, windows_KU, batch_size)
    if not math.isfinite(nats):
        raise VerificationFailed(
            "the model's weights are damaged: its logits are not finite",
            why="NaN or infinity in a weight or a scale spreads into every result",
            fix="fetch or save the model again",
        )
    return nats
