"""The two files between the halves of trtx: `job.json` tells a worker what to do, `result.json` what came of it.

Both live in the step's folder of a run; see trtx.plan.record for the names. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trtx.errors import BY_NAME, StepFailed, TrtxError

JOB_NAME = "job.json"
RESULT_NAME = "result.json"
PROGRESS_NAME = "progress.json"
# The attempt a runner starts; without it a worker takes the next free number.
ATTEMPT_VARIABLE = "TRTX_ATTEMPT"
# Set by runners whose steps must not outlive them.
PARENT_VARIABLE = "TRTX_PARENT_PID"
# Set by runners that start several processes for a step: which this one is, and how many there are.
RANK_VARIABLE = "TRTX_RANK"
RANKS_VARIABLE = "TRTX_RANKS"
# Where they tell each other how they are, in the attempt's folder.
RANKS_FOLDER = "ranks"


class JobFile(BaseModel):
    """Base of the files between the halves."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, defer_build=True)


class Input(JobFile):
    """One input: the step that makes it and its key. A witness may be used but does not enter the step's key."""

    step: str
    key: str
    witness: bool = False


class Job(JobFile):
    """Content of job.json: everything a worker needs, nothing about who runs it or when.

    `expected` are the SHA-256 digests of the output's files by path, where a lock has them; `choices` what an earlier
    build of the same key measured and chose, which is taken instead of measuring again.
    """

    schema_: Literal["trtx.job/v1"] = Field(default="trtx.job/v1", alias="schema")
    step: str
    stage: str
    key: str
    factors: dict[str, Any]
    params: dict[str, Any]
    inputs: dict[str, Input]
    cache_dir: str
    recipe: str
    expected: dict[str, str] = {}
    choices: dict[str, Any] = {}


class Failure(JobFile):
    """Why an attempt failed; `kind` is a class of trtx.errors."""

    kind: str
    what: str
    why: str = ""
    fix: str = ""

    @classmethod
    def of(cls, error: TrtxError) -> Failure:
        return cls(kind=type(error).__name__, what=error.what, why=error.why, fix=error.fix)

    def error(self) -> TrtxError:
        return BY_NAME.get(self.kind, StepFailed)(self.what, why=self.why, fix=self.fix)


class Result(JobFile):
    """Content of result.json. `published`: this attempt made the entry; `adopted`: another process had made it.

    `evidence` is the folder in which a failure is kept for inspection, if it could be kept.
    """

    schema_: Literal["trtx.result/v1"] = Field(default="trtx.result/v1", alias="schema")
    step: str
    key: str
    state: Literal["published", "adopted", "failed"]
    attempt: int
    started: float
    ended: float
    host: str
    pid: int
    failure: Failure | None = None
    evidence: str | None = None
    summary: dict[str, Any] = {}


def attempt_folder(step_folder: Path, attempt: int) -> Path:
    """Where an attempt's log, progress and result are."""
    return step_folder / "attempts" / str(attempt)


def read_result(folder: Path) -> Result | None:
    """The result of an attempt, or None when it left none (killed, or still running)."""
    try:
        return Result.model_validate_json((folder / RESULT_NAME).read_bytes())
    except (OSError, ValueError):
        return None


def dump_file(model: JobFile) -> str:
    """The text of a job or result file; the same model gives the same bytes."""
    return model.model_dump_json(by_alias=True, indent=1) + "\n"
