from pathlib import Path

import pytest
from wandb_runs import KEY, tracking


def test_key_in_the_netrc_file_is_found(tmp_path: Path) -> None:
    assert tracking().resolved_mode() == "offline"
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert tracking().resolved_mode() == "online"


def test_key_of_a_private_server_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`wandb login --host` writes the host to W&B's settings file and the key to the netrc file."""
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    (tmp_path / "netrc").write_text(f"machine wandb.example\n  login user\n  password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example\n")
    assert tracking().resolved_mode() == "online"
