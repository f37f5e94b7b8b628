"""Test publishing a policy on the Hub: folder and card of a dry run, and the real client with a local server."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

from hub_server import KNOWN_TOKEN, HubServer, Repository, serving_hub
from report.conftest import build
from selfcontrast.errors import UserError
from selfcontrast.export import main
from selfcontrast.publish import base_license
from selfcontrast.results import RESULT

HUB_MODEL = {"_target_": "selfcontrast.models.loading.Pretrained", "path": "somebody/base-7b", "revision": None}
SCRATCH = {"_target_": "selfcontrast.models.loading.FromScratch", "hidden": 64}
HUB_DATA = {"_target_": "selfcontrast.data.hub.Hub", "train": {"path": "somebody/prompts", "split": "train"}}
WEIGHTS = b"the weights"
Export = Callable[..., tuple[str, str]]


def finished_run(
    folder: Path, model: Mapping[str, Any] = HUB_MODEL, data: Mapping[str, Any] = HUB_DATA, **settings: str
) -> Path:
    """Write a run with a policy, as a job leaves it."""
    policy = folder / "store" / "align" / "0f" / "model"
    policy.mkdir(parents=True)
    (policy / "model.safetensors").write_bytes(WEIGHTS)
    (policy / "config.json").write_text("{}")
    (policy / "README.md").write_text("---\nlibrary_name: transformers\n---\nthe store's own card\n")
    config = {"model": dict(model), "data": dict(data), **settings}
    result = replace(build(config=config), policy=str(policy))
    run = folder / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "overrides.yaml").write_text("- negatives=4\n- model.path=somebody/base-7b\n- name=a b\n")
    (run / RESULT).write_text(json.dumps(asdict(result)))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return finished_run(tmp_path)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving_hub() as hub:
        yield hub


@pytest.fixture
def export(run: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    """Return a function that runs the command against the local server. It returns error ("" if none) and output."""
    for name, value in server.client.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)

    def command(*arguments: str, token: str | None = KNOWN_TOKEN) -> tuple[str, str]:
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        else:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        try:
            main([str(run), *arguments])
        except UserError as error:
            return str(error), "".join(capsys.readouterr())
        return "", "".join(capsys.readouterr())

    return command


def test_dry_run_writes_the_folder_and_prints_the_files_of_an_upload(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(run), "push_to_hub=me/policy", "license=mit", "--dry-run", "--output", str(tmp_path / "hub")])
    out = capsys.readouterr().out
    assert "me/policy" in out
    assert "private" in out
    for name in ("README.md", "config.json", "model.safetensors"):
        assert name in out
        assert (tmp_path / "hub" / name).is_file()
    assert (tmp_path / "hub" / "model.safetensors").read_bytes() == WEIGHTS


def test_card_has_the_facts_of_the_result(run: Path, tmp_path: Path) -> None:
    """The numbers are those of `report.conftest.build`: 0.7 for the policy at T=1, 40 answers to 20 prompts."""
    main([str(run), "push_to_hub=me/policy", "license=mit", "--dry-run", "--output", str(tmp_path / "hub")])
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert (card.data.base_model, card.data.datasets) == ("somebody/base-7b", ["somebody/prompts"])
    assert (card.data.license, card.data.metrics) == ("mit", ["score"])
    assert "self-contrast" in card.data.tags
    first, *_ = card.data.eval_results
    assert (first.metric_name, first.metric_value) == ("score at T=1", 0.7)
    expected = {"n": 40, "prompts": 20, "confidence": 0.95}
    assert {name: first.metric_args[name] for name in expected} == expected
    assert (first.metric_args["low"], first.metric_args["high"]) == pytest.approx((0.65, 0.75))
    assert "python train.py negatives=4 model.path=somebody/base-7b 'name=a b'" in card.text
    assert "| Self-Contrast | T=1 | 0.700 | 95%: [0.650, 0.750] | 40 | 20 |" in card.text
    assert "the store's own card" not in card.text


def test_card_names_the_method_by_the_label_in_the_config(tmp_path: Path) -> None:
    run = finished_run(tmp_path, label="SPIN")
    main([str(run), "push_to_hub=me/policy", "license=mit", "--dry-run", "--output", str(tmp_path / "hub")])
    assert "the method SPIN of selfcontrast" in ModelCard.load(tmp_path / "hub" / "README.md").text


def test_card_names_a_changed_class_of_the_papers_method(tmp_path: Path) -> None:
    run = finished_run(tmp_path, filter={"selector": {"_target_": "selfcontrast.filters.selectors.Random"}})
    main([str(run), "push_to_hub=me/policy", "license=mit", "--dry-run", "--output", str(tmp_path / "hub")])
    card = ModelCard.load(tmp_path / "hub" / "README.md").text
    assert "the method Self-Contrast, filter.selector=Random of selfcontrast" in card


def test_dry_run_without_license_asks_for_it_and_card_says_unknown(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(run), "push_to_hub=me/policy", "--dry-run", "--output", str(tmp_path / "hub")])
    assert "license=" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert card.data.license is None
    assert "license | unknown" in card.text


def test_base_license_is_read_from_the_card_of_the_base_model(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    assert base_license({"model": {"path": str(tmp_path / "base")}}) == "apache-2.0"
    assert base_license({"model": SCRATCH}) is None


def test_card_of_a_model_from_scratch_names_no_base(tmp_path: Path) -> None:
    run = finished_run(tmp_path, SCRATCH, {"_target_": "selfcontrast.data.builtin.Builtin", "train": 100})
    main([str(run), "push_to_hub=me/policy", "license=mit", "--dry-run"])
    card = ModelCard.load(run / "hub" / "README.md")
    assert (card.data.base_model, card.data.datasets) == (None, None)
    assert "initialised at random" in card.text


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["push_to_hub=nobody"], "OWNER/NAME"),
        (["push_to_hub=me/x", "private=perhaps"], "private"),
        (["license=mit"], "push_to_hub"),
        (["push_too_hub=me/x"], "push_too_hub"),
        (["--dry-run"], "push_to_hub"),
        (["push_to_hub=me/x", "--format", "trl"], "--format"),
        ([], "--format"),
    ],
)
def test_publish_with_wrong_settings_is_refused(arguments: list[str], pattern: str, run: Path) -> None:
    with pytest.raises(UserError, match=pattern):
        main([str(run), *arguments])
    assert not (run / "hub").exists()


def test_publish_credential_in_the_overrides_is_refused(run: Path) -> None:
    (run / ".hydra" / "overrides.yaml").write_text("- store=s3://key:hunter2@bucket\n")
    with pytest.raises(UserError, match="credential") as caught:
        main([str(run), "push_to_hub=me/policy", "license=mit", "--dry-run"])
    assert "hunter2" not in str(caught.value)
    assert not (run / "hub").exists()


# --- the real client


def test_upload_creates_a_private_repository_with_all_files(run: Path, server: HubServer, export: Export) -> None:
    error, out = export("push_to_hub=me/policy", "license=mit")
    assert error == ""
    repository = server.repositories["me/policy"]
    assert repository.private
    assert set(repository.files) == {"README.md", "config.json", "model.safetensors"}
    assert server.blobs[repository.files["model.safetensors"]] == WEIGHTS
    assert ModelCard(repository.files["README.md"]).data.license == "mit"
    assert f"{server.url}/me/policy" in out
    assert KNOWN_TOKEN not in out
    files = [file for file in run.rglob("*") if file.is_file()]
    assert [file for file in files if KNOWN_TOKEN in file.read_text(errors="replace")] == []


def test_upload_with_private_false_creates_a_public_repository(server: HubServer, export: Export) -> None:
    error, _ = export("push_to_hub=me/policy", "license=mit", "private=false")
    assert (error, server.repositories["me/policy"].private) == ("", False)


def test_upload_without_a_license_is_refused_before_any_request(server: HubServer, export: Export) -> None:
    error, _ = export("push_to_hub=me/policy")
    assert "license=" in error
    assert server.requests == []


@pytest.mark.parametrize("token", ["hf_stranger", None])
def test_upload_with_unknown_or_missing_token_names_the_variable(
    token: str | None, server: HubServer, export: Export
) -> None:
    error, out = export("push_to_hub=me/policy", "license=mit", token=token)
    assert "HF_TOKEN" in error
    assert "hf_stranger" not in error + out
    assert not server.repositories


def test_upload_to_an_existing_repository_needs_update(run: Path, server: HubServer, export: Export) -> None:
    server.repositories["me/policy"] = Repository(private=True)
    error, _ = export("push_to_hub=me/policy", "license=mit", "--output", str(run / "first"))
    assert "update=true" in error
    assert not server.repositories["me/policy"].commits
    error, _ = export("push_to_hub=me/policy", "license=mit", "update=true", "--output", str(run / "second"))
    assert error == ""
    assert len(server.repositories["me/policy"].commits) == 1


def test_upload_after_a_failed_upload_succeeds(server: HubServer, export: Export) -> None:
    error, _ = export("push_to_hub=me/policy", "license=mit", token="hf_stranger")
    assert error
    error, _ = export("push_to_hub=me/policy", "license=mit")
    assert error == ""


def test_upload_to_an_unreachable_hub_fails_in_one_line(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # no server listens on this port
    error, _ = export("push_to_hub=me/policy", "license=mit")
    assert "cannot be reached" in error
    assert "\n" not in error


def test_upload_disk_error_is_not_reported_as_an_unreachable_hub(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HfHubHTTPError inherits from OSError, and so does an error of the disk."""

    def upload_folder(*args: Any, **options: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    with pytest.raises(OSError, match="Input/output error"):
        export("push_to_hub=me/policy", "license=mit")
