"""`rebuild.json`: what came of building a step once more; see trtx.stages.rebuild. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trtx.backends.rebuilt import Comparison
from trtx.stages.job import Failure, JobFile

REPORT_NAME = "rebuild.json"


class Report(JobFile):
    """A comparison of an entry with its rebuild, or why there is none.

    `seconds` is how long the rebuild took, its check included and the comparison not.
    """

    schema_: Literal["trtx.rebuilt/v1"] = Field(default="trtx.rebuilt/v1", alias="schema")
    step: str
    key: str
    comparison: Comparison | None = None
    failure: Failure | None = None
    seconds: float | None = None
