import dataclasses
import re
from pathlib import Path

import pytest

from sealwire_protocol import limits
from sealwire_relay.settings import Secret, Settings, SettingsError, default_folder, fields, is_loopback, option
from sealwire_relay.sources import load
from tests.house.repository import PACKAGES, ROOT, files

URL = "postgresql://relay:hunter2@db.example.org/sealwire"


def refusal(environ: dict[str, str], **options: str) -> str:
    """What is said when these settings are refused."""
    with pytest.raises(SettingsError) as caught:
        load(environ, options)
    return str(caught.value)


def test_without_anything_set_the_defaults_hold() -> None:
    assert load({"HOME": "/nowhere"}, {}) == Settings()


def test_an_option_counts_more_than_a_variable(tmp_path: Path) -> None:
    assert load({"SEALWIRE_PORT": "1"}, {"port": "2"}).port == 2
    assert load({"SEALWIRE_PORT": "1"}, {}).port == 1


def test_a_value_may_lie_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"{URL}\n")
    assert load({"SEALWIRE_DATABASE_URL_FILE": str(file)}, {}).database_url == Secret(URL)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    assert missing in refusal({"SEALWIRE_PORT_FILE": missing})
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    assert "UTF-8" in refusal({"SEALWIRE_PORT_FILE": str(binary)})


def test_a_value_in_two_places_is_refused(tmp_path: Path) -> None:
    said = refusal({"SEALWIRE_PORT": "1", "SEALWIRE_PORT_FILE": "/dev/null"})
    assert "SEALWIRE_PORT and SEALWIRE_PORT_FILE" in said


def test_an_unknown_variable_is_refused_with_the_nearest_name() -> None:
    assert "did you mean SEALWIRE_CREDIT_BYTES?" in refusal({"SEALWIRE_CREDIT_BYTE": "1"})
    assert "--help" in refusal({"SEALWIRE_XYZZY_PLUGH": "1"})


def test_variables_of_the_client_and_of_others_are_left_alone() -> None:
    assert load({"SEALWIRE_RELAY": "ws://x", "PORT": "9"}, {}) == Settings()
    source = "\n".join(path.read_text() for path in files(".py", below=PACKAGES["sealwire_client"]))
    read = set(re.findall(r"SEALWIRE_[A-Z_]+", source))
    assert len(read) > 3
    assert load(dict.fromkeys(read, "x"), {}) == Settings()


def test_every_kind_of_value_is_parsed() -> None:
    settings = load(
        {"SEALWIRE_ORIGINS": "wss://a.example.org, WSS://B.example.org:443"},
        {"idle_seconds": "60.5", "folder": "/srv/x", "log_format": "json"},
    )
    assert settings.origins == ("wss://a.example.org", "wss://b.example.org")
    assert settings.idle_seconds == 60.5
    assert settings.folder == Path("/srv/x")
    assert settings.log_format == "json"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("port", "x", "--port is 'x'; it is a whole number from 0 to 65535."),
        ("port", "70000", "--port is 70000; it is a whole number from 0 to 65535."),
        ("port", "1.5", "a whole number"),
        ("login_seconds", "nan", "--login_seconds is nan".replace("_", "-")),
        ("idle_seconds", "inf", "--idle-seconds is inf; it is a number from 1 to 86400."),
        ("credit_bytes", "1", str(limits.CREDIT_BYTES_MIN)),
        ("log_level", "loud", "debug, info, warning, error"),
        ("origins", "http://relay.example.org", "wss://relay.example.org"),
        ("folder", "", "--folder is empty"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(name: str, text: str, said: str) -> None:
    assert said in refusal({}, **{name: text})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "relay.example.org"])
def test_listening_for_others_needs_an_origin(host: str) -> None:
    assert "--origin" in refusal({}, host=host)
    assert load({}, {"host": host, "origins": "wss://relay.example.org"}).host == host


