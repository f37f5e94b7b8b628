"""Documents for lm-eval from the held-out prompts: per document the rendered query, and what may follow it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer

DISTRACTORS = 3

Document = dict[str, Any]


def choice_documents(examples: Sequence[Example], renderer: Renderer, max_length: int, seed: int) -> list[Document]:
    """Which of four responses belongs to the prompt: its target, or targets of other prompts (of its category).

    A document whose query and choices do not fit into `max_length` tokens is left out: lm-eval would cut it silently.
    """
    rng = np.random.default_rng(seed)
    lengths = {e.target: len(renderer.response(e.prompt, e.target)) for e in examples}
    documents = []
    for example in examples:
        room = max_length - len(renderer.prompt(example.prompt))
        others = [e for e in examples if e.target != example.target and lengths[e.target] <= room]
        alike = {e.target for e in others if e.category == example.category}
        pool = sorted(alike or {e.target for e in others})
        if lengths[example.target] > room or not pool:
            continue
        choices = [example.target, *(pool[i] for i in rng.permutation(len(pool))[:DISTRACTORS])]
        order = rng.permutation(len(choices))
        query = renderer.tokenizer.decode(renderer.prompt(example.prompt))
        gold = int(np.flatnonzero(order == 0)[0])
        documents.append({"query": query, "choices": [choices[i] for i in order], "gold": gold})
    return documents


def generation_documents(
    examples: Sequence[Example], renderer: Renderer, max_length: int, max_new_tokens: int
) -> list[Document]:
    """Prompts with their targets, as many as can be answered: a target of at most `max_new_tokens` tokens, its end
    included, and a prompt that leaves room for so many in `max_length`."""
    documents = []
    for example in examples:
        prompt, target = renderer.example(example)
        if len(target) <= max_new_tokens and len(prompt) + max_new_tokens <= max_length:
            documents.append({"query": renderer.tokenizer.decode(prompt), "target": example.target.strip()})
    return documents
