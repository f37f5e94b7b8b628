"""Compare chunked log-probabilities with a plain log-softmax, and test the self-check at the start of a run."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from selfcontrast.errors import UserError
from selfcontrast.models.log_probs import LogitChange, _ChunkedLogProbs, response_log_probs, self_check, token_log_probs
from selfcontrast.models.packing import Group, pack

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
GROUPS = [Group("a", [1, 2, 3], [4, 5], [[6], [7, 8, 9]]), Group("b", [1], [2], [[3, 4]])]


def llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, **changes))


def draw(tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, width, dtype=dtype), torch.randn(vocabulary, width, dtype=dtype)
    bias, labels = torch.randn(vocabulary, dtype=dtype), torch.randint(vocabulary, (tokens,))
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), labels


@pytest.mark.parametrize("chunk_size", [1, 3, 10, 100])
@pytest.mark.parametrize("with_bias", [False, True])
def test_chunked_log_probs_equal_log_softmax(chunk_size: int, with_bias: bool) -> None:
    hidden, weight, random_bias, labels = draw(10, 5, 13, torch.float64)
    inputs = (hidden, weight, random_bias) if with_bias else (hidden, weight)
    bias = random_bias if with_bias else None
    actual = _ChunkedLogProbs.apply(hidden, weight, bias, labels, chunk_size, torch.float64)
    logits = nn.functional.linear(hidden, weight, bias)
    expected = torch.stack([logits[i].log_softmax(-1)[label] for i, label in enumerate(labels.tolist())])
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn(10, dtype=torch.float64)
    # The first backward pass uses the saved logits of the last chunk. The second recomputes them.
    for _ in range(2):
        for grad, exact in zip(
            torch.autograd.grad(actual, inputs, upstream, retain_graph=True),
            torch.autograd.grad(expected, inputs, upstream, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(grad, exact)


def test_chunked_gradients_pass_gradcheck() -> None:
    hidden, weight, bias, labels = draw(5, 3, 7, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *inputs: _ChunkedLogProbs.apply(*inputs, labels, 2, torch.float64), (hidden, weight, bias)
    )


def test_frozen_output_layer_gets_no_gradient() -> None:
    hidden, weight, bias, labels = draw(4, 3, 7, torch.float32)
    weight.requires_grad_(False)
    _ChunkedLogProbs.apply(hidden, weight, bias, labels, 3, torch.float32).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]])
    actual = _ChunkedLogProbs.apply(hidden, weight, None, torch.tensor([0, 0]), 1, torch.float32)
    actual.sum().backward()
    assert actual.tolist() == [0.0, -2e4]
    assert hidden.grad is not None
    assert hidden.grad.flatten().tolist() == [0.0, 2.0]


def test_bfloat16_inputs_return_float32() -> None:
    hidden, weight, _, labels = draw(64, 32, 50, torch.bfloat16)
    actual = _ChunkedLogProbs.apply(hidden, weight, None, labels, 16, torch.bfloat16)
    assert actual.dtype == torch.float32
    exact = (hidden.double() @ weight.double().T).log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    # bfloat16 rounds a logit of up to 32 by at most 2^-8 of its size. The label's logit and the log-sum-exp have this
    # error.
    assert float((actual.double() - exact).detach().abs().max()) < 2 * 32 * 2**-8
    actual.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16


def test_largest_tensor_is_the_logits_of_a_chunk() -> None:
    tokens, vocabulary, chunk = 64, 1000, 8
    hidden, weight, _, labels = draw(tokens, 4, vocabulary, torch.float32)
    peak = 0

    class TensorSizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal peak
            output = func(*args, **(kwargs or {}))
            for x in output if isinstance(output, tuple) else (output,):
                if isinstance(x, Tensor):
                    peak = max(peak, x.numel())
            return output

    with TensorSizes():
        _ChunkedLogProbs.apply(hidden, weight, None, labels, chunk, torch.float32).sum().backward()
    assert peak == chunk * vocabulary


class MemoryPeak(torch.utils._python_dispatch.TorchDispatchMode):
    """Record the peak number of elements of all tensors created in this context. Views share their storage."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for x in output if isinstance(output, tuple) else (output,):
            if isinstance(x, Tensor) and (storage := x.untyped_storage())._cdata not in self.storages:
                self.storages.add(storage._cdata)
                self.now += storage.nbytes() // 4
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes() // 4)
        self.peak = max(self.peak, self.now)
        return output

    def _free(self, name: int, size: int) -> None:
        self.storages.discard(name)
        self.now -= size