def test_loopback_needs_none() -> None:
    assert all(load({}, {"host": host}).origins == () for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not is_loopback("example.org")
    assert Settings().origins_at(7) == {"ws://127.0.0.1:7", "ws://localhost:7", "ws://[::1]:7"}
    assert Settings(origins=("wss://a.example.org",)).origins_at(7) == {"wss://a.example.org"}


@pytest.mark.parametrize(
    "together",
    [
        {"idle_seconds": "25"},
        {"credit_bytes": "4194304"},
        {"pool_size": "4"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(together: dict[str, str]) -> None:
    assert "which must be" in refusal({}, **together)


def test_more_writers_than_connections_are_refused_by_their_own_name() -> None:
    assert refusal({}, writers="7").startswith("writers is 7, which must be at most pool_size - 2 (6)")
    assert refusal({}, writers="6").startswith("read_pages_max is 4")
    assert load({}, {"writers": "6", "read_pages_max": "1"}).writers == 6


def test_limits_hold_for_settings_made_in_code_too() -> None:
    with pytest.raises(SettingsError, match="connections_max is 0"):
        Settings(connections_max=0)


def test_no_secret_is_shown() -> None:
    settings = load({"SEALWIRE_DATABASE_URL": URL}, {})
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in f"{settings.database_url} {settings.database_url!r}"
    assert settings.database_url is not None
    assert settings.database_url.reveal() == URL


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_the_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/data")
    assert default_folder() == Path("/srv/data/sealwire-relay")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", "/nowhere")
    assert default_folder() == Path("/nowhere/.local/share/sealwire-relay")


def test_the_page_states_the_defaults() -> None:
    rows = re.findall(
        r"^\| `(--[a-z-]+)` \| `(SEALWIRE_\w+)` \| ([^|]*) \| ", (ROOT / "docs/relay.md").read_text(), re.MULTILINE
    )
    stated = {(flag, variable): default.strip().strip("`").replace(",", "") for flag, variable, default in rows}
    shown = {field.name: field.default for field, _ in fields()}
    empty = [name for name, default in shown.items() if default in ((), None) or name == "folder"]
    for name in empty:
        del shown[name]
    for name, default in shown.items():
        text = f"{default:g}" if isinstance(default, float) else str(default)
        assert stated[option(name), f"SEALWIRE_{name.upper()}"] == text
    assert len(stated) == len(shown) + len(empty)


# --- registration


KEY = "A" * 43 + "="


def test_trusted_keys_come_from_options_variables_and_files(tmp_path: Path) -> None:
    other = "B" * 43 + "="
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n{other}\n")
    told = [
        load({}, {"registration": "token", "registration_keys": f"{KEY},{other}"}),
        load({"SEALWIRE_REGISTRATION": "token", "SEALWIRE_REGISTRATION_KEYS": f"{KEY} {other}"}, {}),
        load({"SEALWIRE_REGISTRATION": "token", "SEALWIRE_REGISTRATION_KEYS_FILE": str(file)}, {}),
    ]
    assert all(each == told[0] for each in told)
    assert [len(key) for key in told[0].trusted_keys()] == [32, 32]
    assert option("registration_keys") == "--registration-key"


@pytest.mark.parametrize("key", ["rubbish!", "QUJD", KEY[:-1], f"{KEY}{KEY}", "ü"])
def test_what_is_no_key_is_not_trusted(key: str) -> None:
    assert "token keygen" in refusal({}, registration_keys=key)


def test_tokens_of_nobody_are_refused_as_a_mistake() -> None:
    assert "--registration-key" in refusal({}, registration="token")
    assert "open, token, closed" in refusal({}, registration="ajar")
    assert load({}, {"registration": "closed"}).trusted_keys() == ()


# --- the edge


def test_a_certificate_and_its_key_are_set_both_or_neither() -> None:
    for one in ("tls_certificate_path", "tls_key_path"):
        assert "--tls-certificate-path and --tls-key-path" in refusal({}, **{one: "/x.pem"})
        assert refusal({f"SEALWIRE_{one.upper()}": "/x.pem"})
    both = load({}, {"tls_certificate_path": "~/x.crt", "tls_key_path": "/x.key"})
    assert both.tls_certificate_path == Path("~/x.crt").expanduser()
    assert (both.scheme, Settings().scheme) == ("wss", "ws")
    assert both.origins_at(7) == {"wss://127.0.0.1:7", "wss://localhost:7", "wss://[::1]:7"}
    assert load({}, {"tls_certificate_path": "", "tls_key_path": ""}) == Settings()


def test_trusted_proxies_are_addresses_and_networks() -> None:
    proxies = load({"SEALWIRE_TRUSTED_PROXIES": "127.0.0.1, 10.0.0.0/8\nfd00::/8"}, {}).proxies()
    assert [str(network) for network in proxies.networks] == ["127.0.0.1/32", "10.0.0.0/8", "fd00::/8"]
    assert option("trusted_proxies") == "--trusted-proxy"
    for wrong in ("proxy.example.org", "10.0.0.1/8", "10.0.0.0/33", "x"):
        assert f"{wrong!r} is no address or network of proxies" in refusal({}, trusted_proxies=wrong)


def test_networks_of_ipv4_addresses_written_as_ipv6_ones_are_trusted_as_what_they_are() -> None:
    settings = load({}, {"trusted_proxies": "::ffff:10.0.0.0/104 ::ffff:192.0.2.7 ::/8"})
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "192.0.2.7"):
        assert settings.proxies().trusts(address)
    assert not settings.proxies().trusts("11.0.0.1")


def test_the_proxy_protocol_without_a_proxy_is_refused_as_a_mistake() -> None:
    assert "--trusted-proxy" in refusal({}, proxy_header="proxy-protocol")
    assert load({}, {"proxy_header": "proxy-protocol", "trusted_proxies": "::1"}).proxies().header == "proxy-protocol"
    assert "x-forwarded-for, forwarded, proxy-protocol" in refusal({}, proxy_header="via")
