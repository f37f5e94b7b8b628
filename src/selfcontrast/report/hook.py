"""Write a sweep's report after its last job, even if jobs failed.

Hydra calls `on_multirun_end` only if no job failed. So the callback only remembers the sweep's folder, and `train.py`
calls `finish_sweep` after Hydra has returned.
"""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from selfcontrast.report.sweep import Sweep


class SweepReport(Callback):
    """A Hydra callback that remembers the folder of the sweep in this process."""

    folder: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepReport.folder = Path(config.hydra.sweep.dir)
        if warning := too_many_tests(config):
            from selfcontrast.report.terminal import say

            say(warning)


def too_many_tests(config: DictConfig) -> str:
    """Return a warning if no job of the sweep can differ clearly from SFT, else "".

    Each job has one p-value, corrected by Holm for the number of jobs. A permutation test cannot give a p-value below a
    bound, which depends on the numbers of prompts and resamples.
    """
    from selfcontrast.evaluation.statistics.permutation import least_p_value

    evaluation = OmegaConf.select(config, "evaluation")
    if evaluation is None:  # the program is not train.py
        return ""
    jobs = _jobs(list(config.hydra.overrides.task))
    alpha, prompts, n_bootstrap = 1 - float(evaluation.confidence), evaluation.prompts, evaluation.n_bootstrap
    if isinstance(prompts, str) or isinstance(n_bootstrap, str):  # the sweep varies this setting
        return ""
    lowest_p = least_p_value(prompts, n_bootstrap)
    if lowest_p * jobs < alpha:
        return ""
    too_few_resamples = least_p_value(None, n_bootstrap) * jobs >= alpha
    enough = math.ceil(jobs / alpha)
    remedy = f"evaluation.n_bootstrap to {enough} or more" if too_few_resamples else "evaluation.prompts"
    return (
        f"No job can differ clearly from SFT by its own p-value: with Holm's correction one of {jobs} jobs needs p < "
        f"{alpha / jobs:.2g}, and the smallest p-value is {lowest_p:.2g}. Raise {remedy}."
    )


def _jobs(overrides: list[str]) -> int:
    """Count the jobs of a grid over overrides. A sampled override counts once."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    jobs = 1
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_discrete_sweep():
            jobs *= sum(1 for _ in override.sweep_iterator())
    return jobs


def finish_sweep() -> None:
    """Write, print and track the report of the sweep that ran in this process, if any."""
    if SweepReport.folder is None:
        return
    from selfcontrast.report.sweep import read_sweep
    from selfcontrast.report.sweep_page import write_sweep
    from selfcontrast.report.sweep_terminal import print_sweep

    sweep = read_sweep([SweepReport.folder])
    if sweep.jobs:
        write_sweep(sweep)
        track_sweep(sweep)
    print_sweep(sweep)


def track_sweep(sweep: "Sweep") -> None:
    """If the jobs are tracked by W&B, log table, figure and report as another W&B run in the jobs' group."""
    import pandas as pd

    from selfcontrast.config import build
    from selfcontrast.report.sweep_numbers import frame
    from selfcontrast.report.sweep_words import headline
    from selfcontrast.tracking import WandbTracking

    tracking = build(OmegaConf.create(sweep.jobs[0].result.config["tracking"]), "tracking")
    if not isinstance(tracking, WandbTracking):
        return
    group, folder = tracking.group or sweep.folder.name, sweep.folder
    config = {"jobs": len(sweep.jobs), "negatives": [point.k for point in sweep.points], "seeds": sweep.seeds}
    grouped = replace(tracking, group=group)
    with grouped.run(f"sweep {group}", config, folder, job_type="sweep report") as tracker:
        tracker.table("sweep", frame(sweep))
        if sweep.missing:
            tracker.table("failed", pd.DataFrame([asdict(job) for job in sweep.missing]))
        tracker.figure("figure", folder / "figure.png")
        tracker.summary({"headline": headline(sweep), "failed": len(sweep.missing), **_best(sweep)})
        tracker.files(*(folder / name for name in ("report.html", "results.csv", "results.md", "results.tex")))


def _best(sweep: "Sweep") -> dict[str, Any]:
    from selfcontrast.report.sweep import best, mean

    point = best(sweep)
    measured = point.measured("mean") or {}
    bounds = {f"best/{bound}": measured.get(bound) for bound in ("estimate", "low", "high")}
    summary = {"best/negatives": point.k, "best/variant": point.variant, "best/p_holm": point.p_holm}
    return {**summary, **bounds, "sft": mean(point.jobs, base=True)}
