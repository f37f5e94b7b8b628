"""Build a contender from TRL's DPOTrainer. This file is separate because a GPU machine may lack TRL."""

from collections.abc import Sequence
from typing import Any

from contenders import BETA, Batch, Contender, flat, padded_tokens, within
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from workload import pairs_work

from selfcontrast.models.packing import Group


def trl(model: Any, batches: Sequence[Batch], folder: str, checkpointing: bool, budget: int) -> Contender:
    """Build the contender. A micro-batch holds the padded pairs of as many groups as fit into `budget` tokens.

    The model's weights already have the dtype of training, so TRL's own bf16 (autocast) is off.
    """
    disable_progress_bars()
    model.set_attn_implementation("sdpa")
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=folder,
            beta=BETA,
            max_length=None,
            precompute_ref_log_probs=True,
            gradient_checkpointing=checkpointing,
            bf16=False,
            use_cpu=model.device.type == "cpu",
            report_to=[],
        ),
        train_dataset=Dataset.from_list([row for group in flat(batches) for row in _trl_rows(group)]),
        processing_class=_tokenizer(model.config.vocab_size),
    )
    trainer.get_train_dataloader()  # scores the reference
    rows = iter(list(trainer.train_dataset))
    parts = [within(batch, budget, padded_tokens) for batch in batches]
    inputs = [[trainer.data_collator([next(rows) for g in part for _ in g.negatives]) for part in b] for b in parts]

    def step(i: int) -> None:
        for groups, rows in zip(parts[i], inputs[i], strict=True):
            part = {name: x.to(model.device) if isinstance(x, Tensor) else x for name, x in rows.items()}
            (trainer.compute_loss(model, part) * len(groups)).backward()  # TRL's loss is a mean over rows

    return Contender("TRL", model, "sdpa", step, pairs_work(flat(batches), every_position=model.device.type == "cpu"))


def _trl_rows(group: Group) -> list[dict[str, str]]:
    """Return rows of text whose words are token ids, without the end of text, which TRL appends."""
    prompt, target = (" ".join(map(str, ids)) for ids in (group.prompt, group.target[:-1]))
    return [
        {"prompt": prompt, "chosen": f" {target}", "rejected": " " + " ".join(map(str, negative[:-1]))}
        for negative in group.negatives
    ]


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer whose words are token ids; 0 is the end of text."""
    id_by_word = {"<eos>": 0, **{str(i): i for i in range(1, vocabulary)}}
    tokenizer = Tokenizer(WordLevel(id_by_word, unk_token="<eos>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
