"""One W&B run per job: config, every metric of every stage on its own axis, tables, artifacts with their lineage.

Online under a sweep agent or where a key is configured, else offline with one line that says how to sync;
`WANDB_MODE` wins. The stage store is the truth, and W&B mirrors it: an artifact's version is the store's key.
"""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import yaml

from selfcontrast.constrained import Text
from selfcontrast.errors import UserError, printable
from selfcontrast.preemption import ENDED, Stopped, stop
from selfcontrast.provenance import provenance
from selfcontrast.store import Artifact

log = logging.getLogger(__name__)

LONGEST_NAME, LONGEST_TAG, NOT_IN_NAMES = 128, 64, frozenset("/\\#?%:")  # W&B's limits
MODES = ("auto", "online", "offline", "disabled")
NO_SETTINGS = ("name", "output")  # of the config: what differs between any two runs
PACKAGE = Path(__file__).parent


class Tracker(Protocol):
    """Where a job's metrics go while it runs."""

    def log(self, stage: str, record: Mapping[str, float]) -> None:
        """Metrics of a stage; `step` among them is the stage's own axis."""

    def table(self, name: str, frame: pd.DataFrame) -> None: ...

    def figure(self, name: str, file: Path) -> None: ...

    def artifact(self, artifact: Artifact, used: Sequence[Artifact]) -> None:
        """An artifact of the store, and those it was made from."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """The headline numbers."""

    def files(self, *paths: Path) -> None:
        """Files that belong to the run itself, such as the report."""


class Tracking(Protocol):
    """How a job is tracked, from its config."""

    def check(self) -> None: ...

    def run(self, name: str, config: Mapping[str, Any], folder: Path) -> Any:
        """A context manager that gives a `Tracker`."""


class Untracked:
    """Keeps nothing."""

    def log(self, stage: str, record: Mapping[str, float]) -> None: ...

    def table(self, name: str, frame: pd.DataFrame) -> None: ...

    def figure(self, name: str, file: Path) -> None: ...

    def artifact(self, artifact: Artifact, used: Sequence[Artifact]) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def files(self, *paths: Path) -> None: ...


@dataclass(frozen=True)
class NoTracking:
    """For trying things: the report and the store keep all there is."""

    def check(self) -> None: ...

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any], folder: Path) -> Iterator[Tracker]:
        yield Untracked()


@dataclass(frozen=True)
class CsvTracking:
    """Files in the run's folder: `metrics/STAGE.csv`, `tables/NAME.csv` and `summary.json`."""

    def check(self) -> None: ...

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any], folder: Path) -> Iterator[Tracker]:
        yield _CsvFiles(folder)


