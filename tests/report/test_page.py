import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from selfcontrast.report.figures import categories, systems
from selfcontrast.report.page import changed_facts, filter_facts, write_report
from selfcontrast.report.text import NO_BREAK_SPACE
from selfcontrast.results import Result


class Page(HTMLParser):
    """Collect the tags, ids, links and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data.replace(NO_BREAK_SPACE, " ")


def page(result: Result, folder: Path) -> tuple[str, Page]:
    write_report(result, folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_page_needs_no_network(make: Callable[..., Result], tmp_path: Path) -> None:
    html, parsed = page(make(), tmp_path)
    assert not re.findall(r"https?://|//[a-z]+\.", html)
    assert "@import" not in html
    assert all(link.startswith("#") for link in parsed.links)
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags


def test_page_shows_iterations_and_their_settings(make: Callable[..., Result], tmp_path: Path) -> None:
    settings = {"iterations": 3, "reference_over_iterations": "initial", "prompts_over_iterations": "disjoint"}
    _, parsed = page(replace(make(), config={**make().config, **settings}), tmp_path)
    assert "iterations: reference initial, prompts disjoint" in parsed.text
    _, single = page(replace(make(), config={**make().config, **settings, "iterations": 1}), tmp_path)
    assert "iterations: reference" not in single.text


def test_page_shows_the_chosen_candidate(make: Callable[..., Result], tmp_path: Path) -> None:
    cells = {"category": "", "prompt": "?", "target": "a", "farthest": "b", "farthest_similarity": 0.1, "nearest": "c"}
    for chosen, expected in (({}, False), ({"chosen": ""}, False), ({"chosen": "<the best>"}, True)):
        row = {**cells, "nearest_similarity": 0.2, **chosen}
        _, parsed = page(replace(make(), negatives_shown=[row]), tmp_path)
        assert ("<the best>" in parsed.text) == expected


def test_page_escapes_texts_of_models_and_data(make: Callable[..., Result], tmp_path: Path) -> None:
    _, parsed = page(make(), tmp_path)
    assert "<script>alert(1)</script>" in parsed.text
    assert "<script>b</script>" in parsed.text  # from the config
    assert "<i>maths</i>" in parsed.text
    assert "<b>bold</b>" in parsed.text  # from a category in a figure
    assert "True & so on." in parsed.text
    assert "<u>seen</u>" in parsed.text  # from a flagged prompt
    assert "<s>told</s>" in parsed.text


def test_page_shows_every_number_of_the_comparison(make: Callable[..., Result], tmp_path: Path) -> None:
    _, parsed = page(make(), tmp_path)
    means = ["0.600 [0.550, 0.650]", "0.700 [0.650, 0.750]", "0.650 [0.600, 0.700]"]
    relative = ["+0.100 [+0.060, +0.140]", "0.002", "55.0% [52.0, 58.0]"]
    described = ["17.2", "23.5", "-0.875 [-0.885, -0.865]", "0.911", "0.922"]
    filtered = ["12.30%", "4.50%", "10.00%"]  # false negatives before and after, repeated responses
    relative += ["+0.050 [+0.010, +0.090] (T=0.7)", "Contamination: 1 of 20 test prompts (5.0%)"]
    stage_facts = ["3 min 45 s", "cached", "1 min 04 s", "abc123", "2.13.0"]
    for expected in means + relative + described + filtered + stage_facts:
        assert expected in parsed.text, expected


def test_signals_show_auc_and_false_negatives_by_fraction(make: Callable[..., Result], tmp_path: Path) -> None:
    html, parsed = page(make(), tmp_path)
    heads = ["AUC", *(f"false negatives at {fraction}" for fraction in ("0.75", "0.5", "0.25", "0.125"))]
    assert "".join(f'<th class="n">{head}</th>' for head in heads) in html
    row = next(line for line in html.splitlines() if ">similarity to the target<" in line)
    assert re.findall(r">([^<]+)</td>", row)[1:] == ["0.752", "23.9%", "14.1%", "4.8%", "–"]
    assert "sum of the ranks by the other signals" in parsed.text


def test_dialogues_show_each_turn_with_its_answer(make: Callable[..., Result], tmp_path: Path) -> None:
    _, parsed = page(make(), tmp_path)
    order = [parsed.text.index(part) for part in ("Turn one asks.", "One.", "Turn two asks.", "Last target.")]
    assert order == sorted(order)


def test_page_ids_are_unique(make: Callable[..., Result], tmp_path: Path) -> None:
    _, parsed = page(make(), tmp_path)
    assert len(parsed.ids) == len(set(parsed.ids)) > 0


def test_references_inside_figures_resolve(make: Callable[..., Result], tmp_path: Path) -> None:
    html, parsed = page(make(), tmp_path)
    references = {link[1:] for link in parsed.links} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert references
    assert references <= set(parsed.ids)


def test_page_labels_a_proxy(proxy: Result, tmp_path: Path) -> None:
    html, parsed = page(proxy, tmp_path)
    assert "similarity to the target's embedding: a proxy, not quality" in parsed.text
    head = html[html.index("<thead>") : html.index("</thead>")]
    assert "similarity (proxy)" in head
    assert "score (0 to 1)" not in parsed.text


def test_page_shows_unknown_intervals_as_dashes(unbounded: Result, tmp_path: Path) -> None:
    _, parsed = page(unbounded, tmp_path)
    assert "0.700 [–]" in parsed.text
    assert "nan" not in parsed.text.lower()


def test_page_omits_what_was_not_measured(make: Callable[..., Result], tmp_path: Path) -> None:
    full = make()
    minimal = replace(
        full,
        comparison={**full.comparison, "categories": []},
        histories={"sft": [], "align": []},
        similarities={"edges": [-1.0, 1.0], "candidates": [0], "negatives": [0], "cuts": {"low": [], "high": []}},
        lm_eval={},
        samples=[],
    )
    _, parsed = page(minimal, tmp_path)
    assert "By category" not in parsed.text
    assert "Answers" not in parsed.text
    assert "Signals" not in parsed.text
    assert parsed.tags.count("svg") == 1


def test_figure_is_saved_for_use_without_the_page(make: Callable[..., Result], tmp_path: Path) -> None:
    write_report(make(), tmp_path)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "figure.svg").read_text()
    assert "Self-Contrast, K = 4: 20 prompts, 95% intervals" in svg
    assert "var(--" not in svg


def test_page_shows_training_speed_and_metrics_by_rank(make: Callable[..., Result], tmp_path: Path) -> None:
    _, parsed = page(make(), tmp_path)
    line = "12,300 tokens/s, 3.25 prompts/s, 0.125 TFLOP/s of model FLOPs per device (37.5% of its peak), "
    assert line + "peak memory 1.8 GiB." in parsed.text
    assert "negative, most similar first" in parsed.text
    assert "displacement" not in parsed.text


def test_page_notes_likelihood_displacement(make: Callable[..., Result], tmp_path: Path) -> None:
    result = make()
    summary = {"prompts": 49, "displaced": True, "target_log_prob_change": -3.456}
    stages = [{**s, "summary": summary} if s["name"] == "align" else s for s in result.stages]
    _, parsed = page(replace(result, stages=stages), tmp_path)
    assert "Likelihood displacement: " in parsed.text
    assert "the targets' log-probability under the policy was 3.46 nats" in parsed.text


@pytest.mark.parametrize("missing", ["false_negatives_before", "score_candidates"])
def test_facts_that_are_unknown_are_left_out(missing: str) -> None:
    lengths = {"characters_targets": [12.0, 1234.5, 5000.0], "characters_negatives": []}
    facts = dict(filter_facts({"prompts": 2, "duplicate_share": 0.1, missing: None, **lengths}))
    assert facts == {
        "prompts with sampled responses": "2",
        "repeated responses": "10.00%",
        "characters of a target (10%, median, 90%)": "12 / 1,234 / 5,000",
    }


@pytest.mark.parametrize("name", ["$", "$x^2$", "a $ b $ c", "$\\frac{a}$", "${", "\\$5"])
def test_names_with_a_dollar_are_shown_as_they_are(name: str, make: Callable[..., Result], tmp_path: Path) -> None:
    """By default matplotlib reads $…$ as a formula, and fails if the text is no valid formula."""
    written = json.dumps(asdict(make()))
    for old in ("Self-Contrast", "T=0.7", "<b>bold</b>"):
        assert old in written
        written = written.replace(old, json.dumps(f"{old} {name}")[1:-1])
    _, parsed = page(Result(**json.loads(written)), tmp_path)
    for old in ("Self-Contrast", "T=0.7", "<b>bold</b>"):
        assert f"{old} {name}" in parsed.text


def test_legend_shows_names_with_a_leading_underscore(make: Callable[..., Result]) -> None:
    written = json.dumps(asdict(make())).replace("Self-Contrast", "_mine")
    result = Result(**json.loads(written))
    for figure in (systems(result), categories(result)):
        assert figure is not None
        assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["SFT", "_mine"]


def test_changed_facts_count_texts_that_were_not_read() -> None:
    facts = changed_facts(
        [
            {"name": "embed", "summary": {"texts": 4, "texts_cut": 3, "unread_fraction": 0.125}},
            {"name": "sft", "summary": {"targets_changed": 1, "steps": 2}},
            {"name": "generate", "summary": {"responses_changed": 0}},
        ]
    )
    assert [label for label, _ in facts] == [
        "embed: texts longer than the model reads",
        "embed: fraction of all tokens that was not read",
        "sft: targets that changed in tokenisation",
    ]
    assert facts[1][1].startswith("12.5")
