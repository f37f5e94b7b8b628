"""Rows of a comparison with hand-written numbers."""

from typing import Any


def interval(estimate: float, half: float) -> dict[str, Any]:
    bounds = {"low": estimate - half, "high": estimate + half}
    return {"estimate": estimate, **bounds, "n": 40, "clusters": 20, "confidence": 0.95}


def rows(sft: float, policy: float, control: float, half: float, p: float) -> list[dict[str, Any]]:
    """Return rows of two decodings and two systems. Means have intervals of ±0.05, differences of ±`half`."""
    result = []
    for name, temperature, levels in [("T=1", 1.0, (sft, policy)), ("T=0.7", 0.7, (control, control))]:
        for system, level in zip(("SFT", "Self-Contrast"), levels, strict=True):
            row = {
                "system": system,
                "decoding": name,
                "temperature": temperature,
                "mean": interval(level, 0.05),
            }
            row |= {"nll": 17.25, "tokens": 23.5}
            if system != "SFT":
                row |= {"difference": interval(level - levels[0], half), "p_value": p}
                row |= {"win_rate": interval(0.5 + (level - levels[0]) / 2, 0.03)}
                best = {"difference": interval(level - max(sft, control), half), "p_value": p}
                row["against_best"] = {"decoding": "T=0.7" if control > sft else "T=1", **best}
            result.append(row)
    return result
