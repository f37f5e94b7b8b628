"""One W&B run per job: config, every metric of every stage on its own axis, tables, artifacts with their lineage.

Online under a sweep agent or where a key is configured, else offline with one line that says how to sync;
`WANDB_MODE` wins. The stage store is the truth, and W&B mirrors it: an artifact's version is the store's key.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfcontrast.constrained import Text
from selfcontrast.errors import UserError, printable
from selfcontrast.preemption import stop
from selfcontrast.provenance import provenance
from selfcontrast.tracking.tracker import Tracker
from selfcontrast.tracking.wandb_identity import identity, unfinished_run
from selfcontrast.tracking.wandb_key import has_key
from selfcontrast.tracking.wandb_run import WandbRun, say_why
from selfcontrast.tracking.wandb_sweep import flat_settings, sweep_name

log = logging.getLogger(__name__)

LONGEST_NAME, LONGEST_TAG, NOT_IN_NAMES = 128, 64, frozenset("/\\#?%:")  # W&B's limits
MODES = ("auto", "online", "offline", "disabled")
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class WandbTracking:
    """Weights & Biases.

    A job that was killed or failed goes on in the same run, where the same folder has the same config: its id lies in
    the folder until it has finished. Only online: a run that was begun offline cannot be resumed, and there are two.

    Attributes:
        group: null is the sweep's: W&B's id of it, or the folder of the multirun.
        mode: auto, online, offline or disabled; the environment's WANDB_MODE wins.
        upload: whether artifacts' files are uploaded, or referred to by their path and checksum.
    """

    project: Text
    entity: Text | None
    group: Text | None
    tags: list[Text] = field()
    mode: str = field()
    upload: bool = field()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"tracking.mode={self.mode}: one of {', '.join(MODES)}")
        for name in ("project", "entity", "group"):
            value = getattr(self, name)
            if value is not None and (len(value) > LONGEST_NAME or (name != "group" and set(value) & NOT_IN_NAMES)):
                raise UserError(
                    f"tracking.{name}={printable(value)[:40]}: at most {LONGEST_NAME} characters, none of them "
                    f"{' '.join(sorted(NOT_IN_NAMES))}"
                )
        for tag in self.tags:
            if len(tag) > LONGEST_TAG:
                raise UserError(f"tracking.tags={printable(tag)[:40]}…: at most {LONGEST_TAG} characters each")

    def check(self) -> None:
        if self.resolved_mode() not in MODES[1:]:
            raise UserError(f"WANDB_MODE={self.resolved_mode()}: one of {', '.join(MODES[1:])}")
        if self.resolved_mode() == "online" and not has_key() and "WANDB_SWEEP_ID" not in os.environ:
            raise UserError("W&B's mode online needs a key: set WANDB_API_KEY or run `wandb login`, or use offline")

    def resolved_mode(self) -> str:
        if mode := os.environ.get("WANDB_MODE"):
            return mode
        if self.mode != "auto":
            return self.mode
        return "online" if "WANDB_SWEEP_ID" in os.environ or has_key() else "offline"

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any], folder: Path, job_type: str = "train") -> Iterator[Tracker]:
        unfinished = unfinished_run(folder, config)
        run = self._begin(name, config, folder, job_type, unfinished)
        # Finished whatever happens: in a multirun all jobs share this process, and a run that is left open would
        # silently be handed to the next job. (W&B's own context manager prints a traceback besides.)
        try:
            run.log_code(str(PACKAGE), name="source-selfcontrast")
            yield WandbRun(run, self.upload)
        except BaseException as error:
            run.finish(exit_code=say_why(run, error))
            raise
        own, was_offline = Path(run.dir).parent, run.settings.mode == "offline"
        run.finish()
        unfinished.unlink(missing_ok=True)
        if was_offline:
            log.info("W&B      offline; to upload this run: wandb sync %s", _relative(own))

    def _begin(self, name: str, config: Mapping[str, Any], folder: Path, job_type: str, unfinished: Path) -> Any:
        """The run: online, unless the server cannot be reached, which must not cost a night's sweep."""
        import wandb

        def begin(mode: str) -> Any:
            return wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group or sweep_name(),
                job_type=job_type,
                tags=self.tags,
                name=name,
                config={**flat_settings(config), "provenance": provenance()},
                dir=str(folder),
                mode=mode,  # type: ignore[arg-type]
                save_code=True,  # without it W&B keeps no changes since the commit either
                settings=wandb.Settings(silent=True, git_root=_checkout(), stop_fn=stop),
                **(identity(unfinished) if mode == "online" else {}),
            )

        mode = self.resolved_mode()
        try:
            return begin(mode)
        except wandb.errors.AuthenticationError as error:
            raise UserError(f"W&B does not take the key: {_first_line(error)}") from error
        except wandb.errors.CommError as error:
            log.warning("W&B      cannot be reached (%s): the run is kept in its folder", _first_line(error))
            return begin("offline")


def _checkout() -> str | None:
    """Whose commit and changes W&B keeps: this package's, wherever the job was started."""
    root = PACKAGE.parents[1]
    return str(root) if (root / ".git").exists() else None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
