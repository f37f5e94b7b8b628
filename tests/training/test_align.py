"""Test the align stage: its groups (prompt, chosen response, negatives), and the policy that it writes."""

import json
import math
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfcontrast.data.candidates import TARGET, Negative, Positive
from selfcontrast.data.rendering import Renderer
from selfcontrast.engines.local import Local
from selfcontrast.errors import UserError
from selfcontrast.models.adapters import Adapter, NoAdapter
from selfcontrast.models.loading import Pretrained
from selfcontrast.models.packing import Group
from selfcontrast.objectives import TargetLikelihood
from selfcontrast.training.align import align
from selfcontrast.training.groups import (
    StoredScores,
    chosen_scores,
    nearest_first,
    negatives_by_group,
    preference_groups,
    select_scores,
)
from selfcontrast.training.packed_module import Record
from selfcontrast.training.reference import Scoring, read_reference, score_reference
from selfcontrast.training.sft import HISTORY, fine_tune
from selfcontrast.training.training import Training
from tiny import TEMPLATE, example, hardware, llama, lora, optim, policy_folder, self_contrast, tokenizer

RENDERER = Renderer(tokenizer())
EXAMPLES = [example(f"e{i}", "what is the cat?" + " a dog" * i, "a cat" + " sat" * i) for i in range(5)]
NEGATIVES = {
    e.id: [Negative(e.id, rank, rank, "", [10 + rank] * (3 + 9 * rank), 0.5) for rank in range(4)]
    for e in EXAMPLES
    if e.id != "e3"
}
OBJECTIVE = self_contrast(0.1)


def first_groups(count: int, max_length: int) -> tuple[list[Group], int]:
    """Return groups with the first `count` negatives of every prompt."""
    used = {name: nearest_first(ranked, count) for name, ranked in NEGATIVES.items()}
    return preference_groups(RENDERER, EXAMPLES, used, max_length)


def test_preference_groups_k_negatives_takes_first_k_ranks() -> None:
    for count in (1, 2, 4):
        groups, too_long = first_groups(count, max_length=200)
        assert ([g.id for g in groups], too_long) == (["e0", "e1", "e2", "e4"], 0)
        for group, source in zip(groups, [EXAMPLES[i] for i in (0, 1, 2, 4)], strict=True):
            assert (list(group.prompt), list(group.target)) == RENDERER.example(source)
            assert list(map(list, group.negatives)) == [[10 + rank] * (3 + 9 * rank) for rank in range(count)]


def test_preference_groups_max_length_drops_long_targets_and_cuts_negatives() -> None:
    sizes = {e.id: [len(ids) for ids in RENDERER.example(e)] for e in EXAMPLES}
    max_length = sum(sizes["e2"])  # e2 fits exactly, e4 does not
    used = []
    for count in (1, 4):
        groups, too_long = first_groups(count, max_length)
        assert too_long == 1
        assert all(len(g.prompt) + max(map(len, g.responses)) <= max_length for g in groups)
        for group in groups:
            max_response = max_length - len(group.prompt)
            assert list(map(len, group.negatives)) == [min(3 + 9 * rank, max_response) for rank in range(count)]
        used.append([(g.id, g.prompt, g.target) for g in groups])
    assert used[0] == used[1]
    assert [name for name, _, _ in used[0]] == ["e0", "e1", "e2"]


def test_preference_groups_makes_a_group_per_chosen_response() -> None:
    used = {name: nearest_first(ranked, 1) for name, ranked in NEGATIVES.items()}
    chosen = {
        "e0": [Positive("e0", 7, "candidate", [5, 6], nan)],
        "e1": [Positive("e1", TARGET, "the target", [], nan), Positive("e1", 8, "candidate", [8], nan)],
        "e2": [Positive("e2", 9, "too long", [9] * 190, nan)],
        "e4": [Positive("e4", TARGET, "the target", [], nan)],
    }
    groups, too_long = preference_groups(RENDERER, EXAMPLES, used, 190, chosen)
    targets = {name: RENDERER.example(EXAMPLES[i])[1] for name, i in (("e1", 1), ("e4", 4))}
    assert {group.id: list(group.target) for group in groups} == {
        "e0": [5, 6], "e1": targets["e1"], "e1+best": [8], "e4": targets["e4"],
    }  # fmt: skip
    assert too_long == 1
    assert {tuple(map(tuple, group.negatives)) for group in groups} == {((10, 10, 10),)}
    pool = {group.id: torch.tensor([float(i), 0.5]) for i, group in enumerate(groups)}
    scores = {name: values.tolist() for name, values in select_scores(pool, negatives_by_group(groups, used)).items()}
    assert scores == {"e0": [0, 0.5], "e1": [1, 0.5], "e1+best": [2, 0.5], "e4": [3, 0.5]}


