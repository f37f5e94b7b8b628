from pathlib import Path

import pytest
from wandb_runs import KEY, tracking


def test_a_key_in_the_netrc_file_counts(tmp_path: Path) -> None:
    assert tracking().resolved_mode() == "offline"
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    assert tracking().resolved_mode() == "online"


def test_a_key_of_a_server_of_ones_own_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `wandb login --host` leaves it: the host in W&B's settings, the key under it."""
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    (tmp_path / "netrc").write_text(f"machine wandb.example\n  login user\n  password {KEY}\n")
    (tmp_path / "netrc").chmod(0o600)
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example\n")
    assert tracking().resolved_mode() == "online"
