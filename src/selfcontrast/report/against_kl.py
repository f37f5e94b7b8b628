"""Show a run's score, KL from SFT, and entropy together: is the policy better, sharper, or only farther from SFT?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfcontrast.report.figures import axis_label, colour_of
from selfcontrast.report.style import COLOURS, dot, styled
from selfcontrast.report.text import interval, number

if TYPE_CHECKING:
    from selfcontrast.evaluation.curve import Curve, CurvePoint
    from selfcontrast.results import Result

KL_AXIS = "KL(policy || SFT), nats per response"
HEADS = ("system", "step", "score", "KL from SFT", "entropy", "entropy per token", "tokens")


def rows(curve: "Curve") -> list[list[str]]:
    """Return the cells under `HEADS`: one row per system and checkpoint, in the order of training."""
    return [
        [
            point["system"],
            str(point["step"]),
            interval(point["score"]),
            interval(point["kl"]) if point["step"] else number(0.0),
            interval(point["entropy"], digits=1),  # one digit, since entropies are hundreds of nats per response
            interval(point["entropy_per_token"]),
            number(point["tokens"], 1),
        ]
        for point in curve["points"]
    ]


def sentence(curve: "Curve") -> str:
    """Return a sentence with the policy's KL from SFT and the entropies of both; "" without a policy."""
    first, last = curve["points"][0], curve["points"][-1]
    if first is last:
        return ""
    change = "lower" if last["entropy"]["estimate"] < first["entropy"]["estimate"] else "higher"
    return (
        f"The KL of {last['system']} from SFT is {number(last['kl']['estimate'], 2)} nats per response. Its entropy is "
        f"{number(last['entropy']['estimate'], 2)} nats per response, {change} than SFT's "
        f"{number(first['entropy']['estimate'], 2)}."
    )


@styled()
def figure(result: "Result") -> Figure | None:
    """Draw score against KL, from SFT over the checkpoints to the policy; None without a policy."""
    curve = result.against_kl
    if curve is None or len(curve["points"]) < 2:
        return None
    canvas = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = canvas.subplots()
    path(axes, curve["points"], COLOURS["policy"])
    for point in curve["points"]:
        kl, colour = point["kl"]["estimate"], colour_of(point["system"])
        dot(axes, point["score"], kl, colour, vertical=True)
        if point["kl"]["low"] is not None and point["step"]:
            score = point["score"]["estimate"]
            axes.plot([point["kl"]["low"], point["kl"]["high"]], [score, score], color=colour, linewidth=1, alpha=0.55)
        axes.annotate(point["system"], (kl, point["score"]["estimate"]), (6, 5), textcoords="offset points", fontsize=8)
    axes.set_xlabel(KL_AXIS)
    axes.set_ylabel(axis_label(curve["measure"]))
    axes.margins(x=0.14)
    return canvas


def path(axes: Axes, points: "Sequence[CurvePoint]", colour: str, label: str | None = None, alpha: float = 1.0) -> None:
    """Draw a training run as a line through its points."""
    coordinates = [(point["kl"]["estimate"], point["score"]["estimate"]) for point in points]
    axes.plot(*zip(*coordinates, strict=True), color=colour, linewidth=1.3, alpha=alpha, label=label)