def test_memory_does_not_grow_with_length_times_vocabulary() -> None:
    vocabulary, width, chunk = 1000, 4, 8
    peaks = []
    for tokens in (64, 512):
        hidden, weight, _, labels = draw(tokens, width, vocabulary, torch.float32)
        with MemoryPeak() as memory:
            _ChunkedLogProbs.apply(hidden, weight, None, labels, chunk, torch.float32).sum().backward()
        peaks.append(memory.peak)
    more_tokens = 512 - 64
    assert peaks[0] >= chunk * vocabulary
    assert peaks[0] <= 4 * chunk * vocabulary + 64 * 10 * width
    assert peaks[1] - peaks[0] <= more_tokens * 10 * width  # more_tokens * vocabulary would be 25 times larger


def test_bfloat16_gradients_are_accumulated_in_float32() -> None:
    """In bfloat16 a sum of equal terms stops growing at 256 terms."""
    tokens = 1024
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    hidden = torch.ones(tokens, 1, dtype=torch.bfloat16)
    labels = torch.zeros(tokens, dtype=torch.long)
    _ChunkedLogProbs.apply(hidden, weight, None, labels, 1, torch.bfloat16).sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [tokens / 2, -tokens / 2]  # onehot - softmax = (1/2, -1/2) each


def test_response_log_probs_equal_sums_of_a_plain_forward_pass() -> None:
    model = llama()
    packed = pack(GROUPS)
    tokens = token_log_probs(model, packed, 4)
    assert tokens.shape == (9,)
    sums = response_log_probs(model, packed, 4)
    logits = model(input_ids=torch.tensor([[1, 2, 3, 7, 8, 9]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(sums[0, 2], logits[2, 7] + logits[3, 8] + logits[4, 9])
    assert sums[1, 2] == 0
    torch.testing.assert_close(sums.sum(), tokens.sum())


def test_gradients_with_tied_embeddings_or_output_bias_are_exact() -> None:
    for model in (llama(tie_word_embeddings=True), PhiForCausalLM(PhiConfig(**SHAPE))):
        if model.lm_head.bias is not None:
            nn.init.normal_(model.lm_head.bias)
        assert self_check(model, GROUPS, 1e-4) <= 1e-4
        response_log_probs(model, pack(GROUPS), 4)[:, 0].sum().backward()
        actual = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        for group in GROUPS:
            row = torch.tensor([group.prompt + group.target])
            logits = model(input_ids=row).logits[0, len(group.prompt) - 1 : -1].log_softmax(-1)
            logits.gather(-1, row[0, len(group.prompt) :, None]).sum().backward()
        for grad, parameter in zip(actual, model.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad)


def test_self_check_passes_and_restores_training_mode() -> None:
    model = llama().train()
    assert self_check(model, GROUPS, 1e-4) <= 1e-4
    assert model.training


def test_self_check_different_values_raise() -> None:
    class ShiftedLogits(LlamaForCausalLM):
        """A model whose plain forward pass adds 1 to one logit. Packed rows skip this pass, so they are unaffected."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits[..., 4] += 1.0
            return output

    torch.manual_seed(0)
    with pytest.raises(UserError, match=r"self-check.* group a "):
        self_check(ShiftedLogits(LlamaConfig(**SHAPE)), GROUPS, 1e-4)


def test_self_check_nan_raises() -> None:
    model = llama()
    nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(UserError, match="nan"):
        self_check(model, GROUPS, 1e-4)


@pytest.mark.parametrize("change", [LogitChange(0.25), LogitChange(cap=2.0), LogitChange(0.5, 3.0)], ids=str)
@pytest.mark.parametrize("chunk_size", [3, 100])
def test_logit_change_equals_plain_operations(change: LogitChange, chunk_size: int) -> None:
    hidden, weight, bias, labels = draw(10, 5, 13, torch.float64)
    actual = _ChunkedLogProbs.apply(hidden, weight, bias, labels, chunk_size, torch.float64, change)
    logits = change.scale * nn.functional.linear(hidden, weight, bias)
    logits = logits if change.cap is None else change.cap * torch.tanh(logits / change.cap)
    expected = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn(10, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad(actual, (hidden, weight, bias), upstream),
        torch.autograd.grad(expected, (hidden, weight, bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_output_layer_that_is_not_linear_raises() -> None:
    model = llama()
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(UserError, match="Sequential"):
        token_log_probs(model, pack(GROUPS), 4)
