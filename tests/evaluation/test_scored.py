"""Test the training step of each evaluated model, from the SFT model to the last iteration's policy."""

from pathlib import Path

from selfcontrast.stages.evaluate import SystemScores
from selfcontrast.store import Artifact


def artifact(stage: str, **summary: object) -> Artifact:
    return Artifact(stage, "0f", Path(stage), {"summary": summary}, cached=True)


def test_measured_step_continues_over_iterations() -> None:
    """After a first iteration of 8 steps, the second iteration's checkpoint at step 5 is step 13."""
    sft = artifact("sft", steps=99)
    iterations = [artifact("align", steps=8, checkpoints=[4]), artifact("align", steps=10, checkpoints=[5])]
    scored = [(sft, [], None)]
    for number, policy in enumerate(iterations):
        earlier = [sft, *iterations[:number]]
        scored += [(policy, earlier, 1), (policy, earlier, None)]
    models = [
        SystemScores("", policy, checkpoint, artifact("evaluate"), None, earlier).measured()
        for policy, earlier, checkpoint in scored
    ]
    assert [model.step for model in models] == [0, 4, 8, 13, 18]
    assert [model.checkpoint for model in models] == [False, True, False, True, False]
