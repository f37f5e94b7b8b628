"""Run the smallest possible whole jobs on a real language model, with and without fine-tuning."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs import read_result, run_train, stages

LITTLE = (
    "model=smollm2",
    "encoder=lexical",
    "tracking=none",
    "data.train=16",
    "data.validation=8",
    "data.test=8",
    "data.two_turn=0",
    "max_length=128",
    "generator.prompts=2",
    "generator.samples=4",
    "generator.max_new_tokens=8",
    "filter.max_negatives=2",
    "filter.on_shortage=refill",
    "negatives=2",
    "hardware.threads=1",
    "evaluation.prompts=2",
    "evaluation.decodings=[{name: greedy, temperature: 0, samples: 1}]",
    "evaluation.max_new_tokens=8",
    "evaluation.n_bootstrap=200",
    "evaluation.lm_eval.tasks=[]",
)
SFT = {"none": ["sft=none"], "tiny": ["sft.epochs=1", "sft.batch_size=16", "sft.validations=0", "sft.lr=1e-5"]}


@pytest.mark.slow
@pytest.mark.parametrize("sft", SFT)
def test_smollm2_job_runs_every_stage(sft: str, tmp_path: Path) -> None:
    ended = run_train(*LITTLE, *SFT[sft], cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    by_name = stages(read_result(tmp_path / "out"))
    assert by_name["sft"]["summary"]["parameters"] == 134_515_008
    assert by_name["sft"]["summary"]["steps"] == (0 if sft == "none" else 1)
    policy = Path(by_name["align"]["path"]) / "model"
    assert AutoModelForCausalLM.from_pretrained(policy).num_parameters() == 134_515_008
    assert AutoTokenizer.from_pretrained(policy).tokenize("\n\n12") == ["ĊĊ", "1", "2"]
