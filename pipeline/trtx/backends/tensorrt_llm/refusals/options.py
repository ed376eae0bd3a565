"""Flags of trtllm-build that a recipe states by name: does the release have them, and does it take the value?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from trtx.backends.tensorrt_llm.argv_build import OWN
from trtx.backends.tensorrt_llm.commands import SWITCH, to_word
from trtx.backends.tensorrt_llm.history import explain_option
from trtx.backends.tensorrt_llm.parser import converter
from trtx.backends.tensorrt_llm.refusals.base import Refusal, Subject, word_of
from trtx.backends.tensorrt_llm.surface import Option, Tool
from trtx.recipe.problems import Path
from trtx.recipe.tree import dotted

TOOL = "trtllm-build"
# Flags of trtllm-build → the recipe's own setting for the same thing.
SETTING_OF: Mapping[str, str] = MappingProxyType(
    {
        "max_batch_size": "engine.limits.max_batch_size",
        "max_num_tokens": "engine.limits.max_num_tokens",
        "max_seq_len": "engine.limits.max_seq_len",
        "max_input_len": "engine.limits.max_input_len",
        "max_beam_width": "engine.limits.max_beam_width",
        "tokens_per_block": "engine.kv_cache.tokens_per_block",
        "multiple_profiles": "engine.profiles",
        "speculative_decoding_mode": "engine.speculative.mode",
        "max_draft_len": "engine.speculative.max_draft_len",
        "max_lora_rank": "engine.lora.max_rank",
        "lora_target_modules": "engine.lora.target_modules",
        "lora_plugin": "engine.lora",
        "dtype": "engine.dtype",
        "tp_size": "targets.NAME.parallelism.tensor",
        "pp_size": "targets.NAME.parallelism.pipeline",
        "cp_size": "targets.NAME.parallelism.context",
    }
)


def check_plugins(subject: Subject) -> Iterator[Refusal]:
    yield from _check_all(subject, "plugins", subject.engine.plugins)


def check_build_options(subject: Subject) -> Iterator[Refusal]:
    yield from _check_all(subject, "build_options", subject.engine.build_options)
    for name in subject.engine.build_options:
        if name in subject.engine.plugins:
            yield Refusal(
                "stated-twice",
                ("engine", "build_options", name),
                f"{name} stands in engine.plugins and in engine.build_options",
                "it is one flag, and one of the two would have no effect",
                "keep the one in engine.plugins",
                "trtx",
                at_key=True,
            )


def _check_all(subject: Subject, section: str, values: Mapping[str, Any]) -> Iterator[Refusal]:
    tool = subject.release.tools.get(TOOL)
    if subject.flow != "engine" or tool is None:
        return
    for name, value in values.items():
        path: Path = ("engine", section, name)
        own = _check_own(subject, path, name)
        if own is not None:
            yield own
            continue
        option = tool.option(name)
        if option is None:
            yield _unknown(subject, path, name)
            continue
        yield from _check_value(subject, tool, option, path, value)
        if section == "plugins" and not _is_plugin(option):
            yield Refusal(
                "not-a-plugin",
                path,
                f"{name} of {subject.title} is no plugin and no switch",
                "it takes a value of its own",
                f"write it as engine.build_options.{name}",
                f"{TOOL} --help",
                at_key=True,
            )


def _check_own(subject: Subject, path: Path, name: str) -> Refusal | None:
    """A flag that the recipe has a setting for, or that only trtx can know."""
    setting = SETTING_OF.get(name)
    if setting is None and name not in OWN:
        return None
    what = f"{dotted(path)} sets what {setting} sets" if setting else f"{dotted(path)} is written by trtx itself"
    why = "one setting has one place" if setting else "it says where files are, or follows from the rest of the recipe"
    fix = f"use {setting}" if setting else "remove it"
    return Refusal("stated-twice", path, what, why, fix, "trtx", at_key=True)


def _unknown(subject: Subject, path: Path, name: str) -> Refusal:
    version = subject.release.version
    text = explain_option(TOOL, f"--{name}", version).rstrip(".")
    fact, _, instead = text.partition("; ")
    rest = instead.removeprefix(f"{version} does not have it").removeprefix("; ")
    return Refusal(
        "unknown-flag",
        path,
        f"{TOOL} of {subject.title} has no --{name}",
        fact,
        rest or "remove it, or choose a release that has it",
        f"the table of {version}",
        at_key=True,
    )


def _is_plugin(option: Option) -> bool:
    choices = option.choices if isinstance(option.choices, tuple) else ()
    return "disable" in choices


def _check_value(subject: Subject, tool: Tool, option: Option, path: Path, value: Any) -> Iterator[Refusal]:
    flag, source = option.flag, f"the table of {subject.release.version}"
    word = word_of(value) if _is_plugin(option) else to_word(option, value)
    if option.is_flag:
        if word not in ("true", "false", *SWITCH):
            yield Refusal(
                "wrong-value",
                path,
                f"{flag} of {subject.title} takes no value",
                f"it is a switch, and here is {word}",
                "write true or false",
                source,
            )
    elif option.choices is not None and option.takes(word) is None:
        known = option.choices if isinstance(option.choices, tuple) else ()
        taken = ", ".join(str(choice) for choice in known if choice is not None)
        yield Refusal(
            "wrong-value",
            path,
            f"{flag} of {subject.title} does not take {word}",
            f"it takes {taken}",
            "write one of these",
            source,
        )
    else:
        yield from _check_number(subject, tool, option, path, word)
    if not option.is_certain or (option.choices is not None and option.takes(word) == "unknown"):
        what = f"whether {TOOL} of {subject.title} has {flag}{'' if not option.is_certain else ' ' + word}"
        yield Refusal(
            "flag-not-established",
            path,
            f"{what} is not established",
            option.evidence,
            "read its image: trtx probe IMAGE --write FILE, and name the file in engine.probe",
            source,
            "warning",
            at_key=True,
        )
    elif option.deprecated:
        yield Refusal(
            "deprecated-flag",
            path,
            f"{flag} is deprecated in {subject.title}",
            option.note,
            "remove it where its default will do",
            source,
            "warning",
            at_key=True,
        )


def _check_number(subject: Subject, tool: Tool, option: Option, path: Path, word: str) -> Iterator[Refusal]:
    try:
        converter(tool, option)(word)
    except ValueError:
        problem = f"it is {'an' if option.type == 'int' else 'a'} {option.type}"
    except Exception as error:  # noqa: BLE001  argparse's own error type has no common base but Exception.
        problem = str(error)
    else:
        return
    yield Refusal(
        "wrong-value",
        path,
        f"{option.flag} of {subject.title} does not take {word}",
        problem,
        "write a value of that kind",
        f"the table of {subject.release.version}",
    )


CHECKS = (check_plugins, check_build_options)
