"""The eight families of the built-in data, one for each category of MT-Bench."""

from selfcontrast.data.families import extraction, facts, telling, thinking
from selfcontrast.data.families.dialogue import Dialogue, Draw, Turn
from selfcontrast.data.families.form import Form, Want, sample_target

FAMILIES: dict[str, Draw] = {
    "writing": telling.draw_writing,
    "roleplay": telling.draw_roleplay,
    "reasoning": thinking.draw_reasoning,
    "math": thinking.draw_math,
    "coding": thinking.draw_coding,
    "extraction": extraction.draw_extraction,
    "stem": facts.MINERALS.draw,
    "humanities": facts.TOWNS.draw,
}
FORMS: dict[str, Form] = telling.FORMS | thinking.FORMS | extraction.FORMS | facts.FORMS

__all__ = ["FAMILIES", "FORMS", "Dialogue", "Draw", "Form", "Turn", "Want", "sample_target"]
