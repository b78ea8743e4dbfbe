import json
import os
import stat
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest

from sealwire_client import keystore
from sealwire_client.cipher import INTERACTIVE, MODERATE, Effort
from sealwire_client.identity import DeviceIdentity
from sealwire_client.keystore import KeystoreError, KeystoreExistsError, KeystoreMissingError, PassphraseError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app" / "keystore.json"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_device_is_the_same_tomorrow(path: Path) -> None:
    device = keystore.create(path)
    assert keystore.load(path).device_key == device.device_key
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert os.listdir(path.parent) == [path.name]


def test_modes_do_not_depend_on_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        keystore.create(path)
    finally:
        os.umask(before)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)


def test_with_a_passphrase_the_seed_is_not_in_the_file(path: Path) -> None:
    device = keystore.create(path, "correct horse", effort=INTERACTIVE)
    assert device.seed.reveal().hex() not in path.read_text()
    assert keystore.load(path, "correct horse").device_key == device.device_key
    with pytest.raises(PassphraseError, match="does not open"):
        keystore.load(path, "correct house")
    with pytest.raises(PassphraseError, match="locked"):
        keystore.load(path)


def test_an_empty_passphrase_is_refused(path: Path) -> None:
    with pytest.raises(PassphraseError):
        keystore.create(path, "")
    assert not path.exists()


def test_what_is_there_is_never_replaced(path: Path) -> None:
    device = keystore.create(path)
    with pytest.raises(KeystoreExistsError, match="left as it is"):
        keystore.create(path)
    assert keystore.load(path).device_key == device.device_key


def test_none_is_made_by_loading(path: Path) -> None:
    with pytest.raises(KeystoreMissingError):
        keystore.load(path)
    path.parent.mkdir(mode=0o700)
    with pytest.raises(KeystoreMissingError):
        keystore.load(path)
    assert os.listdir(path.parent) == []


def test_threads_that_create_at_once_get_one_device(path: Path) -> None:
    found: list[DeviceIdentity] = []
    begin = threading.Barrier(8)

    def run() -> None:
        begin.wait()
        found.extend(keystore.load_or_create(path))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert {device.device_key for device in found} == {keystore.load(path).device_key}


def test_processes_that_create_at_once_get_one_device(path: Path) -> None:
    program = (
        "import pathlib, sys; from sealwire_client import keystore; sys.stdin.readline();"
        "print(keystore.load_or_create(pathlib.Path(sys.argv[1]))[0].device_key.hex())"
    )
    command = [sys.executable, "-c", program, str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = {process.communicate(timeout=250)[0] for process in running}
    assert told == {keystore.load(path).device_key.hex() + "\n"}


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o666])
def test_a_file_open_to_others_is_refused_with_the_way_to_mend_it(path: Path, loose: int) -> None:
    keystore.create(path)
    path.chmod(loose)
    with pytest.raises(KeystoreError, match=f"mode {loose:04o}.*chmod 600 {path}"):
        keystore.load(path)
    path.chmod(0o600)
    keystore.load(path)


def test_a_folder_open_to_others_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    for use in (keystore.create, keystore.load, keystore.load_or_create):
        with pytest.raises(KeystoreError, match=f"mode 0755.*chmod 700 {path.parent}"):
            use(path)
    assert not path.exists()


def test_a_device_whose_folder_was_opened_to_others_is_told_how_to_close_it(path: Path) -> None:
    keystore.create(path)
    path.parent.chmod(0o755)
    with pytest.raises(KeystoreError, match=f"mode 0755.*chmod 700 {path.parent}"):
        keystore.load(path)


def test_nobody_is_told_to_close_a_shared_folder_that_holds_other_things(path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    path.with_name("passwd").write_text("")
    for use in (keystore.create, keystore.load, keystore.load_or_create):
        with pytest.raises(KeystoreError, match="is no device: choose another folder") as told:
            use(path)
        assert "chmod" not in str(told.value)
    assert os.listdir(path.parent) == ["passwd"]


def test_a_file_or_folder_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keystore.create(path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(KeystoreError, match="another user"):
        keystore.load(path)


def test_a_link_to_somewhere_else_is_not_followed(path: Path, tmp_path: Path) -> None:
    keystore.create(path)
    other = path.with_name("other.json")
    other.symlink_to(path)
    with pytest.raises(KeystoreError):
        keystore.load(other)
    with pytest.raises(KeystoreExistsError):
        keystore.create(other)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"sealwire_keystore": 1}', b"null", b"[" * 4000, b"x" * 5000]
)
def test_damage_is_told(path: Path, content: bytes) -> None:
    keystore.create(path)
    path.write_bytes(content)
    with pytest.raises(KeystoreError, match="is damaged"):
        keystore.load(path)


@pytest.mark.parametrize("fields", [{"seed": "00" * 32}, {"seed": "00"}, {"seed": "zz"}, {"seed": 7}, {"device": "00"}])
def test_a_changed_seed_is_told(path: Path, fields: dict[str, object]) -> None:
    keystore.create(path)
    edit(path, **fields)
    with pytest.raises(KeystoreError, match="is damaged"):
        keystore.load(path)


