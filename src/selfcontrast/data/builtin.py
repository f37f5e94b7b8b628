"""The built-in data: plain-English instructions drawn by a program, each with an exact, graded verifier.

Eight families mirror the categories of MT-Bench, in rotation; some examples are dialogues of two turns. A prompt fixes
the values of some slots. A target puts them into one of several templates, with random fillers. So a prompt has about a
hundred right responses, and 32 samples are mostly distinct.

In training, each slot of a target is wrong with probability `noise`: demonstrations are imperfect, and a model that
imitates them well can still improve. Targets of validation and test are clean: responses are compared with them, and
an error in a target would lower the score of a right response.

Every example has a rejected answer, for methods that use pairs (DPO_std, a judge's calibration). It is another answer
to the same prompt: one slot is always wrong, and each other slot is wrong with probability `rejected_noise`. The two
answers are not compared. A noisy target is sometimes the worse of the two, as in pairs labelled by people. (With the
shipped settings, 6% of the training pairs are in the wrong order, and in 14% both answers are equally good.)

Limits of this data:
- It is synthetic, a closed world of a few hundred words. It says nothing about open-ended quality, helpfulness or
  safety, and a score says nothing about MT-Bench itself.
- The noise favours the method by construction: the likeliest demonstration is right and the unlikely ones
  are not. So anything that sharpens the model raises its score, even a lower temperature. `noise: 0` is the control.
- In the families stem and humanities, facts are memorised. Only their combination in a question is new.
- The follow-up of a dialogue is graded by its specification alone. A model may ignore its first reply, and earns
  nothing for being consistent with a wrong one.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Annotated, Any

from pydantic import Field

from selfcontrast.constrained import Count, Probability, Seed, check_numbers
from selfcontrast.data.example import SPLITS, Example, Message, Split
from selfcontrast.data.families import FAMILIES, FORMS, Turn, sample_target
from selfcontrast.errors import UserError

VERSION = 2
"""Raise it if the words, the templates or the order of random draws change."""

MAX_DRAWS = 1000  # attempts to draw a new prompt before a family counts as exhausted

MAX_EXAMPLES = 10_000_000  # per split: all are held in memory


@dataclass(frozen=True)
class Builtin:
    """Source of the built-in data.

    Attributes:
        train, validation, test: examples per split.
        noise: probability that a slot of a train target is wrong, in [0, 1].
        rejected_noise: probability that a slot of a rejected answer is wrong, in [0, 1]; one slot is wrong in any case.
        two_turn: probability that an example is a dialogue of two turns, in [0, 1].
        seed: seed of the data, independent of the training seed.
    """

    train: Annotated[Count, Field(le=MAX_EXAMPLES)]
    validation: Annotated[Count, Field(le=MAX_EXAMPLES)]
    test: Annotated[Count, Field(le=MAX_EXAMPLES)]
    noise: Probability
    rejected_noise: Probability
    two_turn: Probability
    seed: Seed

    def __post_init__(self) -> None:
        check_numbers(self, "data")

    def load(self) -> dict[Split, list[Example]]:
        """Return all splits. Raise `UserError` if a family has too few distinct prompts for these sizes."""
        held_out: set[str] = set()
        # The held-out splits are drawn first, so they do not depend on the size of train.
        splits: dict[Split, list[Example]] = {}
        for split in reversed(SPLITS):
            splits[split] = self._split(split, held_out)
            held_out |= {content(example) for example in splits[split]}
        check_disjoint(splits)
        return {split: splits[split] for split in SPLITS}

    def fingerprint(self) -> dict[str, Any]:
        return {"source": "builtin", "version": VERSION, **asdict(self)}

    def _split(self, split: Split, held_out: set[str]) -> list[Example]:
        names = list(FAMILIES)
        prompts: set[tuple[str, ...]] = set()
        examples = []
        for index in range(getattr(self, split)):
            family = names[index % len(names)]
            key = f"{self.seed} {split} {index}"
            turns, subject = self._draw(family, random.Random(key), held_out, prompts, split)
            prompts.add(tuple(turn.user for turn in turns))
            # The target has a random stream of its own, so the prompts are the same at every noise.
            noise = self.noise if split == "train" else 0.0
            example = _example(family, subject, turns, random.Random(f"{key} target"), noise)
            rejected = _rejected(turns[-1], example.target, random.Random(f"{key} rejected"), self.rejected_noise)
            examples.append(replace(example, rejected=rejected))
        return examples

    def _draw(
        self, family: str, rng: random.Random, held_out: set[str], prompts: set[tuple[str, ...]], split: Split
    ) -> tuple[list[Turn], str]:
        """Return the turns and the content of a dialogue with a new prompt and a content that is not held out."""
        two_turn = rng.random() < self.two_turn
        for _ in range(MAX_DRAWS):
            dialogue = FAMILIES[family](rng)
            turns = [dialogue.first, dialogue.follow_up] if two_turn else [dialogue.first]
            if dialogue.content not in held_out and tuple(turn.user for turn in turns) not in prompts:
                return turns, dialogue.content
        raise UserError(
            f"data.{split}={getattr(self, split)}: the built-in family {family!r} has no new prompt left. "
            f"Lower data.{split}, or data.test and data.validation."
        )


def _example(family: str, subject: str, turns: Sequence[Turn], rng: random.Random, noise: float) -> Example:
    """Return the example of a dialogue.

    The first reply of a train dialogue is as noisy as a target. In an evaluation, the model writes the first reply,
    which may be wrong. So the model must learn to answer the follow-up from the user's words.
    """
    prompt: list[Message] = []
    for turn in turns:
        reply = sample_target(FORMS[turn.form], turn.want, rng, noise)
        prompt += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": reply}]
    target = prompt.pop()["content"]
    reference = json.dumps(
        {
            "content": subject,
            "family": family,
            "turns": [{"form": turn.form, "want": turn.want} for turn in turns],
        }
    )
    digest = hashlib.sha256(json.dumps([prompt, target, reference]).encode()).hexdigest()
    return Example(
        id=f"{family}-{digest[:16]}",
        prompt=prompt,
        target=target,
        category=family,
        reference=reference,
        turns=[turn.user for turn in turns] if len(turns) > 1 else [],
    )


def _rejected(turn: Turn, target: str, rng: random.Random, noise: float) -> str:
    """Return an answer to the last turn other than `target`, with at least one wrong slot."""
    while True:
        text = sample_target(FORMS[turn.form], turn.want, rng, noise, spoilt=rng.choice(sorted(turn.want)))
        if text != target:
            return text


def content(example: Example) -> str:
    """Return the subject of the example's question, independent of its wording, word order and follow-up."""
    return str(json.loads(example.reference)["content"])


def check_disjoint(splits: Mapping[Split, Sequence[Example]]) -> None:
    """Raise `ValueError` if two splits share a content or one split repeats a prompt."""
    for split, examples in splits.items():
        prompts = {tuple(m["content"] for m in e.prompt if m["role"] == "user") for e in examples}
        if len(prompts) < len(examples):
            raise ValueError(f"the split {split!r} repeats {len(examples) - len(prompts)} of its prompts")
    for (first, earlier), (second, later) in combinations(splits.items(), 2):
        if shared := {content(e) for e in earlier} & {content(e) for e in later}:
            raise ValueError(
                f"the splits {first!r} and {second!r} share {len(shared)} contents, such as {min(shared)!r}"
            )
