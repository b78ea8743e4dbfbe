"""What an app imports, it imports from one place."""

import re
from pathlib import Path

import sealwire_client

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


def test_every_error_that_the_page_for_apps_names_comes_from_the_package_itself() -> None:
    named = set(re.findall(r"`([A-Z]\w+(?:Error|Misuse))`", PAGE.read_text()))
    assert len(named) > 10
    assert sorted(named - set(sealwire_client.__all__)) == []


def test_every_name_of_the_package_can_be_imported() -> None:
    assert all(getattr(sealwire_client, name).__name__ == name for name in sealwire_client.__all__ if name[0].isupper())
    for name in sealwire_client.__all__:
        getattr(sealwire_client, name)
