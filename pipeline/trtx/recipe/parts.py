"""The words that the models of the language are made of."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
# Whatever ends a line for one of the programs that read batch scripts.
LINE_PATTERN = r"^[^\x00-\x1f\x7f\u0085\u2028\u2029]+$"
ANY_LINE_PATTERN = LINE_PATTERN.replace("+$", "*$")

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Url = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://\S+$")]
Text = Annotated[str, Field(min_length=1)]
Line = Annotated[str, Field(min_length=1, pattern=LINE_PATTERN)]
Positive = Annotated[int, Field(ge=1)]

Item = TypeVar("Item")
# The models are strict, and YAML has lists where frozen models have tuples.
Many = Annotated[tuple[Item, ...], Field(strict=False, min_length=1)]


class Part(BaseModel):
    """Base of everything in a recipe: unknown keys are errors, values are never converted, nothing changes later."""

    # Only Recipe is built when its module is imported: its validator contains all the others (saves 20 ms).
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


def section(description: str) -> Any:
    """A nested model that may be left out: an empty one is validated in its place, so its own defaults apply.

    An instance as default would build that model's validator a second time, at import.
    """
    return Field(default={}, validate_default=True, description=description)


def broken_rule(what: str, fix: str) -> PydanticCustomError:
    """What a validator raises for a value of the right type that is wrong; worded in trtx.recipe.messages."""
    return PydanticCustomError("rule", "{message}", {"message": what, "fix": fix})
