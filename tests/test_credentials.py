"""Check that no credential is recorded: it is refused before Hydra writes it, or masked in the files of Hydra."""

from pathlib import Path

import pytest

from jobs import run_train
from selfcontrast.credentials import secrets_in

SECRET = "hunter2-0123456789"
SETTINGS = [
    f"store=http://{SECRET}@host/path",
    f"store=s3://key:{SECRET}@bucket",
    f"model.chat_template=https://host/x?api_key={SECRET}",
    f"generator.backend.base_urls=['http://me:{SECRET}@host/v1']",
    f"generator.backend.base_urls=['http://host/v1?key={SECRET}']",
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_credential_in_a_setting_is_refused_and_not_written(setting: str, tmp_path: Path) -> None:
    choice = ["generator=openai"] if setting.startswith("generator") else []
    ended = run_train(*choice, setting, cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    assert files_with_secret(tmp_path) == []


def files_with_secret(folder: Path) -> list[str]:
    """Return the files that contain the secret."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file.name for file in files if SECRET in file.read_text(errors="replace")]


@pytest.mark.parametrize(
    "other", [[], ["name=${nowhere}"], ["hardware.devices=0"], ["hardware.threads=0"]], ids=["", "name", "gpus", "cpus"]
)
def test_credential_in_a_config_file_is_masked_despite_other_mistakes(other: list[str], tmp_path: Path) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text(f"# @package _global_\nstore: http://{SECRET}@host/path\n")
    settings = (f"hydra.searchpath=[file://{tmp_path / 'conf'}]", f"hydra.run.dir={tmp_path / 'out'}")
    ended = run_train(*settings, "method=mine", *other, cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    assert list((tmp_path / "out").rglob("config.yaml"))  # Hydra has written the config
    assert files_with_secret(tmp_path) == ["mine.yaml"]


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("http://TOKEN@host", ["TOKEN"]),
        ("https://u:p@host/x", ["u:p"]),
        ("http://host/v1?key=abc&x=1", ["abc"]),
        ("http://host/v1?x=1&access_token=abc", ["abc"]),
        ("http://host/v1?sig=abc#f", ["abc"]),
        ("s3://bucket/path", []),
        ("abfs://container@account.dfs.core.windows.net/x", []),
        ("sftp://me@host/path", []),
        ("sftp://me:word@host/path", ["me:word"]),
        ("http://127.0.0.1:8000/v1", []),
        ("http://host/v1?key=${oc.env:KEY}", []),
        ("mail me@host", []),
        ("monkey=7", []),
    ],
)
def test_secrets_in_finds_credentials(text: str, secrets: list[str]) -> None:
    assert secrets_in(text) == secrets
