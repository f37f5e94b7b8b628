"""Compare each objective with a plain loop in float64, and check properties that hold for any margins."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfcontrast import losses, objectives
from selfcontrast.errors import UserError
from selfcontrast.objectives import Objective, Signals
from tiny import objective_of, self_contrast

CONF = Path(__file__).parents[1] / "conf" / "objective"
BETA, SMOOTHING, GAMMA = 0.5, 0.1, 0.7
PAIRS = ["SelfContrast", "Robust", "IPO", "Hinge", "SimPO"]  # the loss is a mean over pairs
SETS = ["Softmax", "PlackettLuce", "NCA"]
REWARDED = [*PAIRS, "MeanMargin", "Hardest", *SETS]
SUCCESSORS = ["SPACE", "DFT", "DFT2", "SWEPO", "LiPOLambda"]  # test_successors.py compares these with loops
CHOICES = [*REWARDED, *SUCCESSORS]
SUMS = [*SETS, "SWEPO", "LiPOLambda"]  # a second copy of a negative changes these losses
UNORDERED = [name for name in CHOICES if name != "PlackettLuce"]


def objective(name: str = "SelfContrast", **changes: Any) -> Any:
    cls = getattr(objectives, name)
    values: dict[str, Any] = {
        "beta": BETA,
        "label_smoothing": SMOOTHING,
        "margin": GAMMA,
        "nll_weight": 0.0,
        "length_normalised": name == "SimPO",
        "rank_weights": None,
        "noise_ratio": 1.5,
        "tau": 0.6,
        "alpha": 0.8,
        "power": 2,
    }
    return cls(**{key: value for key, value in values.items() if key in {f.name for f in fields(cls)}} | changes)


# ---- the independent implementation: scalars and loops


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def slow_core(name: str, margin: float) -> float:
    match name:
        case "Robust":
            flipped = (1 - SMOOTHING) * log_sigmoid(margin) - SMOOTHING * log_sigmoid(-margin)
            return -flipped / (1 - 2 * SMOOTHING)
        case "IPO":
            return (margin / BETA - 1 / (2 * BETA)) ** 2
        case "Hinge":
            return max(0.0, 1 - margin)
        case "SimPO":
            return -log_sigmoid(margin - GAMMA)
        case _:
            return -(1 - SMOOTHING) * log_sigmoid(margin) - SMOOTHING * log_sigmoid(-margin)


def slow_loss(name: str, s: float, rejected: list[float]) -> float:
    k = len(rejected)
    match name:
        case "MeanMargin":
            return slow_core(name, s - sum(rejected) / k) if k else 0.0
        case "Hardest":
            return max((slow_core(name, s - r) for r in rejected), default=0.0)
        case "Softmax":
            return math.log(1 + sum(math.exp(r - s) for r in rejected))
        case "PlackettLuce":
            ranking = [s, *rejected]
            terms = [math.log(sum(math.exp(x) for x in ranking[i:])) - ranking[i] for i in range(k + 1)]
            return sum(terms)
        case "NCA":
            return -log_sigmoid(s) - sum(log_sigmoid(-x) for x in [s, *rejected]) / (k + 1)
        case _:
            return sum(slow_core(name, s - r) for r in rejected) / k if k else 0.0


def slow_group_loss(name: str, policy: list[float], reference: list[float], lengths: list[int], count: int) -> float:
    """Return the loss of one group with `count` negatives; the other columns are padding."""
    rewards = []
    for p, r, n in zip(policy, reference, lengths, strict=True):
        rewards.append(BETA * p / n if name == "SimPO" else BETA * (p - r))
    return slow_loss(name, rewards[0], rewards[1 : count + 1])


Batch = tuple[Tensor, Tensor, Tensor, Tensor, Signals]


def batch(seed: int, counts: tuple[int, ...] = (4, 2, 0, 1), k: int = 4) -> Batch:
    torch.manual_seed(seed)
    policy = -10 * torch.rand(len(counts), k + 1, dtype=torch.float64)
    reference = policy + torch.randn_like(policy)
    mask = torch.arange(k) < torch.tensor(counts)[:, None]
    lengths = torch.randint(1, 9, policy.shape)
    lengths[:, 1:][~mask] = 0
    signals = Signals(torch.rand_like(policy), policy[:, 1:] + torch.randn_like(policy[:, 1:]))
    return policy, reference, lengths, mask, signals


def select_columns(inputs: Batch, columns: list[int]) -> Batch:
    """Select the responses in these columns. `columns` must begin with 0, the target."""
    policy, reference, lengths, mask, signals = inputs
    negatives = [column - 1 for column in columns[1:]]
    selected = Signals(signals.scores[:, columns], signals.sampler_logps[:, negatives])
    return policy[:, columns], reference[:, columns], lengths[:, columns], mask[:, negatives], selected


@pytest.mark.parametrize("name", REWARDED)
def test_objective_loss_equals_plain_loop(name: str) -> None:
    policy, reference, lengths, mask, _ = batch(0)
    losses = objective(name)(policy, reference, lengths, mask).loss
    expected = [
        slow_group_loss(name, p, r, [max(1, n) for n in length], sum(m))
        for p, r, length, m in zip(policy.tolist(), reference.tolist(), lengths.tolist(), mask.tolist(), strict=True)
    ]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("garbage", [math.inf, -math.inf, math.nan])
def test_objective_masked_columns_have_no_effect_and_no_gradient(name: str, garbage: float) -> None:
    policy, reference, lengths, mask, signals = batch(1)
    clean = objective(name)(policy, reference, lengths, mask, signals).loss
    for values in (policy[:, 1:], signals.scores[:, 1:], signals.sampler_logps):
        values[~mask] = garbage
    policy.requires_grad_()
    output = objective(name)(policy, reference, lengths, mask, signals)
    assert torch.equal(output.loss, clean)
    output.loss.sum().backward()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()
    assert (policy.grad[:, 1:][~mask] == 0).all()
    assert (output.margin[~mask] == 0).all()
    assert (output.rejected_reward[~mask] == 0).all()


@pytest.mark.parametrize("name", CHOICES)
def test_objective_gradient_equals_finite_differences(name: str) -> None:
    policy, reference, lengths, mask, signals = batch(2)
    policy.requires_grad_()
    loss_of = objective(name, **({} if name.startswith("DFT") else {"nll_weight": 0.3}))
    assert torch.autograd.gradcheck(lambda p: loss_of(p, reference, lengths, mask, signals).loss, (policy,))


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_objective_extreme_margins_stay_finite_in_float32(name: str, extreme: float) -> None:
    policy = torch.tensor([[extreme, 0.0, 1.0]], requires_grad=True)
    loss_of = objective(name, **({} if name.startswith("DFT") else {"beta": 1.0}))
    signals = Signals(torch.tensor([[1.0, 0.0, 0.5]]), torch.zeros(1, 2))
    loss = loss_of(policy, torch.zeros(1, 3), torch.ones(1, 3), torch.ones(1, 2, dtype=torch.bool), signals).loss
    loss.sum().backward()
    assert policy.grad is not None
    assert loss.isfinite().all()
    assert policy.grad.isfinite().all()


@pytest.mark.parametrize("name", UNORDERED)
@given(order=st.permutations(range(4)), seed=st.integers(0, 1000))
def test_objective_with_permuted_negatives_has_the_same_loss(name: str, order: list[int], seed: int) -> None:
    inputs, loss_of = batch(seed), objective(name)
    assume(name != "LiPOLambda" or not _has_ties(inputs))  # it ranks tied rewards by column
    other = loss_of(*select_columns(inputs, [0, *(1 + i for i in order)])).loss
    torch.testing.assert_close(loss_of(*inputs).loss, other)


def _has_ties(inputs: Batch) -> bool:
    rewards = BETA * (inputs[0] - inputs[1])
    gaps = (rewards[:, :, None] - rewards[:, None, :]).abs() + torch.eye(rewards.shape[1])
    return bool((gaps.nan_to_num(1.0) < 2 * losses.TIE).any())


@pytest.mark.parametrize("name", CHOICES)
def test_objective_rounding_at_step_zero_does_not_decide_the_gradient(name: str) -> None:
    """At step 0 policy and reference are equal up to rounding, which depends on the micro-batches."""
    _, reference, lengths, mask, signals = batch(5)
    loss_of, noise = objective(name), torch.Generator().manual_seed(0)
    gradients = []
    for size in (0.0, 1e-5, 1e-5):
        policy = reference + size * torch.randn(reference.shape, generator=noise, dtype=torch.float64)
        policy.requires_grad_()
        loss = loss_of(policy, reference, lengths, mask, signals).loss
        gradients.append(torch.autograd.grad(loss.sum(), policy)[0])
    exact, *rounded = gradients
    for gradient in rounded:
        assert float((gradient - exact).norm()) < 1e-3 * float(exact.norm())


@pytest.mark.parametrize("name", CHOICES)
def test_objective_with_a_nan_that_exists_is_nan(name: str) -> None:
    """Training looks for a NaN in the losses, to name the example."""
    policy, reference, lengths, mask, signals = batch(6, (4, 2))
    policy[0, 2] = torch.nan
    loss = objective(name)(policy, reference, lengths, mask, signals).loss
    assert loss.isnan().tolist() == [True, False]


def test_hardest_averages_only_over_rewards_that_tie() -> None:
    """Losses of margins 8 to 20 are all below 0.001, but only the first two rewards tie."""
    policy = torch.tensor([[0.0, -8.0, -8.0005, -12.0, -20.0]], dtype=torch.float64)
    mask, zeros = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.float64)
    loss = objective("Hardest", beta=1.0, label_smoothing=0.0)(policy, zeros, torch.ones(1, 5), mask).loss
    assert float(loss) == pytest.approx(-(log_sigmoid(8.0) + log_sigmoid(8.0005)) / 2)


def test_plackett_luce_loss_is_lower_if_negatives_are_in_order() -> None:
    def loss(rejected: list[float]) -> float:
        policy = torch.tensor([[3.0, *rejected]])
        mask = torch.ones(1, 2, dtype=torch.bool)
        return float(objective("PlackettLuce")(policy, torch.zeros(1, 3), torch.ones(1, 3), mask).loss)

    assert loss([2.0, 1.0]) < loss([1.0, 2.0])


@pytest.mark.parametrize("name", ["SelfContrast", "MeanMargin", "Hardest", "Softmax", "PlackettLuce"])
def test_objective_with_one_negative_equals_dpo(name: str) -> None:
    policy, reference, lengths, mask, _ = batch(3, (1, 1, 1), 1)
    changes = {} if name in SETS else {"label_smoothing": 0.0}
    losses = objective(name, **changes)(policy, reference, lengths, mask).loss
    ratio = policy - reference
    expected = [-log_sigmoid(BETA * float(row[0] - row[1])) for row in ratio]
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


@given(st.integers(0, 1000))
def test_objective_with_copies_of_a_negative_has_the_same_loss(seed: int) -> None:
    inputs = batch(seed, (1,), 1)
    for name in CHOICES:
        if name not in SUMS:
            loss_of = objective(name)
            torch.testing.assert_close(loss_of(*inputs).loss, loss_of(*select_columns(inputs, [0, 1, 1, 1])).loss)


@pytest.mark.parametrize("name", ["SelfContrast", "MeanMargin", "Softmax", "NCA"])
def test_objective_with_integer_weight_equals_repeated_negative(name: str) -> None:
    policy, reference, lengths, _, _ = batch(4, (2,), 2)
    mask = torch.ones(1, 2, dtype=torch.bool)
    weighted = objective(name, rank_weights=[2.0, 1.0])(policy, reference, lengths, mask).loss
    columns = [0, 1, 1, 2]
    repeated = objective(name)(
        policy[:, columns], reference[:, columns], lengths[:, columns], torch.ones(1, 3, dtype=torch.bool)
    ).loss
    if name == "NCA":  # the factor 1/(K+1) of NCA counts negatives, not weights
        rewards = BETA * (policy - reference)[0]
        repeated = -torch.nn.functional.logsigmoid(rewards[:1]) + (
            (repeated + torch.nn.functional.logsigmoid(rewards[:1])) * 4 / 3
        )
    torch.testing.assert_close(weighted, repeated)


def test_rank_weights_fewer_than_negatives_is_refused() -> None:
    with pytest.raises(UserError, match=r"rank_weights.*2 weights.*4 negatives"):
        objective(rank_weights=[1.0, 1.0])(*batch(0))


def test_self_contrast_with_nll_and_length_normalisation_equals_value_by_hand() -> None:
    policy, reference = torch.tensor([[-6.0, -8.0]]), torch.tensor([[-4.0, -4.0]])
    lengths, mask = torch.tensor([[2, 4]]), torch.ones(1, 1, dtype=torch.bool)
    loss_of = objective(label_smoothing=0.0, length_normalised=True, nll_weight=0.25, beta=2.0)
    output = loss_of(policy, reference, lengths, mask)
    # rewards per token: 2 * (-2/2) = -2 and 2 * (-4/4) = -2; NLL per token of the target: 6/2 = 3
    assert output.chosen_reward.tolist() == [-2.0]
    assert output.rejected_reward.tolist() == [[-2.0]]
    assert output.margin.tolist() == [[0.0]]
    torch.testing.assert_close(output.loss, torch.tensor([math.log(2) + 0.75]))


def test_simpo_ignores_the_reference() -> None:
    policy, reference, lengths, mask, _ = batch(5)
    loss_of = objective("SimPO")
    assert not loss_of.needs_reference
    assert objective().needs_reference
    loss_without_reference = loss_of(policy, torch.full_like(reference, math.nan), lengths, mask).loss
    assert torch.equal(loss_without_reference, loss_of(policy, reference, lengths, mask).loss)


# ---- TRL's own trainer, on one rejected response per prompt


class TrlComparison:
    """TRL's DPOTrainer with a reference that differs from the policy, and one batch of the trainer."""

    def __init__(self, folder: Path) -> None:
        trl = pytest.importorskip("trl")
        rows = {
            "prompt": ["1 2 3", "4 5", "6"],
            "chosen": [" 7 8 9", " 10", " 11 12"],
            "rejected": [" 13", " 14 15 16", " 17 18 19 20"],
        }
        self.policy, reference = _model(0), _model(1)
        self.trainer = trl.DPOTrainer(
            model=self.policy,
            ref_model=reference,
            args=trl.DPOConfig(
                output_dir=str(folder),
                beta=BETA,
                label_smoothing=SMOOTHING,
                loss_type=["robust"],
                per_device_train_batch_size=3,
                bf16=False,
                use_cpu=True,
                gradient_checkpointing=False,
                report_to=[],
            ),
            train_dataset=Dataset.from_dict(rows),
            processing_class=_tokenizer(),
        )
        self.inputs = next(iter(self.trainer.get_train_dataloader()))
        batch = self.inputs["input_ids"], self.inputs["attention_mask"], self.inputs["completion_mask"]
        self.policy_logps, self.lengths = _row_log_probs(self.policy, *batch)
        self.reference_logps, _ = _row_log_probs(reference, *batch)

    def losses(self, loss_type: str, loss_of: Objective) -> tuple[float, float]:
        """Return the loss of TRL and the loss of the objective."""
        self.trainer.loss_types = [loss_type]
        trl_loss = self.trainer.compute_loss(self.policy, dict(self.inputs))
        mask = torch.ones(3, 1, dtype=torch.bool)
        loss = loss_of(self.policy_logps, self.reference_logps, self.lengths, mask).loss.mean()
        return float(trl_loss.detach()), float(loss)


