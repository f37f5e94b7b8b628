"""Test the choice of the attention implementation and its warnings."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from padded import CONFIGS, ragged, relative, tiny
from selfcontrast.models.attention import choice
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import pack
from selfcontrast.models.shared_prompt import use_shared_prompt


@pytest.fixture(autouse=True)
def _old_gpu_and_empty_caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(choice, "_has_flash", lambda device: device.index != 1)  # GPU 1 is too old
    choice._choose.cache_clear()
    yield
    choice._choose.cache_clear()


def heads(device: str, dimensions: int = 16, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return a tensor on "meta" that claims to be on `device`."""

    class TensorOnDevice(Tensor):
        @property
        def device(self) -> Any:  # type: ignore[override]
            return torch.device(device)

    return torch.empty(1, 2, 5, dimensions, dtype=dtype, device="meta").as_subclass(TensorOnDevice)


@pytest.mark.parametrize(
    ("requested", "device", "changes", "used", "reason"),
    [
        ("auto", "cpu", {}, "blocks", None),
        ("auto", "cuda", {}, "varlen", None),
        ("auto", "cuda", {"dtype": torch.float16}, "varlen", None),
        ("auto", "cuda", {"dimensions": 256}, "varlen", None),
        ("auto", "mps", {}, "masked", "on mps"),
        ("auto", "cpu", {"dropout": 0.1}, "masked", "dropout"),
        ("auto", "cpu", {"window": 4}, "masked", "sliding window"),
        ("auto", "cuda", {"window": 4}, "flex", "sliding window"),
        ("auto", "cuda", {"dropout": 0.1}, "masked", "dropout"),
        ("auto", "cuda", {"dimensions": 20}, "flex", "multiple of 8"),
        ("auto", "cuda", {"dimensions": 264}, "flex", "at most 256"),
        ("auto", "cuda", {"dtype": torch.float32}, "flex", "not in float32"),
        ("auto", "cuda", {"dtype": torch.float64}, "masked", "not in float64"),
        ("auto", "cuda:1", {}, "flex", "compute capability 8.0"),
        ("flex", "cuda", {"window": 4}, "flex", None),
        ("flex", "cuda", {"dimensions": 8}, "varlen", "16 dimensions"),
        ("flex", "cuda", {"dtype": torch.float64}, "masked", "float64"),
        ("flex", "cpu", {}, "blocks", "no backward pass on cpu"),
        ("flex", "cpu", {"window": 4}, "masked", "no backward pass on cpu"),
        ("varlen", "cpu", {}, "varlen", None),
        ("varlen", "xpu", {}, "flex", "on xpu"),
        ("blocks", "cuda", {}, "varlen", "on cuda"),
        ("masked", "cpu", {}, "masked", None),
        ("masked", "cuda", {"dropout": 0.1}, "masked", None),
    ],
)
def test_choose_returns_used_implementation_and_logs_reason(
    requested: str,
    device: str,
    changes: dict[str, Any],
    used: str,
    reason: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    x = heads(device, changes.get("dimensions", 16), changes.get("dtype", torch.bfloat16))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert choice.choose(requested, x, x, changes.get("dropout", 0.0), changes.get("window")) == used
    messages = [record.getMessage() for record in caplog.records]
    if reason is None:
        assert messages == []
    else:
        (message,) = messages  # one warning for two calls
        assert f"hardware.attention={requested}" in message
        assert reason in message
        assert message.endswith(used)


def test_choose_different_head_sizes_returns_masked() -> None:
    assert choice.choose("auto", heads("cpu", 16), heads("cpu", 32), 0.0, None) == "masked"


def test_choose_logs_one_warning_per_reason(caplog: pytest.LogCaptureFixture) -> None:
    x = heads("cpu")
    choice.choose("auto", x, x, 0.1, None)
    choice.choose("auto", x, x, 0.0, 3)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("attention", choice.ATTENTIONS)
def test_all_implementations_compute_equal_log_probs(attention: str) -> None:
    model, packed = tiny(CONFIGS["llama"]), pack(ragged(0))
    expected = response_log_probs(tiny(CONFIGS["llama"]), packed, 16)
    use_shared_prompt(model, attention)
    assert relative(response_log_probs(model, packed, 16), expected) <= 1e-5


def test_use_shared_prompt_without_argument_keeps_the_attention() -> None:
    model = tiny(CONFIGS["llama"])
    use_shared_prompt(model, "masked")
    use_shared_prompt(model)
    assert model.config._attn_implementation == "shared_prompt_masked"  # type: ignore[union-attr]
    use_shared_prompt(model, "auto")
    assert model.config._attn_implementation == "shared_prompt_auto"  # type: ignore[union-attr]
