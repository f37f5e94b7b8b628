"""Run a whole job that trains adapters on a base model in 4 bits."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from jobs import TINY, read_result, run_train, stages


@pytest.mark.slow
def test_qlora_job_saves_an_unquantised_policy(tmp_path: Path) -> None:
    ended = run_train(*TINY, "adapter=qlora", "adapter.dropout=0", "trainer.lr=1e-3", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    result = read_result(tmp_path / "out")
    first = next(record for record in result["histories"]["align"] if "step0/loss" in record)
    # Products in bfloat16 cause a small spread. An unquantised reference would cause a far larger one.
    assert first["step0/margin_std"] < 0.05
    policy = AutoModelForCausalLM.from_pretrained(stages(result)["align"]["path"] + "/model")
    assert "quantization_config" not in policy.config.to_dict()
    assert {row["system"] for row in result["comparison"]["rows"]} == {"SFT", "Self-Contrast"}
