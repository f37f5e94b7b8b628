"""Put `tests/` on the path (test modules import `tiny` and `jobs`); one thread per process; no clock for hypothesis."""

import os

import pytest
from hypothesis import settings

# Before torch is imported: pytest runs a worker per core, and threads that wait for a core only spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# In CI the same examples every time: new ones are looked for where somebody can look at what was found.
settings.register_profile("untimed", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The interpreter of an environment that has vLLM."""
    if not (python := os.environ.get("SELFCONTRAST_VLLM_PYTHON")):
        pytest.skip("needs an environment with vLLM: make test-vllm, or SELFCONTRAST_VLLM_PYTHON=PATH")
    return os.path.abspath(python)


@pytest.fixture
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings that a developer's environment may give to a job."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_SWEEP_ID",
        "WANDB_RUN_ID",
        "SELFCONTRAST_STORE",
        "SELFCONTRAST_STORE_CACHE",
    ):
        monkeypatch.delenv(name, raising=False)
