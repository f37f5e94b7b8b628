"""The sweep's own report, after its last job, however that job ended.

Hydra calls `on_multirun_end` only where no job failed, so the callback merely remembers where the sweep lies,
and `train.py` asks for the report when Hydra is through.
"""

from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepReport(Callback):
    """Remembers the folder of the sweep that this process runs."""

    folder: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepReport.folder = Path(config.hydra.sweep.dir)


def finish_sweep() -> None:
    """Writes and prints the report of the sweep that ran in this process; nothing where none did."""
    from selfcontrast.report.sweep import read_sweep
    from selfcontrast.report.sweep_page import write_sweep
    from selfcontrast.report.sweep_terminal import print_sweep

    if SweepReport.folder is None:
        return
    sweep = read_sweep(SweepReport.folder)
    if sweep.jobs:
        write_sweep(sweep)
    print_sweep(sweep)
