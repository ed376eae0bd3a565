"""The least NVIDIA driver for a CUDA version.

Source: NVIDIA's CUDA Toolkit Release Notes (https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/), the tables "CUDA
Toolkit and Corresponding Driver Versions" and "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version
Compatibility", Linux x86_64. No file of TensorRT-LLM states a minimum for its images.
"""

from __future__ import annotations

SOURCE = "NVIDIA CUDA Toolkit Release Notes, driver versions for Linux x86_64"

# Driver that comes with the toolkit: with it or a newer one, everything of that toolkit works.
TOOLKIT_DRIVER = {
    "12.5.0": "555.42.02",
    "12.5.1": "555.42.06",
    "12.6.0": "560.28.03",
    "12.6.1": "560.35.03",
    "12.6.2": "560.35.03",
    "12.6.3": "560.35.05",
    "12.8.0": "570.26",
    "12.8.1": "570.124.06",
    "12.9.0": "575.51.03",
    "12.9.1": "575.57.08",
    "13.0.0": "580.65.06",
    "13.0.1": "580.82.07",
    "13.0.2": "580.95.05",
    "13.1.0": "590.44.01",
}
# Below these, programs of the whole CUDA series are not promised to start; between these and the toolkit's driver they
# run without the newer driver's features, and without PTX that has to be compiled.
SERIES_DRIVER = {"12": "525.60.13", "13": "580"}


def toolkit_driver(cuda: str) -> str | None:
    """The driver of a CUDA version ("12.8.1"); of the newest known update for a series ("12.9", "13.x"), to be safe."""
    if cuda in TOOLKIT_DRIVER:
        return TOOLKIT_DRIVER[cuda]
    prefix = cuda.removesuffix("x").removesuffix(".") + "."
    return next((driver for version, driver in reversed(TOOLKIT_DRIVER.items()) if version.startswith(prefix)), None)


def series_driver(cuda: str) -> str | None:
    """The least driver by CUDA's minor version compatibility."""
    return SERIES_DRIVER.get(cuda.partition(".")[0])
