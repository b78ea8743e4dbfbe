"""The façades have the names of the classes on trio, with the same parameters: no more and no less."""

import inspect
from types import ModuleType
from typing import Any

import pytest

import sealwire_client
from sealwire_client import aio, blocking

PARTS = {
    "Changes": {"tell", "end"},
    "Collection": {"add", "tally", "watched", "tell", "end"},
    "Counters": set[str](),
    "Device": {"link"},
    "Live": {"begin", "wake", "end"},
    "PendingInvite": set[str](),
    "Transaction": {"check_owner", "edit", "edited", "strict", "parts", "strict_writes", "made", "close"},
    "Vault": {
        *("told", "watched", "remember", "close", "gone", "keep_status", "go_on_leaving", "check_sent", "open_invite"),
        *("begun", "carry_out"),
    },
    "Write": set[str](),
}
"""The classes, and what of each is not for apps: parts of the device among each other."""

OTHERWISE = {("Device", "open")}
"""Has a parameter on trio that only hosts use."""


def public(of: type, specials: bool = True) -> dict[str, Any]:
    """What a class has that has a name, or an operator."""
    operators = {"__len__", "__contains__", *(("__aiter__", "__anext__") if specials else ())}
    return {name: inspect.getattr_static(of, name) for name in dir(of) if name in operators or not name.startswith("_")}


def parameters(member: Any) -> list[tuple[str, Any, Any]] | None:
    """What a method takes."""
    function = getattr(member, "__func__", member)
    if isinstance(member, property):
        return None
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("facade", [aio, blocking], ids=lambda facade: facade.__name__)
def test_a_facade_lacks_nothing_and_has_nothing_of_its_own(facade: ModuleType, part: str) -> None:
    on_trio, mine = getattr(sealwire_client, part), getattr(facade, part)
    specials = facade is aio
    wanted = {name: member for name, member in public(on_trio, specials).items() if name not in PARTS[part]}
    there = public(mine, specials)
    lacks, beyond = sorted(wanted.keys() - there.keys()), sorted(there.keys() - wanted.keys() - {"folder", "repaired"})
    assert lacks == [], f"{facade.__name__}.{part} lacks these: add them as the others are, or say here whose they are"
    assert beyond == [], f"{part} has these in {facade.__name__} alone"
    for name, member in wanted.items():
        if (part, name) in OTHERWISE or name.startswith("_"):
            continue
        assert parameters(there[name]) == parameters(member), f"{facade.__name__}.{part}.{name} takes something else"
        assert there[name].__doc__, f"{facade.__name__}.{part}.{name} says nothing of what it promises"


def test_every_class_of_a_facade_is_compared() -> None:
    assert set(aio.__all__) == set(blocking.__all__) == set(PARTS)


def test_what_waits_on_trio_waits_on_asyncio_too() -> None:
    for part in PARTS:
        for name, member in public(getattr(sealwire_client, part)).items():
            if name not in PARTS[part] and inspect.isfunction(member):
                waits = inspect.iscoroutinefunction(member)
                assert inspect.iscoroutinefunction(getattr(getattr(aio, part), name)) == waits, (part, name)
                if not name.startswith("_"):
                    assert not inspect.iscoroutinefunction(getattr(getattr(blocking, part), name)), (part, name)
