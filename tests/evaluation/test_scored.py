"""The step of a model on the way from the fine-tuned one to the last round's policy."""

from pathlib import Path

from selfcontrast.stages.evaluate import SystemScores
from selfcontrast.store import Artifact


def artifact(stage: str, **summary: object) -> Artifact:
    return Artifact(stage, "0f", Path(stage), {"summary": summary}, cached=True)


def test_step_goes_on_over_rounds() -> None:
    """A second round of 10 steps after a first of 8: its first checkpoint of two is step 13."""
    sft = artifact("sft", steps=99)
    rounds = [artifact("align", steps=8, checkpoints=[4]), artifact("align", steps=10, checkpoints=[5])]
    scored = [(sft, [], None)]
    for number, policy in enumerate(rounds):
        earlier = [sft, *rounds[:number]]
        scored += [(policy, earlier, 1), (policy, earlier, None)]
    found = [
        SystemScores("", policy, checkpoint, artifact("evaluate"), None, earlier).measured()
        for policy, earlier, checkpoint in scored
    ]
    assert [each.step for each in found] == [0, 4, 8, 13, 18]
    assert [each.checkpoint for each in found] == [False, True, False, True, False]
