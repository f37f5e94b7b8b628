"""Test that invalid hardware settings are refused."""

from typing import Any

import pytest

from selfcontrast.errors import UserError
from tiny import hardware


@pytest.mark.parametrize(
    "setting",
    [
        {"devices": 0},
        {"max_tokens_per_microbatch": 0},
        {"peak_tflops": 0.0},
        {"accelerator": "tpu"},
        {"precision": "16-mixed"},
    ],
    ids=str,
)
def test_hardware_invalid_setting_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        hardware(**setting)
