"""The public API: every block of docs/api.md runs unchanged, and a wheel has all files of a checkout."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import selfcontrast
from jobs import ROOT, TINY, read_result, run_train

TINY_SPLITS = [word for word in TINY if word.startswith("data.")]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["job", "negatives", "groups"])
def test_block_of_the_docs_runs(block: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block)
    ended = run_train(script=str(script), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


def test_every_public_name_is_shown_in_the_docs_and_can_be_imported() -> None:
    shown = (ROOT / "docs" / "api.md").read_text()
    for name in dir(selfcontrast):
        assert getattr(selfcontrast, name) is not None
        assert re.search(rf"\b{name}\b", shown), name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = selfcontrast.no_such_name


def test_compose_output_folder_of_any_name() -> None:
    assert selfcontrast.compose(output="o'brien, [x]").output == "o'brien, [x]"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 0, "selfcontrast COMMAND"),
        (["trai"], 1, "error: trai: no such command; one of train, evaluate"),
        (["plan", "encoder=[null]"], 1, "error: "),
        (["plan", "negativ=4"], 1, "error: negativ: no such setting"),
        (["plan", "negatives=400", *TINY_SPLITS], 1, "error: it would not start here: negatives=400"),
        (["store", "ls", "--store", "nowhere"], 1, "error: --store nowhere: no such folder"),
        (["store"], 2, "usage: selfcontrast store"),
        (["train", "negatives=400"], 1, "error: negatives=400 is more than"),
    ],
    ids=str,
)
def test_command_says_what_is_wrong_in_one_line(words: list[str], code: int, says: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "selfcontrast.cli", *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == code
    assert says in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_wheel_runs_outside_of_the_checkout(tmp_path: Path) -> None:
    """The wheel runs with the dependencies of this environment and without files of the checkout."""

    def python(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, timeout=600
        )

    built = python("-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path / "dist"), str(ROOT))
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    installed = python("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    assert installed.returncode == 0, installed.stderr
    run = ["-m", "selfcontrast.cli"]
    own = {"PYTHONPATH": str(tmp_path / "site"), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    where = python("-c", "import selfcontrast.files as f; print(f.CONF, f.EVALUATION)", **own)
    assert [Path(place).is_relative_to(tmp_path / "site") for place in where.stdout.split()] == [True, True]
    ended = python(*run, "train", *TINY, "negatives=4", f"hydra.run.dir={tmp_path / 'out'}", **own)
    assert ended.returncode == 0, ended.stderr
    assert read_result(tmp_path / "out")["negatives"] == 4
    planned = python(*run, "plan", *TINY, "negatives=4", **own)
    assert "0 of 17 stages to do" in planned.stdout
    shown = python(*run, "store", "ls", **own)
    assert "align" in shown.stdout
    assert python(*run, "report", str(tmp_path / "out"), **own).returncode == 0
    model = next((tmp_path / "store" / "align").glob("*/model"))
    small = [word for word in TINY if not word.startswith("model.")]
    measured = python(*run, "evaluate", f"model={model}", *small, f"hydra.run.dir={tmp_path / 'measured'}", **own)
    assert measured.returncode == 0, measured.stderr
    output = tmp_path / "rows.jsonl"
    exported = python(*run, "export", str(tmp_path / "out"), "--format", "trl", "--output", str(output), **own)
    assert exported.returncode == 0, exported.stderr
    assert output.stat().st_size
