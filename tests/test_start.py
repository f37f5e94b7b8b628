"""Check that commands start fast: checks before compute import none of the slow libraries."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import ROOT

SLOW = ("torch", "transformers", "lightning", "sentence_transformers", "matplotlib", "sklearn", "lm_eval", "datasets")
TARGET = re.compile(r"_target_: *((?:selfcontrast|studies)\.[\w.]+)")
FILES = [file for folder in ("conf", "studies") for file in (ROOT / folder).rglob("*.yaml")]
TARGETS = sorted({name for file in FILES for name in TARGET.findall(file.read_text())})

COMPOSE = """
from hydra import compose, initialize_config_dir
with initialize_config_dir({conf!r}, version_base="1.3"):
    config = compose("config", ["output=out", *{overrides!r}])
from selfcontrast.config import configure
configure(config)
"""


def slow_modules(code: str) -> set[str]:
    """Run `code` in a new process, and return the modules of `SLOW` that it imported."""
    print_imported = f"\nimport sys; print('imported', *(m for m in {SLOW!r} if m in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code + print_imported], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.splitlines()[-1].split()[1:])


def test_slow_imports_are_detected() -> None:
    assert "torch" in slow_modules("import torch")


@pytest.mark.parametrize("overrides", [[], ["method=dpo_std", "tracking=none"], ["method=sft_continued", "filter=mmr"]])
def test_config_check_needs_no_slow_imports(overrides: list[str]) -> None:
    assert slow_modules(COMPOSE.format(conf=str(ROOT / "conf"), overrides=overrides)) == set()


def test_classes_of_the_config_need_no_slow_imports() -> None:
    assert len(TARGETS) > 40
    assert slow_modules("\n".join(f"import {target.rpartition('.')[0]}" for target in TARGETS)) == set()


SCRIPT = """
import runpy, sys
sys.argv = {argv!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    pass
"""


@pytest.mark.parametrize(
    "command",
    [
        "train.py --help",
        "train.py --cfg job",
        "train.py trainer.lr=no hydra.run.dir={out}",
        "train.py negatives=40 hydra.run.dir={out}",
        "evaluate.py --help",
        "evaluate.py model={out}/none hydra.run.dir={out}",
        "studies/paper/reproduce.py --help",
        "studies/gradient_error/__main__.py --help",
        "studies/claims/__main__.py --help",
    ],
)
def test_help_and_wrong_settings_need_no_slow_imports(command: str, tmp_path: Path) -> None:
    argv = command.format(out=tmp_path).split()
    assert slow_modules(SCRIPT.format(argv=argv)) == set()


@pytest.mark.parametrize("module", ["selfcontrast.store.__main__", "selfcontrast.report.__main__"])
def test_command_module_needs_no_slow_imports(module: str) -> None:
    assert slow_modules(f"import {module}") == set()
