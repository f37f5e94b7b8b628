"""Put `tests/` on the path (tests import `tiny` and `jobs`), use one thread, and turn off hypothesis' deadlines."""

import os

import pytest
from hypothesis import settings

# Set before torch is imported. Pytest runs a worker per core, so more threads would only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# CI runs the same examples every time. Developers' runs search for new ones.
settings.register_profile("untimed", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """Return the interpreter of an environment that has vLLM."""
    if not (python := os.environ.get("SELFCONTRAST_VLLM_PYTHON")):
        pytest.skip("needs an environment with vLLM. Run make test-vllm, or set SELFCONTRAST_VLLM_PYTHON=PATH.")
    return os.path.abspath(python)


@pytest.fixture
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove variables of the developer's environment that change a job's settings."""
    for name in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_SWEEP_ID",
        "WANDB_RUN_ID",
        "SELFCONTRAST_STORE",
        "SELFCONTRAST_STORE_CACHE",
    ):
        monkeypatch.delenv(name, raising=False)
