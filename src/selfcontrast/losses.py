"""Preference losses of one target against K negatives.

All are pure functions of these tensors:

- s_plus [B], s_minus [B, K]: rewards r(y) = beta (log p_policy(y|x) - log p_reference(y|x)) of target and negatives.
- mask [B, K]: True for existing negatives; None if all exist.
- weights [B, K]: weight of each negative; None for equal weights.

They return one loss per group, [B], so that the caller can divide by the groups of the whole optimiser step. Masked
entries, even inf or NaN, contribute nothing and receive exactly zero gradient.

`dft` takes log-probabilities instead of rewards. `swepo` and `lipo_lambda` also take scores [B, K+1] by a verifier or
a reward model, the target's first.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

MaybeTensor = Tensor | None
Core = Callable[[Tensor], Tensor]
"""Maps margins s - s_j of any shape to their losses."""

# Rewards this close are ties. When training starts, all rewards are 0 up to rounding. Rounding depends on the
# micro-batches, and float32's must not decide which responses the first gradients move. bfloat16's is larger than this.
TIE = 1e-3


# ---- cores


def sigmoid(margin: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-(1-e) log sigmoid(m) - e log sigmoid(-m). DPO (arXiv 2305.18290, eq. 7); e > 0 is conservative DPO."""
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def robust(margin: Tensor, label_smoothing: float) -> Tensor:
    """(-(1-e) log sigmoid(m) + e log sigmoid(-m)) / (1-2e): unbiased under flipped preferences (arXiv 2403.00409)."""
    noisy = -(1 - label_smoothing) * logsigmoid(margin) + label_smoothing * logsigmoid(-margin)
    return noisy / (1 - 2 * label_smoothing)


def ipo(margin: Tensor, beta: float) -> Tensor:
    """(m/beta - 1/(2 beta))^2. IPO (arXiv 2310.12036, eq. 17)."""
    return ((margin - 0.5) / beta).square()


def hinge(margin: Tensor) -> Tensor:
    """max(0, 1 - m). SLiC (arXiv 2305.10425)."""
    return (1 - margin).relu()


def simpo(margin: Tensor, gamma: float) -> Tensor:
    """-log sigmoid(m - gamma), on rewards (beta/|y|) log p(y|x). SimPO (arXiv 2405.14734, eq. 6)."""
    return -logsigmoid(margin - gamma)


# ---- losses


