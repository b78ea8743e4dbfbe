"""Changing code while it runs: what planted bugs are made with.

A change names the text that it replaces; where the code has moved on planting fails, so that it is never in vain.
"""

import functools
import inspect
import textwrap
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from types import FunctionType, ModuleType
from typing import Any, Final, NamedTuple, cast
from unittest import mock

Plant = Callable[[ExitStack], None]


class Bug(NamedTuple):
    """A planted bug."""

    what: str
    plant: Plant


CALLS: Final[Counter[str]] = Counter()
"""How often each changed function was called since it was planted: one that never is cannot be found."""


def rewritten(function: FunctionType, *changes: tuple[str, str]) -> FunctionType:
    """The function with its text changed. Raises LookupError where a text is not found exactly once."""
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in changes:
        if source.count(old) != 1:
            raise LookupError(f"{function.__qualname__} has {source.count(old)} times {old!r}: plant the bug anew")
        source = source.replace(old, new)
    made: dict[str, Any] = {}
    exec(compile(source, f"<planted in {function.__qualname__}>", "exec"), function.__globals__, made)
    planted = getattr(made[function.__name__], "__func__", made[function.__name__])
    assert isinstance(planted, FunctionType)
    name = function.__qualname__
    CALLS[name] = 0

    def counted(*args: Any, **named: Any) -> Any:
        CALLS[name] += 1
        return planted(*args, **named)

    return cast("FunctionType", functools.update_wrapper(counted, planted))


def change(owner: type | ModuleType, name: str, *changes: tuple[str, str]) -> Plant:
    """A function or method, changed. Raises LookupError as `rewritten` does."""

    def plant(stack: ExitStack) -> None:
        found = vars(owner)[name]
        static = isinstance(found, staticmethod)
        changed = rewritten(found.__func__ if static else found, *changes)
        put(stack, owner, name, staticmethod(changed) if static else changed)

    return plant


def text(module: ModuleType, name: str, *changes: tuple[str, str]) -> Plant:
    """A constant text of a module, changed. Raises LookupError as `rewritten` does."""

    def plant(stack: ExitStack) -> None:
        found = vars(module)[name]
        for old, new in changes:
            if found.count(old) != 1:
                raise LookupError(f"{name} has {found.count(old)} times {old!r}: plant the bug anew")
            found = found.replace(old, new)
        put(stack, module, name, found)

    return plant


def put(stack: ExitStack, owner: object, name: str, value: object) -> None:
    """Replace an attribute until the stack ends."""
    stack.enter_context(mock.patch.object(owner, name, value))


def all_of(*plants: Plant) -> Plant:
    """Several changes that are one bug."""

    def plant(stack: ExitStack) -> None:
        for each in plants:
            each(stack)

    return plant
