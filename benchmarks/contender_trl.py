"""TRL's DPOTrainer as a contender; apart, because a GPU may have to do without TRL."""

from collections.abc import Sequence
from typing import Any

from contenders import BETA, Batch, Contender, flat
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from workload import pairs_work

from selfcontrast.models.packing import Group


def trl(model: Any, batches: Sequence[Batch], folder: str, checkpointing: bool) -> Contender:
    """A batch is the pairs of all its groups.

    The model's weights are in the type they are trained in, so that its bf16 (autocast) has nothing to add.
    """
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
    inputs = [trainer.data_collator([next(rows) for g in batch for _ in g.negatives]) for batch in batches]

    def step(i: int) -> None:
        batch = {name: x.to(model.device) if isinstance(x, Tensor) else x for name, x in inputs[i].items()}
        trainer.compute_loss(model, batch).backward()

    return Contender("TRL", model, "sdpa", step, pairs_work(flat(batches), every_position=model.device.type == "cpu"))


def _trl_rows(group: Group) -> list[dict[str, str]]:
    """Text whose words are the token ids; TRL appends the end of text itself, so a response ends before it."""
    prompt, target = (" ".join(map(str, ids)) for ids in (group.prompt, group.target[:-1]))
    return [
        {"prompt": prompt, "chosen": f" {target}", "rejected": " " + " ".join(map(str, negative[:-1]))}
        for negative in group.negatives
    ]


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """The words are the numbers of the tokens; 0 is the end of text."""
    words = {"<eos>": 0, **{str(i): i for i in range(1, vocabulary)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
