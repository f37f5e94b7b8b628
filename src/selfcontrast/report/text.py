"""Format numbers in the same way in the terminal, on the page and in figures."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NONE = "–"
UNKNOWN = "?"
NO_BREAK_SPACE = "\xa0"


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """Format `value` with fixed digits; a dash for None or NaN. Zero has no sign."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text[1:] if signed and float(text) == 0 else text.replace("-0." + "0" * digits, "0." + "0" * digits)


def interval(value: Mapping[str, Any] | None, signed: bool = False, digits: int = 3) -> str:
    """Format an estimate with its interval: "0.781 [0.762, 0.800]"; "0.781 [–]" if there is none, as for one prompt."""
    if value is None:
        return NONE
    if not bounded(value):
        return f"{number(value['estimate'], digits, signed)} [{NONE}]"
    estimate, low, high = (number(value[key], digits, signed) for key in ("estimate", "low", "high"))
    return f"{estimate} [{low}, {high}]"


def unbroken(cell: object) -> str:
    """Let a table cell break only before a bracket. In a narrow column, "0.648" is above "[0.620, 0.676]"."""
    return re.sub(r" (?![\[(])", NO_BREAK_SPACE, str(cell))


def bounded(value: Mapping[str, Any]) -> bool:
    """Return whether both ends of an interval are known."""
    return all(value[bound] is not None and math.isfinite(value[bound]) for bound in ("low", "high"))


def p_value(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def p_equals(value: float | None) -> str:
    """Format a p-value for a sentence: "p = 0.012", "p < 0.001"."""
    text = p_value(value)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def percent(value: float | None, digits: int = 1) -> str:
    return NONE if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def percent_interval(value: Mapping[str, Any] | None) -> str:
    """Format as `interval`, in percent: "53.1% [51.0, 55.2]"."""
    if value is None:
        return NONE
    if not bounded(value):
        return f"{percent(value['estimate'])} [{NONE}]"
    return f"{percent(value['estimate'])} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def count(value: float | None) -> str:
    """Format 12345.0 as "12,345"; a fraction keeps two digits."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def large(value: float | None) -> str:
    """Format with three digits: "950", "12.3 k", "4.56 M", "1.20 G"."""
    if value is None or not math.isfinite(value):
        return NONE
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f} {unit}"
    return f"{value:.0f}"


def disk(size: float | None) -> str:
    """Format bytes with three digits: "< 1 MB", "14.5 GB"; UNKNOWN for None, "" for 0."""
    if size is None:
        return UNKNOWN
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return "" if size == 0 else "< 1 MB"


def duration(seconds: float) -> str:
    """Format a time: "0.3 s", "45 s", "3 min 45 s", "2 h 05 min"."""
    if not math.isfinite(seconds):
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def display_path(path: str | Path) -> str:
    """Format a path as the reader would type it: relative if it is below the working directory."""
    absolute = Path(path).absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)


def stage_state(stage: Mapping[str, Any]) -> str:
    """Say whether a stage's artifact was cached in the store, resumed, or computed from the start."""
    return "cached" if stage["cached"] else ("resumed" if stage["resumed"] else "done")
