"""hydra/launcher=ray: every job of a multirun in a worker of its own, as many at once as Ray has cores and GPUs for.

Here, and not in `selfcontrast`, because Hydra takes its plugins from this package alone. The plugin that there is for
Ray asks for a cloudpickle older than the one that joblib does, so no environment can have both.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)


class RayLauncher(Launcher):
    """Args:
    address: null starts Ray on this machine for as long as the jobs take; auto is the cluster this machine is in.
    cpus_per_job, gpus_per_job: what Ray keeps free for a job; it sees no other GPU than its own.
    """

    def __init__(self, address: str | None, cpus_per_job: float, gpus_per_job: float) -> None:
        self.address = address
        self.resources = {"num_cpus": cpus_per_job, "num_gpus": gpus_per_job}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What became of every job, in the order given."""
        from selfcontrast.engines.ray import connected

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        log.info("Ray launches %d jobs in %s", len(job_overrides), self.config.hydra.sweep.dir)
        with connected(self.address, "hydra.launcher.address"):
            return self._all(job_overrides, initial_job_idx)

    def _all(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
        import ray

        # A worker ends with its job: the next one has its own environment, and the GPU's whole memory.
        remote = ray.remote(max_calls=1, max_retries=0, **self.resources)(execute)
        shared = ray.put((self.hydra_context, self.config, self.task_function, Singleton.get_state(), Path.cwd()))
        jobs = {
            remote.remote(shared, list(overrides), number): (number, overrides)
            for number, overrides in enumerate(job_overrides, start=first)
        }
        found, running = {}, list(jobs)
        while running:
            (done, *_), running = ray.wait(running)
            number, overrides = jobs[done]
            found[number] = self._outcome(done, number, overrides)
            ended = "done" if found[number].status == JobStatus.COMPLETED else "failed"
            log.info("#%d %s: %s", number, " ".join(filter_overrides(overrides)), ended)
        return [found[number] for number in sorted(found)]

    def _outcome(self, job: Any, number: int, overrides: Sequence[str]) -> JobReturn:
        import ray

        from selfcontrast.errors import FAILED

        try:
            outcome: JobReturn = ray.get(job)
        except ray.exceptions.RayError as error:  # the worker died: killed, or out of memory
            why = f"its worker was lost ({type(error).__name__}); often that is too little memory"
            config = of_job(self.hydra_context, self.config, overrides, number)
            folder = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FAILED).write_text(why)
            lost = RuntimeError(f"job {number}: {why}")
            outcome = JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=lost)
        return outcome


def execute(shared: tuple[Any, ...], overrides: list[str], number: int) -> JobReturn:
    """One job, in a process of Ray's."""
    context, config, task_function, singletons, folder = shared
    os.chdir(folder)
    setup_globals()
    Singleton.set_state(singletons)
    own = of_job(context, config, overrides, number)
    HydraConfig.instance().set_config(own)
    return run_job(
        hydra_context=context,
        config=own,
        task_function=task_function,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def of_job(context: HydraContext, config: DictConfig, overrides: Sequence[str], number: int) -> DictConfig:
    """The job's own config."""
    own: DictConfig = context.config_loader.load_sweep_config(config, list(overrides))
    with open_dict(own):
        own.hydra.job.id = f"{own.hydra.job.name}_{number}"
        own.hydra.job.num = number
    return own
