import pytest

from sealwire_relay.buckets import BURST_SECONDS, SWEEP_SIZE_MIN
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
    sites = Sites(2, 0)
    assert [sites.enter("a", 0.0) for _ in range(3)] == [True, True, False]
    assert sites.enter("b", 0.0)
    sites.leave("a")
    assert [sites.enter("a", 0.0) for _ in range(2)] == [True, False]


def test_what_is_no_site_is_not_counted() -> None:
    sites = Sites(1, 0)
    assert all(sites.enter("", 0.0) for _ in range(5))
    sites.leave("")


def test_a_site_that_has_no_connection_any_more_is_forgotten() -> None:
    sites = Sites(3, 0)
    for _ in range(3):
        sites.enter("a", 0.0)
    for _ in range(3):
        sites.leave("a")
    assert not sites._counts


def test_a_site_begins_so_many_a_second_beyond_a_burst_whether_they_last_or_not() -> None:
    sites = Sites(1_000_000, 8)

    def begun(site: str, now: float) -> int:
        """How many of a hundred that come at one moment, and leave."""
        came = [sites.enter(site, now) for _ in range(100)]
        for _ in range(came.count(True)):
            sites.leave(site)
        return came.count(True)

    assert begun("a", 5.0) == 8 * BURST_SECONDS
    assert [begun("a", now) for now in (5.0, 5.5, 6.5)] == [0, 4, 8], "who is refused does not wait longer for it"
    assert begun("b", 5.0) == 8 * BURST_SECONDS
    assert begun("", 5.0) == 100
    assert begun("a", 1_000.0) == 8 * BURST_SECONDS


def test_sites_that_began_none_of_late_are_forgotten() -> None:
    sites = Sites(1, 100)
    for number in range(20 * SWEEP_SIZE_MIN):
        assert sites.enter(str(number), number / 1_000)
        sites.leave(str(number))
    assert len(sites._begun) <= SWEEP_SIZE_MIN
    assert not sites._counts
