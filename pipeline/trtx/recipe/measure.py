"""What a recipe measures and demands: workloads and gates. Defaults stand here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trtx.recipe.parts import Many, Name, Part, Positive, Text
from trtx.recipe.units import Duration, Percent


class Workload(Part):
    """One kind of load."""

    input_tokens: Positive = Field(description="Tokens of every prompt.")
    output_tokens: Positive = Field(description="Tokens of every answer.")
    concurrency: Many[Positive] = Field(description="Requests under way at once; each is one level of the sweep.")
    requests: Positive | None = Field(
        default=None, description="Requests per level; four times the highest concurrency, at least 8, when left out."
    )

    @property
    def num_requests(self) -> int:
        """Requests per concurrency level."""
        return self.requests or max(8, 4 * max(self.concurrency))


class Benchmark(Part):
    """What is measured on every engine."""

    workloads: Annotated[dict[Name, Workload], Field(min_length=1)] = Field(description="Loads by name.")
    repeats: Positive = Field(default=3, description="Times every level is measured.")
    warmup_requests: Annotated[int, Field(ge=0)] = Field(default=2, description="Requests before each measurement.")
    seed: Annotated[int, Field(ge=0)] = Field(default=7, description="Seed of the prompts.")


class SloGate(Part):
    """A limit on one figure of the benchmark."""

    workload: Name = Field(description="Name of a workload.")
    concurrency: Positive = Field(description="One of its levels.")
    metric: Literal["ttft_p50", "ttft_p95", "ttft_p99", "itl_p50", "itl_p95", "itl_p99", "output_tokens_per_s"] = Field(
        description="ttft: time to first token; itl: inter-token latency; p50 … p99: percentiles."
    )
    max: Duration | None = Field(default=None, description="Longest time, with unit.")
    min: Annotated[float, Field(gt=0)] | None = Field(default=None, description="Lowest rate, per second.")


class AccuracyGate(Part):
    """A limit on what quantization costs."""

    baseline: Name = Field(description="Variant to compare with.")
    metric: Literal["perplexity"] = Field(default="perplexity", description="What is compared.")
    max_rise: Percent = Field(description="Largest rise over the baseline, with %.")


class RegressionGate(Part):
    """A limit on what got slower since a recorded run."""

    baseline: Text = Field(description="Recorded benchmark to compare with.")
    max_slowdown: Percent = Field(description="Largest loss of output tokens per second, with %.")


class Gates(Part):
    """Conditions for GO."""

    slo: Many[SloGate] | None = Field(default=None, description="Limits on figures of the benchmark.")
    accuracy: AccuracyGate | None = Field(default=None, description="Limit on what quantization costs.")
    regression: RegressionGate | None = Field(default=None, description="Limit on what got slower.")
