"""Every attack that docs/security.md lists is a test named after its number."""

import re

from tests.house.repository import ROOT

LISTED = re.compile(r"^\| S(\d+) \|", re.MULTILINE)
TESTED = re.compile(r"^ *(?:async )?def test_s(\d{2})_", re.MULTILINE)


def test_every_attack_of_the_list_is_tried_by_a_test() -> None:
    listed = {int(number) for number in LISTED.findall((ROOT / "docs" / "security.md").read_text())}
    assert listed == set(range(1, max(listed) + 1)) and len(listed) >= 22
    tested = {
        int(number) for path in (ROOT / "tests").rglob("test_*.py") for number in TESTED.findall(path.read_text())
    }
    assert listed - tested == set(), "attacks that no test tries"
    assert tested - listed == set(), "tests of attacks that are not listed"
