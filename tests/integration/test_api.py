"""Run every code block of docs/api.md, every command, and a wheel outside of the checkout."""

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
def test_api_docs_block_runs(block: str, tmp_path: Path) -> None:
    script = tmp_path / "block.py"
    script.write_text(block)
    ended = run_train(script=str(script), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


def test_public_names_are_in_the_docs_and_can_be_imported() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for name in dir(selfcontrast):
        assert getattr(selfcontrast, name) is not None
        assert re.search(rf"\b{name}\b", text), name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = selfcontrast.no_such_name


def test_compose_accepts_an_output_folder_of_any_name() -> None:
    assert selfcontrast.compose(output="o'brien, [x]").output == "o'brien, [x]"


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 0, "selfcontrast COMMAND"),
        (["trai"], 1, "error: trai: no such command"),
        (["plan", "encoder=[null]"], 1, "error: "),
        (["plan", "negativ=4"], 1, "error: negativ: "),
        (["plan", "negatives=400", *TINY_SPLITS], 1, "would not start here: negatives=400"),
        (["store", "ls", "--store", "nowhere"], 1, "error: --store nowhere: "),
        (["store"], 2, "usage: selfcontrast store"),
        (["train", "negatives=400"], 1, "error: negatives=400 "),
    ],
    ids=str,
)
def test_command_prints_a_message_without_a_traceback(args: list[str], code: int, message: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "selfcontrast.cli", *args]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == code
    assert message in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_wheel_runs_every_command_outside_of_the_checkout(tmp_path: Path) -> None:
    """Dependencies come from this environment; nothing comes from the checkout."""

    def python(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *args]
        return subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, timeout=600
        )

    built = python("-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path / "dist"), str(ROOT))
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    installed = python("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    assert installed.returncode == 0, installed.stderr
    run = ["-m", "selfcontrast.cli"]
    variables = {"PYTHONPATH": str(tmp_path / "site"), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    folders = python("-c", "import selfcontrast.files as f; print(f.CONF, f.EVALUATION)", **variables)
    assert [Path(folder).is_relative_to(tmp_path / "site") for folder in folders.stdout.split()] == [True, True]
    ended = python(*run, "train", *TINY, "negatives=4", f"hydra.run.dir={tmp_path / 'out'}", **variables)
    assert ended.returncode == 0, ended.stderr
    assert read_result(tmp_path / "out")["negatives"] == 4
    planned = python(*run, "plan", *TINY, "negatives=4", **variables)
    assert "0 of 17 stages to do" in planned.stdout
    listed = python(*run, "store", "ls", **variables)
    assert "align" in listed.stdout
    assert python(*run, "report", str(tmp_path / "out"), **variables).returncode == 0
    model = next((tmp_path / "store" / "align").glob("*/model"))
    small = [word for word in TINY if not word.startswith("model.")]
    measured = python(*run, "evaluate", f"model={model}", *small, f"hydra.run.dir={tmp_path / 'measured'}", **variables)
    assert measured.returncode == 0, measured.stderr
    output = tmp_path / "rows.jsonl"
    exported = python(*run, "export", str(tmp_path / "out"), "--format", "trl", "--output", str(output), **variables)
    assert exported.returncode == 0, exported.stderr
    assert output.stat().st_size
