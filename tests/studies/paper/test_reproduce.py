"""The command that plans the paper's experiments, and its sweep files."""

from pathlib import Path

import pytest
import yaml

from jobs import ROOT
from selfcontrast.debug import write_debug
from selfcontrast.errors import UserError
from studies.paper import reproduce
from test_experiments import EXPERIMENTS, chosen


def test_names_of_experiments() -> None:
    assert sorted(reproduce.experiments(["all"])) == sorted(EXPERIMENTS)
    assert reproduce.experiments(["nectar"]) == [f"nectar/{arm}" for arm in reproduce.ARMS]
    assert reproduce.experiments(["nectar/spin", "hh_rlhf/sft", "nectar/spin"]) == ["nectar/spin", "hh_rlhf/sft"]
    with pytest.raises(UserError, match="imagenet: no experiment; all, one of hh_rlhf, ultrachat, nectar"):
        reproduce.experiments(["imagenet"])


def test_self_contrast_is_a_job_for_each_k_unless_k_is_given() -> None:
    own = ["+experiment=paper", "data=hh_rlhf", "method=self_contrast"]
    every = reproduce.jobs("hh_rlhf/self_contrast", ["seed=2"])
    assert every == [[*own, "seed=2", f"negatives={k}"] for k in (1, 2, 4, 8, 16)]
    assert reproduce.jobs("hh_rlhf/self_contrast", ["negatives=4"]) == [[*own, "negatives=4"]]


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if not name.endswith("self_contrast")])
def test_every_other_experiment_is_one_job(experiment: str) -> None:
    assert reproduce.jobs(experiment, []) == [chosen(experiment)]


def test_the_commands_that_are_printed() -> None:
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
def test_the_sweep_of_a_data_set_is_its_experiment_for_the_papers_k(file: Path) -> None:
    sweep = yaml.safe_load(file.read_text())
    assert sweep["command"][3:] == ["+experiment=paper", f"data={file.stem}", "${args_no_hyphens}"]
    assert sweep["parameters"] == {"negatives": {"values": [1, 2, 4, 8, 16]}}
    assert file.stem in reproduce.DATA


def test_a_dry_run_shows_stages_costs_and_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELFCONTRAST_STORE", "store")
    write_debug(tmp_path / "debug")
    told = ["hh_rlhf/dpo_std", "+debug=tiny", "--dry-run", "--speed", "train=1000", "--speed", "score=1000"]
    assert reproduce.main([*told, "--speed", "generate=10", "--speed", "embed=5"]) == 0
    shown = capsys.readouterr().out
    for part in ("hh_rlhf/dpo_std: 1 job", "evaluate DPO_std", "14 of 14 to do", "reward SFT", "GPU-hours"):
        assert part in shown
    assert "?" not in shown
    assert "one node    python train.py +experiment=paper data=hh_rlhf method=dpo_std +debug=tiny\n" in shown
    assert "hydra/launcher=slurm" in shown
    assert not (tmp_path / "store").exists()
    assert reproduce.main(["hh_rlhf/dpo_std", "+debug=tiny", "--dry-run"]) == 0
    asked = capsys.readouterr().out
    assert "GPU-hours: no measured speed for train, generate, score, embed on this hardware" in " ".join(asked.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["imagenet", "--dry-run"], "error: imagenet: no experiment"),
        (["+debug=tiny", "--dry-run"], "error: name an experiment, or all"),
        (["hh_rlhf/sft", "--dry-run", "--speed", "train=fast"], "error: --speed train=fast"),
        (["hh_rlhf/sft", "--dry-run", "--speed", "walk=3"], "error: speed walk=3.0: one of train"),
        (["hh_rlhf/sft", "--dry-run", "--hardware", "none"], "error: --hardware none"),
        (["hh_rlhf/sft", "--dry-run", "sft.lrr=1"], "error: sft.lrr: no such setting"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as caught:
        reproduce.main(arguments)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
