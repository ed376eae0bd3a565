"""The argument parser of a release's own tool, built from its table: what it refuses, that release would refuse.

argparse tools get an argparse parser with the same options, types, choices and counts. click tools get the same with
click's grammar around it: options of a group stand before the subcommand, a default command may be left out, a choice
of values is compared exactly. Abbreviations are refused everywhere: what a word abbreviates differs between releases.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from trtx.backends.tensorrt_llm.history import explain_option
from trtx.backends.tensorrt_llm.releases import Release
from trtx.backends.tensorrt_llm.surface import Option, Tool, Unresolved
from trtx.errors import UsageProblem

# What click's BOOL takes (click.types.BoolParamType).
CLICK_TRUE = ("1", "true", "t", "yes", "y", "on")
CLICK_FALSE = ("0", "false", "f", "no", "n", "off")


@dataclass(frozen=True)
class Parsed:
    """A command line as a release's tool reads it.

    `tool` is the command that runs. `values` holds every option of it and of the groups before it by name: those
    given, and the release's defaults for the others. `given` are the names of those given, `uncertain` the options
    among them that this release may not have, each as a sentence.
    """

    tool: Tool
    values: dict[str, Any]
    given: frozenset[str]
    uncertain: tuple[str, ...] = field(default=())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Refused(message)


class _Refused(Exception):
    pass


def parse(release: Release, tool: str, words: Sequence[str]) -> Parsed:
    """Read the arguments of a tool (without its own name) as this release would.

    Raises UsageProblem for what it would refuse; unknown options come with their history in other releases.
    """
    current = release.tool(tool)
    values: dict[str, Any] = {}
    given: set[str] = set()
    uncertain: list[str] = []
    rest = list(words)
    while True:
        own, rest = split_group(current, rest) if current.subcommands else (rest, [])
        namespace = _parse_one(release, current, own)
        values |= {option.name: namespace.get(option.name, option.default) for option in current.options}
        given |= namespace.keys()
        uncertain += [
            note for option in current.options if option.name in namespace for note in doubts(option, namespace, own)
        ]
        if not current.subcommands:
            return Parsed(current, values, frozenset(given), tuple(uncertain))
        current, rest = _choose_command(release, current, rest)


def split_group(tool: Tool, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that belong to a click group's own options, and the rest, which begins with the subcommand."""
    position = 0
    while position < len(words) and words[position].startswith("-") and words[position] != "-":
        name, has_value, _ = words[position].partition("=")
        option = tool.option(name)
        if option is None and tool.default_command:
            break
        takes = (
            0 if has_value or option is None or option.is_flag else option.nargs if isinstance(option.nargs, int) else 1
        )
        position += 1 + takes
    return list(words[:position]), list(words[position:])


def _choose_command(release: Release, tool: Tool, rest: list[str]) -> tuple[Tool, list[str]]:
    if rest and rest[0] in tool.subcommands:
        return release.tools[f"{tool.key} {rest[0]}"], rest[1:]
    if rest and tool.default_command:
        return release.tools[f"{tool.key} {tool.default_command}"], rest
    what = f"{tool.key} has no command {rest[0]}" if rest else f"{tool.key} needs a command"
    raise UsageProblem(
        f"{what} in TensorRT-LLM {release.version}",
        why="see the table of that release",
        fix=f"one of {', '.join(tool.subcommands)}",
    )


def _parse_one(release: Release, tool: Tool, words: list[str]) -> dict[str, Any]:
    try:
        namespace, unknown = make_parser(tool).parse_known_args(_join_values(tool, words))
    except _Refused as error:
        raise _refusal(release, tool, str(error), words) from None
    if unknown:
        raise _refusal(release, tool, f"unrecognized arguments: {' '.join(unknown)}", unknown)
    return vars(namespace)


def _refusal(release: Release, tool: Tool, message: str, words: Sequence[str]) -> UsageProblem:
    flags = (word.partition("=")[0] for word in words if word.startswith("--"))
    strange = [flag for flag in flags if tool.option(flag) is None]
    fix = " ".join(explain_option(tool.key, flag, release.version) for flag in strange)
    return UsageProblem(
        f"{tool.key} of TensorRT-LLM {release.version} refuses its command line",
        why=message,
        fix=fix or f"see {tool.key} --help there",
    )


