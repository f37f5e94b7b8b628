"""Compare FlexAttention with the boolean mask and with padded rows.

FlexAttention's kernel has no backward pass on a CPU, but its reference implementation has one. These tests disable
torch's check of the device and compile the reference implementation to plain tensor operations.
"""

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention as torch_flex

from padded import CONFIGS, gradients, padded, ragged, relative, tiny
from selfcontrast.models.attention import choice, flex, flex_check, masked
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from selfcontrast.models.shared_prompt import forward_packed, use_shared_prompt

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=6)
GROUPS = st.lists(st.builds(Group, st.just("g"), TOKENS, TOKENS, st.lists(TOKENS, max_size=3)), min_size=1, max_size=3)
WINDOWS = st.one_of(st.none(), st.integers(1, 12))


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Enable FlexAttention with gradients on a CPU, and count compilations."""
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "_compiled", cache(lambda f: torch.compile(f, dynamic=True, backend=counter)))
    monkeypatch.setattr(choice, "obstacle", lambda *_: None)
    caches = (choice._choose, flex_check.is_correct, flex_check._report_limit)
    torch._dynamo.reset()
    for function in caches:
        function.cache_clear()
    yield counter
    for function in caches:
        function.cache_clear()


def mask_by_definition(groups: list[Group], window: int | None) -> list[list[bool]]:
    """Build the mask by definition: in a separate row, a token sees itself and earlier tokens within the window."""
    tokens = []  # per token: group, response (None in a prompt), position in a separate row
    for number, group in enumerate(groups):
        tokens += [(number, None, i) for i in range(len(group.prompt))]
        for column, response in enumerate(group.responses):
            tokens += [(number, column, len(group.prompt) + i) for i in range(len(response))]
    return [
        [
            group == other_group and other_response in (None, response) and 0 <= i - j < (window or 1000)
            for other_group, other_response, j in tokens
        ]
        for group, response, i in tokens
    ]


@given(GROUPS, WINDOWS)
def test_mask_equals_the_definition(groups: list[Group], window: int | None) -> None:
    layout = pack(groups).layout
    expected = torch.tensor(mask_by_definition(groups, window))
    row = torch.arange(len(expected))  # leaves out the padding
    none = torch.zeros((), dtype=torch.long)
    assert torch.equal(flex.mask(layout, window)(none, none, row[:, None], row), expected)
    boolean = torch.zeros_like(expected)
    for start, _, end in layout.groups:
        boolean[start:end, start:end] = masked.visible(layout, slice(start, end), window)
    assert torch.equal(boolean, expected)


def test_block_mask_skips_empty_blocks() -> None:
    # Each of six segments fills one block of 128 tokens. A response sees part of its own block and all of the prompt's.
    layout = pack([Group("a", [1] * 128, [2] * 128, [[3] * 128] * 4)]).layout
    mask = flex.block_mask(layout, None)
    assert mask.shape == (1, 1, 768, 768)
    assert mask.kv_num_blocks.tolist() == [[[1, 1, 1, 1, 1, 1]]]
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_num_blocks.tolist() == [[[0, 1, 1, 1, 1, 1]]]


def heads(tokens: int, query_heads: int, key_heads: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    return [torch.randn(1, h, tokens, 16, generator=draw) for h in (query_heads, key_heads, key_heads)]


@pytest.mark.parametrize(("query_heads", "key_heads", "window"), [(4, 4, None), (4, 1, 40), (6, 2, None), (6, 2, 3)])
def test_attend_equals_masked(
    on_cpu: CompileCounterWithBackend, query_heads: int, key_heads: int, window: int | None
) -> None:
    long = Group("long", [1] * 150, [2] * 7, [[3] * 60, [4]])
    for groups in ([long], [*ragged(0), long], ragged(1)):
        layout = pack(groups).layout
        query, key, value = heads(len(layout.segment), query_heads, key_heads)
        actual = flex.attend(query, key, value, layout, 0.3, window)
        key, value = (x.repeat_interleave(query_heads // key_heads, dim=1) for x in (key, value))
        torch.testing.assert_close(actual, masked.attend(query, key, value, layout, 0.3, 0.0, window))


def test_200_ragged_rows_compile_at_most_4_kernels(on_cpu: CompileCounterWithBackend) -> None:
    draw = random.Random(0)
    for _ in range(200):
        group = Group("a", [1] * draw.randint(1, 200), [2] * draw.randint(1, 60), [[3] * draw.randint(1, 60)])
        layout, window = pack([group]).layout, draw.choice((None, 64))
        flex.attend(*heads(len(layout.segment), 2, 1), layout, 0.25, window)
    assert on_cpu.frame_count <= 4


def test_padding_fills_the_last_block_and_sees_only_padding() -> None:
    layout = pack([Group("a", [1] * 100, [2] * 20, [[3] * 20])]).layout  # 140 tokens
    mask = flex.block_mask(layout, None)
    assert mask.shape == (1, 1, 256, 256)
    is_visible, none = flex.mask(layout, None), torch.zeros((), dtype=torch.long)
    row = torch.arange(256)
    visible = is_visible(none, none, row[:, None], row)
    assert torch.equal(visible[140:, 140:], torch.ones(116, 116, dtype=torch.bool).tril())
    assert not visible[140:, :140].any()
    assert not visible[:140, 140:].any()


def test_recompile_limit_falls_back_to_masked_and_warns(
    on_cpu: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flex, "RECOMPILE_LIMIT", 1)
    monkeypatch.setattr(flex_check, "is_correct", lambda spec: True)
    monkeypatch.setattr(flex, "_compiled", cache(lambda f: torch.compile(f, dynamic=False, backend=on_cpu)))
    plain, model = tiny(CONFIGS["llama"]), tiny(CONFIGS["llama"])
    use_shared_prompt(model, "flex")
    for length in (9, 110):  # one block, then three
        groups = [Group("a", [1] * length, [2] * length, [[3] * length])]
        actual, expected = response_log_probs(model, pack(groups), chunk_size=16), padded(plain, groups)
        assert relative(actual, expected) <= 1e-5
    (message,) = [r.getMessage() for r in caplog.records if "masked" in r.getMessage()]
    assert "1 times for 4 heads over 2 of 8 dimensions in float32" in message


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_wrong_kernel_falls_back_to_masked_and_warns(
    on_cpu: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    def faulty(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
        if fault == "broken":
            raise RuntimeError("no kernel")
        return query.transpose(1, 2) + (key + value).sum()

    monkeypatch.setattr(flex, "attend", faulty)
    plain, model, groups = tiny(CONFIGS["llama"]), tiny(CONFIGS["llama"]), ragged(0)
    use_shared_prompt(model, "flex")
    assert relative(response_log_probs(model, pack(groups), chunk_size=16), padded(plain, groups)) <= 1e-5
    (message,) = [r.getMessage() for r in caplog.records if "masked" in r.getMessage()]
    assert ("does not compile: no kernel" if fault == "broken" else "flex differs") in message


@pytest.mark.parametrize("window", [False, True])
def test_is_correct_passes_for_a_correct_kernel(on_cpu: CompileCounterWithBackend, window: bool) -> None:
    before = torch.get_rng_state()
    spec = flex_check.KernelSpec(torch.device("cpu"), torch.float32, 4, 2, 16, 16, window)
    with torch.no_grad():  # the reference is scored without gradients, too
        assert flex_check.is_correct(spec)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "checkpointing"), [*((name, False) for name in CONFIGS), ("mistral", True)])
def test_gradients_equal_padded_rows(on_cpu: CompileCounterWithBackend, name: str, checkpointing: bool) -> None:
    plain, model = tiny(CONFIGS[name]).train(), tiny(CONFIGS[name]).train()
    use_shared_prompt(model, "flex")
    if checkpointing:
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    for groups in (ragged(0), ragged(1, (2,)), ragged(2, (0, 0))):
        actual, expected = response_log_probs(model, pack(groups), chunk_size=16), padded(plain, groups)
        assert relative(actual, expected) <= 1e-5
        assert relative(gradients(model, actual), gradients(plain, expected)) <= 1e-5
    assert on_cpu.frame_count > 0


def test_block_mask_is_built_once_for_all_layers(
    on_cpu: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(flex_check, "is_correct", lambda spec: True)  # the check builds masks, too
    create: Any = flex.create_block_mask
    monkeypatch.setattr(flex, "create_block_mask", lambda *a, **k: calls.append(1) or create(*a, **k))
    model, packed = tiny(CONFIGS["mistral with a window shorter than the rows"]), pack(ragged(0))
    use_shared_prompt(model, "flex")
    decoder: Any = model.model
    forward_packed(decoder, packed.input_ids, packed.position_ids, packed.layout)
    assert calls == [1]
    copy = packed.to("cpu")  # a mask belongs to a device, so a moved row needs a new one
    forward_packed(decoder, copy.input_ids, copy.position_ids, copy.layout)
    assert calls == [1, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention's real kernels need a GPU")
@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in ("gpt2", "llama")])
def test_gradients_equal_padded_rows_on_a_gpu(name: str) -> None:
    config = CONFIGS[name].__class__(**{**CONFIGS[name].to_dict(), "head_dim": 16})
    plain, model = tiny(config).train(), tiny(config).train().cuda()
    use_shared_prompt(model, "flex")
    for groups in (ragged(0), ragged(1, (2,)), ragged(2, (9, 9, 9, 9))):
        packed, expected = pack(groups).to("cuda"), padded(plain, groups)
        actual = response_log_probs(model, packed, chunk_size=16)
        assert relative(actual.cpu(), expected) <= 1e-4
        assert relative(gradients(model, actual).cpu(), gradients(plain, expected)) <= 1e-4
        assert packed.layout.memo  # FlexAttention was used
