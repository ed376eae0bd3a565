"""`recipe.lock.yaml`: what a recipe leaves open, pinned; its text and its place.

Keys are sorted and every fact has a line of its own, so that a change of one thing changes its lines only. The same
facts give the same bytes: no times, hosts, user names or folders of a machine are in it, and no secrets.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trtx.errors import UsageProblem
from trtx.files import write_text
from trtx.recipe.schema import Calibration, Model
from trtx.stages.params import DatasetParams

SCHEMA = "trtx.lock/v1"
LOCK_SUFFIX = ".lock.yaml"
HEADER = """\
# What the recipe leaves open, pinned by trtx: commits, digests, tools. Commit this file beside the recipe.
# `trtx lock RECIPE` renews it, `trtx lock RECIPE --upgrade model` moves a pin; do not edit it by hand.
"""
# A lock of a thousand steps has some 200 KB.
MAX_BYTES = 16 << 20
CONFLICT = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.MULTILINE)

# libyaml where PyYAML was built with it.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Scalar = str | int | float | bool | None


class _Part(BaseModel):
    """Closed, frozen, nothing converted. Only Lock is built at import: its validator contains all the others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class LockedFile(_Part):
    """One file's content."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class LockedModel(_Part):
    """A model: the commit or digest it is pinned to, and its files, empty while they are not known."""

    identity: str
    files: dict[str, LockedFile] = {}


class LockedRows(_Part):
    """Rows drawn of a dataset. `numbers` are ranges such as `0-3 17`, left out when there are very many."""

    count: int
    numbers: str | None = None


class LockedDraw(_Part):
    """One choice of rows: the files with their texts, and which rows they are, by use (calibration, heldout)."""

    files: dict[str, LockedFile]
    rows: dict[str, LockedRows]


class LockedDataset(_Part):
    """A dataset and every choice of rows, by what determines it: column, samples, heldout, seed."""

    identity: str
    draws: dict[str, LockedDraw] = {}


class LockedContainer(_Part):
    """A container image; no digest when its registry was not asked or did not answer."""

    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None


class LockedTools(_Part):
    """What steps of one runner are run with. `driver` is the NVIDIA driver's version where there is one."""

    compiler: str
    distributions: dict[str, str]
    python: str
    driver: str | None = None


class LockedBuild(_Part):
    """What the compiler chose for one engine; see trtx.backends.inductor.choices."""

    arch: str
    key: Sha256
    choices: dict[str, Scalar | dict[str, Scalar]]


class LockedClient(_Part):
    """What measures engines: trtx's version, and that of the benchmark stage's code."""

    trtx: str
    code: int


class Lock(_Part):
    """Content of a lock. `models` by `<url>@<revision>`, `datasets` by `<url>@<revision>#<split>`, `containers` by
    the reference in the recipe, `probes` by the file's name there, `entries` (cache keys) and `builds` by step id."""

    model_config = ConfigDict(defer_build=False, populate_by_name=True)

    schema_: Literal["trtx.lock/v1"] = Field(default="trtx.lock/v1", alias="schema")
    benchmark: LockedClient | None = None
    builds: dict[str, LockedBuild] = {}
    containers: dict[str, LockedContainer] = {}
    datasets: dict[str, LockedDataset] = {}
    entries: dict[str, Sha256] = {}
    models: dict[str, LockedModel] = {}
    probes: dict[str, Sha256] = {}
    runners: dict[str, LockedTools] = {}
    stages: dict[str, int] = {}

    def to_data(self) -> dict[str, Any]:
        """Plain values; what is not known is left out."""
        data: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {name: value for name, value in data.items() if value != {}}


def model_title(model: Model) -> str:
    """What a model is called in a lock."""
    return f"{model.source}@{model.revision}" + ("#pickle" if model.allow_pickle else "")


def dataset_title(data: Calibration) -> str:
    """What a dataset is called in a lock."""
    return f"{data.dataset}@{data.revision}#{data.split}"


def draw_title(data: Calibration | DatasetParams) -> str:
    """What a choice of rows is called in a lock: all that determines it besides the dataset."""
    return f"{data.column}, {data.samples}+{data.heldout} rows, seed {data.seed}"


def lock_path(recipe: Path) -> Path:
    """`recipe.yaml` → `recipe.lock.yaml` beside it."""
    return recipe.with_name(f"{recipe.stem}{LOCK_SUFFIX}")


def dump_lock(lock: Lock) -> str:
    """The text of a lock."""
    text: str = yaml.dump(
        lock.to_data(), Dumper=_DUMPER, sort_keys=True, default_flow_style=False, allow_unicode=True, width=120
    )
    return HEADER + text


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock so that readers see the old one or the new. Raises EnvironmentProblem when it cannot be written."""
    write_text(path, dump_lock(lock))


def read_lock(path: Path) -> Lock | None:
    """The lock at a path, None when there is none. Raises UsageProblem for one that cannot be used as it is."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageProblem(f"the lock {path} cannot be read", why=error.strerror or str(error)) from error
    return parse_lock(text, str(path))


def parse_lock(data: bytes, where: str) -> Lock:
    """The lock of a text. Raises UsageProblem, naming the place as well as it can be known."""
    fix = f"get the committed file back, or delete {where} and run `trtx lock` again"
    try:
        text = data.decode()
        if CONFLICT.search(text):
            raise UsageProblem(
                f"{where} has the marks of a merge that was not finished",
                fix="keep one of the two sides, then run `trtx lock`: it brings the file up to date",
            )
        if len(data) > MAX_BYTES:
            raise UsageProblem(f"{where} is not a lock", why=f"it is larger than {MAX_BYTES >> 20} MiB", fix=fix)
        body = yaml.load(text, Loader=_Reader)  # noqa: S506  A SafeLoader.
    except (UnicodeDecodeError, RecursionError) as error:
        raise UsageProblem(f"{where} cannot be read", why=str(error), fix=fix) from error
    except yaml.YAMLError as error:
        raise UsageProblem(f"{where} cannot be read", why=_describe_syntax(error), fix=fix) from error
    _check_schema(body, where, fix)
    try:
        return Lock.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = " → ".join(str(part) for part in first["loc"])
        raise UsageProblem(
            f"{where} was edited by hand or damaged", why=f"{place}: {first['msg'].lower()}", fix=fix
        ) from error


def _check_schema(body: Any, where: str, fix: str) -> None:
    """Raises UsageProblem for a text that is no lock, or one of another version."""
    schema = body.get("schema") if isinstance(body, dict) else None
    if schema == SCHEMA:
        return
    if isinstance(schema, str) and schema.startswith("trtx.lock/"):
        raise UsageProblem(
            f"{where} was written by another version of trtx",
            why=f"its schema is {schema}, and this trtx reads {SCHEMA}",
            fix="use the trtx that wrote it; or delete it and run `trtx lock`, which pins everything anew",
        )
    raise UsageProblem(
        f"{where} is not a lock", why=f"its schema is {schema}" if schema else "it has no schema", fix=fix
    )


def _describe_syntax(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}: " if mark else ""
    return f"{place}{getattr(error, 'problem', None) or 'it is not YAML'}"


class _Reader(_LOADER):  # type: ignore[misc]
    """YAML as `dump_lock` writes it: a key stands once, nothing refers to something else."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node in self.constructed_objects:
            raise yaml.constructor.ConstructorError(None, None, "an alias is not allowed here", node.start_mark)
        return super().construct_object(node, deep=deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{name}' stands twice", key.start_mark)
            seen.add(name)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping
