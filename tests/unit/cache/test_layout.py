"""A folder is a cache of this layout, becomes one, or is refused and left as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.entries import publish_entry

from trtx.cache.layout import LAYOUT_VERSION
from trtx.cache.store import Store
from trtx.errors import EnvironmentProblem

KEY = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "cache")
    made.prepare()
    return made


def test_a_cache_of_another_layout_is_refused(store: Store) -> None:
    (store.root / "layout").write_text("99\n")
    with pytest.raises(EnvironmentProblem, match="layout 99"):
        store.prepare()


def test_a_folder_with_other_things_in_it_does_not_become_a_cache(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(EnvironmentProblem, match="cannot become a cache") as caught:
        Store(tmp_path).prepare()
    assert "thesis.tex" in caught.value.why
    assert not (tmp_path / "CACHEDIR.TAG").exists()


def test_a_cache_whose_making_was_interrupted_is_finished_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "entries").mkdir()
    (tmp_path / "memo").mkdir()
    Store(tmp_path).prepare()
    (tmp_path / "layout").unlink()
    (tmp_path / "CACHEDIR.TAG").unlink()
    Store(tmp_path).prepare()
    assert (tmp_path / "layout").read_text() == f"{LAYOUT_VERSION}\n"
    assert (tmp_path / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_a_cache_made_before_leases_and_pins_is_used_as_it_is(store: Store) -> None:
    publish_entry(store, KEY)
    for name in ("index", "leases", "pins", "failures"):
        (store.root / name).rmdir()
    assert store.find(KEY).manifest is not None
    store.prepare()
    assert publish_entry(store, KEY) == store.find(KEY).manifest


@pytest.mark.parametrize(
    ("version", "fix"), [("2", "update trtx"), ("0", "delete that folder"), ("", "delete that folder")]
)
def test_other_layouts_are_refused_untouched(store: Store, version: str, fix: str) -> None:
    publish_entry(store, KEY)
    (store.root / "layout").write_text(version)
    with pytest.raises(EnvironmentProblem) as caught:
        store.check_layout()
    assert fix in caught.value.fix
    with pytest.raises(EnvironmentProblem):
        store.remove(KEY)
    assert store.keys() == [KEY]