def test_another_format_asks_for_an_update(path: Path) -> None:
    keystore.create(path)
    edit(path, sealwire_keystore=3)
    with pytest.raises(KeystoreError, match="update this program"):
        keystore.load(path)


@pytest.mark.parametrize(
    "costs", [Effort(1, INTERACTIVE.memory_bytes), Effort(2, 8192), Effort(5, MODERATE.memory_bytes), Effort(3, 2**40)]
)
def test_what_a_guess_costs_is_not_taken_from_a_changed_file(path: Path, costs: Effort) -> None:
    keystore.create(path, "correct horse", effort=INTERACTIVE)
    kept = json.loads(path.read_text())["argon2id"]
    edit(path, argon2id=kept | {"passes": costs.passes, "memory_bytes": costs.memory_bytes})
    with pytest.raises(KeystoreError, match="tampered"):
        keystore.load(path, "correct horse")
    with pytest.raises(KeystoreError, match="interactive"):
        keystore.create(path.with_name("other"), "correct horse", effort=costs)


@pytest.mark.parametrize("argon2id", [None, {}, {"passes": "x"}, {"passes": 2, "memory_bytes": 67108864, "salt": "00"}])
def test_damaged_costs_are_told(path: Path, argon2id: object) -> None:
    keystore.create(path, "correct horse", effort=INTERACTIVE)
    edit(path, argon2id=argon2id)
    with pytest.raises(KeystoreError, match="is damaged"):
        keystore.load(path, "correct horse")


def test_a_write_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(KeystoreError, match="No space left on device"):
            keystore.create(path)
    assert os.listdir(path.parent) == []
    keystore.create(path)


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeystoreError):
        keystore.create(tmp_path / "file" / "keystore.json")


def test_a_folder_that_cannot_be_made_is_not_told_as_a_device_that_is_missing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")  # what the kernel says of one below /proc

    monkeypatch.setattr(Path, "mkdir", refused)
    for use in (keystore.create, keystore.load_or_create):
        with pytest.raises(KeystoreError, match=f"folder {path.parent} cannot be used.*choose another") as told:
            use(path)
        assert not isinstance(told.value, KeystoreMissingError)
    with pytest.raises(KeystoreMissingError):
        keystore.load(path)


def test_s22_neither_seed_nor_passphrase_shows_in_an_error_of_a_wrong_passphrase(path: Path) -> None:
    device = keystore.create(path, "canary passphrase", effort=INTERACTIVE)
    with pytest.raises(PassphraseError) as caught:
        keystore.load(path, "wrong")
    text = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert "canary" not in text
    assert device.seed.reveal().hex() not in text


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_new_keys_are_kept_beside_the_earlier_ones_until_these_are_not_needed_any_more(
    path: Path, passphrase: str | None
) -> None:
    first = keystore.create(path, passphrase, effort=INTERACTIVE)
    second, third = (keystore.renew(path, passphrase) for _ in range(2))
    found = [identity.device_key for identity in keystore.load_or_create(path, passphrase)]
    assert found == [third.device_key, second.device_key, first.device_key]
    assert keystore.load(path, passphrase).box_key == third.box_key
    assert mode(path) == 0o600 and os.listdir(path.parent) == [path.name]
    if passphrase:
        assert not any(one.seed.reveal().hex() in path.read_text() for one in (first, second, third))
        with pytest.raises(PassphraseError):
            keystore.renew(path, "correct house")
    keystore.forget(path, [first.device_key])
    assert [one.device_key for one in keystore.load_all(path, passphrase)] == [third.device_key, first.device_key]
    keystore.forget(path, [])
    assert [one.device_key for one in keystore.load_all(path, passphrase)] == [third.device_key]
    assert json.loads(path.read_text())["sealwire_keystore"] == keystore.FORMAT


def test_a_program_that_knows_of_no_earlier_keys_asks_for_an_update(path: Path) -> None:
    keystore.create(path)
    keystore.renew(path)
    assert json.loads(path.read_text())["sealwire_keystore"] == keystore.FORMAT_WITH_EARLIER


@pytest.mark.parametrize("fault", ["write", "fsync", "rename"])
def test_new_keys_that_cannot_be_written_leave_the_keystore_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    keystore.create(path)
    before = path.read_bytes()

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if fault == "write":
            patch.setattr(os, "fdopen", fails)
        else:
            patch.setattr(os, fault, fails)
        with pytest.raises(KeystoreError, match="keeps the keys"):
            keystore.renew(path)
    assert path.read_bytes() == before
    assert keystore.renew(path).device_key == keystore.load(path).device_key


def test_a_keystore_does_not_grow_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keystore.create(path)
    keystore.renew(path)
    monkeypatch.setattr(keystore, "FILE_BYTES_MAX", path.stat().st_size + 50)
    with pytest.raises(KeystoreError, match="no room"):
        keystore.renew(path)
    assert keystore.load_all(path)


def test_earlier_keys_that_are_damaged_are_told_as_such(path: Path) -> None:
    keystore.create(path)
    keystore.renew(path)
    wrong: list[object] = [7, [7], [{}], [{"device": "x"}], [{"device": "00" * 32, "seed": "00" * 32}]]
    for earlier in wrong:
        edit(path, earlier=earlier)
        with pytest.raises(KeystoreError, match="damaged"):
            keystore.load(path)
