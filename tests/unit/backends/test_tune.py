"""Products are measured once: what an earlier build measured is taken, as far as the library takes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch import Tensor
from unit.backends.test_build import make_spec

from trtx.backends.inductor import build, tune
from trtx.backends.inductor.process import Child, Ended
from trtx.backends.inductor.spec import EngineSpec, TuneJob
from trtx.errors import StepFailed, UsageProblem
from trtx.files import write_json
from trtx.runtime.card import Kernels

KERNELS = Kernels(path="programs/kernels.so", sha256="0" * 64, namespace="trtx_0")


def name_shape(x: Tensor, weight: Tensor, is_gated: bool) -> str:
    return f"bf16{'-gated' if is_gated else ''} {x.shape[0]} {weight.shape[0]} {weight.shape[1]}"


@dataclass
class Library:
    """Stands in for a kernel library: every product has two algorithms, of which the second is faster."""

    refused: set[str] = field(default_factory=set)
    used: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def product_candidates(self, x: Tensor, weight: Tensor, is_gated: bool, count: int) -> list[str]:
        shape = name_shape(x, weight, is_gated)
        self.asked.append(shape)
        return [f"{shape} {algorithm}" for algorithm in ("00", "01")][:count]

    def use_products(self, records: list[str]) -> None:
        for record in records:
            shape, _, algorithm = record.rpartition(" ")
            self.used[shape] = algorithm

    def multiply(self, x: Tensor, weight: Tensor, is_gated: bool = False) -> None:
        shape = name_shape(x, weight, is_gated)
        if f"{shape} {self.used[shape]}" in self.refused:
            raise RuntimeError("cuBLASLt: product: not supported")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(tune, "DEVICE", "cpu")
    monkeypatch.setattr(tune, "COLD_BYTES", 0)
    monkeypatch.setattr(tune, "synchronize", lambda: None)
    monkeypatch.setattr(tune.ops, "linear_bf16", made.multiply)
    monkeypatch.setattr(tune.ops, "gated_linear", lambda x, weight, y_scale: made.multiply(x, weight, is_gated=True))

    def time_us(multiply: object, weights: list[Tensor]) -> float:
        multiply(weights[0])  # type: ignore[operator]
        [algorithm] = {made.used[shape] for shape in made.asked[-1:]}
        return 10.0 - int(algorithm, 16)

    monkeypatch.setattr(tune, "time_us", time_us)
    return made


@pytest.fixture
def spec() -> EngineSpec:
    return make_spec(dtype="bfloat16", limits={"max_batch_size": 4, "max_num_tokens": 32, "max_seq_len": 64})


def test_what_was_measured_is_not_measured_again(library: Library, spec: EngineSpec) -> None:
    first = tune.tune(spec, library)
    assert len(first) > 4 and {one.record[-2:] for one in first} == {"01"}
    assert all(one.time_us == 9.0 for one in first)
    library.asked.clear()
    slower = [one.record[:-2] + "00" for one in first]
    again = tune.tune(spec, library, slower)
    assert [one.record for one in again] == slower, "the records decide, not the clock"
    assert library.asked == []
    assert {one.time_us for one in again} == {None}
    assert set(library.used.values()) == {"00"}


def test_only_what_is_missing_is_measured(library: Library, spec: EngineSpec) -> None:
    records = [one.record for one in tune.tune(spec, library)]
    library.asked.clear()
    again = tune.tune(spec, library, [*records[1:], "bf16 999 1 1 00"])
    assert [one.record for one in again] == records, "what no product needs is left out"
    assert len(library.asked) == 1 and records[0].startswith(library.asked[0])


def test_a_record_that_the_library_refuses_is_measured_anew(library: Library, spec: EngineSpec) -> None:
    records = [one.record for one in tune.tune(spec, library)]
    library.asked.clear()
    library.refused = {records[0]}
    again = [one.record for one in tune.tune(spec, library, records)]
    assert again == [records[0][:-2] + "00", *records[1:]]
    assert len(library.asked) == 1


def test_a_product_that_nothing_computes_is_an_error(library: Library, spec: EngineSpec) -> None:
    records = [one.record for one in tune.tune(spec, library)]
    library.refused = {records[0], records[0][:-2] + "00"}
    with pytest.raises(UsageProblem, match="no algorithm computes"):
        tune.tune(spec, library, records)


def test_products_of_few_tokens_are_measured_behind_the_kernel_that_is_before_them(
    library: Library, spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    normed: list[tuple[int, ...]] = []

    def rms_norm(x: Tensor, *_: object, **__: object) -> Tensor:
        normed.append(tuple(x.shape))
        return x

    monkeypatch.setattr(tune.ops, "rms_norm", rms_norm)
    found = tune.tune(spec, library)
    assert {shape[0] for shape in normed} == {8, 16, 32}
    assert len(normed) == sum(one.candidates for one in found)
    normed.clear()
    tune.tune(spec.model_copy(update={"dtype": "float16"}), library)
    assert not normed, "layers that are not fused have other kernels there"


@pytest.mark.parametrize(
    ("given", "times", "said"),
    [
        ((), [1.0, 2.0], "measured 2 products in "),
        (("bf16 16 1 1 00", "bf16 32 1 1 00"), [None, None], "replayed 2 records in "),
        (("bf16 16 1 1 00",), [None, 2.0], "replayed 1 records, measured 1 products in "),
    ],
)
def test_the_log_of_a_build_says_what_it_repeated(
    given: tuple[str, ...],
    times: list[float | None],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: EngineSpec,
) -> None:
    def run_children(children: list[Child], _cwd: Path) -> list[Ended]:
        job = TuneJob.model_validate_json(Path(children[0].arguments[0]).read_bytes())
        assert job.given == given
        rows = [
            {"record": f"bf16 {tokens} 1 1 00", "time_us": time} for tokens, time in zip((16, 32), times, strict=True)
        ]
        write_json(Path(job.records), rows)
        return [Ended(0, [])]

    monkeypatch.setattr(build, "run_children", run_children)
    lines: list[str] = []
    records = build.tune_products(spec, KERNELS, tmp_path, tmp_path, lines.append, given)
    assert records == ("bf16 16 1 1 00", "bf16 32 1 1 00")
    assert lines[0].startswith(said)


def test_measuring_that_fails_fails_the_step_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: EngineSpec
) -> None:
    def run_children(children: list[Child], _cwd: Path) -> list[Ended]:
        children[0].log.write_text("out of memory\n")
        return [Ended(1, ["out of memory"])]

    monkeypatch.setattr(build, "run_children", run_children)
    with pytest.raises(StepFailed, match="measuring the products failed") as caught:
        build.tune_products(spec, KERNELS, tmp_path, tmp_path, lambda _: None, ())
    assert caught.value.why == "out of memory"
