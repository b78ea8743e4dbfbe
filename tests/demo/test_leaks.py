from pathlib import Path

import pytest

from demo.leaks import Needles, search

NAME = "LATIN SMALL LETTER SHARP S"
CHUNK = 64


def needles() -> Needles:
    return Needles({"a key": b"\x00\xff key \n\x01"}, [NAME, "SHORT"])


@pytest.mark.parametrize("at", range(CHUNK - 30, 2 * CHUNK + 1))
def test_what_lies_across_chunks_is_found_once(tmp_path: Path, at: int) -> None:
    for name, planted in (("name", NAME.encode()), ("key", b"\x00\xff key \n\x01")):
        (tmp_path / name).write_bytes(b"\x80" * at + planted + b"\x80" * (3 * CHUNK))
    found = search(tmp_path, needles(), chunk=CHUNK)
    assert found.hits == 2
    assert found.places == {NAME: {"name": 1}, "a key": {"key": 1}}


def test_names_are_found_within_others_words_and_as_often_as_they_occur(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    (inside / "file").write_bytes(f"THE {NAME}{NAME} - {NAME[:-1]} x{NAME.lower()}".encode() * 3)
    found = search(tmp_path, needles(), chunk=CHUNK)
    assert found.places == {NAME: {"a/b/file": 6}}
    assert found.told() == f"{NAME} in a/b/file"


def test_only_regular_files_outside_the_folders_named_are_read(tmp_path: Path) -> None:
    (tmp_path / "skipped").mkdir()
    (tmp_path / "skipped" / "file").write_text(NAME)
    (tmp_path / "file").write_text("SHORT and nothing")
    (tmp_path / "link").symlink_to(tmp_path / "skipped" / "file")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    found = search(tmp_path, needles(), skip=frozenset({"skipped"}))
    assert (found.files, found.bytes, found.hits) == (1, 17, 0)


def test_a_name_that_the_search_could_not_see_is_refused() -> None:
    with pytest.raises(ValueError, match="no name in capitals"):
        Needles({}, ["latin small letter a"])