def test_chosen_scores_candidate_has_its_own_score() -> None:
    targets = {"a": 0.5, "b": 0.25}
    best = Positive("a", 3, "candidate", [5], 1.0)
    chosen = {"a": [Positive("a", TARGET, "the target", [], nan), best], "b": [replace(best, id="b", score=0.75)]}
    assert chosen_scores(targets, None) == targets
    assert chosen_scores(targets, chosen) == {"a": 0.5, "a+best": 1.0, "b": 0.75}


def test_preference_groups_id_that_ends_in_best_is_refused_only_if_it_occurs_twice() -> None:
    """The second group of "a" is called "a+best". An example may have this id, too, and then has its own scores."""
    twins = [example("a", "?", "one"), example("a+best", "?", "two")]
    used = {e.id: [Negative(e.id, 0, 0, "", [9], 0.5)] for e in twins}
    groups, _ = preference_groups(RENDERER, twins, used, 190)
    assert negatives_by_group(groups, used) == used
    pool = {"a": torch.tensor([0.0, 1.0]), "a+best": torch.tensor([2.0, 3.0])}
    assert {name: scores.tolist() for name, scores in select_scores(pool, used).items()} == {
        "a": [0, 1],
        "a+best": [2, 3],
    }
    both = {e.id: [Positive(e.id, TARGET, "", [], nan), Positive(e.id, 1, "", [7], nan)] for e in twins}
    with pytest.raises(UserError, match=r"'a\+best'.*'\+best'"):
        preference_groups(RENDERER, twins, used, 190, both)


def test_preference_groups_nothing_fits_is_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.max_length=5"):
        first_groups(2, max_length=5)


def run_align(folder: Path, sft: Path, adapter: Adapter, **changes: Any) -> tuple[dict[str, Any], list[Record]]:
    """Run the stage for 8 steps of 2 prompts. Return its summary and reported records."""
    groups, _ = first_groups(2, max_length=100)
    pool, _ = first_groups(4, max_length=100)
    hardware_config, settings = hardware(self_check=True), optim(**{"epochs": 4, "batch_size": 2, **changes})
    folder.mkdir()
    score_reference(folder.parent, Local(3, 1), Scoring(sft, "float32", hardware_config), pool, "cpu")
    records: list[Record] = []
    summary = align(
        folder,
        sft,
        "float32",
        groups,
        StoredScores(read_reference(folder.parent)),
        OBJECTIVE,
        Training(adapter, settings, hardware_config, 0, records.append),
    )
    return summary, records


@pytest.mark.parametrize("adapter", [NoAdapter(), lora()], ids=["all weights", "LoRA"])
def test_align_eight_steps_prefers_targets(tmp_path: Path, adapter: Adapter) -> None:
    sft = policy_folder(tmp_path / "sft")
    summary, records = run_align(tmp_path / "align", sft, adapter)
    counts = {name: summary[name] for name in ("prompts", "negatives_per_prompt", "steps", "tokens")}
    groups, _ = first_groups(2, max_length=100)
    n_tokens = sum(len(ids) for group in groups for ids in (group.prompt, *group.responses))
    assert counts == {"prompts": 4, "negatives_per_prompt": 2.0, "steps": 8, "tokens": 4 * n_tokens}
    history = json.loads((tmp_path / "align" / HISTORY).read_text())
    assert history == records
    assert history[-1]["margin"] > 0.1
    assert {record["negatives"] for record in history} == {2.0}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "align/model")
    assert AutoTokenizer.from_pretrained(tmp_path / "align/model").chat_template == TEMPLATE
    before, after = llama().model.layers[0].mlp, model.model.layers[0].mlp
    assert not torch.equal(after.up_proj.weight, before.up_proj.weight)
    assert "with 2 negatives per prompt over 4 prompts" in (tmp_path / "align/model/README.md").read_text()


