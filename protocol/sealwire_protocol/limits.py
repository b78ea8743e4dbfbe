"""Every limit of the protocol, with its unit and what it buys. WELCOME tells a device the relay's own."""

from typing import Final, NamedTuple

VERSION_MIN: Final = 1
VERSION_MAX: Final = 2
"""Protocol versions spoken. Fields are appended within a version; a new version changes meaning."""

PLAINTEXT_BYTES_MAX: Final = 65_536
"""Key and value of one entry, encoded and padded. Sealwire is for tiny entities: one record must never hold
up a stream for long on a phone's link (64 KiB is half a second at 1 Mbit/s)."""

RECORD_BYTES_MAX: Final = PLAINTEXT_BYTES_MAX + 64
"""One record: header, salt, ciphertext and MAC."""

SEGMENT_BYTES_MAX: Final = 262_144
"""One segment, and one stream's part of a push. Must fit into the smallest credit, else a stream could stall."""

FRAME_BYTES_MAX: Final = 1_048_576
"""One WebSocket message. Bounds what a peer can make us hold before anything is checked."""

FRAME_BYTES_MIN: Final = SEGMENT_BYTES_MAX + 65_536
"""The least that a relay may set for one message: a push of a whole segment fits, and so does any other message."""

PUSH_RECORDS_MAX: Final = 4_096
"""Records in one push: bounds the time that one push can occupy the relay's group commit."""

PUSH_GROUPS_MAX: Final = 16
"""Streams touched by one push: bounds the heads that one transaction locks."""

PUSH_WINDOW: Final = 8
"""Pushes of one device and vault that may be unanswered: hides a round trip without letting work pile up."""

WINNERS_BYTES_MAX: Final = 131_072
"""Winning records in one PUSHED, in all: a thousand usual ones. It takes no credit, so it must not grow; a winner that
is left out comes by DELIVER like every record."""

CREDIT_BYTES_MIN: Final = 2 * SEGMENT_BYTES_MAX
"""The smallest credit a relay may grant, in bytes of DELIVER frames not yet acknowledged."""

CREDIT_BYTES_DEFAULT: Final = 2_097_152
"""Credit granted by default: covers 100 ms at 20 MB/s, and is the most that one device can make us send ahead."""

PUSHES_PER_SESSION_MAX: Final = 8 * PUSH_WINDOW
"""Pushes of one connection that a relay works on, over all vaults and those voided by a FAULT: bounds its memory."""

REQUESTS_MAX: Final = 32
"""Requests and SUBSCRIBEs of one connection that a relay works on at once: bounds its claim on the database."""

REQUEST_BYTES_WAITING_MAX: Final = FRAME_BYTES_MAX
"""Requests and SUBSCRIBEs of one connection that wait their turn. 4,096 streams of as many vaults fit."""

DELIVER_HEAD_BYTES_MAX: Final = 100
"""All of a DELIVER but its segment. A relay pumps a stream only while a whole segment and this fit into the credit."""

RESUBSCRIBE_SECONDS_MIN: Final = 1.0
"""The shortest wait before a refused SUBSCRIBE is repeated, so that a fault that lasts does not become a storm."""

SUBSCRIBE_STREAMS_MAX: Final = 256
"""Streams in one SUBSCRIBE: bounds the answer. More streams take more SUBSCRIBEs."""

STREAMS_PER_SESSION_MAX: Final = 4_096
"""Streams one connection may be subscribed to: bounds the relay's memory for one connection (about 1 MiB)."""

ACK_STREAMS_MAX: Final = 256
"""Positions in one ACK."""

LOST_TERMS_MAX: Final = 256
"""Terms told with a group of a refill: a relay that restarts twice a day, and lost what followed a backup of spring.
Records of which it is not known how they came about are never replaced silently (R14)."""

TERMS_TOLD_MAX: Final = 4_096
"""Terms of one stream in SUBSCRIBED: a stream gains at most one for each start of a relay, and stream 0 one more for
each end of the membership log that was replaced."""

