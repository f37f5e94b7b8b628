"""Check the files that `+debug=tiny` writes: their bytes, their folders and their formats."""

import json
from pathlib import Path

import pytest

from selfcontrast.data.rendering import Renderer
from selfcontrast.debug import DATA_SETS, ROWS, dialogue, main, write_debug
from selfcontrast.errors import UserError
from selfcontrast.models.loading import Pretrained, folder_hash
from test_config import composed


def pretrained(folder: Path, template: str | None, *tokens: str) -> Pretrained:
    return Pretrained(str(folder), None, template, list(tokens), "float32", False, True)


def test_debug_files_have_the_same_bytes_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_debug(tmp_path / "one")
    main([str(tmp_path / "two")])
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'two'}: ")
    assert folder_hash(tmp_path / "one") == folder_hash(tmp_path / "two")


def test_debug_data_sets_are_those_of_the_data_configs() -> None:
    options = ("hh_rlhf", "ultrachat", "ultrachat_pairs", "nectar")
    paths = {str(composed(f"data={data}").data.train.path) for data in options}
    assert paths == set(DATA_SETS)
    assert ROWS == 32


def test_debug_model_needs_chat_template(tmp_path: Path) -> None:
    write_debug(tmp_path)
    with pytest.raises(UserError, match="no chat template"):
        pretrained(tmp_path / "model", None).check()
    for template, tokens in (("zephyr", ()), ("openchat", ("<|end_of_turn|>",))):
        model = pretrained(tmp_path / "model", template, *tokens)
        model.check()
        _, tokenizer = model.start([], 0)
        renderer = Renderer(tokenizer)
        assert renderer.response([{"role": "user", "content": "Hi"}], "Yes.")[-1] == renderer.end_id
    assert json.loads((tmp_path / "reward" / "config.json").read_text())["architectures"] == [
        "LlamaForSequenceClassification"
    ]


def test_debug_dialogue_has_hh_rlhf_format() -> None:
    messages = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
    assert dialogue(messages) == "\n\nHuman: Hi.\n\nAssistant: Yes?"
