"""Everything that comes from chance, from one seed: keys, nonces, salts, pauses, and whose turn it is."""

import functools
import inspect
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from trio._core import _run

_REAL = os.urandom


def _functions() -> frozenset[FunctionType]:
    """Every function and method of the three packages that were imported so far."""
    return _functions_of(tuple(name for name in sys.modules if name.startswith("sealwire_")))


@functools.cache
def _functions_of(modules: tuple[str, ...]) -> frozenset[FunctionType]:
    return frozenset(_found(modules))


def _found(modules: tuple[str, ...]) -> Iterator[FunctionType]:
    for name in modules:
        for value in list(vars(sys.modules[name]).values()):
            members = vars(value).values() if inspect.isclass(value) else [value]
            for member in members:
                function = getattr(member, "__func__", member)
                if isinstance(function, FunctionType):
                    yield function


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While the block lasts, what asks for unpredictable bytes gets them from the seed. Not for two runs at once."""
    source = random.Random(f"bytes {seed}")
    draw: Callable[[int], bytes] = source.randbytes
    taken: list[tuple[Any, tuple[Any, ...]]] = []
    named: list[tuple[dict[str, Any], str]] = []
    for function in _functions():
        defaults = function.__defaults__ or ()
        if any(value is _REAL for value in defaults):
            taken.append((function, defaults))
            function.__defaults__ = tuple(draw if value is _REAL else value for value in defaults)
        keywords: dict[str, Any] = function.__kwdefaults__ or {}
        for name, value in keywords.items():
            if value is _REAL:
                named.append((keywords, name))
                keywords[name] = draw
    vars(os)["urandom"] = draw
    random.seed(seed)
    scheduler: Any = _run
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        vars(os)["urandom"] = _REAL
        for function, defaults in taken:
            function.__defaults__ = defaults
        for keywords, name in named:
            keywords[name] = _REAL