LINK_BYTES_MAX: Final = 8_192
"""One membership link that adds a member."""

EPOCH_LINK_BYTES_MAX: Final = 65_535
"""One membership link that begins an epoch: it has 32 bytes for each member, and a u16 tells its length."""

MEMBERS_MAX: Final = 2_000
"""Members of a vault that are neither removed nor replaced: so many shares of a key fit into one link."""

ADOPTED_MAX: Final = 8
"""Keys of other ends of the membership log that one link hands on: they fit beside a share for each of MEMBERS_MAX."""

EPOCH_OWED_SECONDS: Final = 2.0
"""How long the first admin waits before it begins an epoch after somebody has left: who leaves with several devices
needs one."""

EPOCH_OWED_SECONDS_MAX: Final = 60.0
"""Up to so long, at random, the others wait for it: a hundred admins do not race."""

REPLACEMENTS_MAX: Final = 64
"""Keys that may take each other's place, one after the other or side by side, before an admin must invite the device
again: a folder restored every month lasts five years, and a stolen key cannot flood a vault's membership log."""

RECONCILE_PREFIXES_MAX: Final = 256
"""Ranges of tags in one RECONCILE: bounds the answer, about 90 KB, and the work that one request can ask for."""

BRANCH_ITEMS_MAX: Final = 8
"""Records of a range that RANGES names one by one: they take about as much as the sixteen sums of its parts would."""

FETCH_RECORDS_MAX: Final = 1_024
"""Records in one FETCH: as many as fit into one answer of usual ones, and the segments that one request may open."""

REGISTRATION_BYTES_MAX: Final = 512
"""A registration token, or a relay's receipt for a vault: keys' names, numbers, a name and a signature."""

MAILBOX_BYTES_MAX: Final = 1_024
"""One sealed message in an invite's mailbox: device keys, a name and a MAC."""

ANSWER_BYTES_MAX: Final = 16_384
"""The sealed answer in an invite's mailbox, which may let a device into some 190 vaults. It comes from an
admin, not from a stranger."""

MAILBOX_SECONDS_MAX: Final = 86_400
"""The longest life of an invite: 24 hours, enough to reach another person."""

TEXT_BYTES_MAX: Final = 1_024
"""Human-readable text in a message: agents, origins and fault messages."""

LOGIN_SECONDS_MAX: Final = 10.0
"""From accepting a socket to a valid PROVE. A captured proof is of no use after it."""

ACK_DELAY_SECONDS: Final = 5.0
"""The longest time that credit is kept back before an ACK returns it. A device that is never still costs the relay, and
its own radio, one ACK in this time; what is left of the credit lets a whole segment pass meanwhile."""

VERSION_STEP_MAX: Final = 2**32
"""A record's version may exceed the stream's `top` by this much: nobody can poison a key (R3)."""


VERSION_LAST: Final = 2**63 - 1
"""The last version that there is: what every database's integer holds."""

VERSION_TOP_MAX: Final = VERSION_LAST - VERSION_STEP_MAX
"""The greatest `top` that a device believes, and the greatest version that steers its own: beyond it a device could
soon not write any more, and versions that grow by one a record never get there."""

RESUBSCRIBES_AT_ONCE_MAX: Final = 3
"""Times in a row that a device subscribes again at once though nothing comes of it: an honest relay gives it one
reason, and a second one when its term changes meanwhile; a relay that lies must not keep it busy without pause."""


class Limits(NamedTuple):
    """What WELCOME tells: a relay's own limits, never above the protocol's."""

    credit_bytes: int = CREDIT_BYTES_DEFAULT
    frame_bytes: int = FRAME_BYTES_MAX
    segment_bytes: int = SEGMENT_BYTES_MAX
    record_bytes: int = RECORD_BYTES_MAX
    push_records: int = PUSH_RECORDS_MAX
    push_window: int = PUSH_WINDOW
    ping_seconds: int = 25
