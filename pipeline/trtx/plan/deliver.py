"""Puts finished packages where people look for them: out/<recipe>/<target>/<variant>[@<point>]/."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from trtx.backends.tensorrt_llm.names import CARD_NAME
from trtx.cache.store import Store, remove_tree
from trtx.errors import EnvironmentProblem
from trtx.files import disk_errors, link_or_copy, walk_files, write_text
from trtx.plan.steps import Plan, Step

# Larger files are linked from the cache, read-only; smaller ones are copied, so that editing one harms nothing.
LINK_FROM_BYTES = 1 << 20


@dataclass(frozen=True)
class Delivered:
    """A deployment folder in place; `engine` is what `trtx serve` takes, `start` the command that serves it."""

    cell: str
    folder: Path

    @property
    def engine(self) -> Path:
        return self.folder / "engine"

    @property
    def start(self) -> str:
        # trtllm-serve runs in the release's container, whose image the folder builds.
        if (self.folder / "compose.yaml").is_file() and (self.engine / CARD_NAME).is_file():
            return shlex.join(["docker", "compose", "--project-directory", str(self.folder), "up", "--build"])
        if (self.engine / CARD_NAME).is_file():
            return shlex.join(["less", str(self.folder / "README.md")])
        return shlex.join(["trtx", "serve", str(self.engine)])


def deliver(plan: Plan, store: Store, root: Path, remade: Collection[str] = ()) -> list[Delivered]:
    """Make the folder of every packaged cell hold its package; a folder that already does is not touched.

    `remade` are steps that ran just now: their folders are replaced even under the same key, because a corrupt
    entry's large files were links to those delivered before.

    Raises EnvironmentProblem when a folder of that name exists that trtx did not make.
    """
    packages = [step for step in plan.steps if step.stage == "package"]
    return [_deliver_one(plan, step, store, root, fresh=step.id in remade) for step in packages]


def folder_of(cell: str) -> str:
    """`target/variant`, or `target/variant@point`: never inside the folder of another cell."""
    target, _, rest = cell.partition("/")
    return f"{target}/{rest.replace('/', '@')}"


def _deliver_one(plan: Plan, step: Step, store: Store, root: Path, *, fresh: bool) -> Delivered:
    cell = step.cell or step.id
    folder = root / plan.name / folder_of(cell)
    marker = folder.with_name(f".{folder.name}.key")
    delivered = Delivered(cell, folder)
    if not fresh and folder.is_dir() and _read(marker) == step.key:
        return delivered
    if folder.exists() and not marker.exists():
        raise EnvironmentProblem(
            f"cannot put the package into {folder}",
            why="something is there that trtx did not make",
            fix="move it away, or choose another folder with --out-dir",
        )
    _remove_leftovers(folder)
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    with disk_errors(folder):
        try:
            _copy_tree(store.output(step.key), new)
            old = new.with_name(f"{new.name}.old")
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            remove_tree(new)
            raise
        # Large files of a package are links to those of the entries it was made from, which have changed as well.
        for key in (step.key, *(entry.key for entry in step.inputs.values())):
            store.accept_links(key)
        write_text(marker, step.key)
        remove_tree(old)
    return delivered


def _remove_leftovers(folder: Path) -> None:
    """Delete what deliveries that were killed left beside a folder."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}(\.old)?")
    for path in folder.parent.glob(".*"):
        if pattern.fullmatch(path.name):
            remove_tree(path)


def _copy_tree(source: Path, target: Path) -> None:
    for path in walk_files(source):
        copy = target / path.relative_to(source)
        if path.stat().st_size >= LINK_FROM_BYTES:
            link_or_copy(path, copy)
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copy.chmod(0o755 if os.access(path, os.X_OK) else 0o644)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
