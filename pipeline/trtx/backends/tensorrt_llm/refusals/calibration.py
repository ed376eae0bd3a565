"""Calibration by the release's own quantize.py: which data it reads, and what it does otherwise than it is told."""

from __future__ import annotations

from collections.abc import Iterator

from trtx.backends.tensorrt_llm.argv_quantize import AWQ_SAMPLES
from trtx.backends.tensorrt_llm.convertible import choose_converter, is_converted, release_problem
from trtx.backends.tensorrt_llm.refusals.base import Refusal, Subject, refuse_by

DATA = ("quantization", "calibration", "dataset")
# Releases whose quantize.py is known to read a folder of texts: quantize_by_modelopt.py:378-422 of 1.3.0rc3.
READS_FOLDERS = ("1.3.0rc3",)
READ_BY_NAME = ("cnn_dailymail", "pileval", "scienceqa")


def _calibrates_itself(subject: Subject) -> bool:
    if subject.flow != "engine" or subject.shape is None:
        return False
    is_release = choose_converter(subject) == "release" and not is_converted(subject)
    return is_release and not release_problem(subject)


def check_data(subject: Subject) -> Iterator[Refusal]:
    if not _calibrates_itself(subject) or subject.release.version in READS_FOLDERS:
        return
    url = subject.variant.calibration.dataset
    if any(name in url for name in READ_BY_NAME):
        return
    yield refuse_by(
        subject,
        "calibration-data",
        DATA,
        f"quantize.py of {subject.title} may not read {url}",
        "use hf://abisee/cnn_dailymail, or engine.converter: trtx, which reads any text",
        why="that it reads a folder of texts is established for 1.3.0rc3; older ones know a few data sets by name",
    )


def check_samples(subject: Subject) -> Iterator[Refusal]:
    data = subject.variant.calibration
    if _calibrates_itself(subject) and "awq" in subject.variant.algorithm and data.samples > AWQ_SAMPLES:
        yield refuse_by(
            subject,
            "awq-calibration",
            ("quantization", "calibration", "samples"),
            f"quantize.py will calibrate on {AWQ_SAMPLES} of the {data.samples} samples",
            f"write {AWQ_SAMPLES}",
        )


CHECKS = (check_data, check_samples)
