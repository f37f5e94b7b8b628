"""Test the segment batches that need no mask: every token occurs once, and at most a quarter of a row is padding."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from selfcontrast.models.attention.blocks import batches
from selfcontrast.models.packing import Group, pack

TOKENS = st.lists(st.integers(0, 50), min_size=1, max_size=12)
GROUPS = st.lists(st.builds(Group, st.just("g"), TOKENS, TOKENS, st.lists(TOKENS, max_size=4)), min_size=1, max_size=4)


@given(GROUPS)
def test_buckets_hold_every_token_once(groups: list[Group]) -> None:
    layout = pack(groups).layout
    batched = batches(layout)
    flat = torch.cat([bucket.tokens.flatten() for bucket in batched.buckets])
    row = torch.arange(sum(layout.lengths))
    assert torch.equal(flat[batched.slot], row)
    assert len(batched.slot.unique()) == len(row)
    unpadded = torch.cat([_unpadded_tokens(bucket.tokens, bucket.padding) for bucket in batched.buckets])
    assert torch.equal(unpadded.sort().values, row)


@given(GROUPS)
def test_bucket_rows_are_single_segments_with_little_padding(groups: list[Group]) -> None:
    layout = pack(groups).layout
    for bucket in batches(layout).buckets:
        segments = layout.segment[bucket.tokens]
        assert (segments == segments[:, :1]).all()
        padding = torch.zeros_like(bucket.tokens, dtype=torch.bool) if bucket.padding is None else bucket.padding
        assert (padding.float().mean(-1) <= 0.25).all()
        for tokens, pads in zip(bucket.tokens, padding, strict=True):
            kept = tokens[~pads]
            assert torch.equal(kept, torch.arange(int(kept[0]), int(kept[0]) + len(kept)))
            assert not pads[: len(kept)].any()


def _unpadded_tokens(tokens: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    return tokens.flatten() if padding is None else tokens[~padding]
