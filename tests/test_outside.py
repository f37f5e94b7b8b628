"""Check that unusable disks and folders are reported in one line, and that messages have no escape codes."""

import errno
import logging
import logging.config
import os
from pathlib import Path

import pytest
import yaml

from jobs import ROOT, run_train
from selfcontrast.errors import UserError, printable
from selfcontrast.store import prune
from selfcontrast.store.__main__ import main
from selfcontrast.store.full import explain_disk_errors


def test_output_folder_that_is_a_file_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    ended = run_train(f"hydra.run.dir={tmp_path / 'taken'}", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: the output folder ")
    assert ended.stderr.count("\n") == 1


def test_output_folder_below_a_file_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    ended = run_train(f"hydra.run.dir={tmp_path / 'taken' / 'out'}", cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_of_the_output_folder_is_reported_in_one_line(code: int, tmp_path: Path) -> None:
    line = rf"^output={tmp_path}: {os.strerror(code)} \(.*MiB free"
    with pytest.raises(UserError, match=line), explain_disk_errors(tmp_path, "output"):
        raise OSError(code, os.strerror(code), str(tmp_path / "report.html"))


def test_prune_on_read_only_store_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(root: Path) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(root / ".trash"))

    monkeypatch.setattr(prune, "sweep", forbidden)
    with pytest.raises(UserError, match=rf"^store={tmp_path}: .*Read-only file system"):
        main(["prune", "--yes", "--store", str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x07", "[31mred"),
        ("a\nb\tc", "a b c"),
        ("\x9b2J", "2J"),
        ("\u202eabc", "abc"),
        ("数字 ✓", "数字 ✓"),
    ],
)
def test_printable_removes_escape_codes(text: str, expected: str) -> None:
    assert printable(text) == expected


@pytest.mark.parametrize("name", ["job_logging", "hydra_logging"])
def test_log_formatters_remove_escape_codes(name: str) -> None:
    """Warnings contain ids and texts of rows, which may have escape codes. A traceback keeps its lines."""
    settings = yaml.safe_load((ROOT / "conf" / "hydra" / name / "plain.yaml").read_text())
    for formatter in settings["formatters"].values():
        built = logging.config.DictConfigurator({}).configure_formatter(dict(formatter))
        record = logging.LogRecord("x", logging.WARNING, "", 0, "the row %s", ("a\x1b[2J\x07\u202eb\n\tc",), None)
        assert built.format(record).endswith("the row a?[2J??b\n\tc")