def test_align_sft_continued_equals_fine_tuning(tmp_path: Path) -> None:
    """The weights are bit-equal to the sft stage's with the same model, data, seed and settings."""
    sft, hardware_config, settings = policy_folder(tmp_path / "sft"), hardware(self_check=True), optim(batch_size=2)
    groups, _ = first_groups(0, max_length=100)
    records: list[Record] = []
    for folder in (tmp_path / "align", tmp_path / "tuned"):
        folder.mkdir()
    training = Training(NoAdapter(), settings, hardware_config, 0, records.append)
    summary = align(tmp_path / "align", sft, "float32", groups, StoredScores({}), TargetLikelihood(), training)
    model = Pretrained(str(sft), None, None, [], "float32", False, True)
    splits: Any = {"train": [e for e in EXAMPLES if e.id in NEGATIVES], "validation": []}
    other = Training(NoAdapter(), replace(settings, max_length=100), hardware_config, 0, lambda record: None)
    fine_tune(tmp_path / "tuned", model, splits, other)
    aligned, tuned = (load_file(tmp_path / name / "model/model.safetensors") for name in ("align", "tuned"))
    assert aligned.keys() == tuned.keys()
    assert all(torch.equal(value, tuned[name]) for name, value in aligned.items())
    tokens = sum(len(g.prompt) + len(g.target) for g in groups)
    assert summary == {"prompts": 4, "negatives_per_prompt": 0.0, "steps": 4, "tokens": 2 * tokens}
    assert records[-1]["loss"] < records[0]["loss"]


def test_align_first_loss_is_log_two(tmp_path: Path) -> None:
    """Training starts at the reference. With LoRA, the reference is the base model."""
    sft = policy_folder(tmp_path / "sft")
    for adapter in (NoAdapter(), lora(dropout=0.0)):
        _, records = run_align(tmp_path / type(adapter).__name__, sft, adapter)
        assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert records[0]["margin"] == pytest.approx(0, abs=1e-4)


def test_align_lora_changes_only_target_modules(tmp_path: Path) -> None:
    run_align(tmp_path / "align", policy_folder(tmp_path / "sft"), lora(target_modules=["v_proj"]))
    before, after = (load_file(tmp_path / stage / "model.safetensors") for stage in ("sft", "align/model"))
    assert after.keys() == before.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {f"model.layers.{layer}.self_attn.v_proj.weight" for layer in (0, 1)}
    written = {file.name for file in (tmp_path / "align/model").iterdir()}
    assert written == {file.name for file in (tmp_path / "sft").iterdir()}
    assert "lora" not in (tmp_path / "align/model/config.json").read_text().lower()


def test_align_displaced_targets_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the first learning rate the model forgets everything; with the second nothing changes."""
    sft = policy_folder(tmp_path / "sft")
    summary, records = run_align(tmp_path / "align", sft, NoAdapter(), lr=1.0, epochs=8)
    assert summary["displaced"]
    assert summary["target_log_prob_change"] == pytest.approx(
        sum(record["chosen_log_prob_change"] for record in records[-5:]) / 5
    )
    warnings = [record.message for record in caplog.records if "displacement" in record.message]
    assert len(warnings) == 1
    assert f"{-summary['target_log_prob_change']:.2f} nats" in warnings[0]
    caplog.clear()
    assert not run_align(tmp_path / "again", sft, NoAdapter(), lr=1e-9)[0]["displaced"]
    assert not caplog.records


def test_nearest_first_and_select_scores_agree_on_order() -> None:
    ranked = [
        Negative("a", rank, rank, "", [10 + rank], similarity) for rank, similarity in enumerate((0.2, 0.9, 0.5, 0.9))
    ]
    used = nearest_first(ranked, 3)  # the fourth rank is not used
    assert [negative.rank for negative in used] == [1, 2, 0]
    assert [negative.rank for negative in nearest_first(ranked, 4)] == [1, 3, 2, 0], "ties go to the lower rank"
    unknown = [Negative("a", rank, rank, "", [10 + rank], math.nan) for rank in range(4)]  # without target
    assert [negative.rank for negative in nearest_first(unknown, 3)] == [0, 1, 2]
    scores = torch.tensor([-1.0, -10.0, -11.0, -12.0, -13.0])
    assert select_scores({"a": scores, "b": scores}, {"a": used})["a"].tolist() == [-1.0, -11.0, -12.0, -10.0]