def dpo(
    s_plus: Tensor,
    s_minus: Tensor,
    mask: MaybeTensor = None,
    weights: MaybeTensor = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """(1/K) sum_j -log sigmoid(s - s_j): the paper's objective (arXiv 2404.00604). K = 1 is DPO."""
    return mean_of_pairs(lambda margin: sigmoid(margin, label_smoothing), s_plus, s_minus, mask, weights)


def mean_of_pairs(
    core: Core, s_plus: Tensor, s_minus: Tensor, mask: MaybeTensor = None, weights: MaybeTensor = None
) -> Tensor:
    """(1/K) sum_j core(s - s_j); with weights, the weighted mean over pairs."""
    mask, weights = _with_defaults(s_minus, mask, weights)
    losses = core(s_plus[:, None] - where_exists(s_minus, mask))
    return mean_over_negatives(losses, mask, weights)


def mean_margin(
    s_plus: Tensor,
    s_minus: Tensor,
    mask: MaybeTensor = None,
    weights: MaybeTensor = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log sigmoid(s - mean_j s_j): multi-sample DPO."""
    mask, weights = _with_defaults(s_minus, mask, weights)
    margin = s_plus - mean_over_negatives(where_exists(s_minus, mask), mask, weights)
    return where_exists(sigmoid(margin, label_smoothing), mask.any(-1))


def hardest(s_plus: Tensor, s_minus: Tensor, mask: MaybeTensor = None, label_smoothing: float = 0.0) -> Tensor:
    """max_j -log sigmoid(s - s_j); the mean over negatives whose reward is within 1e-3 of that negative's."""
    mask, _ = _with_defaults(s_minus, mask)
    if not mask.shape[1]:
        return torch.zeros_like(s_plus)
    rewards = where_exists(s_minus, mask)
    losses = sigmoid(s_plus[:, None] - rewards, label_smoothing)
    top = losses.detach().masked_fill(~mask, -torch.inf).argmax(-1, keepdim=True)
    hardest = mask & ~((rewards - rewards.gather(-1, top)).detach().abs() > TIE)  # all, if one is NaN
    return where_exists(losses, hardest).sum(-1) / hardest.sum(-1).clamp(min=1)


def softmax(s_plus: Tensor, s_minus: Tensor, mask: MaybeTensor = None, weights: MaybeTensor = None) -> Tensor:
    """log(1 + sum_j w_j exp(s_j - s)): S-DPO (arXiv 2406.09215), InfoNCA (arXiv 2402.05369)."""
    mask, weights = _with_defaults(s_minus, mask, weights)
    exponents = where_exists(s_minus, mask) - s_plus[:, None] + where_exists(weights, mask).log()
    return torch.cat([torch.zeros_like(s_plus)[:, None], exponents], -1).logsumexp(-1)


def plackett_luce(s_plus: Tensor, s_minus: Tensor, mask: MaybeTensor = None) -> Tensor:
    """-sum_k log(e^s_k / sum_{l>=k} e^s_l) over the ranking: the target, then the negatives by column.

    Columns must be in order, most similar first. The loss is in DPO's appendix (arXiv 2305.18290).
    """
    mask, _ = _with_defaults(s_minus, mask)
    scores = torch.cat([s_plus[:, None], where_exists(s_minus, mask)], -1)
    exists = torch.cat([mask.new_ones(len(mask), 1), mask], -1)
    follows = exists.new_ones(exists.shape[1], exists.shape[1]).triu()
    diagonal = torch.eye(len(follows), dtype=torch.bool, device=mask.device)
    rivals = (follows & exists[:, None, :]) | diagonal
    totals = scores[:, None, :].masked_fill(~rivals, -torch.inf).logsumexp(-1)
    return where_exists(totals - scores, exists).sum(-1)


def nca(s_plus: Tensor, s_minus: Tensor, mask: MaybeTensor = None, weights: MaybeTensor = None) -> Tensor:
    """-log sigmoid(s) - (1/(K+1)) sum over all K+1 of log sigmoid(-s_i). NCA (arXiv 2402.05369)."""
    mask, weights = _with_defaults(s_minus, mask, weights)
    repelled = logsigmoid(-s_plus) + (where_exists(weights, mask) * logsigmoid(-where_exists(s_minus, mask))).sum(-1)
    return -logsigmoid(s_plus) - repelled / (mask.sum(-1) + 1)


def space(s_plus: Tensor, s_minus: Tensor, mask: MaybeTensor = None, noise_ratio: float = 1.0) -> Tensor:
    """-log sigma_mu(s) - mu mean_j log sigma_{1/mu}(-s_j), with sigma_mu(x) = 1 / (1 + mu exp(-x)).

    SPACE (arXiv 2512.07175): noise-contrastive estimation that distinguishes data responses from model responses.
    There are `noise_ratio` = mu model responses per data response. The loss learns each reward by itself, not the gap
    between two. Without negatives the second term is 0.
    """
    mask, weights = _with_defaults(s_minus, mask)
    shift = math.log(noise_ratio)  # sigma_mu(x) = sigmoid(x - log mu)
    noise = mean_over_negatives(logsigmoid(shift - where_exists(s_minus, mask)), mask, weights)
    return -logsigmoid(s_plus - shift) - noise_ratio * noise


def dft(
    log_prob_plus: Tensor,
    log_prob_minus: Tensor,
    mask: MaybeTensor = None,
    tau: float = 1.0,
    sampler_log_prob: MaybeTensor = None,
) -> Tensor:
    """-log p(y) + tau log mean_j exp(log p(y_j) / tau - log p_gen(y_j)): DFT (arXiv 2502.18679).

    Without `sampler_log_prob` [B, K] = log p_gen(y_j) this is DFT2, which takes log-probabilities per token. The mean
    is over one prompt's negatives. The paper's moving average over steps, for prompts with one or two negatives, is not
    implemented: this is the paper's loss with gamma = 1. Without negatives the second term is 0.
    """
    mask, _ = _with_defaults(log_prob_minus, mask)
    exponents = where_exists(log_prob_minus, mask) / tau
    if sampler_log_prob is not None:
        exponents = exponents - where_exists(sampler_log_prob, mask)
    has_negatives = mask.any(-1)
    exponents = exponents.masked_fill(~mask & has_negatives[:, None], -torch.inf)
    log_mean = exponents.logsumexp(-1) - mask.sum(-1).clamp(min=1).log()
    return -log_prob_plus + tau * where_exists(log_mean, has_negatives)


def swepo(
    s_plus: Tensor,
    s_minus: Tensor,
    scores: Tensor,
    mask: MaybeTensor = None,
    alpha: float = 1.0,
    power: int = 1,
) -> Tensor:
    """-log(sum_{y: score above the mean} w_y exp(s_y) / sum_y w_y exp(s_y)), with w_y = exp(alpha d_y^power).

    d_y is the response's score minus the mean over target and negatives. The loss is 0 if all scores are equal. SWEPO,
    later called MPO (arXiv 2412.04628), in the form of arXiv 2412.16378, eq. 5 and appendix G.4.
    """
    rewards, scores, exists = _stack_responses(s_plus, s_minus, scores, mask)
    mean = scores.sum(-1, keepdim=True) / exists.sum(-1, keepdim=True)
    # Rounding must not put a score that equals the mean above it: within 1e-6, relative or absolute, they are equal.
    better = exists & (scores > mean) & ~torch.isclose(scores, mean, rtol=1e-6, atol=1e-6)
    accepted = torch.where(better.any(-1, keepdim=True), better, exists)  # if none is better, the loss is 0
    logits = rewards + alpha * (scores - mean) ** power
    all_logits, accepted_logits = (
        logits.masked_fill(~members, -torch.inf).logsumexp(-1) for members in (exists, accepted)
    )
    return all_logits - accepted_logits


def lipo_lambda(s_plus: Tensor, s_minus: Tensor, scores: Tensor, mask: MaybeTensor = None) -> Tensor:
    """sum over pairs with score_i > score_j of D_ij log(1 + exp(s_j - s_i)): LiPO-lambda (arXiv 2402.01878, eq. 8).

    D_ij = |2^score_i - 2^score_j| |1 / log(1 + rank_i) - 1 / log(1 + rank_j)| is the change in discounted cumulative
    gain if the two responses were exchanged. Ranks are those of the current rewards, rounded to 1e-3, the highest
    first; equal ones keep the order of the columns. No gradient goes through the weights. Negatives are also compared
    with each other.
    """
    rewards, scores, exists = _stack_responses(s_plus, s_minus, scores, mask)
    ranked = (rewards.detach() / TIE).round().masked_fill(~exists, -torch.inf)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    discount = 1 / (order.argsort(dim=-1) + 2).to(rewards.dtype).log()  # ranks start at 1
    gain = torch.exp2(scores)
    weights = _differences(gain).abs() * _differences(discount).abs()
    ordered = exists[:, :, None] & exists[:, None, :] & (_differences(scores) > 0)
    return (where_exists(weights, ordered) * -logsigmoid(_differences(rewards))).sum((-2, -1))


def where_exists(values: Tensor, mask: Tensor) -> Tensor:
    """Set masked values to 0. Call it before any arithmetic, so that no inf or NaN reaches a gradient."""
    return torch.where(mask, values, 0.0)


def mean_over_negatives(values: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean [B] over the existing entries of [B, K]; 0 for a group without entries."""
    weights = where_exists(weights, mask)
    return (where_exists(values, mask) * weights).sum(-1) / weights.sum(-1).where(mask.any(-1), 1.0)


def row(values: Sequence[float], like: Tensor) -> Tensor:
    """Return values as a tensor [n] with the dtype and device of `like`, without making the host wait for a GPU."""
    on_host = torch.tensor(values, dtype=like.dtype)
    return (on_host.pin_memory() if like.is_cuda else on_host).to(like.device, non_blocking=True)


def _stack_responses(
    s_plus: Tensor, s_minus: Tensor, scores: Tensor, mask: MaybeTensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rewards, scores and their mask for target and negatives, each [B, K+1]. Missing entries are 0."""
    mask, _ = _with_defaults(s_minus, mask)
    exists = torch.cat([mask.new_ones(len(mask), 1), mask], -1)
    rewards = torch.cat([s_plus[:, None], where_exists(s_minus, mask)], -1)
    return rewards, where_exists(scores, exists).to(rewards.dtype), exists


def _differences(values: Tensor) -> Tensor:
    """Return all differences of [B, n] as [B, n, n]: entry (i, j) is the i-th minus the j-th."""
    return values[:, :, None] - values[:, None, :]


def _with_defaults(s_minus: Tensor, mask: MaybeTensor, weights: MaybeTensor = None) -> tuple[Tensor, Tensor]:
    """Return mask and weights, each [B, K], with ones in place of None."""
    mask = torch.ones_like(s_minus, dtype=torch.bool) if mask is None else mask
    return mask, s_minus.new_ones(s_minus.shape) if weights is None else weights.expand_as(s_minus)
