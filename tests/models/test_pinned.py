"""Test that a hub model's commit is in the stage's key, and that this commit is loaded. A local cache acts as hub."""

import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from models.test_reward import classifier_folder
from selfcontrast.data.candidates import read_candidates
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.filters.encode import SentenceEncoder
from selfcontrast.generators.generate import FILE, Generation
from selfcontrast.generators.hf import HF
from selfcontrast.models import hub
from selfcontrast.models.loading import Pretrained
from selfcontrast.models.reward import RewardModel
from selfcontrast.store import settings_of
from tiny import example, policy_folder

NAME = "somebody/a-model"
COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Create a hub cache with two commits of a model. The branch main points to the first commit."""
    root = tmp_path / "hub"
    for seed, commit in enumerate(COMMITS):
        policy_folder(root / "models--somebody--a-model" / "snapshots" / commit, seed)
    set_branch(root, COMMITS[0])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.resolve_commit.cache_clear()
    yield root
    hub.resolve_commit.cache_clear()


def set_branch(root: Path, commit: str) -> None:
    refs = root / "models--somebody--a-model" / "refs"
    refs.mkdir(exist_ok=True)
    (refs / "main").write_text(commit)


def pretrained(revision: str | None = None) -> Pretrained:
    return Pretrained(NAME, revision, None, [], "float32", False, local_files_only=False)


def test_pretrained_without_revision_is_keyed_by_commit(cache: Path) -> None:
    before = pretrained().fingerprint()
    assert before["revision"] == COMMITS[0]
    assert before == pretrained("main").fingerprint() == pretrained(COMMITS[0]).fingerprint()
    set_branch(cache, COMMITS[1])
    hub.resolve_commit.cache_clear()
    assert pretrained().fingerprint()["revision"] == COMMITS[1]


def test_pretrained_loads_the_keyed_commit_after_the_branch_moved(cache: Path) -> None:
    model = pretrained()
    model.check()
    expected, _ = pretrained(COMMITS[0]).start([], 0)
    set_branch(cache, COMMITS[1])
    hub.resolve_commit.cache_clear()
    unpickled: Pretrained = pickle.loads(pickle.dumps(model))  # as Ray does for an actor
    for copy in (model, unpickled):
        assert torch.equal(copy.start([], 0)[0].lm_head.weight, expected.lm_head.weight)


def test_generator_model_is_sampled_at_the_keyed_commit(cache: Path, tmp_path: Path) -> None:
    policy = policy_folder(tmp_path / "policy", seed=9)
    settings = Generation(None, 2, 1.0, 1.0, 5, 64, 0, 0.0, HF("float32", 6), NAME, None, None, None)
    key = settings_of(settings)
    assert (key["model"], key["model_revision"]) == (NAME, COMMITS[0])
    assert key == settings_of(replace(settings, model_revision="main"))
    other = replace(settings, model_revision=COMMITS[1])
    snapshots = cache / "models--somebody--a-model" / "snapshots"
    for commit, from_hub in zip(COMMITS, (settings, other), strict=True):
        from_hub.check([])
        from_folder = replace(from_hub, model=str(snapshots / commit), model_revision=None)
        candidates = []
        for label, generation in (("hub", from_hub), ("folder", from_folder)):
            folder = tmp_path / f"{commit} {label}"
            folder.mkdir()
            generation.generate(folder, policy, [example("e", "the cat", "a cat")], Local(3, 1), "cpu")
            candidates.append(read_candidates(folder / FILE))
        assert candidates[0] == candidates[1]


def test_unknown_generator_model_raises_before_compute(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Generation(None, 2, 1.0, 1.0, 5, 64, 0, 0.0, HF("float32", 6), "no/body", None, None, None)
    with pytest.raises(UserError, match=r"^generator\.model=no/body: its config cannot be loaded"):
        settings.check([])
    (line,) = (record.getMessage() for record in caplog.records if "COMMIT" in record.getMessage())
    assert line.startswith("generator.model=no/body: ")
    assert "generator.model_revision=COMMIT" in line


def test_resolve_commit_queries_the_hub_before_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def model_info(self, name: str, **options: Any) -> Any:
            return type("Info", (), {"sha": "c" * 40})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert hub.resolve_commit(NAME, None, "model") == "c" * 40
    assert hub.resolve_commit(NAME, None, "model", local_only=True) == COMMITS[0]


def test_resolve_commit_unknown_warns_once(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert hub.resolve_commit("somebody/else", None, "encoder") is None
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("encoder.path=somebody/else: ")
    assert "encoder.revision=COMMIT" in line


def test_resolve_commit_of_folder_or_commit_is_unchanged(
    cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert hub.resolve_commit(str(tmp_path), None, "model") is None
    assert hub.resolve_commit(NAME, COMMITS[1], "model") == COMMITS[1]
    assert not caplog.records


def test_encoder_and_reward_model_are_keyed_by_their_commit(cache: Path, tmp_path: Path) -> None:
    snapshot = cache / "models--somebody--a-model" / "snapshots" / COMMITS[0]
    encoder = SentenceEncoder(NAME, None, "", None, "float32", 256, "cut", False, 8, [])
    assert encoder.fingerprint()["revision"] == COMMITS[0]
    shutil.rmtree(snapshot)
    shutil.copytree(classifier_folder(tmp_path / "classifier"), snapshot)
    model = RewardModel(NAME, None, "float32", 128, "last_token", False, 2)
    assert model.fingerprint()["revision"] == COMMITS[0]
    with model.open("cpu") as reward:
        assert reward([([{"role": "user", "content": "a cat"}], "on the mat")]).shape == (1,)


def test_cached_model_with_integer_weights_raises(cache: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = cache / "models--somebody--a-model" / "snapshots" / COMMITS[0] / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int64)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"^model=.*model\.norm\.weight .*I64"):
        pretrained().start([], 0)
