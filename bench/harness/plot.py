"""A result as a picture: horizontal bars, ours marked, as PNG and as SVG."""

from pathlib import Path
from typing import Final

from matplotlib import rcParams
from matplotlib.figure import Figure

from bench.harness.result import Bars

WIDTH_INCHES: Final = 7.0
BAR_INCHES: Final = 0.42
AROUND_INCHES: Final = 1.0
"""Title and axis."""
DOTS_PER_INCH: Final = 144
OURS: Final = "#0b6e4f"
THEIRS: Final = "#9aa5b1"


def draw(bars: Bars, path: Path) -> None:
    """Write `path`.png and `path`.svg. The same bars give the same SVG."""
    rcParams["svg.hashsalt"] = "sealwire"
    rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(WIDTH_INCHES, AROUND_INCHES + BAR_INCHES * len(bars.bars)), layout="constrained")
    axes = figure.subplots()
    names, values = list(bars.bars), list(bars.bars.values())
    drawn = axes.barh(names, values, color=[OURS if name.startswith(bars.ours) else THEIRS for name in names])
    axes.bar_label(drawn, labels=[f"{value:,.4g}" if value < 1_000 else f"{value:,.0f}" for value in values], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(bars.title, loc="left", fontsize=11)
    axes.set_xlabel(bars.unit)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path.with_suffix(".png"), dpi=DOTS_PER_INCH, metadata={"Software": None})
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
