"""Run a whole job with vLLM that is killed (`kill -9`) during sampling and restarted."""

import json
import shutil
from pathlib import Path

import pytest

from jobs import TINY, kill_when
from processes import vllm_workers, wait_until_gone
from selfcontrast.store import MANIFEST

PUBLISHED = f"generate/*[0-9a-f]/{MANIFEST}"  # the pattern leaves out folders KEY.partial


def candidates(folder: Path) -> bytes:
    (file,) = (folder / "store").glob("generate/*/candidates.parquet")
    return file.read_bytes()


@pytest.mark.vllm
def test_job_killed_while_vllm_samples_resumes_to_the_same_bytes(vllm_python: str, tmp_path: Path) -> None:
    job = (
        *TINY,
        "generator=vllm",
        f"generator.backend.python={vllm_python}",
        "generator.backend.dtype=float32",
        "generator.backend.gpu_memory_utilization=0.05",
        "generator.backend.enforce_eager=true",
        "engine.prompts_per_shard=1",
    )
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    uninterrupted.mkdir()
    kill_when(uninterrupted, job, PUBLISHED)
    shutil.copytree(uninterrupted / "store" / "sft", resumed / "store" / "sft")

    workers: list[int] = []
    kill_when(resumed, job, "generate/*.partial/resume/**/*.parquet", lambda pid: workers.extend(vllm_workers(pid)))
    (worker,) = workers
    wait_until_gone(worker)
    assert not list((resumed / "store").glob(PUBLISHED))
    assert 1 <= len(list((resumed / "store").glob("generate/*.partial/resume/**/*.parquet"))) < 16

    kill_when(resumed, job, PUBLISHED)
    assert candidates(resumed) == candidates(uninterrupted)
    (manifest,) = (resumed / "store").glob(PUBLISHED)
    assert json.loads(manifest.read_text())["resumed"]