def _model(seed: int) -> Any:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "initializer_range": 0.3}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2))


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = WordLevel({"<eos>": 0, **{str(i): i for i in range(1, 32)}}, unk_token="<eos>")
    tokenizer = Tokenizer(vocabulary)
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def _row_log_probs(model: Any, ids: Tensor, attention_mask: Tensor, response: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and lengths of responses, each [B, 2]. TRL stacks chosen rows above rejected rows."""
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=attention_mask).logits[:, :-1]
    tokens = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0] * response[:, 1:]
    return tokens.sum(-1).view(2, -1).T, response[:, 1:].sum(-1).view(2, -1).T


@pytest.fixture(scope="module")
def trl_trainer(tmp_path_factory: pytest.TempPathFactory) -> TrlComparison:
    return TrlComparison(tmp_path_factory.mktemp("trl"))


@pytest.mark.parametrize(
    ("loss_type", "loss_of"),
    [
        ("sigmoid", objective(label_smoothing=0.0)),
        ("robust", objective("Robust")),
        ("ipo", objective("IPO", length_normalised=True)),
        ("hinge", objective("Hinge")),
        ("nca_pair", objective("NCA")),
    ],
)
def test_objective_with_one_negative_equals_trl(trl_trainer: TrlComparison, loss_type: str, loss_of: Objective) -> None:
    trl_loss, loss = trl_trainer.losses(loss_type, loss_of)
    assert loss == pytest.approx(trl_loss, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"beta": 0.0}, "beta=0.0"),
        ({"label_smoothing": 0.5}, "label_smoothing=0.5"),
        ({"nll_weight": -1.0}, "nll_weight=-1.0"),
        ({"name": "SimPO", "margin": -1.0}, "margin=-1.0"),
        ({"name": "SimPO", "length_normalised": False}, "length_normalised=false"),
        ({"rank_weights": [1.0, 0.0]}, r"rank_weights\[1\]=0.0"),
    ],
)
def test_objective_setting_out_of_range_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        objective(**changes)


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_config_every_file_builds_and_comments_every_key(file: Path) -> None:
    config, built = OmegaConf.load(file), objective_of(file.stem)
    assert built.uses_negatives == (file.stem != "sft_continued")
    assert set(config) == {"_target_", *(field.name for field in fields(built))}
    assert all(" # " in line for line in file.read_text().splitlines() if line[0] not in "#_")
    assert type(built).__name__ in [*CHOICES, "TargetLikelihood"], "add the objective to the lists above"


def test_config_self_contrast_is_the_papers_objective() -> None:
    assert objective_of("self_contrast") == self_contrast(0.1)
