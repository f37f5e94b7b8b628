"""Compare two merged calls of variable-length attention with the boolean mask and with padded rows.

On a CPU the calls run plain tensor operations (`varlen_reference`). One test compares these with autograd.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from padded import CONFIGS, gradients, padded, ragged, relative, tiny
from selfcontrast.models.attention import masked, varlen, varlen_reference
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from selfcontrast.models.shared_prompt import use_shared_prompt

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
GROUPS = st.lists(st.builds(Group, st.just("g"), TOKENS, TOKENS, st.lists(TOKENS, max_size=4)), min_size=1, max_size=4)
HEADS = st.sampled_from([(2, 2), (4, 2), (3, 1)])  # heads of queries, and heads of keys and values


def assert_equals_masked(groups: list[Group], query_heads: int, key_heads: int, scale: float | None = 0.3) -> None:
    """Compare output and all three gradients with masked attention, in float64."""
    layout = pack(groups).layout
    tokens, draw = len(layout.segment), torch.Generator().manual_seed(0)
    sizes = [(1, heads, tokens, 8) for heads in (query_heads, key_heads, key_heads)]
    inputs = [torch.randn(size, generator=draw, dtype=torch.float64, requires_grad=True) for size in sizes]
    query, key, value = inputs
    repeated = [x.repeat_interleave(query_heads // key_heads, dim=1) for x in (key, value)]
    actual = varlen.attend(query, key, value, layout, scale)
    expected = masked.attend(query, *repeated, layout, scale)
    grad = torch.randn(actual.shape, generator=draw, dtype=torch.float64)
    results = [actual, *torch.autograd.grad(actual, inputs, grad)]
    for a, b in zip(results, [expected, *torch.autograd.grad(expected, inputs, grad)], strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@settings(max_examples=60)
@given(GROUPS, HEADS)
def test_attend_equals_masked(groups: list[Group], heads: tuple[int, int]) -> None:
    assert_equals_masked(groups, *heads)


@pytest.mark.parametrize(
    "groups",
    [
        [Group("target alone", [1, 2], [3], [])],
        [Group("all of length 1", [1], [2], [[3]])],
        [Group("one negative", [1] * 9, [2] * 5, [[3] * 7])],
        [Group("17 responses", [1] * 6, [2] * 3, [[3] * (1 + i % 4) for i in range(16)])],
        [Group("a", [1] * 4, [2], [[3] * 5]), Group("b", [1] * 7, [2] * 2, []), Group("c", [1], [2] * 6, [[3], [4]])],
    ],
    ids=lambda groups: groups[0].id,
)
@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
def test_attend_equals_masked_at_edge_cases(groups: list[Group], heads: tuple[int, int]) -> None:
    assert_equals_masked(groups, *heads, scale=None)


def test_plan_of_three_groups_equals_values_by_hand() -> None:
    layout = pack(
        [Group("a", [1] * 4, [2] * 2, [[3]]), Group("b", [1], [2], []), Group("c", [1] * 2, [2], [[3]])]
    ).layout
    plan = varlen.plan(layout)
    assert plan.segments.queries.tolist() == plan.segments.keys.tolist() == [0, 4, 6, 7, 9, 11, 12, 13]
    assert plan.segments.queries.dtype == torch.int32
    assert plan.segments.longest_query == plan.segments.longest_key == 4
    assert plan.segments.causal
    assert plan.shared is not None
    sequences = plan.shared.sequences
    assert (sequences.queries.tolist(), sequences.keys.tolist()) == ([0, 3, 5], [0, 4, 6])
    assert (sequences.longest_query, sequences.longest_key, sequences.causal) == (3, 4, False)
    assert plan.shared.responses.tolist() == [4, 5, 6, 11, 12]  # type: ignore[union-attr]
    assert plan.shared.prompts.tolist() == [0, 1, 2, 3, 9, 10]  # type: ignore[union-attr]


def test_plan_of_one_group_uses_slices() -> None:
    shared = varlen.plan(pack([Group("a", [1] * 4, [2] * 2, [[3]])]).layout).shared
    assert shared is not None
    assert (shared.responses, shared.prompts) == (slice(4, 7), slice(0, 4))


def test_plan_is_built_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    ends = varlen._ends
    monkeypatch.setattr(varlen, "_ends", lambda *a: calls.append(1) or ends(*a))
    model, packed = tiny(CONFIGS["llama"]), pack(ragged(0))
    use_shared_prompt(model, "varlen")
    gradients(model, response_log_probs(model, packed, 16))
    assert len(calls) == 4  # each of the two calls computes the ends of its queries and of its keys


def attend_separately(
    query: Tensor, key: Tensor, value: Tensor, ends: tuple[list[int], list[int]], causal: bool
) -> Tensor:
    """Attend within each sequence with torch's attention."""
    parts = []
    for i in range(len(ends[0]) - 1):
        q, k, v = (
            x[bounds[i] : bounds[i + 1]].transpose(0, 1)[None]
            for x, bounds in zip((query, key, value), (ends[0], ends[1], ends[1]), strict=True)
        )
        part = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("causal", [False, True])
