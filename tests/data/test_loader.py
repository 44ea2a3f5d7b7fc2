from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from uge.data.augment import crop_flip
from uge.data.loader import Batch, batches, fetch
from uge.data.store import PixelStore

MakeStore = Callable[..., PixelStore]
SHARED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def order(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.indices, b.indices)


@SHARED
@given(count=st.integers(1, 14), size=st.integers(1, 9), batch_size=st.integers(1, 16), seed=st.integers(0, 9))
def test_a_file_gives_the_batches_of_memory(
    make_store: MakeStore, count: int, size: int, batch_size: int, seed: int
) -> None:
    options = {"count": count, "size": size, "seed": seed}
    epochs = [
        list(
            batches(
                make_store(**options, resident_bytes=limit),
                batch_size,
                order=order(seed),
                augment=crop_flip,
                generator=order(seed + 1),
            )
        )
        for limit in (0, 2**30)
    ]
    assert len(epochs[0]) == len(epochs[1])
    assert all(same(a, b) for a, b in zip(*epochs, strict=True))


@SHARED
@given(count=st.integers(2, 14), batch_size=st.integers(2, 16), shuffled=st.booleans(), drop=st.booleans())
@example(count=9, batch_size=4, shuffled=True, drop=False)
@example(count=9, batch_size=4, shuffled=False, drop=False)
def test_every_image_once(make_store: MakeStore, count: int, batch_size: int, shuffled: bool, drop: bool) -> None:
    store = make_store(count=count, size=2)
    epoch = list(batches(store, batch_size, order=order() if shuffled else None, drop_last=drop))
    seen = [index for batch in epoch for index in batch.indices.tolist()]
    rest = count % batch_size if count > batch_size else 0
    left_out = rest if drop or (shuffled and rest == 1) else 0
    assert len(seen) == len(set(seen)) == count - left_out
    assert all(len(batch.x) == batch_size for batch in epoch[:-1])
    if not shuffled:
        assert seen == list(range(count - left_out))


def test_pixels_are_those_of_the_indices_in_0_to_1(make_store: MakeStore) -> None:
    store = make_store(count=10)
    for batch in batches(store, 4, order=order()):
        assert batch.x.dtype == torch.float32
        assert torch.equal((batch.x * 255).round().to(torch.uint8), store.pixels.read(batch.indices))
        assert 0 <= batch.x.min() <= batch.x.max() <= 1
        assert torch.equal(batch.y, store.labels[batch.indices])
        assert same(fetch(store, batch.indices), batch)


def test_order_depends_on_the_generator_only(make_store: MakeStore) -> None:
    store = make_store()

    def seen(seed: int) -> Tensor:
        return torch.cat([batch.indices for batch in batches(store, 5, order=order(seed))])

    assert torch.equal(seen(0), seen(0))
    assert not torch.equal(seen(0), seen(1))


def test_augmentation_does_not_reach_the_store(make_store: MakeStore) -> None:
    store = make_store()
    before = store.pixels.read(torch.arange(12))
    plain = torch.cat([batch.x for batch in batches(store, 12)])
    moved = torch.cat([batch.x for batch in batches(store, 12, augment=crop_flip, generator=order())])
    assert not torch.equal(plain, moved)
    assert torch.equal(store.pixels.read(torch.arange(12)), before)


def test_augmentation_without_random_numbers_is_a_mistake(make_store: MakeStore) -> None:
    with pytest.raises(AssertionError, match="needs a generator"):
        next(batches(make_store(), 4, augment=crop_flip))
