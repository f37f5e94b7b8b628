"""Test how the real command reports mistakes in the settings."""

from pathlib import Path

import pytest
import yaml

from jobs import run_train
from selfcontrast.config import GROUPS

pytestmark = pytest.mark.usefixtures("quiet_environment")


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (("+sft.lrr=1",), "error: sft.lrr: no such setting. Did you mean sft.lr?"),
        (("data=jsonl", "data.path=none.jsonl"), "error: data.path=none.jsonl does not exist"),
        (("sft.lrr=1",), "error: sft.lrr: no such setting. Did you mean sft.lr? `python train.py --cfg job -p sft`"),
        (
            ("generator=vllm", "generator.backend.eager=1"),
            "error: generator.backend.eager: no such setting. Did you mean generator.backend.enforce_eager?",
        ),
        (("negativs=4",), "error: negativs: no such setting. Did you mean negatives?"),
        (("epochs=4",), "error: epochs: no such setting. Did you mean sft.epochs or trainer.epochs?"),
        (("debug=tiny",), "error: debug: write +debug=NAME, with a plus sign."),
        (("benchmark=mt_bench", "lrr=4"), "error: "),
        (("lrr=4", "benchmark=mt_bench"), "error: "),
        (("xyz=4",), "error: xyz: no such setting. `python train.py"),
        (("-m", "hydra/launcher=slurm", "negatives=1,4"), "error: hydra/launcher=slurm: there is no srun here."),
        (("sft.lr=[",), "error: "),
        (("model=gpt5",), "error: In 'config': Could not find 'model/gpt5'"),
    ],
)
def test_command_with_mistake_prints_one_line_and_exits_with_1(
    tmp_path: Path, overrides: tuple[str, ...], start: str
) -> None:
    ended = run_train(*overrides, cwd=tmp_path)
    assert ended.returncode == 1
    *before, last = ended.stderr.splitlines()
    assert last.startswith(start)
    assert all("checking the settings" in line for line in before)
    assert not (tmp_path / "store").exists()


def test_command_with_unknown_flag_exits_with_2(tmp_path: Path) -> None:
    assert run_train("--nonsense", cwd=tmp_path).returncode == 2


def test_command_with_hydra_full_error_prints_traceback(tmp_path: Path) -> None:
    ended = run_train("negatives=0", cwd=tmp_path, env={"HYDRA_FULL_ERROR": "1"})
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "UserError: negatives=0" in ended.stderr


def test_command_help_and_config_are_complete(tmp_path: Path) -> None:
    ended = run_train("--help", cwd=tmp_path)
    assert ended.returncode == 0
    assert max(map(len, ended.stdout.splitlines())) <= 240  # a line names all files of a group
    assert all(f"{group}: " in ended.stdout for group in GROUPS)
    job = run_train("--cfg", "job", cwd=tmp_path)
    config = yaml.safe_load(job.stdout)
    assert set(GROUPS) | {"negatives", "seed", "store", "output"} <= config.keys()
    assert not (tmp_path / "store").exists()
