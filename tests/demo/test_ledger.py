from demo.characters import Character, characters
from demo.ledger import Edit, Ledger, Value
from demo.plan import ENTRIES_MIN, Plan

ONE: Value = ("ONE", "Lu", 1.0)
FROM_A: Value = ("BY A", "Lu", None)
FROM_B: Value = ("BY B", "Lu", None)


def ledger(*edits: tuple[str, Value], durable: bool = True) -> Ledger:
    """A ledger of the entries x and y, with edits of one entry x by the devices named."""
    made = Ledger({"x": Character("ONE", "Lu", 1.0), "y": Character("ONE", "Lu", 1.0)})
    for device, value in edits:
        made.begin(device, [("x", value)])
        if durable:
            made.confirm(device, "x")
    return made


def lost(made: Ledger, on_a: Value, on_b: Value) -> list[str]:
    verdict = made.judge({"x": on_a, "y": ONE}, {"x": on_b, "y": ONE})
    assert verdict.differing == ([] if on_a == on_b else ["x"])
    return verdict.lost


def test_a_durable_edit_must_be_there() -> None:
    assert lost(ledger(("A", FROM_A)), FROM_A, FROM_A) == []
    assert lost(ledger(("A", FROM_A)), ONE, ONE) == ["x"]
    assert lost(ledger(("A", FROM_A)), FROM_A, ONE) == ["x"]


def test_an_edit_that_was_begun_may_be_there() -> None:
    begun = ledger(("A", FROM_A), durable=False)
    assert lost(begun, FROM_A, FROM_A) == lost(begun, ONE, ONE) == []
    assert lost(begun, FROM_B, FROM_B) == ["x"]
    assert begun.durable_of("A") == {}


def test_of_two_edits_of_one_entry_either_is_kept_but_not_the_old_value() -> None:
    both = ledger(("A", FROM_A), ("B", FROM_B))
    assert lost(both, FROM_A, FROM_A) == lost(both, FROM_B, FROM_B) == []
    assert lost(both, ONE, ONE) == ["x"]
    assert both.judge({"x": FROM_B}, {"x": FROM_B}).conflicts == {"A": 0, "B": 1}


def test_a_deleted_entry_must_be_gone_and_others_must_be_there() -> None:
    deleted = ledger(("A", None))
    assert lost(deleted, None, None) == []
    assert lost(deleted, ONE, ONE) == ["x"]
    assert deleted.expected_entries() == 1
    assert deleted.judge({}, {}).lost == ["y"]


def test_the_plan_edits_different_entries_but_for_those_that_both_edit() -> None:
    plan = Plan(characters(ENTRIES_MIN))
    edits: list[Edit] = [*plan.while_joining, *plan.live, *plan.offline["A"], *plan.offline["B"], *plan.last]
    keys = [key for key, _ in edits]
    assert len(keys) - len(set(keys)) == len(plan.conflicts) > 0
    values = [value for _, value in edits if value is not None]
    assert len(values) == len(set(values))
    assert [key for key, _ in plan.offline["A"]][-len(plan.conflicts) :] == plan.conflicts
