"""Check the command that plans the paper's experiments, and its sweep files."""

from pathlib import Path

import pytest
import yaml

from jobs import ROOT
from selfcontrast.debug import write_debug
from selfcontrast.errors import UserError
from studies.paper import reproduce
from test_experiments import EXPERIMENTS, overrides_of


def test_experiments_expands_names_and_refuses_unknown_names() -> None:
    assert sorted(reproduce.experiments(["all"])) == sorted(EXPERIMENTS)
    assert reproduce.experiments(["nectar"]) == [f"nectar/{method}" for method in reproduce.METHODS]
    assert reproduce.experiments(["nectar/spin", "hh_rlhf/sft", "nectar/spin"]) == ["nectar/spin", "hh_rlhf/sft"]
    with pytest.raises(UserError, match=r"imagenet: .*hh_rlhf, ultrachat, nectar"):
        reproduce.experiments(["imagenet"])


def test_jobs_of_self_contrast_is_one_per_k_unless_k_is_set() -> None:
    args = ["+experiment=paper", "data=hh_rlhf", "method=self_contrast"]
    jobs = reproduce.jobs("hh_rlhf/self_contrast", ["seed=2"])
    assert jobs == [[*args, "seed=2", f"negatives={k}"] for k in (1, 2, 4, 8, 16)]
    assert reproduce.jobs("hh_rlhf/self_contrast", ["negatives=4"]) == [[*args, "negatives=4"]]


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if not name.endswith("self_contrast")])
def test_jobs_of_experiment_without_k_is_one_job(experiment: str) -> None:
    assert reproduce.jobs(experiment, []) == [overrides_of(experiment)]


def test_command_uses_multirun_for_several_jobs_or_a_launcher() -> None:
    assert reproduce.command("nectar/self_contrast", []) == [
        "-m",
        "+experiment=paper",
        "data=nectar",
        "method=self_contrast",
        "negatives=1,2,4,8,16",
    ]
    assert reproduce.command("nectar/sft", ["seed=3"]) == ["+experiment=paper", "data=nectar", "method=sft", "seed=3"]
    assert reproduce.command("nectar/sft", [], "hydra/launcher=slurm")[:2] == ["-m", "hydra/launcher=slurm"]


@pytest.mark.parametrize("file", sorted((ROOT / "sweeps" / "paper").glob("*.yaml")), ids=lambda file: file.stem)
def test_sweep_file_has_the_experiment_and_every_k_of_the_paper(file: Path) -> None:
    sweep = yaml.safe_load(file.read_text())
    assert sweep["command"][3:] == ["+experiment=paper", f"data={file.stem}", "${args_no_hyphens}"]
    assert sweep["parameters"] == {"negatives": {"values": [1, 2, 4, 8, 16]}}
    assert file.stem in reproduce.DATA


def test_dry_run_prints_stages_costs_and_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFCONTRAST_STORE", "store")
    write_debug(tmp_path / "debug")
    args = ["hh_rlhf/dpo_std", "+debug=tiny", "--dry-run", "--speed", "train=1000", "--speed", "score=1000"]
    assert reproduce.main([*args, "--speed", "generate=10", "--speed", "embed=5"]) == 0
    printed = capsys.readouterr().out
    for part in ("hh_rlhf/dpo_std: 1 job", "evaluate DPO_std", "14 of 14 to do", "reward SFT", "GPU-hours"):
        assert part in printed
    assert "?" not in printed
    assert "one node    python train.py +experiment=paper data=hh_rlhf method=dpo_std +debug=tiny\n" in printed
    assert "hydra/launcher=slurm" in printed
    assert not (tmp_path / "store").exists()
    assert reproduce.main(["hh_rlhf/dpo_std", "+debug=tiny", "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no measured speed for train, generate, score, embed" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imagenet", "--dry-run"], "error: imagenet: "),
        (["+debug=tiny", "--dry-run"], "error: no experiment is named"),
        (["hh_rlhf/sft", "--dry-run", "--speed", "train=fast"], "error: --speed train=fast"),
        (["hh_rlhf/sft", "--dry-run", "--speed", "walk=3"], "error: speed walk=3.0: "),
        (["hh_rlhf/sft", "--dry-run", "--hardware", "none"], "error: --hardware none"),
        (["hh_rlhf/sft", "--dry-run", "sft.lrr=1"], "error: sft.lrr: "),
    ],
)
def test_mistake_is_reported_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        reproduce.main(arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
