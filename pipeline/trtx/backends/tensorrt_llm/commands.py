"""Command lines of a release's tools, made option by option against that release's table.

Every meaningful option is written out, because defaults moved between releases. An option that the table does not have
is refused with its history; one that is not established is left out where the release's default will do, else it is
written and named as a doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtx.backends.tensorrt_llm.history import explain_option
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.surface import Option, Tool
from trtx.errors import UsageProblem

SWITCH = ("enable", "disable")
OTHERWISE = "leave it out of engine.build_options, engine.llm_options and engine.plugins, or choose another release"


@dataclass(frozen=True)
class Part:
    """One option as words. `doubt` says what about it is not established; `droppable` that the tool may go without."""

    words: tuple[str, ...]
    doubt: str | None = None
    droppable: bool = False

    @property
    def flag(self) -> str:
        return self.words[0]


@dataclass(frozen=True)
class Command:
    """A tool of a release by its key ("trtllm-bench throughput"), and what is said to it.

    `groups` are the parts of each level: those before the subcommand, and those after it.
    """

    release: str
    tool: str
    groups: tuple[tuple[Part, ...], ...]

    @property
    def words(self) -> tuple[str, ...]:
        """Everything after the program's own name, subcommands included."""
        result: list[str] = []
        subcommands = self.tool.split(" ")[1:]
        for level, parts in enumerate(self.groups):
            if level and level <= len(subcommands):
                result.append(subcommands[level - 1])
            result += [word for part in parts for word in part.words]
        return tuple(result)

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for group in self.groups for part in group)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What about it is not established for the release, as sentences."""
        return tuple(dict.fromkeys(part.doubt for part in self.parts if part.doubt))

    def without(self, flags: Sequence[str]) -> Command:
        """The same without the options of these flags."""
        kept = tuple(tuple(part for part in group if part.flag not in flags) for group in self.groups)
        return Command(self.release, self.tool, kept)


class CommandLine:
    """Collects the options of one tool, or of one level of it; `fix` is what to do about what it lacks."""

    def __init__(self, release: Release, tool: Tool, fix: str = OTHERWISE) -> None:
        self.release, self.tool, self.fix = release, tool, fix
        self._parts: list[Part] = []

    def has(self, name: str) -> bool:
        """Whether the release surely has an option, by name."""
        option = self.tool.option(name)
        return option is not None and option.is_certain

    def lists(self, name: str) -> bool:
        """Whether the table has an option at all."""
        return self.tool.option(name) is not None

    def give(self, name: str, value: Any, *, droppable: bool = False) -> None:
        """Write an option that the recipe needs, by its name or by the spelling to write where that is sure to exist.

        None leaves it out. Raises UsageProblem when the release lacks it.
        """
        if value is None:
            return
        option = self.tool.option(name)
        if option is None:
            raise self._no_option(name)
        sure = name in (option.flags if option.certain_flags is None else option.certain_flags)
        self._write(option, name if sure else option.flag, value, droppable=droppable)

    def pin(self, name: str, value: Any) -> None:
        """Write what the release may do by itself: only where it surely has the option and takes the value."""
        option = self.tool.option(name)
        if value is None or option is None or not option.is_certain:
            return
        if option.takes(to_word(option, value)) not in (None, "unknown"):
            self._write(option, option.flag, value, droppable=False)

    def place(self, value: str) -> None:
        """A positional argument."""
        self._parts.append(Part((value,)))

    def _write(self, option: Option, flag: str, value: Any, *, droppable: bool) -> None:
        if option.is_flag:
            words = _flag_words(option, value)
            if not words:
                return
        else:
            values = value if isinstance(value, list | tuple) else [value]
            words = (flag, *(to_word(option, each) for each in values))
            for each in values:
                if option.takes(to_word(option, each)) is None:
                    raise self._no_value(option, to_word(option, each))
        self._parts.append(Part(words, self._doubt(option, words), droppable))

    def _doubt(self, option: Option, words: Sequence[str]) -> str | None:
        where = f"{self.tool.key} of {self.release.version}"
        if not option.is_certain:
            return f"whether {where} has {words[0]} is not established"
        for word in words[1:]:
            if option.choices is not None and option.takes(word) == "unknown":
                return f"whether {option.flag} of {where} takes {word} is not established"
        return None

    def _no_option(self, name: str) -> UsageProblem:
        flag = name if name.startswith("-") else f"--{name}"
        return UsageProblem(
            f"{self.tool.key} of TensorRT-LLM {self.release.version} has no {flag}",
            why=explain_option(self.tool.key, flag, self.release.version),
            fix=self.fix,
        )

    def _no_value(self, option: Option, word: str) -> UsageProblem:
        return UsageProblem(
            f"{option.flag} of {self.tool.key} in TensorRT-LLM {self.release.version} does not take {word}",
            why=f"it takes {', '.join(map(str, _listed(option)))}",
            fix=self.fix,
        )

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(self._parts)

    def command(self, *before: CommandLine) -> Command:
        """The command, behind the levels `before` it."""
        return Command(self.release.version, self.tool.key, (*(level.parts for level in before), self.parts))


def to_word(option: Option, value: Any) -> str:
    """A value as the release spells it: switches of trtllm-build are words, not booleans."""
    if isinstance(value, bool):
        if option.choices is not None and set(SWITCH) <= set(_listed(option)):
            return "enable" if value else "disable"
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    return str(value)


def _listed(option: Option) -> tuple[Any, ...]:
    return option.choices if isinstance(option.choices, tuple) else ()


def _flag_words(option: Option, value: Any) -> tuple[str, ...]:
    """A flag without a value: its own word or its off-word; nothing to switch off one that has no such word."""
    if value in (True, "enable", "true", "True"):
        return (option.flag,)
    return option.off_flags[:1]
