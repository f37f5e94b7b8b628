"""Compare values and gradients of packed groups with those of padded rows under transformers' own attention."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
)

from padded import CONFIGS, GPT2, VOCABULARY, gradients, padded, ragged, relative, tiny
from selfcontrast.errors import UserError
from selfcontrast.models.log_probs import response_log_probs
from selfcontrast.models.packing import Group, pack
from selfcontrast.models.shared_prompt import check_causal, forward_packed, use_shared_prompt


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_padded_rows(name: str, checkpointing: bool) -> None:
    plain, model = tiny(CONFIGS[name]).train(), tiny(CONFIGS[name]).train()
    if checkpointing:
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    for groups in (ragged(0), ragged(1, (2,)), ragged(2, (0, 0))):
        actual = response_log_probs(model, pack(groups), chunk_size=16)
        expected = padded(plain, groups)
        assert relative(actual, expected) <= 1e-5
        assert relative(gradients(model, actual), gradients(plain, expected)) <= 1e-5


def test_gradients_equal_padded_rows_in_float64() -> None:
    # Use GPT-2, because models of the Llama family always compute norms in float32.
    config, groups = CONFIGS["gpt2"], ragged(3)
    plain, model = tiny(config, torch.float64), tiny(config, torch.float64)
    actual, expected = response_log_probs(model, pack(groups), chunk_size=7), padded(plain, groups)
    assert relative(actual, expected) <= 1e-13
    assert relative(gradients(model, actual), gradients(plain, expected)) <= 1e-12


@pytest.mark.parametrize("attention", ["blocks", "varlen", "masked"])
def test_gradients_do_not_depend_on_sharing(attention: str) -> None:
    model, groups = tiny(CONFIGS["gpt2"], torch.float64), ragged(3)
    use_shared_prompt(model, attention)
    actual, expected = (response_log_probs(model, pack(groups, sharing), chunk_size=7) for sharing in (False, True))
    assert relative(actual, expected) <= 1e-13
    assert relative(gradients(model, actual), gradients(model, expected)) <= 1e-12


def test_autocast_error_is_near_that_of_padded_rows() -> None:
    plain, model, groups = tiny(CONFIGS["llama"]), tiny(CONFIGS["llama"]), ragged(4)
    exact = gradients(plain, padded(plain, groups))
    with torch.autocast("cpu", torch.bfloat16):
        actual = response_log_probs(model, pack(groups), chunk_size=16)
        rounded = padded(plain, groups)
    assert actual.dtype == torch.float32
    error = relative(gradients(model, actual), exact)
    assert error <= 1.5 * relative(gradients(plain, rounded.float()), exact)


def test_responses_do_not_see_one_another() -> None:
    model = tiny(CONFIGS["llama"])
    first = response_log_probs(model, pack([Group("a", [1, 2, 3], [4, 5], [[6, 7], [8]])]), 16)
    second = response_log_probs(model, pack([Group("a", [1, 2, 3], [4, 5], [[9, 9, 9], [8]])]), 16)
    torch.testing.assert_close(first[:, [0, 2]], second[:, [0, 2]])
    assert not torch.allclose(first[:, 1], second[:, 1])


def test_attention_dropout_acts_only_in_training() -> None:
    model = tiny(GPT2Config(**GPT2, embd_pdrop=0.0, attn_pdrop=0.5, resid_pdrop=0.0))
    packed = pack(ragged(5, (1,)))
    model.train()
    torch.manual_seed(0)
    dropped = [response_log_probs(model, packed, 64).detach() for _ in range(200)]
    model.eval()
    undropped = response_log_probs(model, packed, 64).detach()
    assert torch.equal(undropped, response_log_probs(model, packed, 64))
    assert not torch.allclose(dropped[0], dropped[1])
    # Packed and separate rows have the same dropout distribution: the means over 200 draws agree within their noise.
    model.train()
    rows = [padded(model, ragged(5, (1,))).detach() for _ in range(200)]  # without a layout, attention is ordinary
    first, second = torch.stack(dropped), torch.stack(rows)
    noise = (first.var(0) + second.var(0)).div(200).sqrt()
    assert ((first.mean(0) - second.mean(0)).abs() <= 5 * noise + 1e-6).all()


def test_model_without_layout_is_unchanged() -> None:
    plain, model, groups = tiny(CONFIGS["mistral"]), tiny(CONFIGS["mistral"]), ragged(6)
    use_shared_prompt(model)
    torch.testing.assert_close(padded(model, groups), padded(plain, groups))
    prompt = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    settings: dict[str, Any] = {
        "attention_mask": mask,
        "max_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
    }
    assert torch.equal(model.generate(prompt, **settings), plain.generate(prompt, **settings))  # type: ignore[operator]


def test_shared_prompt_creates_no_tensor_of_row_length_squared() -> None:
    model = tiny(CONFIGS["llama"])
    use_shared_prompt(model)
    packed = pack([Group("a", [1] * 20, [2] * 20, [[3] * 20] * 30)])  # T = 640
    largest = 0

    class TensorSizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            output = func(*args, **(kwargs or {}))
            for x in output if isinstance(output, tuple) else (output,):
                largest = max(largest, x.numel() if isinstance(x, Tensor) else 0)
            return output

    with TensorSizes():
        forward_packed(model.model, packed.input_ids, packed.position_ids, packed.layout)  # type: ignore[arg-type]
    assert 640 * 32 <= largest < 640 * 640


def test_saved_config_omits_the_shared_prompt_mode() -> None:
    model = tiny(CONFIGS["llama"])
    use_shared_prompt(model)
    assert "shared_prompt" not in model.config.to_json_string()  # type: ignore[union-attr,operator]


def test_use_shared_prompt_not_causal_raises() -> None:
    model = tiny(CONFIGS["llama"])
    model.config.is_causal = False  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"llama.*not causal"):
        use_shared_prompt(model)


def test_check_causal_encoder_raises() -> None:
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": VOCABULARY}
    with pytest.raises(UserError, match=r"bart.*an encoder"):
        check_causal(BartForConditionalGeneration(BartConfig(**shape, bos_token_id=0, eos_token_id=2)))
