from bench.harness.fill import segments
from sealwire_protocol.limits import SEGMENT_BYTES_MAX
from sealwire_protocol.segment import read_segment


def test_filled_segments_are_such_as_a_relay_would_have_stored() -> None:
    made = segments(10_000, 2)
    assert [one.prev for one in made] == [0, *(one.last for one in made[:-1])]
    assert made[-1].last == 10_000
    assert all(len(one.body) <= SEGMENT_BYTES_MAX for one in made)
    read = [placed for one in made for placed in read_segment(one.body, one.prev, one.last)]
    assert [placed.seq for placed in read] == list(range(1, 10_001))
    assert len({placed.record.tag for placed in read}) == 10_000
