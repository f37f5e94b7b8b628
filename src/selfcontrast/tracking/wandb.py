"""Track a job as one W&B run: config, metrics of every stage on its own axis, tables, artifacts with their lineage.

The run is online under a sweep agent or if a key is configured. Else it is offline, and one line says how to sync it.
`WANDB_MODE` overrides this choice. The store is authoritative and W&B mirrors it: an artifact's alias is its store key.
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
from selfcontrast.tracking.wandb_identity import resume_arguments, run_id_file
from selfcontrast.tracking.wandb_key import has_key
from selfcontrast.tracking.wandb_run import WandbRun, record_error
from selfcontrast.tracking.wandb_sweep import flat_settings, sweep_name

log = logging.getLogger(__name__)

MAX_NAME, MAX_TAG, NOT_IN_NAMES = 128, 64, frozenset("/\\#?%:")  # W&B's limits
MODES = ("auto", "online", "offline", "disabled")
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class WandbTracking:
    """Weights & Biases.

    A killed or failed job continues its run if it is started again in the same folder with the same config: until
    the job has finished, the folder has the run's id. Offline runs cannot be resumed, so a restarted job has two runs.

    Attributes:
        group: name of the run's group; null for the sweep's W&B id, or the name of the multirun's folder.
        mode: auto, online, offline or disabled; the environment variable WANDB_MODE overrides it.
        upload: True to upload artifacts' files, False to record only their path.
    """

    project: Text
    entity: Text | None
    group: Text | None
    tags: list[Text] = field()
    mode: str = field()
    upload: bool = field()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"tracking.mode={self.mode} must be one of {', '.join(MODES)}")
        for name in ("project", "entity", "group"):
            value = getattr(self, name)
            if value is not None and (len(value) > MAX_NAME or (name != "group" and set(value) & NOT_IN_NAMES)):
                raise UserError(
                    f"tracking.{name}={printable(value)[:40]} must have at most {MAX_NAME} characters, and none of "
                    f"{' '.join(sorted(NOT_IN_NAMES))}"
                )
        for tag in self.tags:
            if len(tag) > MAX_TAG:
                raise UserError(f"tracking.tags={printable(tag)[:40]}… must have at most {MAX_TAG} characters")

    def check(self) -> None:
        if self.resolved_mode() not in MODES[1:]:
            raise UserError(f"WANDB_MODE={self.resolved_mode()} must be one of {', '.join(MODES[1:])}")
        if self.resolved_mode() == "online" and not has_key() and "WANDB_SWEEP_ID" not in os.environ:
            raise UserError("W&B's mode online needs a key. Set WANDB_API_KEY or run `wandb login`, or use offline.")

    def resolved_mode(self) -> str:
        if mode := os.environ.get("WANDB_MODE"):
            return mode
        if self.mode != "auto":
            return self.mode
        return "online" if "WANDB_SWEEP_ID" in os.environ or has_key() else "offline"

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any], folder: Path, job_type: str = "train") -> Iterator[Tracker]:
        id_file = run_id_file(folder, config)
        run = self._begin(name, config, folder, job_type, id_file)
        # Always finish the run: in a multirun all jobs share this process, and the next job would silently get an
        # open run. (W&B's own context manager also prints a traceback.)
        try:
            run.log_code(str(PACKAGE), name="source-selfcontrast")
            yield WandbRun(run, self.upload)
        except BaseException as error:
            run.finish(exit_code=record_error(run, error))
            raise
        run_folder, was_offline = Path(run.dir).parent, run.settings.mode == "offline"
        run.finish()
        id_file.unlink(missing_ok=True)
        if was_offline:
            log.info("W&B      offline; to upload this run: wandb sync %s", _relative(run_folder))

    def _begin(self, name: str, config: Mapping[str, Any], folder: Path, job_type: str, id_file: Path) -> Any:
        """Start the run. If the server cannot be reached, start it offline instead of failing the job."""
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
                save_code=True,  # W&B stores uncommitted changes only with this setting
                settings=wandb.Settings(silent=True, git_root=_checkout(), stop_fn=stop),
                **(resume_arguments(id_file) if mode == "online" else {}),
            )

        mode = self.resolved_mode()
        try:
            return begin(mode)
        except wandb.errors.AuthenticationError as error:
            raise UserError(f"W&B refuses the key: {_first_line(error)}. Check WANDB_API_KEY.") from error
        except wandb.errors.CommError as error:
            log.warning("W&B      cannot be reached (%s); the run is stored in the job's folder", _first_line(error))
            return begin("offline")


def _checkout() -> str | None:
    """Return the git checkout of this package, whose commit and changes W&B stores."""
    root = PACKAGE.parents[1]
    return str(root) if (root / ".git").exists() else None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