def _join_values(tool: Tool, words: Sequence[str]) -> list[str]:
    """For click, which takes the next word as an option's value even when it begins with a dash."""
    if tool.framework != "click":
        return list(words)
    result: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option = tool.option(word) if word.startswith("-") else None
        if option is not None and not option.is_flag and option.nargs in (None, 1) and rest and word.startswith("--"):
            result.append(f"{word}={rest.pop(0)}")
        else:
            result.append(word)
    return result


def make_parser(tool: Tool) -> argparse.ArgumentParser:
    """A parser of one command without its subcommands; defaults stay with the table."""
    parser = _Parser(prog=tool.key, allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS)
    for option in tool.options:
        _add_option(parser, tool, option)
    return parser


def _add_option(parser: argparse.ArgumentParser, tool: Tool, option: Option) -> None:
    if option.is_flag:
        on = option.default is not True or bool(option.off_flags)
        action = "store_true" if on else "store_false"
        parser.add_argument(
            *option.flags, dest=option.name, action=action, default=argparse.SUPPRESS, required=option.required
        )
        if option.off_flags:
            parser.add_argument(*option.off_flags, dest=option.name, action="store_false", default=argparse.SUPPRESS)
        return
    settings: dict[str, Any] = {"type": converter(tool, option)}
    if option.nargs is not None:
        settings["nargs"] = option.nargs
    if option.const is not None:
        settings["const"] = option.const
    if option.positional:
        if option.nargs in ("?", "*"):
            settings["default"] = argparse.SUPPRESS
        parser.add_argument(option.name, **settings)
        return
    if option.multiple:
        settings["action"] = "append"
    parser.add_argument(
        *option.flags, dest=option.name, required=option.required, default=argparse.SUPPRESS, **settings
    )


def converter(tool: Tool, option: Option) -> Callable[[str], Any]:
    """Words → values, refusing what the option does not take."""
    convert = _base_converter(tool, option)

    def check(word: str) -> Any:
        value: Any = (option.choice_aliases or {}).get(word, word)
        value = convert(value)
        if option.choices is not None and not isinstance(option.choices, Unresolved) and value not in option.choices:
            known = ", ".join(map(str, option.choices))
            raise argparse.ArgumentTypeError(f"invalid choice: {word!r} (choose from {known})")
        too_small = option.minimum is not None and value < option.minimum
        if too_small or (option.maximum is not None and value > option.maximum):
            raise argparse.ArgumentTypeError(f"{word} is not in the range {option.minimum} to {option.maximum}")
        return value

    return check


def _base_converter(tool: Tool, option: Option) -> Callable[[str], Any]:
    if option.type == "int":
        return _number(int)
    if option.type == "float":
        return _number(float)
    if option.type == "bool" and tool.framework == "click":
        return _click_bool
    return str  # argparse's type=bool takes any word; bool("False") is true there.


def _number(kind: type[int] | type[float]) -> Callable[[str], Any]:
    def convert(word: str) -> Any:
        try:
            return kind(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"invalid {kind.__name__} value: {word!r}") from None

    return convert


def _click_bool(word: str) -> bool:
    if word.lower() in CLICK_TRUE:
        return True
    if word.lower() in CLICK_FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{word!r} is not a valid boolean")


def doubts(option: Option, values: dict[str, Any], words: Sequence[str]) -> list[str]:
    """What of a given option is not established for the release, as sentences."""
    used = [flag for flag in option.flags if any(word.partition("=")[0] == flag for word in words)]
    name = used[0] if used else option.flag
    if not option.is_certain:
        return [f"whether this release has {name} is not established: {option.evidence}"]
    notes = []
    if option.certain_flags is not None and any(flag not in option.certain_flags for flag in used):
        notes.append(f"whether this release spells it {name} is not established; {option.flag} is certain")
    value = values[option.name]
    several = value if isinstance(value, list) else [value]
    notes += [f"whether {name} takes {each} is not established" for each in several if option.takes(each) == "unknown"]
    return notes