class _CsvFiles(Untracked):
    """Starts afresh."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[str, list[Mapping[str, float]]] = {}

    def log(self, stage: str, record: Mapping[str, float]) -> None:
        """Appends a line; a metric that is new makes a column and the file anew."""
        before = self.records.setdefault(stage, [])
        columns = list(dict.fromkeys(name for known in before for name in known))
        before.append(record)
        file = _parent(self.folder / "metrics" / f"{stage}.csv")
        if before[1:] and record.keys() <= set(columns):
            pd.DataFrame([record], columns=columns).to_csv(file, mode="a", header=False, index=False)
        else:
            pd.DataFrame(before).to_csv(file, index=False)

    def table(self, name: str, frame: pd.DataFrame) -> None:
        frame.to_csv(_parent(self.folder / "tables" / f"{name}.csv"), index=False)

    def summary(self, values: Mapping[str, Any]) -> None:
        (self.folder / "summary.json").write_text(json.dumps(dict(values), indent=1))


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
        if self.resolved_mode() == "online" and not _has_key() and "WANDB_SWEEP_ID" not in os.environ:
            raise UserError("W&B's mode online needs a key: set WANDB_API_KEY or run `wandb login`, or use offline")

    def resolved_mode(self) -> str:
        if mode := os.environ.get("WANDB_MODE"):
            return mode
        if self.mode != "auto":
            return self.mode
        return "online" if "WANDB_SWEEP_ID" in os.environ or _has_key() else "offline"

    @contextmanager
    def run(self, name: str, config: Mapping[str, Any], folder: Path, job_type: str = "train") -> Iterator[Tracker]:
        unfinished = folder / "wandb" / f"unfinished-{_digest(config)}"
        run = self._begin(name, config, folder, job_type, unfinished)
        # Finished whatever happens: in a multirun all jobs share this process, and a run that is left open would
        # silently be handed to the next job. (W&B's own context manager prints a traceback besides.)
        try:
            run.log_code(str(PACKAGE), name="source-selfcontrast")
            yield _WandbRun(run, self.upload)
        except BaseException as error:
            run.finish(exit_code=_say_why(run, error))
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
                group=self.group or _sweep(),
                job_type=job_type,
                tags=self.tags,
                name=name,
                config={**_settings(config), "provenance": provenance()},
                dir=str(folder),
                mode=mode,  # type: ignore[arg-type]
                save_code=True,  # without it W&B keeps no changes since the commit either
                settings=wandb.Settings(silent=True, git_root=_checkout(), stop_fn=stop),
                **(_identity(unfinished) if mode == "online" else {}),
            )

        mode = self.resolved_mode()
        try:
            return begin(mode)
        except wandb.errors.AuthenticationError as error:
            raise UserError(f"W&B does not take the key: {_first_line(error)}") from error
        except wandb.errors.CommError as error:
            log.warning("W&B      cannot be reached (%s): the run is kept in its folder", _first_line(error))
            return begin("offline")


class _WandbRun:
    def __init__(self, run: Any, upload: bool) -> None:
        self.run = run
        self.upload = upload
        self.logged: dict[str, float] = {}  # per stage the last step that a resumed run has already

    def log(self, stage: str, record: Mapping[str, float]) -> None:
        if stage not in self.logged:
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self.logged[stage] = self.run.summary.get(f"{stage}/step", -1) if self.run.resumed else -1
        if "step" in record and record["step"] <= self.logged[stage]:
            return
        self.run.log({f"{stage}/{name}": value for name, value in record.items()})

    def table(self, name: str, frame: pd.DataFrame) -> None:
        import wandb

        plain = frame.astype(object).where(frame.notna(), None)  # W&B knows neither NaN among words nor pandas' NA
        self.run.log({f"tables/{name}": wandb.Table(dataframe=plain, allow_mixed_types=True)})

    def figure(self, name: str, file: Path) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(file))})

    def artifact(self, artifact: Artifact, used: Sequence[Artifact]) -> None:
        """What this run computed it logs, what it recalled it uses, and the data, which it begins with, it always uses.

        Offline, where W&B cannot use, it logs all of it.
        """
        import wandb

        mirrored = wandb.Artifact(
            name=f"{artifact.stage}-{artifact.key}",
            type=artifact.stage,
            metadata={
                "key": artifact.key,
                "summary": artifact.summary,
                "settings": artifact.manifest["settings"],
                "inputs": artifact.manifest["inputs"],
                "made_from": [f"{a.stage}-{a.key}" for a in used],
            },
        )
        if self.upload:
            mirrored.add_dir(str(artifact.path))
        else:
            mirrored.add_reference(artifact.path.resolve().as_uri(), checksum=False)
        if (artifact.cached or artifact.stage == "data") and not self.run.offline:
            self.run.use_artifact(mirrored, aliases=[artifact.key])  # found by its content, or else created
        else:
            self.run.log_artifact(mirrored, aliases=[artifact.key])

    def summary(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    def files(self, *paths: Path) -> None:
        import wandb

        report = wandb.Artifact(name=f"report-{self.run.id}", type="report")
        for path in paths:
            report.add_file(str(path))
        self.run.log_artifact(report)


def _say_why(run: Any, error: BaseException) -> int:
    """Tells the run why its job ends before its time; returns the exit code."""
    if isinstance(error, Stopped):
        run.summary["stopped"] = "early"
        run.tags = (*(run.tags or ()), "stopped early")
        return int(error.code or 0)
    if isinstance(error, SystemExit) and error.code == ENDED:
        run.mark_preempting()  # a sweep gives it out again
        run.summary["error"] = "terminated: the same command goes on from there"
        return ENDED
    run.summary["error"] = f"{type(error).__name__}: {error}"
    return 1


def _identity(unfinished: Path) -> dict[str, Any]:
    """The id of the run that this job began before, or a new one, kept in a file; an agent or a user knows better."""
    resume = {} if "WANDB_RESUME" in os.environ else {"resume": "allow"}
    if "WANDB_RUN_ID" in os.environ:
        return resume
    if not unfinished.exists():
        _parent(unfinished).write_text(secrets.token_hex(4))
    return {**resume, "id": unfinished.read_text()}


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What W&B is told of the config.

    A group that a sweep chooses (objective=hinge) is locked to that word, and W&B would drop the group's settings:
    they go beside it, flat (objective.beta).
    """
    own = {key: value for key, value in config.items() if key not in NO_SETTINGS}
    for key in _swept():
        if isinstance(own.get(key), Mapping):
            own |= {f"{key}.{name}": value for name, value in own.pop(key).items()}
    return own


def _swept() -> list[str]:
    """The parameters of the sweep whose agent runs this job."""
    file = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    return list(yaml.safe_load(Path(file).read_text())) if file and Path(file).exists() else []


def _sweep() -> str | None:
    """W&B's id of the sweep that this job belongs to, or the name of the multirun's folder."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if own := os.environ.get("WANDB_SWEEP_ID"):
        return own
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).name
    return None


def _checkout() -> str | None:
    """Whose commit and changes W&B keeps: this package's, wherever the job was started."""
    root = PACKAGE.parents[1]
    return str(root) if (root / ".git").exists() else None


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]


def _parent(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _has_key() -> bool:
    """Whether a key is configured for W&B's server; the key itself is not kept."""
    import wandb
    from requests.utils import get_netrc_auth

    if os.environ.get("WANDB_API_KEY"):
        return True
    # A server of one's own may stand in W&B's settings alone, where `wandb login --host` leaves it.
    file = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser() / "settings"
    settings = wandb.Settings(settings_system=str(file)).read_system_settings().all()
    server = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or "https://api.wandb.ai"
    return get_netrc_auth(server) is not None


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
