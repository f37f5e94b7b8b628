"""Test that with one rejected response per prompt, the training losses equal TRL's at every step."""

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
from selfcontrast.training.dpo import SelfContrastDPO
from selfcontrast.training.fit import StepData, fit, prepare
from selfcontrast.training.groups import StoredScores
from selfcontrast.training.optim import OptimConfig
from selfcontrast.training.packed_module import Record
from tiny import groups, hardware, llama, optim, self_contrast

BETA, VOCABULARY = 0.5, 50
OBJECTIVE = self_contrast(BETA)
# The learning rate is high, because equal losses show little unless they change during training.
OPTIM = optim(lr=1e-3, epochs=2, batch_size=3, schedule="constant", warmup_ratio=0.0, weight_decay=0.1)
GROUPS = [
    Group(g.id, g.prompt, [*g.target[:-1], 0], [[*negative[:-1], 0] for negative in g.negatives])
    for g in groups(12, negatives=1, vocabulary=VOCABULARY)
    if min(len(g.target), len(g.negatives[0])) > 1  # TRL appends the end of text and needs a word before it
]


class RecordingTrainer(DPOTrainer):
    """TRL's trainer, which also records unrounded losses."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.__dict__.setdefault("losses", []).append(float(loss.detach()))
        return loss


def ordered_pairs(settings: OptimConfig) -> list[Group]:
    """Return the pairs in the order in which `Steps` trains on them. TRL trains on each once, in the same order."""
    steps = StepData(GROUPS, [], settings, hardware(), seed=3).steps()
    assert len(GROUPS) % settings.batch_size == 0
    return [GROUPS[i] for step in range(len(steps)) for i in steps.indices(step)]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose words are token ids; 0 is the end of text."""
    vocabulary = WordLevel({"<eos>": 0, **{str(i): i for i in range(1, VOCABULARY)}}, unk_token="<eos>")
    tokenizer = Tokenizer(vocabulary)
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def train_with_trl(folder: Path, settings: OptimConfig) -> list[float]:
    def text_of(ids: list[int]) -> str:
        return " ".join(map(str, ids))

    rows = [
        {
            "prompt": text_of(g.prompt),
            "chosen": " " + text_of(g.target[:-1]),
            "rejected": " " + text_of(g.negatives[0][:-1]),
        }
        for g in ordered_pairs(settings)
    ]
    trainer = RecordingTrainer(
        model=llama(vocabulary=VOCABULARY),
        args=DPOConfig(
            output_dir=str(folder),
            beta=BETA,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=settings.batch_size,
            train_sampling_strategy="sequential",
            num_train_epochs=1,
            learning_rate=settings.lr,
            lr_scheduler_type="constant",
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
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


def train_with_selfcontrast(folder: Path, settings: OptimConfig) -> list[Record]:
    policy, hardware_config = llama(vocabulary=VOCABULARY), hardware(max_tokens_per_microbatch=20)
    with torch.no_grad():
        reference = {g.id: response_log_probs(policy, pack([g]), 7)[0] for g in GROUPS}
    data = StepData(GROUPS, [], settings, hardware_config, seed=3)
    prepare(policy, GROUPS, hardware_config)
    module = SelfContrastDPO(
        policy, settings, len(data.steps()), 7, lambda record: None, OBJECTIVE, StoredScores(reference)
    )
    fit(module, data, folder, "test")
    return module.history


@pytest.mark.filterwarnings("ignore")
def test_training_one_negative_loss_curve_equals_trl(tmp_path: Path) -> None:
    history = train_with_selfcontrast(tmp_path / "selfcontrast", OPTIM)
    trl_losses = train_with_trl(tmp_path / "trl", OPTIM)
    losses = [record["loss"] for record in history]
    assert len(losses) == len(trl_losses) >= 6
    assert max(record["grad_norm"] for record in history) > OPTIM.max_grad_norm
    assert max(losses) - min(losses) > 0.1
    assert losses == pytest.approx(trl_losses, abs=1e-5)
