import pytest

from sealwire_relay.sites import Sites, site_of


@pytest.mark.parametrize(
    ("address", "site"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.1", ""),
        ("::ffff:127.0.0.1", ""),
        ("::1", ""),
        ("", ""),
        ("a socket", "a socket"),
    ],
)
def test_addresses_are_counted_by_what_one_person_has_of_them(address: str, site: str) -> None:
    assert site_of(address) == site


def test_a_site_has_so_many_places_and_others_have_theirs() -> None:
    sites = Sites(2)
    assert [sites.enter("a") for _ in range(3)] == [True, True, False]
    assert sites.enter("b")
    sites.leave("a")
    assert [sites.enter("a") for _ in range(2)] == [True, False]


def test_what_is_no_site_is_not_counted() -> None:
    sites = Sites(1)
    assert all(sites.enter("") for _ in range(5))
    sites.leave("")


def test_a_site_that_has_no_connection_any_more_is_forgotten() -> None:
    sites = Sites(3)
    for _ in range(3):
        sites.enter("a")
    for _ in range(3):
        sites.leave("a")
    assert not sites._counts
