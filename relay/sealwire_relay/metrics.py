"""What a relay counts. One instance for each relay in a process, with a registry of its own; names as Prometheus
has them, without anything that a device sent: labels are closed sets."""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from sealwire_protocol import __version__

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Buckets of durations: from a commit to a disk with a battery, to a database in trouble."""


class Metrics:
    """Counters, gauges and histograms by the names that the parts of the relay use. Not for other threads' loops."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sealwire_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"sealwire_{name}", text, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"sealwire_{name}", text, buckets=SECONDS, registry=registry)

        self.connections = gauge("connections", "Open connections, logged in or not")
        self.handshakes = gauge("handshakes", "Of these, connections that have not logged in yet")
        self.logins = counter("logins", "Logins that were accepted")
        self.login_failures = counter("login_failures", "Logins that were refused, or not made in time")
        self.closes = counter("closes", "Connections closed by the relay, by close code", "code")
        self.pushes = counter("pushes", "Pushes that were answered")
        self.limited_pushes = counter("limited_pushes", "Pushes put off, as there were too many, by limit", "limit")
        self.quota_refusals = counter("quota_refusals", "Pushes that were not taken, as their vault is full")
        self.records = counter("records", "Records that were committed")
        self.commits = counter("commits", "Group commits")
        self.commit_seconds = histogram("commit_seconds", "From beginning a group commit until it is durable")
        self.push_seconds = histogram("push_seconds", "From receiving a push until its verdict is sent")
        self.waiting_bytes = gauge("waiting_bytes", "Memory of pushes that are not answered yet")
        self.held_back = gauge("held_back_connections", "Connections not read from until some of theirs are answered")
        self.deliveries = counter("deliveries", "DELIVER frames sent, live and catching up")
        self.delivered_bytes = counter("delivered_bytes", "Bytes of DELIVER frames sent")
        self.pages = counter("pages", "Pages read from the database for those who catch up")
        self.recent_pages = counter("recent_pages", "Pages for those who catch up that were in memory")
        self.recent_bytes = gauge("recent_bytes", "Memory of segments that are kept for those who catch up")
        self.faults = counter("faults", "FAULT messages sent, by wire code", "code")
        self.lagging = gauge("lagging_streams", "Subscriptions that are behind their stream's head")
        self.store_errors = counter("store_errors", "Calls to the database that failed")
        self.unknown_outcomes = counter("unknown_outcomes", "Commits whose outcome was lost with the connection")
        self.lost_vaults = gauge("lost_vaults", "Vaults of which devices know a history that the database has lost")
        self.lost_streams = gauge("lost_streams", "Streams of these, by what devices have told since the relay started")
        self.unheard_members = gauge("unheard_members", "Members of these that have not been heard of since")
        self.returned_records = counter("returned_records", "Lost records that devices have given back")
        self.refused_returns = counter("refused_returns", "Records given back that were not taken, by reason", "reason")
        self.replaced_links = counter("replaced_links", "Links that gave way to others that the database had lost")
        self.trees = gauge("trees", "Trees kept for devices that compare their history with the relay's")
        self.tree_bytes = gauge("tree_bytes", "Memory of these trees")
        self.scans = counter("scans", "Streams scanned for such a tree")
        self.scan_seconds = histogram("scan_seconds", "From beginning to scan a stream until its tree is built")
        self.fetched_records = counter("fetched_records", "Records fetched by devices that lacked them")
        self.acks = counter("acks", "Positions of devices that were written to the database")
        self.acks_forgotten = counter("acks_forgotten", "Positions of devices that were not, since too many waited")
        self.cleaned_streams = counter("cleaned_streams", "Streams that the cleaner beside this relay has cleaned")
        self.cleaned_records = counter("cleaned_records", "Superseded records that it left out")
        self.cleaned_bytes = counter("cleaned_bytes", "Bytes of segments that it freed")
        self.cleaned_segments = counter("cleaned_segments", "Segments that it made fewer, by joining them")
        self.cleaner_steps = counter("cleaner_steps", "Its steps, by how they ended", "ended")
        self.cleaner_ends = counter("cleaner_ends", "Times that its process ended by itself")
        self.dirty_streams = gauge("dirty_streams", "Streams that were not worth cleaning when it looked last")
        self.dirty_bytes = gauge("dirty_bytes", "Bytes that these got since: the most it could free")
        self.purged_tombstones = counter("purged_tombstones", "Deletions that it has forgotten")
        self.kept_tombstones = gauge("kept_tombstones", "Deletions that are remembered, in what is cleaned")
        self.term = gauge("term", "Number of the present term")
        self._ready = gauge("ready", "1 when the relay serves devices, else 0")
        Info("sealwire_build", "Version of the relay", registry=registry).info({"version": __version__})
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)

    def follow(self, ready: Callable[[], bool]) -> None:
        """From now on `sealwire_ready` says what `ready` returns when it is asked."""
        self._ready.set_function(lambda: float(ready()))

    def text(self) -> bytes:
        """All of it in the text format, whose name is `CONTENT_TYPE`."""
        return generate_latest(self.registry)
