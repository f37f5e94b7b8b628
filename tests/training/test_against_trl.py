"""One rejected response per prompt: our training's losses are TRL's, step after step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.groups import Stored
from selfcontrast.training.module import Record
from selfcontrast.training.modules import SelfContrastDPO
from selfcontrast.training.optim import OptimConfig
from tiny import groups, hardware, llama, optim, self_contrast

BETA, VOCABULARY = 0.5, 50
OBJECTIVE = self_contrast(BETA)
# Few epochs of few pairs at a high rate: the losses must move for their agreement to mean something.
OPTIM = optim(lr=1e-3, epochs=2, batch_size=3, schedule="constant", warmup_ratio=0.0, weight_decay=0.1)
GROUPS = [
    Group(g.id, g.prompt, [*g.target[:-1], 0], [[*negative[:-1], 0] for negative in g.negatives])
    for g in groups(12, negatives=1, vocabulary=VOCABULARY)
    if min(len(g.target), len(g.negatives[0])) > 1  # TRL ends each with the end of text, and wants a word before it
]


class Losses(DPOTrainer):
    """TRL's trainer, whose losses are kept unrounded."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.__dict__.setdefault("losses", []).append(float(loss.detach()))
        return loss


def order(how: OptimConfig) -> list[Group]:
    """Pairs as our steps take them; TRL goes through them once, in this order."""
    steps = StepData(GROUPS, [], how, hardware(), seed=3).steps()
    assert len(GROUPS) % how.batch_size == 0
    return [GROUPS[i] for step in range(len(steps)) for i in steps.indices(step)]


def tokenizer() -> PreTrainedTokenizerFast:
    """The words are the numbers of the tokens; 0 is the end of text."""
    words = WordLevel({"<eos>": 0, **{str(i): i for i in range(1, VOCABULARY)}}, unk_token="<eos>")
    own = Tokenizer(words)
    own.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<eos>", pad_token="<eos>")


def trl(folder: Path, how: OptimConfig) -> list[float]:
    def words(ids: list[int]) -> str:
        return " ".join(map(str, ids))

    rows = [
        {"prompt": words(g.prompt), "chosen": " " + words(g.target[:-1]), "rejected": " " + words(g.negatives[0][:-1])}
        for g in order(how)
    ]
    trainer = Losses(
        model=llama(vocabulary=VOCABULARY),
        args=DPOConfig(
            output_dir=str(folder),
            beta=BETA,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=how.batch_size,
            train_sampling_strategy="sequential",
            num_train_epochs=1,
            learning_rate=how.lr,
            lr_scheduler_type="constant",
            adam_beta1=how.betas[0],
            adam_beta2=how.betas[1],
            weight_decay=how.weight_decay,
            max_grad_norm=how.max_grad_norm,
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            report_to=[],
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    trainer.train()
    return trainer.losses


def ours(folder: Path, how: OptimConfig) -> list[Record]:
    policy, own = llama(vocabulary=VOCABULARY), hardware(max_tokens_per_microbatch=20)
    with torch.no_grad():
        reference = {g.id: response_log_probs(policy, pack([g]), 7)[0] for g in GROUPS}
    data = StepData(GROUPS, [], how, own, seed=3)
    prepare(policy, GROUPS, own)
    module = SelfContrastDPO(policy, how, len(data.steps()), 7, lambda record: None, OBJECTIVE, Stored(reference))
    fit(module, data, folder, "test")
    return module.history


@pytest.mark.filterwarnings("ignore")
def test_the_loss_curve_is_trls(tmp_path: Path) -> None:
    history = ours(tmp_path / "ours", OPTIM)
    theirs = trl(tmp_path / "trl", OPTIM)
    losses = [record["loss"] for record in history]
    assert len(losses) == len(theirs) >= 6
    assert max(record["grad_norm"] for record in history) > OPTIM.max_grad_norm
    assert max(losses) - min(losses) > 0.1
    assert losses == pytest.approx(theirs, abs=1e-5)
