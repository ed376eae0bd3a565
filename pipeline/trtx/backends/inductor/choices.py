"""compile.json: what the compiler was told and what it chose, for evidence and for locks. Imports no torch itself.

Nothing here depends on the clock or on the building machine's folders, so that the same build gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trtx.backends.inductor.replay import KernelConfigs, Replay

CHOICES_NAME = "compile.json"

Scalar = str | int | float | bool | None

# Settings that name files of the building machine, or the program itself.
_LOCAL = ("cpp.cxx", "aot_inductor.model_name_for_generated_files")
# Settings worth reading even where they are what torch has by itself.
_ALWAYS = ("max_autotune", "cpp.weight_prepack")


class ProgramChoices(BaseModel):
    """One program: inductor's settings, its vector code, how many kernels it made, and what its tuner picked.

    `settings` are those of torch._inductor.config that trtx sets, less paths; `tuned` has the fastest candidate of
    every operation that candidates were measured for, by `<number> <operation>` (empty without autotuning). `configs`
    are the launch configurations that were measured for Triton kernels; see trtx.backends.inductor.kernel_configs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vector_isa: str
    kernels: int
    vector_kernels: int
    settings: dict[str, Scalar]
    tuned: dict[str, str] = {}
    configs: KernelConfigs = {}


class Choices(BaseModel):
    """Content of compile.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal["trtx.compile/v1"] = Field(default="trtx.compile/v1", alias="schema")
    programs: dict[str, ProgramChoices]

    def summarize(self, products: Iterable[str] = ()) -> dict[str, dict[str, Scalar]]:
        """The same two levels deep: the settings once, then the rest by program, then what was measured.

        `products` are records of the card. trtx.backends.inductor.replay reads what was measured back.
        """
        settings: dict[str, Scalar] = {}
        found: dict[str, dict[str, Scalar]] = {}
        for name, program in self.programs.items():
            settings |= program.settings
            counted = program.model_dump(include={"vector_isa", "kernels", "vector_kernels"})
            found[name] = {**counted, **{f"tuned {place}": choice for place, choice in program.tuned.items()}}
        configs = {name: program.configs for name, program in self.programs.items()}
        return {"settings": dict(sorted(settings.items())), **found, **Replay(tuple(products), configs).to_groups()}


class Recorder:
    """Listens to inductor while it compiles; one for one process that compiles one program."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        from torch._inductor.select_algorithm import add_feedback_saver

        self._options = options
        self.tuned: dict[str, str] = {}
        add_feedback_saver(self.note)

    def note(self, timings: Mapping[Any, float], operation: str, *_rest: object) -> None:
        """One operation was tuned: `timings` by candidate, in ms."""
        if timings:
            fastest = min(timings, key=lambda candidate: timings[candidate])
            self.tuned[f"{len(self.tuned):03} {operation}"] = str(fastest.name)

    def read(self, vector_isa: str, configs: KernelConfigs | None = None) -> ProgramChoices:
        """What was recorded, once the program is compiled; `configs` are those of its Triton kernels."""
        from torch._inductor import metrics

        return ProgramChoices(
            vector_isa=vector_isa,
            kernels=metrics.generated_kernel_count,
            vector_kernels=metrics.generated_cpp_vec_kernel_count,
            settings=read_settings(self._options),
            tuned=self.tuned,
            configs=configs or {},
        )


def read_settings(options: Mapping[str, Any]) -> dict[str, Scalar]:
    """Inductor's settings with these options in force, as far as they are not torch's own; the version of torch says
    what those are."""
    from torch._inductor import config

    own = config.save_config_portable()
    with config.patch(dict(options)):
        settings = config.save_config_portable()
    return {
        name: value if isinstance(value, str | int | float | bool) or value is None else str(value)
        for name, value in sorted(settings.items())
        if name not in _LOCAL and (name in _ALWAYS or value != own[name])
    }