def test_reference_equals_autograd(causal: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    ends = ([0, 3, 4, 9], [0, 3, 4, 9] if causal else [0, 5, 6, 8])
    inputs = [
        torch.randn(count, heads, 8, generator=draw, dtype=torch.float64, requires_grad=True)
        for count, heads in ((ends[0][-1], 4), (ends[1][-1], 2), (ends[1][-1], 2))
    ]
    cumulative = [torch.tensor(e, dtype=torch.int32) for e in ends]
    expected = attend_separately(*inputs, ends, causal)
    grad = torch.randn(expected.shape, generator=draw, dtype=torch.float64)
    detached = [x.detach() for x in inputs]
    output, lse = varlen_reference.forward(*detached, *cumulative, causal, None)
    torch.testing.assert_close(output, expected)
    actual = varlen_reference.backward(grad, *detached, output, lse, *cumulative, causal, None)
    for a, b in zip(actual, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(a, b)


def schema(name: str) -> dict[str, Any]:
    operation = getattr(torch.ops.aten, name).default
    return {argument.name: str(argument.type) for argument in operation._schema.arguments}


def test_torch_operations_have_the_expected_schemas() -> None:
    """This package passes `scale` by name and all other arguments by position. torch 2.11 to 2.13 accept this."""
    lengths = ["cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal"]
    forward, backward = schema("_flash_attention_forward"), schema("_flash_attention_backward")
    assert list(forward)[:10] == ["query", "key", "value", *lengths, "return_debug_mask"]
    heads = ["grad_out", "query", "key", "value", "out", "logsumexp"]
    assert list(backward)[:14] == [*heads, *lengths, "rng_state", "unused"]
    assert "scale" in forward
    assert "scale" in backward
    returned = [value.name for value in torch.ops.aten._flash_attention_forward.default._schema.returns]
    assert returned[:2] == ["output", "softmax_logsumexp"]


NAMES_WITHOUT_SHORT_WINDOW = [name for name in CONFIGS if "window shorter" not in name]


@pytest.mark.parametrize(
    ("name", "checkpointing"), [*((name, False) for name in NAMES_WITHOUT_SHORT_WINDOW), ("mistral", True)]
)
def test_gradients_equal_padded_rows(name: str, checkpointing: bool) -> None:
    plain, model = tiny(CONFIGS[name]).train(), tiny(CONFIGS[name]).train()
    use_shared_prompt(model, "varlen")
    if checkpointing:
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    for groups in (ragged(0), ragged(1, (2,)), ragged(2, (0, 0))):
        packed = pack(groups)
        actual, expected = response_log_probs(model, packed, chunk_size=16), padded(plain, groups)
        assert relative(actual, expected) <= 1e-5
        assert relative(gradients(model, actual), gradients(plain, expected)) <= 1e-5
        assert "varlen" in packed.layout.memo


def test_gradients_equal_padded_rows_in_float64() -> None:
    config, groups = CONFIGS["gpt2"], ragged(3)
    plain, model = tiny(config, torch.float64), tiny(config, torch.float64)
    use_shared_prompt(model, "varlen")
    actual, expected = response_log_probs(model, pack(groups), chunk_size=7), padded(plain, groups)
    assert relative(actual, expected) <= 1e-13
    assert relative(gradients(model, actual), gradients(plain, expected)) <= 1e-12


def test_window_longer_than_rows_uses_varlen() -> None:
    model, packed = tiny(CONFIGS["mistral"]), pack(ragged(0))  # its window is 4096
    use_shared_prompt(model, "varlen")
    response_log_probs(model, packed, 16)
    assert "varlen" in packed.layout.memo


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention's real kernels need a GPU")
@pytest.mark.parametrize("heads", [(4, 4, 64), (4, 2, 96), (8, 1, 128)])
def test_gpu_kernel_error_is_within_bfloat16_rounding(heads: tuple[int, int, int]) -> None:
    query_heads, key_heads, width = heads
    draw = torch.Generator().manual_seed(0)
    groups = [Group("a", [1] * 200, [2] * 30, [[3] * 50] * 4), Group("b", [1], [2], [[3]])]
    layout = pack(groups).layout
    sizes = [(1, h, len(layout.segment), width) for h in (query_heads, key_heads, key_heads)]
    exact = [torch.randn(size, generator=draw).bfloat16().double().requires_grad_() for size in sizes]
    expected = varlen.attend(exact[0], exact[1], exact[2], layout, None)
    grad = torch.randn(expected.shape, generator=draw).bfloat16()
    inputs = [x.detach().bfloat16().cuda().requires_grad_() for x in exact]
    actual = varlen.attend(inputs[0], inputs[1], inputs[2], layout.to("cuda"), None)
    results = [actual, *torch.autograd.grad(actual, inputs, grad.cuda())]
    for a, b in zip(results, [expected, *torch.autograd.grad(expected, exact, grad.double())], strict=True):
        assert relative(a.double().cpu(), b) <= 1e-2
