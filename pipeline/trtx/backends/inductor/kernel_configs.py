"""Launch configurations of Triton kernels: block sizes, warps and stages, which inductor chooses by measuring.

Where more than one is possible, inductor times them all while it compiles, and leaves the fastest beside the kernel's
source as `<two characters>/<digest>.best_config` (torch/_inductor/runtime/autotune_cache.py). It takes what lies there
already, so that a program that is compiled in a folder with the same files has the same kernels. What it adds by itself
(CachingAutotuner._dynamic_scale_rblock) is for more rows than a GPU has multiprocessors, and the example that programs
are compiled with has fewer. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from trtx.backends.inductor.replay import KernelConfigs
from trtx.files import read_json, write_json

SUFFIX = ".best_config"
# How long the choice took, and the name of the compiled kernel in Triton's own cache: no choices.
VOLATILE = ("time_taken_ms", "triton_cache_hash")


def write_configs(work: Path, configs: KernelConfigs) -> None:
    """Put configurations where inductor looks for them; `work` is its cache folder."""
    for name, config in configs.items():
        path = work / f"{name}{SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, config)


def read_configs(work: Path) -> KernelConfigs:
    """The configurations of the kernels that were compiled in `work`, by name.

    One that was put there and whose kernel was not made is none of this program.
    """
    found: KernelConfigs = {}
    for path in sorted(work.glob(f"??/*{SUFFIX}")):
        if any(path.parent.glob("*.py")):
            config = read_json(path)
            found[f"{path.parent.name}/{path.stem}"] = {name: config[name] for name in sorted(config.keys() - VOLATILE)}
    return found


def describe_replay(given: KernelConfigs, found: KernelConfigs) -> str:
    """What became of the configurations that were given, in one line; empty where nothing is measured at all."""
    if not given and not found:
        return ""
    kept = sum(given.get(name) == config for name, config in found.items())
    return f"replayed {kept} of {len(found)} kernel configurations, measured {len(found) - kept}"
