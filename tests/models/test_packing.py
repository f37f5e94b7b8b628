"""Compare packing with a plain loop over tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfcontrast.models.packing import Group, pack, sharing_bound, sum_per_response

TOKENS = st.lists(st.integers(0, 50), min_size=1, max_size=12)
GROUPS = st.lists(
    st.builds(Group, st.text(max_size=3), TOKENS, TOKENS, st.lists(TOKENS, max_size=4)),
    min_size=1,
    max_size=4,
)


def test_pack_equals_values_by_hand() -> None:
    packed = pack([Group("a", [1, 2], [3, 4], [[5], [6, 7]]), Group("b", [8], [9], [])])
    assert packed.ids == ("a", "b")
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2, 2, 3, 0, 1]]
    assert packed.labels.tolist() == [3, 4, 5, 6, 7, 9]
    assert packed.predictors.tolist() == [1, 2, 1, 1, 5, 7]
    assert packed.segments.tolist() == [0, 0, 1, 2, 2, 3]
    assert packed.lengths.tolist() == [[2, 1, 2], [1, 0, 0]]
    assert packed.mask.tolist() == [[True, True], [False, False]]


def test_pack_without_sharing_equals_values_by_hand() -> None:
    groups = [Group("a", [1, 2], [3, 4], [[5], [6, 7]]), Group("b", [8], [9], [])]
    packed, shared = pack(groups, sharing=False), pack(groups)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 1, 2, 5, 1, 2, 6, 7, 8, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 0, 1]]
    assert packed.predictors.tolist() == [1, 2, 5, 8, 9, 11]
    assert packed.layout.lengths == (4, 3, 4, 2)
    assert packed.layout.groups == ((0, 4, 4), (4, 7, 7), (7, 11, 11), (11, 13, 13))
    assert packed.layout.sharing == ()
    assert packed.layout.segment.tolist() == packed.layout.prompt.tolist() == [0] * 4 + [1] * 3 + [2] * 4 + [3] * 2
    for name in ("ids", "labels", "segments", "lengths", "mask"):  # the objective's inputs are equal
        actual, expected = getattr(packed, name), getattr(shared, name)
        assert torch.equal(actual, expected) if isinstance(actual, torch.Tensor) else actual == expected


def test_sharing_bound_equals_value_by_hand() -> None:
    # Separate rows have (3 * 2 + 5) + (1 + 1) tokens. Packed groups have (2 + 5) + (1 + 1).
    assert sharing_bound([Group("a", [1, 2], [3, 4], [[5], [6, 7]]), Group("b", [8], [9], [])]) == 13 / 9
    assert sharing_bound([Group("b", [8], [9], [])]) == 1


@given(GROUPS, st.booleans())
def test_pack_response_equals_a_separate_row(groups: list[Group], sharing: bool) -> None:
    packed = pack(groups, sharing)
    columns = packed.mask.shape[1] + 1
    for row, group in enumerate(groups):
        for column, response in enumerate(group.responses):
            at = packed.segments == row * columns + column
            assert packed.labels[at].tolist() == response
            predictors = packed.predictors[at]
            assert packed.input_ids[0, predictors].tolist() == [group.prompt[-1], *response[:-1]]
            first = len(group.prompt) - 1
            assert packed.position_ids[0, predictors].tolist() == [*range(first, first + len(response))]
    assert len(packed.labels) == sum(len(response) for group in groups for response in group.responses)


@given(GROUPS)
def test_sum_per_response_equals_a_loop(groups: list[Group]) -> None:
    packed = pack(groups)
    values = torch.arange(len(packed.labels), dtype=torch.float64) + 1
    expected = torch.zeros(packed.lengths.shape, dtype=torch.float64)
    token = iter(values.tolist())
    for row, group in enumerate(groups):
        for column, response in enumerate(group.responses):
            expected[row, column] = sum(next(token) for _ in response)
    assert torch.equal(sum_per_response(values, packed), expected)


def test_layout_group_without_negatives_shares_no_prompt() -> None:
    layout = pack([Group("a", [1, 2], [3], []), Group("b", [4], [5], [[6]])]).layout
    assert layout.sharing == ((3, 4, 6),)
    assert layout.segment.tolist() == [0, 0, 0, 1, 2, 3]
    assert layout.lengths == (3, 1, 1, 1)
    assert layout.longest == 3


def test_packed_to_moves_every_tensor() -> None:
    packed = pack([Group("a", [1, 2], [3], [[4, 5], [6]])]).to("meta")
    layout = packed.layout
    for tensor in (packed.input_ids, packed.mask, packed.lengths, layout.segment, layout.prompt, layout.position):
        assert tensor.device.type == "meta"


@pytest.mark.parametrize(("prompt", "target", "negatives"), [([], [1], []), ([1], [], []), ([1], [1], [[1], []])])
def test_group_with_empty_parts_raises(prompt: list[int], target: list[int], negatives: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="group x"):
        Group("x", prompt, target, negatives)


def test_pack_without_groups_raises() -> None:
    with pytest.raises(ValueError, match="at least one"):
        pack([])
