"""Make lm-eval documents from the held-out prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from selfcontrast.data.example import Example
from selfcontrast.data.rendering import Renderer

DISTRACTORS = 3

Document = dict[str, Any]


def choice_documents(examples: Sequence[Example], renderer: Renderer, max_length: int, seed: int) -> list[Document]:
    """Make multiple-choice documents: the choices are the prompt's target and up to three targets of other prompts.

    Distractors come from prompts of the same category or, if none of them has a usable target, from all prompts. A
    document that does not fit into `max_length` tokens is left out, since lm-eval would cut it silently.
    """
    rng = np.random.default_rng(seed)
    lengths = {e.target: len(renderer.response(e.prompt, e.target)) for e in examples}
    documents = []
    for example in examples:
        room = max_length - len(renderer.prompt(example.prompt))
        others = [e for e in examples if e.target != example.target and lengths[e.target] <= room]
        same_category = {e.target for e in others if e.category == example.category}
        pool = sorted(same_category or {e.target for e in others})
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
    """Make documents from prompts and targets.

    An example is left out if its target has more than `max_new_tokens` tokens (end token included), or if its prompt
    leaves no room for `max_new_tokens` in `max_length`.
    """
    documents = []
    for example in examples:
        prompt, target = renderer.example(example)
        if len(target) <= max_new_tokens and len(prompt) + max_new_tokens <= max_length:
            documents.append({"query": renderer.tokenizer.decode(prompt), "target": example.target.strip()})
    return documents
