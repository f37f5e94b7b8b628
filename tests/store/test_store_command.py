import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from used import UsedStore

from selfcontrast.errors import UserError
from selfcontrast.store.__main__ import main


@pytest.fixture
def run_store(used_store: UsedStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs a store command and returns its output without wrapped lines."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def run(*arguments: str, code: int = 0) -> str:
        assert main([*arguments, "--store", str(used_store.root)]) == code
        return capsys.readouterr().out

    return run


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_ls_prints_entries_and_total(run_store, used_store: UsedStore) -> None:
    table = rows(run_store("ls"))
    assert table[0][:4] == ["stage", "key", "size", "age"]
    by_key = {row[1]: row for row in table[2:8]}
    assert by_key[used_store.k1.key[:8]][0] == "align"
    assert by_key[used_store.k1.key[:8]][-3:] == ["1", "run", "negatives=1"]
    assert by_key[used_store.sft.key[:8]][-5:] == ["1", "run,", "3", "artifacts", "optim.lr=0.001"]
    assert by_key[used_store.k8.key[:8]][-1:] == ["negatives=8"]
    assert f"abandoned: {os.uname().nodename}:{os.getpid()} since" in run_store("ls")
    assert table[-1][:2] == ["6", "artifacts,"]


def test_ls_stage_prints_only_that_stage(run_store, used_store: UsedStore) -> None:
    assert {row[0] for row in rows(run_store("ls", "--stage", "align"))[2:4]} == {"align"}
    assert run_store("ls", "--stage", "align", "--stage", "sft").count("\nsft ") == 2


def test_ls_json_prints_full_keys(run_store, used_store: UsedStore) -> None:
    facts = {row["key"]: row for row in json.loads(run_store("ls", "--json"))}
    assert len(facts) == 6
    generated = facts[used_store.generate.key]
    assert generated["state"] == "published"
    assert generated["settings"] == {"samples": 4}
    assert generated["inputs"] == {"sft": used_store.sft.key}
    assert set(generated["artifacts"]) == {f"align/{used_store.k1.key}", f"align/{used_store.k8.key}"}
    assert generated["runs"] == [str(used_store.root.parent / "one")]
    assert facts[used_store.k8.key]["apart"] == {"negatives": "8"}


def test_show_prints_manifest_and_lineage(run_store, used_store: UsedStore) -> None:
    text = run_store("show", used_store.generate.key[:9])
    for line in (
        f"generate/{used_store.generate.key}",
        "  samples = 4",
        "  length = 7",
        "  sub/file.txt = 7 B",
        f"└── sft: sft/{used_store.sft.key[:8]}",
        f"└── {used_store.root.parent / 'one'}",
    ):
        assert line in text.splitlines()
    assert {line[4:] for line in text.splitlines() if line[4:].startswith("align/")} == {
        f"align/{used_store.k1.key[:8]}",
        f"align/{used_store.k8.key[:8]}",
    }


def test_show_marks_deleted_inputs(run_store, used_store: UsedStore) -> None:
    used_store.sft.path.rename(used_store.root / "elsewhere")
    assert f"└── sft: {used_store.sft.key[:8]} (gone)" in run_store("show", used_store.generate.key)
    assert "made from nothing" in run_store("show", used_store.old.key)


def test_verify_prints_damage_and_exits_1(run_store, used_store: UsedStore) -> None:
    assert run_store("verify").endswith("5 intact, 0 damaged\n")
    (used_store.k1.path / "sub/file.txt").write_text("Content")
    text = run_store("verify", code=1)
    assert f"damaged  align/{used_store.k1.key}: sub/file.txt has changed since it was written" in text.splitlines()
    assert "4 intact, 1 damaged" in text
    assert run_store("verify", used_store.sft.key[:8]).splitlines()[0] == f"intact   sft/{used_store.sft.key}"


def test_prune_deletes_only_with_yes(run_store, used_store: UsedStore) -> None:
    text = run_store("prune")
    assert text.count("would delete") == 3
    assert text.endswith("add --yes to delete.\n")
    assert used_store.old.path.exists()
    text = run_store("prune", "--yes")
    assert text.count("deleted ") == 3
    assert text.splitlines()[-1].endswith(" freed")
    assert not used_store.old.path.exists()
    assert run_store("prune") == "0 B in total. Nothing was deleted; add --yes to delete.\n"


def test_prune_applies_all_filters(run_store, used_store: UsedStore) -> None:
    assert run_store("prune", "--unused-for", "12h").count("would delete") == 0
    assert run_store("prune", "--unused-for", "0d").count("would delete") == 3
    assert run_store("prune", "--stage", "sft", "--used").count("would delete") == 2
    assert "by 1 run, 3 artifacts" in run_store("prune", "--stage", "sft", "--used")
    assert run_store("prune", used_store.k8.key[:8]).count("would delete") == 1


def test_prune_duration_without_unit_is_refused(run_store, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_store("prune", "--unused-for", "30")
    assert "'30' is not a duration" in capsys.readouterr().err


def test_store_command_url_is_refused() -> None:
    with pytest.raises(UserError, match="store_cache"):
        main(["ls", "--store", "s3://bucket/x"])


def test_store_command_reads_store_from_environment(used_store: UsedStore, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "selfcontrast.store", *arguments]
        env = {**os.environ, "SELFCONTRAST_STORE": str(used_store.root)}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    assert json.loads(run("ls", "--json").stdout)
    assert "prune" in run("--help").stdout
    unknown = run("show", "zz")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("error: zz: no artifact's key")
    (used_store.k1.path / "foreign").touch()
    assert run("verify").returncode == 1
