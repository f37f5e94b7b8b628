"""Test that model folders that cannot be used are refused before any compute."""

from pathlib import Path

import pytest

from test_config import composed, mistake

pytestmark = pytest.mark.usefixtures("quiet_environment")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a model folder with empty weights, whose tokenizer has no chat template."""
    from selfcontrast.models.loading import train_tokenizer

    folder = tmp_path / "model"
    train_tokenizer(["a few words"], 270, 64).save_pretrained(str(folder))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def model_mistake(*overrides: str) -> str:
    return mistake("data.train=64", "data.test=16", "data.validation=16", *overrides, base=composed("model=hf"))


def test_configure_missing_or_empty_model_folder_is_refused(tmp_path: Path) -> None:
    assert model_mistake().startswith("model.path is required")
    assert model_mistake("model.path=./none").startswith("model.path=./none: no such folder")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in model_mistake(f"model.path={tmp_path / 'empty'}")


def test_configure_model_without_safetensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no *.safetensors" in model_mistake(f"model.path={folder}")


def test_configure_model_without_chat_template_is_refused(folder: Path) -> None:
    message = model_mistake(f"model.path={folder}")
    assert "no chat template" in message
    assert "model.chat_template=FILE" in message


def test_configure_bad_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    def message(template: str) -> str:
        (tmp_path / "template.jinja").write_text(template)
        return model_mistake(f"model.path={folder}", f"model.chat_template={tmp_path / 'template.jinja'}")

    turns = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    assert "no generation prompt" in message(turns)
    assert "chat template" in message("{% for m in messages %}")
    assert "chat template" in message("{{ raise_exception('system first') }}")
    assert "none.jinja" in model_mistake(f"model.path={folder}", "model.chat_template=none.jinja")
