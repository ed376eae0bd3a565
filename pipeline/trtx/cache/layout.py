"""The folders of a cache, its version, and the marks by which it is recognised before anything in it is deleted.

    CACHEDIR.TAG  layout              what this folder is, and its version
    entries/ab/<key>/manifest.json    one entry; `output/` holds the step's files
    entries/ab/<key>/origin.json      where it came from, unless it was made in this cache (trtx.cache.origin)
    memo/ab/<key>.json                stat of each file when it was last hashed; its mtime is the entry's last use
    index/ab.json                     what `ls` shows of the shard entries/ab/, made again when that folder changed
    leases/<key>.json                 who is making the key now (advice: nothing is wrong without it)
    runs/<id>-<8 digits>.json         what runs under way need (advice, too: trtx.cache.runs)
    pins/<key>.json                   entries that are never pruned
    failures/<key16>-<time>-<id>/     what failed steps left for inspection; never served
    quarantine/<key>-<id>/            entries that failed their check, kept for inspection
    tmp/<name>/                       staging and trash; invisible until renamed into entries/

Version 1 is the only one so far. `index`, `leases`, `runs`, `pins` and `failures` came later and are optional: a trtx
that does not know them never prunes, and takes part in nothing that they guard, so both kinds work on one cache.
"""

from __future__ import annotations

from pathlib import Path

from trtx.errors import EnvironmentProblem
from trtx.files import disk_errors, write_text

LAYOUT_VERSION = "1"
FOLDERS = ("entries", "memo", "index", "leases", "runs", "pins", "failures", "quarantine", "tmp")
# https://bford.info/cachedir/: backup tools skip folders with this file; its first line is fixed by that document.
SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
CACHEDIR_TAG = f"{SIGNATURE}\n# This folder is a cache made by trtx.\n"


def check_layout(root: Path) -> None:
    """Raise EnvironmentProblem when the folder is a cache of another layout; one that does not exist is fine."""
    try:
        found = (root / "layout").read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentProblem(f"cannot read {root / 'layout'}", why=str(error)) from error
    if found != LAYOUT_VERSION:
        newer = found.isdigit() and int(found) > int(LAYOUT_VERSION)
        raise EnvironmentProblem(
            f"{root} is a trtx cache of layout {found or '(empty)'}",
            why=f"this version of trtx reads layout {LAYOUT_VERSION} and must not change others",
            fix=f"{'update trtx' if newer else 'delete that folder'}, or point TRTX_CACHE_DIR at another folder",
        )


def prepare_layout(root: Path) -> None:
    """Create the folder and its marks.

    Raises EnvironmentProblem for a cache of another layout, and for a folder with something else in it: a cache in
    the middle of a home folder would have backups skip all of it.
    """
    check_layout(root)
    if not (root / "layout").exists():
        _refuse_foreign(root)
    with disk_errors(root):
        for name in FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)
    # The tag first: a folder with a layout but no tag would be a cache that cannot be pruned.
    if not (root / "CACHEDIR.TAG").exists():
        write_text(root / "CACHEDIR.TAG", CACHEDIR_TAG)
    if not (root / "layout").exists():
        write_text(root / "layout", LAYOUT_VERSION + "\n")


def _refuse_foreign(root: Path) -> None:
    known = {*FOLDERS, "CACHEDIR.TAG", "lost+found"}
    with disk_errors(root):
        names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    foreign = [name for name in names if name not in known and not name.startswith((".CACHEDIR.TAG.", ".layout."))]
    if foreign:
        raise EnvironmentProblem(
            f"{root} cannot become a cache of trtx",
            why=f"there are other things in it, such as {foreign[0]}",
            fix="point TRTX_CACHE_DIR at a folder that is empty or does not exist yet",
        )


def require_tag(root: Path, *folders: Path) -> None:
    """Raise EnvironmentProblem unless this is a folder that trtx may delete from.

    That is: it carries the signature of a cache folder and this layout, and its parts, `folders` among them, are
    folders and not links to others.
    """
    check_layout(root)
    try:
        signed = (root / "CACHEDIR.TAG").read_bytes().startswith(SIGNATURE.encode())
    except OSError:
        signed = False
    if not signed or not (root / "layout").is_file():
        raise EnvironmentProblem(
            f"nothing is deleted in {root}",
            why="it has no valid CACHEDIR.TAG, so it may not be a cache of trtx",
            fix="check TRTX_CACHE_DIR",
        )
    for folder in (root / "entries", root / "tmp", *folders):
        if folder.is_symlink():
            raise EnvironmentProblem(
                f"nothing is deleted in {root}",
                why=f"{folder} is a link to another folder",
                fix="make the whole cache a link, or point TRTX_CACHE_DIR there",
            )
