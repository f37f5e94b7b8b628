"""Test which groups a step has and how they are split into ranks and micro-batches."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfcontrast.models.packing import Group
from selfcontrast.training.steps import RemainingSteps, Step, Steps, balance_by_tokens, length, split_into_microbatches
from tiny import groups

COUNTS = st.integers(1, 30)
SEEDS = st.integers(0, 1000)


def ids_of(step: Step) -> list[str]:
    return [name for part in step.microbatches if part.counts for name in part.packed.ids]


@given(count=COUNTS, per_step=st.integers(1, 12), epochs=st.integers(1, 3), seed=SEEDS)
def test_steps_every_epoch_has_every_group_once(count: int, per_step: int, epochs: int, seed: int) -> None:
    steps = Steps(groups(count), per_step, epochs, 50, seed)
    assert len(steps) == epochs * steps.per_epoch
    for epoch in range(epochs):
        indices = [steps.indices(epoch * steps.per_epoch + i) for i in range(steps.per_epoch)]
        assert sorted(i for step in indices for i in step) == list(range(count))
        assert all(len(step) == per_step for step in indices[:-1])


def test_steps_indices_depend_only_on_seed_epoch_and_step() -> None:
    steps, same = (Steps(groups(40), 8, 2, 50, seed=1) for _ in range(2))
    backwards = [same.indices(step) for step in reversed(range(10))]
    assert [steps.indices(step) for step in range(10)] == backwards[::-1]
    other = Steps(groups(40), 8, 2, 50, seed=2)
    assert steps.indices(0) != other.indices(0)
    assert steps.indices(0) != steps.indices(5)  # the next epoch's first step
    for changed in (Steps(groups(40, negatives=3), 8, 2, 9, seed=1), Steps(groups(40), 8, 2, 50, 1, ranks=(1, 3))):
        assert [changed.indices(step) for step in range(10)] == [steps.indices(step) for step in range(10)]


@given(count=COUNTS, per_step=st.integers(1, 12), negatives=st.integers(0, 3), budget=st.integers(1, 2000), seed=SEEDS)
def test_steps_token_budget_is_reached_by_the_last_step(
    count: int, per_step: int, negatives: int, budget: int, seed: int
) -> None:
    batch = groups(count, negatives, seed)
    steps = Steps(batch, per_step, 1, 50, seed, budget=budget)
    tokens = [sum(part.packed.input_ids.numel() for part in steps[i].microbatches) for i in range(len(steps))]
    assert sum(tokens) == steps.tokens
    assert sum(tokens[:-1]) < budget <= sum(tokens)


def test_steps_tokens_equal_hand_computation() -> None:
    batch = [Group("a", [1, 2], [3], [[4, 5, 6], [7]]), Group("b", [1], [2, 3], [[4]])]
    assert Steps(batch, 2, 3, 50, seed=0).tokens == 3 * (7 + 4)
    # An epoch has (2 + 1 + 3) + (1 + 2 + 1) = 10 tokens, so a budget of 11 takes two epochs.
    fewer = [Group("a", [1, 2], [3], [[4, 5, 6]]), Group("b", [1], [2, 3], [[4]])]
    assert (len(Steps(fewer, 2, 1, 50, seed=0, budget=11)), Steps(fewer, 2, 1, 50, seed=0, budget=11).tokens) == (2, 20)


@given(count=COUNTS, budget=st.integers(1, 120), negatives=st.integers(0, 3), seed=SEEDS)
def test_split_into_microbatches_keeps_groups_and_token_limit(
    count: int, budget: int, negatives: int, seed: int
) -> None:
    batch = groups(count, negatives, seed)
    microbatches = split_into_microbatches(batch, budget)
    assert Counter(g.id for part in microbatches for g in part) == Counter(g.id for g in batch)
    assert all(len(part) == 1 or sum(map(length, part)) <= budget for part in microbatches)


def test_length_counts_prompt_once_and_each_response() -> None:
    assert length(Group("a", [1, 2], [3], [[4, 5, 6], [7]])) == 2 + 1 + 3 + 1


def test_balance_by_tokens_gives_longest_first_to_rank_with_fewest_tokens() -> None:
    named = {n: Group(str(n), [1] * (n - 1), [1], []) for n in (9, 7, 6, 5, 2)}
    lengths = [[length(g) for g in part] for part in balance_by_tokens([named[n] for n in (2, 5, 6, 7, 9)], 2)]
    assert lengths == [[9, 5, 2], [7, 6]] or lengths == [[9, 5], [7, 6, 2]]


@given(count=COUNTS, ranks=st.integers(1, 5), per_step=st.integers(1, 12), budget=st.integers(1, 80), seed=SEEDS)
def test_steps_ranks_partition_a_step(count: int, ranks: int, per_step: int, budget: int, seed: int) -> None:
    batch = groups(count, negatives=1)
    by_rank = [Steps(batch, per_step, 1, budget, seed, ranks=(rank, ranks)) for rank in range(ranks)]
    named = {group.id: group for group in batch}
    for number in range(len(by_rank[0])):
        parts = [steps[number] for steps in by_rank]
        expected = [batch[i] for i in by_rank[0].indices(number)]
        assert len({len(step.microbatches) for step in parts}) == 1
        assert all(step.microbatches for step in parts)
        assert sorted(name for step in parts for name in ids_of(step)) == sorted(g.id for g in expected)
        assert {step.groups for step in parts} == {len(expected)}
        assert {step.target_tokens for step in parts} == {sum(len(g.target) for g in expected)}
        for part in (part for step in parts for part in step.microbatches):
            tokens = sum(length(named[name]) for name in part.packed.ids)
            assert part.packed.input_ids.numel() == tokens
            assert len(part.packed.ids) == 1 or tokens <= budget


def test_steps_share_prompts_if_it_saves_enough_tokens() -> None:
    """With two responses of 20 tokens, the bound is 44 / 42 for a prompt of 2 tokens, and 46 / 43 for one of 3."""

    def steps(prompt: int) -> Steps:
        return Steps([Group(str(i), [1] * prompt, [1] * 20, [[1] * 20]) for i in range(3)], 3, 1, 88, seed=0)

    assert (steps(2).sharing, steps(3).sharing) == (False, True)
    assert [part.packed.input_ids.shape[1] for part in steps(2)[0].microbatches] == [
        88,
        44,
    ]  # an unshared group has 44 tokens
    assert [part.packed.input_ids.shape[1] for part in steps(3)[0].microbatches] == [86, 43]
    assert steps(2).tokens == 3 * 42  # a budget counts a prompt once even if rows do not share it


def test_steps_model_without_sharing_has_unshared_rows() -> None:
    batch = [Group(str(i), [1] * 30, [1] * 10, [[1] * 10]) for i in range(3)]
    unshared, shared = (Steps(batch, 3, 1, 80, seed=0, may_share=may) for may in (False, True))
    assert (unshared.sharing, unshared.bound) == (False, 80 / 50)
    assert [part.packed.input_ids.shape[1] for part in unshared[0].microbatches] == [80, 80, 80]
    assert [part.packed.input_ids.shape[1] for part in shared[0].microbatches] == [50, 50, 50]
    assert unshared.tokens == shared.tokens


def test_steps_rank_without_groups_has_only_filler_microbatches() -> None:
    step = Steps(groups(1), 4, 1, 50, seed=0, ranks=(1, 2))[0]
    assert [part.counts for part in step.microbatches] == [False]
    assert (step.groups, ids_of(step)) == (1, [])


@pytest.mark.parametrize(("start", "expected_steps"), [(0, [0, 1, 2, 3]), (3, [3]), (4, [])])
def test_remaining_steps_start_at_given_step(start: int, expected_steps: list[int]) -> None:
    remaining = RemainingSteps(4, start)
    assert list(remaining) == expected_steps
    assert len(remaining) == 4
