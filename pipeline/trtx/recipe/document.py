"""What a recipe file may say beside the recipe itself: `extends`, `vars` and `matrix`.

They are gone once a file is loaded: files are merged, variables replaced, and every point of the matrix is a Recipe
of its own. These models describe the file, for editors, the reference and error messages.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from trtx.recipe.parts import Many, Name, Part, Text
from trtx.recipe.schema import Recipe


class Axis(Part):
    """One setting that takes several values."""

    path: Text = Field(
        description="Dotted path of the setting, such as engine.limits.max_batch_size, or vars.NAME for a variable."
    )
    values: Many[Any] | Annotated[dict[Name, Any], Field(min_length=1)] = Field(
        description="Its values: a list of texts, numbers and booleans, which are named after themselves, or a mapping "
        "from names to values of any kind."
    )


class Matrix(Part):
    """Builds every cell once for each combination of values."""

    axes: Annotated[dict[Name, Axis], Field(min_length=1)] = Field(
        description="Settings that vary, by name. A value of the axis `batch` gives cells such as h100/fp8/batch-8."
    )
    exclude: Many[Annotated[dict[str, Any], Field(min_length=1)]] | None = Field(
        default=None,
        description="Combinations that are left out. Keys are axes, and `target` and `variant` (globs); an entry "
        "leaves out every cell that has all of its values.",
    )


class Document(Recipe):
    """A recipe file."""

    model_config = ConfigDict(defer_build=True)

    extends: Text | Many[Text] | None = Field(
        default=None,
        description="Recipe files to start from, relative to this one; later ones win. Mappings merge, lists replace, "
        "null deletes.",
    )
    vars: dict[Name, Any] = Field(default={}, description="Values to use elsewhere as ${vars.NAME}.")
    matrix: Matrix | None = Field(default=None, description="Settings that take several values.")
