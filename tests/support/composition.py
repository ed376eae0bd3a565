"""Recipes of several files in a folder, loaded as the command line would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from support.malformed import recipe

from trtx.hardware import support
from trtx.recipe.checks import read_recipe
from trtx.recipe.load import LoadedRecipe
from trtx.recipe.overrides import Overrides
from trtx.recipe.problems import RecipeInvalid


class Folder:
    """A folder with base.yaml, which is a whole recipe, and recipe.yaml."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("base.yaml", recipe())

    def write(self, name: str, text: str) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def load(
        self, text: str, *, set: tuple[str, ...] = (), unset: tuple[str, ...] = (), env: Mapping[str, str] | None = None
    ) -> LoadedRecipe:
        return read_recipe(self.write("recipe.yaml", text), support, Overrides(set, unset), env or {})

    def refused(self, text: str, *, set: tuple[str, ...] = (), unset: tuple[str, ...] = ()) -> str:
        try:
            self.load(text, set=set, unset=unset)
        except RecipeInvalid as error:
            return error.render()
        raise AssertionError("the recipe is valid")

    def origin(self, loaded: LoadedRecipe, *path: str | int) -> str:
        """An origin, with paths as they are in the folder."""
        return str(loaded.origin(path)).replace(f"{self.path}/", "")
