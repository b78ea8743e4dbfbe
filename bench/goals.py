"""What each bench is to show: its ratios, their goals, and what is known of the others that they are ratios to.

A ratio to something that ran much slower here than it is known to, on this kind of machine, says nothing: it is
invalid, whatever it is.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from bench.harness.result import figure_at

TOLERANCE: Final = 0.30
"""By how much a yardstick may fall short of its known figure."""

INVALID: Final = "invalid"


class Known(NamedTuple):
    """A figure of somebody else's, where a result has it, and what it is known to be on two such cores."""

    path: str
    figure: float
    sense: Literal["more", "less"] = "more"

    def shortfall(self, result: Mapping[str, Any]) -> float | None:
        """By which share the figure falls short here; None if it was not measured. Negative: it is better."""
        found = figure_at(result, self.path)
        if not found:
            return None
        return 1 - (found / self.figure if self.sense == "more" else self.figure / found)


class Goal(NamedTuple):
    """A ratio, or a figure that stands for itself, and what it should be."""

    bench: str
    key: str
    sense: Literal["at least", "at most"]
    bound: float
    what: str
    known: Known | None = None

    def met(self, figure: float) -> bool:
        """Whether a figure reaches the goal."""
        return figure >= self.bound if self.sense == "at least" else figure <= self.bound


_CPU: Final = "deliveries_per_cpu_s"

GOALS: Final = (
    Goal(
        "fanout",
        "vs_c_epoll",
        "at least",
        0.75,
        "deliveries of 200 bytes to 1,000 devices per server CPU second, by C with epoll",
        Known(f"yardsticks.c_epoll.{_CPU}", 145_000),
    ),
    Goal(
        "fanout",
        "vs_broadcast",
        "at least",
        1.3,
        "… by websockets.broadcast()",
        Known(f"peers.websockets_broadcast.{_CPU}", 89_000),
    ),
    Goal("fanout", "vs_node_ws", "at least", 1.0, "… by Node ws", Known(f"peers.node_ws.{_CPU}", 101_000)),
    Goal("fanout", "vs_socketio", "at least", 2.5, "… by socket.io", Known(f"peers.socketio.{_CPU}", 39_000)),
    Goal(
        "fanout",
        "max_deliveries_vs_redis_streams",
        "at least",
        1.2,
        "records delivered/s to 100 devices at full durable speed, by Redis Streams",
        Known("peers.redis_streams.max_deliveries_per_s", 1_600_000),
    ),
    Goal(
        "append",
        "vs_bare_asyncpg",
        "at least",
        0.5,
        "durable 32-byte records/s pushed singly, by bare group commit",
        # What is known of it wrote no more than segments.
        Known("yardsticks.bare_asyncpg_segments.records_per_s", 96_000),
    ),
    Goal(
        "append",
        "vs_nats_jetstream",
        "at least",
        10,
        "… by NATS JetStream, sync always",
        Known("peers.nats_jetstream.records_per_s", 3_600),
    ),
    Goal(
        "append",
        "vs_redis_streams",
        "at least",
        0.3,
        "… by Redis Streams, appendfsync always",
        Known("peers.redis_streams.records_per_s", 213_000),
    ),
    Goal(
        "catchup",
        "vs_redis_streams",
        "at least",
        1,
        "records/s served to a raw reader, by Redis Streams",
        Known("peers.redis_streams.records_per_s", 2_000_000),
    ),
    Goal(
        "catchup",
        "vs_nats_jetstream",
        "at least",
        2,
        "… by NATS JetStream",
        Known("peers.nats_jetstream.records_per_s", 860_000),
    ),
    Goal(
        "latency",
        "p50_vs_redis_streams",
        "at most",
        1.0,
        "push → received by 100 devices at 100/s, durable, by Redis Streams: median",
        Known("peers.redis_streams.p50_ms", 3.2, "less"),
    ),
    Goal(
        "latency",
        "p99_vs_redis_streams",
        "at most",
        1.2,
        "… 99%",
        Known("peers.redis_streams.p99_ms", 5.9, "less"),
    ),
    Goal("idle", "kib_per_device", "at most", 4, "KiB of the relay's memory per idle device, of 10,000"),
    Goal("storm", "seconds_to_live", "at most", 15, "seconds until 5,000 devices are live after kill -9 of the relay"),
    Goal(
        "growth",
        "append_cpu_10m_vs_10k",
        "at most",
        1.2,
        "CPU per append with 10,000,000 records in the stream, by 10,000",
    ),
    Goal("growth", "deliver_cpu_5000_vs_50", "at most", 1.2, "CPU per delivery with 5,000 subscribers, by 50"),
    Goal(
        "growth",
        "deliver_cpu_5000_vs_50_without_commit",
        "at most",
        1.2,
        "… without what the commit itself takes, of which few subscribers bear more each",
    ),
    Goal(
        "bootstrap",
        "vs_raw_sqlite",
        "at least",
        0.3,
        "a device's records/s on an empty device, 1,000,000 entries, by plain sqlite3",
    ),
    Goal(
        "bytes",
        "vs_evolu",
        "at most",
        0.35,
        "bytes stored per 32-byte entry, by Evolu",
        Known("peers.evolu.bytes_per_entry", 391, "less"),
    ),
    Goal(
        "bytes",
        "vs_jazz",
        "at most",
        0.65,
        "… by Jazz",
        Known("peers.jazz.bytes_per_entry", 206, "less"),
    ),
)


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """A result whose ratios are invalid where what they are a ratio to fell short; `missing` then says by how much."""
    ratios, missing = dict(result["ratios"]), list(result["missing"])
    for goal in GOALS:
        ratio = ratios.get(goal.key)
        if goal.bench != result["name"] or not isinstance(ratio, int | float) or goal.known is None:
            continue
        short = goal.known.shortfall(result)
        if short is not None and short > TOLERANCE:
            ratios[goal.key] = INVALID
            missing.append(
                f"{goal.key} would be {ratio:g}, but {goal.known.path} is {figure_at(result, goal.known.path):g}, "
                f"{short:.0%} worse than the {goal.known.figure:g} known of it"
            )
    return {**result, "ratios": ratios, "missing": missing}


def verdict(goal: Goal, results: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """(figure, verdict) of a goal, as words, by the results that there are."""
    ratio = results.get(goal.bench, {}).get("ratios", {}).get(goal.key)
    if ratio is None:
        return "–", "not measured"
    if not isinstance(ratio, int | float):
        return "–", INVALID
    return f"{ratio:g}", "met" if goal.met(ratio) else "missed"


def table(results: Mapping[str, Mapping[str, Any]], benches: tuple[str, ...] | None = None) -> str:
    """Every goal of these benches, or of all, beside what was found, as a table in Markdown."""
    lines = ["| bench | key | by | figure | goal | |", "| --- | --- | --- | --- | --- | --- |"]
    for goal in GOALS:
        if benches is None or goal.bench in benches:
            figure, word = verdict(goal, results)
            bound = f"{'≥' if goal.sense == 'at least' else '≤'} {goal.bound:g}"
            lines.append(f"| {goal.bench} | `{goal.key}` | {goal.what} | {figure} | {bound} | {word} |")
    return "\n".join(lines)
