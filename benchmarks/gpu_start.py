"""How long an engine takes from the start of its process to its first token, from files in the page cache.

`measure_start`, for benchmarks/gpu.py, starts this file in a fresh process: gpu_start.py ENGINE_FOLDER STARTED_S.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_engines import Built


def measure_start(built: Built) -> dict[str, Any]:
    """Write the weights of an engine beside it, and start it in a fresh process."""
    from gpu_engines import make_weights

    from trtx.backends.inductor.convert import make_weights_config, rank_file
    from trtx.files import write_json
    from trtx.models.layout import make_layout
    from trtx.models.weights_config import WEIGHTS_CONFIG_NAME
    from trtx.models.weights_file import WeightsWriter

    card = built.card
    folder = built.folder / "weights"
    folder.mkdir()
    layout = make_layout(card.model, card.quantization, card.dtype, 1, 1, 0)
    weights = make_weights(card)
    began = time.monotonic()
    with WeightsWriter(folder / rank_file(0), layout.tensors) as writer:
        for spec in layout.tensors:
            writer.write(spec.name, weights.pop(spec.name).cpu())
    written_s = time.monotonic() - began
    config = make_weights_config(card.model, card.quantization, card.dtype, 1, 1, [layout])
    write_json(folder / WEIGHTS_CONFIG_NAME, config.model_dump(mode="json", by_alias=True))
    size = (folder / rank_file(0)).stat().st_size
    began = time.monotonic()
    command = [sys.executable, __file__, str(built.folder), str(time.time())]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    shutil.rmtree(folder)
    if answer.returncode != 0:
        raise RuntimeError(answer.stderr[-2000:])
    parts = json.loads(answer.stdout.splitlines()[-1])
    return {"seconds": parts["first token"], "whole_process_s": round(seconds, 2), "gigabytes": round(size / 1e9, 2),
            "parts": parts, "written_s": round(written_s, 1)}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Load the engine and print when each part was done, in seconds since the process was started."""
    folder, started = Path(arguments[0]), float(arguments[1])
    parts: dict[str, float] = {}

    def done(name: str) -> None:
        parts[name] = round(time.time() - started, 2)

    import torch
    from gpu_engines import make_tokenizer

    from trtx.runtime.card import load_card
    from trtx.runtime.cuda_load import copy_weights, make_sized_programs
    from trtx.runtime.cuda_memory import CudaMemory
    from trtx.runtime.device_engine import DeviceEngine
    from trtx.runtime.engine import DEFAULT_MEMORY_FRACTION
    from trtx.runtime.memory import PoolSize
    from trtx.runtime.program import load_weights
    from trtx.runtime.request import SamplingParams

    done("imports")
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    done("device")
    card = load_card(folder)
    memory = CudaMemory()
    weights = copy_weights(load_weights(card, folder / "weights"))
    done("weights")
    size = PoolSize(None, DEFAULT_MEMORY_FRACTION, sum(tensor.nbytes for tensor in weights.values()))
    programs = make_sized_programs(folder, card, weights, size, memory)
    done("programs")
    engine = DeviceEngine(programs, make_tokenizer(card.model.vocab_size))
    request = engine.make_request([1, 2, 3, 4], SamplingParams(max_tokens=1, temperature=0.0))
    engine.add_request(request)
    while not request.output_ids:
        engine.step()
    done("first token")
    print(json.dumps(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
