"""What a person can type or set is documented, and what is documented can be typed."""

import dataclasses
import importlib
import re
import shlex
from collections.abc import Iterator
from types import ModuleType

import click
import pytest

from sealwire_protocol import messages
from tests.house.repository import PACKAGES, ROOT, documentation

COMMAND_LINES = {"sealwire": "sealwire_client", "sealwire-relay": "sealwire_relay"}


def module_if_there(package: str, name: str) -> ModuleType | None:
    """A module, or None while its package has no such file."""
    folder = PACKAGES[package]
    if not (folder / f"{name}.py").exists() and not (folder / name / "__init__.py").exists():
        return None
    return importlib.import_module(f"{package}.{name}")


def walk(command: click.Command, line: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, each with the line that a person types for it."""
    yield line, command
    if isinstance(command, click.Group):
        for name, child in sorted(command.commands.items()):
            yield from walk(child, f"{line} {name}")


def group_of(main: object, module: ModuleType) -> click.Command:
    """The click command behind a console script's `main`: itself, or the one command line of its module."""
    if isinstance(main, click.Command):
        return main
    groups = {id(value): value for value in vars(module).values() if isinstance(value, click.Group)}
    roots = [g for g in groups.values() if not any(g in other.commands.values() for other in groups.values())]
    assert len(roots) == 1, f"{module.__name__} has {len(roots)} command lines: `main` should be one"
    return roots[0]


def undocumented(root: click.Command, line: str, prose: str) -> list[str]:
    """Commands and options that lack a help text, or that no page of the documentation names."""
    missing = []
    for typed, command in walk(root, line):
        if not (command.help or "").strip():
            missing.append(f"{typed}: no help text")
        if not re.search(rf"{re.escape(typed)}(?![\w-])", prose):
            missing.append(f"{typed}: not in docs/")
        for option in command.params:
            if not isinstance(option, click.Option) or option.hidden:
                continue
            if not option.help:
                missing.append(f"{typed} {option.opts[0]}: no help text")
            if not any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", prose) for name in option.opts):
                missing.append(f"{typed} {option.opts[0]}: not in docs/")
    return missing


def settings_of(module: ModuleType) -> list[str]:
    """The names of all fields of the classes named `…Settings` that a module defines."""
    names: list[str] = []
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__ and value.__name__.endswith("Settings"):
            if dataclasses.is_dataclass(value):
                names += [field.name for field in dataclasses.fields(value)]
            else:
                names += list(getattr(value, "__struct_fields__", ()))
    return names


def unset(names: list[str], prose: str) -> list[str]:
    """Settings that the documentation names neither as a variable, nor as an option, nor by themselves."""
    forms = {n: (f"SEALWIRE_{n.upper()}", f"--{n.replace('_', '-')}", f"`{n}`") for n in names}
    return [name for name, written in forms.items() if not any(form in prose for form in written)]


def spoken(prose: str) -> set[str]:
    """Targets of make that a page tells people to type: in code, between fences or indented."""
    parts = prose.split("```")
    code = [*parts[1::2], *re.findall(r"^ {4}.*|`[^`\n]+`", "\n".join(parts[::2]), re.MULTILINE)]
    return set(re.findall(r"(?:^|[`;&\s])make ([a-z]+)\b", "\n".join(code)))


def targets() -> set[str]:
    """Targets of the Makefile that are meant for people: those with a help text."""
    return set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def wire_name(name: str) -> str:
    """A message's name as the specification writes it: CreateVault is CREATE_VAULT."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def unspecified(types: dict[int, type], specification: str) -> list[str]:
    """Messages whose name or type byte the specification does not give."""
    missing = []
    for byte, message in types.items():
        for written in (wire_name(message.__name__), f"0x{byte:02X}"):
            if not re.search(rf"\b{written}\b", specification):
                missing.append(f"{message.__name__}: {written}")
    return missing


def examples(prose: str) -> list[list[str]]:
    """The lines that a page shows for our programs, as words: without comments, pipes and redirections."""
    found = []
    for line in re.findall(r"^ {4}(\S.*)", prose, re.MULTILINE):
        for part in re.split(r" \| ", line):
            text = re.sub(r"^(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?=sealwire)|\s[<>] \S+", "", part)
            if text.split(" ")[0] in COMMAND_LINES:
                found.append(shlex.split(text, comments=True))
    return found


def refused(root: click.Command, words: list[str]) -> str | None:
    """Why a line of words cannot be typed, if it cannot. Nothing is run."""
    if not isinstance(root, click.Group) or words[1] not in root.commands:
        return f"{shlex.join(words)}: no such command"
    try:
        root.commands[words[1]].make_context(words[1], words[2:])
    except click.UsageError as error:
        return f"{shlex.join(words)}: {error.format_message()}"
    return None


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_what_the_pages_show_can_be_typed(line: str) -> None:
    module = importlib.import_module(f"{COMMAND_LINES[line]}.cli")
    shown = [words for words in examples(documentation()) if words[0] == line]
    assert len(shown) > 2
    assert [why for words in shown if (why := refused(group_of(module.main, module), words))] == []


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_commands_and_options_are_documented(line: str) -> None:
    module = module_if_there(COMMAND_LINES[line], "cli")
    if module is not None:
        assert undocumented(group_of(module.main, module), line, documentation()) == []


def test_settings_are_documented() -> None:
    module = module_if_there("sealwire_relay", "settings")
    if module is not None:
        names = settings_of(module)
        assert names, "sealwire_relay.settings defines no class named …Settings"
        assert unset(names, documentation()) == []


def test_make_does_what_the_pages_say() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        assert spoken((ROOT / page).read_text()) <= targets()
    assert spoken((ROOT / "CONTRIBUTING.md").read_text()) == targets()


def test_every_message_is_specified() -> None:
    specification = (ROOT / "protocol" / "PROTOCOL.md").read_text()
    assert len(messages.BY_TYPE) > 10
    assert unspecified(dict(messages.BY_TYPE), specification) == []


def test_what_is_missing_is_found() -> None:
    @click.group(help="All of it.")
    def root() -> None:
        """Not called."""

    @root.command()
    @click.option("--far", help="How far.")
    @click.option("--near")
    def walk_about() -> None:
        """Not called."""

    assert undocumented(root, "x", "`x` and `x walk-about --far --nearly`") == [
        "x walk-about --near: no help text",
        "x walk-about --near: not in docs/",
    ]
    assert undocumented(root, "x", "`x walk --far --near`")[0] == "x walk-about: not in docs/"
    assert unset(["port", "data_folder"], "set SEALWIRE_PORT") == ["data_folder"]
    assert spoken("`make tea`, or\n\n    make test\n\nwith make and more\n```\nmake ends\n```") == {
        "tea",
        "test",
        "ends",
    }
    line = "    X=1 .venv/bin/sealwire walk-about --far 3 'a b' < list | sealwire --far walk-about  # both\n"
    first, second = examples(line)
    assert first == ["sealwire", "walk-about", "--far", "3", "a b"]
    assert refused(root, first) == "sealwire walk-about --far 3 'a b': Got unexpected extra argument (a b)"
    assert refused(root, first[:-1]) is None
    assert refused(root, second) == "sealwire --far walk-about: no such command"
    create = type("CreateVault", (), {})
    assert unspecified({0x90: create}, "CREATE_VAULT is 0x91") == ["CreateVault: 0x90"]
