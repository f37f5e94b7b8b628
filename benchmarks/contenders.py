"""The ways of training on K negatives that are compared, on one model that they take turns with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from workload import Work, packed_work, pairs_work

from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from selfcontrast.models.shared_prompt import use_shared_prompt
from selfcontrast.objectives import Objective
from selfcontrast.training.fit import compile_layers

BETA = 0.1
OBJECTIVE = Objective("mean_of_pairs", "sigmoid", BETA, 0.0, 0.0, 0.0, False, None)  # the paper's


@dataclass
class Contender:
    """
    Attributes:
        model: shared by all contenders, but for a compiled one.
        attention: what transformers is to call, set before this contender's turn.
        step: forward and backward pass of the i-th group, which leaves gradients on the model.
        work: what that takes, over all groups.
    """

    name: str
    model: Any
    attention: str
    step: Callable[[int], None]
    work: Work

    def take_turn(self) -> None:
        if self.model.config._attn_implementation != self.attention:
            self.model.set_attn_implementation(self.attention)
        self.model.zero_grad()


def ours(model: Any, groups: Sequence[Group], chunk_size: int, attention: str, compiled: bool = False) -> Contender:
    use_shared_prompt(model, attention)
    if compiled:
        compile_layers(model)
    with torch.no_grad():
        references = [response_log_probs(model, pack([g]).to(model.device), chunk_size) for g in groups]

    def step(i: int) -> None:
        p = pack([groups[i]]).to(model.device)  # packing is part of the step
        log_probs = response_log_probs(model, p, chunk_size)
        torch.autograd.backward(OBJECTIVE(log_probs, references[i], p.lengths, p.mask).loss.sum())

    name = "ours, compiled" if compiled else "ours"
    return Contender(name, model, model.config._attn_implementation, step, packed_work(groups))


def pairs(model: Any, groups: Sequence[Group], lean: bool) -> Contender:
    model.set_attn_implementation("sdpa")
    batches = [[x.to(model.device) for x in _pair_rows(group)] for group in groups]

    def log_probs(i: int) -> Tensor:
        """[K, 2]"""
        ids, attended = batches[i]
        prompt = len(groups[i].prompt)
        if lean:
            hidden = model.model(input_ids=ids, attention_mask=attended, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[:, prompt - 1 : -1])
        else:
            logits = model(input_ids=ids, attention_mask=attended, use_cache=False).logits[:, prompt - 1 : -1]
        tokens: Tensor = logits.float().log_softmax(-1).gather(-1, ids[:, prompt:, None])[..., 0]
        return (tokens * attended[:, prompt:]).sum(-1).view(-1, 2)

    with torch.no_grad():
        references = [log_probs(i) for i in range(len(groups))]

    def step(i: int) -> None:
        rewards = BETA * (log_probs(i) - references[i])
        torch.autograd.backward(-torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean())

    work = pairs_work(groups, every_position=not lean)
    return Contender("lean pairs" if lean else "pairs", model, "sdpa", step, work)


def _pair_rows(group: Group) -> tuple[Tensor, Tensor]:
    """ids and attention mask [2K, longest]: target and negative in turns, padded on the right."""
    rows = [[*group.prompt, *response] for n in group.negatives for response in (group.target, n)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    attended = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], attended[i, : len(row)] = torch.tensor(row), 1
    return ids, attended


def trl(model: Any, groups: Sequence[Group], folder: str, checkpointing: bool) -> Contender:
    """The model's weights are in the type they are trained in, so that its bf16 (autocast) has nothing to add."""
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
        train_dataset=Dataset.from_list([row for group in groups for row in _trl_rows(group)]),
        processing_class=_tokenizer(model.config.vocab_size),
    )
    trainer.get_train_dataloader()  # scores the reference
    rows = iter(list(trainer.train_dataset))
    batches = [trainer.data_collator([next(rows) for _ in group.negatives]) for group in groups]

    def step(i: int) -> None:
        batch = {name: x.to(model.device) if isinstance(x, Tensor) else x for name, x in batches[i].items()}
        trainer.compute_loss(model, batch).backward()

    return Contender("TRL", model, "sdpa", step, pairs_work(groups, every_position=model.device.type == "cpu"))


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
