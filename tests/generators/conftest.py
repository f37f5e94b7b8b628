"""Fixtures of the generators' tests: a policy that vLLM supports, and a server that serves it."""

import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from tiny import policy_folder
from vllm_server import serve


@pytest.fixture(scope="session")
def wide_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with heads of 32 dimensions, the minimum of vLLM's attention on the CPU."""
    return policy_folder(tmp_path_factory.mktemp("policy") / "model", width=64)


@pytest.fixture(scope="session")
def wide_model(wide_policy: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(wide_policy).eval()


@pytest.fixture(scope="session")
def vllm_server(vllm_python: str, wide_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a server that serves `wide_policy` as the model `policy`."""
    with serve(vllm_python, wide_policy, tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of an interpreter that has only the standard library."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return str(folder / "bin" / "python")
