"""The same views whatever the batch size, order or epoch they are reached in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import kdzoo
from kdzoo.data.augment import Augmentation
from kdzoo.data.hashing import hashed, hashed_below
from kdzoo.data.images import Images, ImageSet
from kdzoo.data.load import load_images
from kdzoo.extend.bases import DataSource
from kdzoo.extend.registry import registry


def loaded(**params: object) -> ImageSet:
    data = registry().make(DataSource.kind, "sample-odd", params).load()
    return load_images("sample-odd", data, torch.device("cpu"), cache=Path("unused"))


def images(validation: float = 0.1, split_seed: int = 0, **params: object) -> Images:
    return loaded(**params).prepare(validation=validation, split_seed=split_seed, augment_seed=5)


def views(batch_size: int, epoch: int = 3) -> dict[int, torch.Tensor]:
    seen = {}
    for view in images(per_class=20).epoch(epoch, batch_size, seed=1):
        for row, index in enumerate(view.indices.tolist()):
            seen[index] = view.inputs[row]
    return seen


@pytest.mark.parametrize("batch_size", [2, 7, 53])
def test_views_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    one, other = views(16), views(batch_size)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[index], other[index]) for index in one)


def test_views_are_a_function_of_epoch_index_and_seed() -> None:
    batch = torch.arange(5 * 2 * 4 * 4).byte().view(5, 2, 4, 4)
    indices = torch.tensor([9, 3, 12, 3, 7])
    augment = Augmentation(seed=1, crop=2, flip=True)
    at_once = augment(batch, indices, epoch=4)
    for row in range(5):
        alone = augment(batch[row : row + 1], indices[row : row + 1], epoch=4)
        assert torch.equal(alone[0], at_once[row])
    assert not torch.equal(at_once, augment(batch, indices, epoch=5))
    assert not torch.equal(at_once, Augmentation(seed=2, crop=2, flip=True)(batch, indices, 4))


def test_a_view_is_a_crop_of_the_padded_image_perhaps_mirrored() -> None:
    image = torch.arange(1, 36).byte().view(1, 1, 5, 7)
    padded = torch.nn.functional.pad(image, [2] * 4)[0]
    crops = [padded[:, y : y + 5, x : x + 7] for y in range(5) for x in range(5)]
    allowed = [*crops, *(crop.flip(2) for crop in crops)]
    seen = set()
    for index in range(300):
        view = Augmentation(0, crop=2, flip=True)(image, torch.tensor([index]), epoch=0)[0]
        matches = [i for i, crop in enumerate(allowed) if torch.equal(view, crop)]
        assert matches
        seen.add(matches[0])
    assert len(seen) == 50  # every offset, mirrored and not


def test_all_views_have_the_channels_last_in_memory() -> None:
    for crop, flip in ((None, None), (0, False)):
        data = loaded(per_class=20).prepare(
            validation=0.1, split_seed=0, augment_seed=5, crop=crop, flip=flip
        )
        for view in (*data.epoch(0, 8, seed=0), *data.train.plain(7), *data.test.plain()):
            assert view.inputs.is_contiguous(memory_format=torch.channels_last)
            assert view.inputs.shape[1:] == data.input_shape == (2, 5, 7)


def test_splits_and_seeds_share_one_copy_of_the_images() -> None:
    at_once = loaded(per_class=20)
    seen = at_once.train_pixels.data_ptr()
    for seed in (0, 1):
        data = at_once.prepare(validation=0.1, split_seed=seed, augment_seed=seed)
        assert data.train._pixels.data_ptr() == data.validation._pixels.data_ptr() == seen


def test_plain_views_are_the_sources_own_images() -> None:
    source = registry().make(DataSource.kind, "sample-odd", {}).load()
    data = images()
    for split in (data.train, data.validation, data.train.sample(7)):
        for view in split.plain(4):
            pixels = (view.inputs * 255).round().byte()
            assert torch.equal(pixels, source.train_images[view.indices])
            assert torch.equal(view.targets, source.train_targets[view.indices])


def test_a_sample_is_of_all_classes_and_always_the_same() -> None:
    """A source's rows may lie in the order of their classes, or have each class in turn."""
    data = images(per_class=100)
    sample, again = data.train.sample(200), data.train.sample(200)
    assert torch.equal(sample.indices, again.indices)
    assert len(sample.indices.unique()) == 200
    counts = sample.counts(len(data.classes))
    assert counts is not None
    assert min(counts) >= 10
    assert torch.equal(data.train.sample(10**6).indices, data.train.indices)


def test_no_augmentation_leaves_the_images_as_they_are() -> None:
    batch = torch.randint(0, 256, (3, 1, 4, 4)).byte()
    assert torch.equal(Augmentation(0, crop=0, flip=False)(batch, torch.arange(3), 0), batch)


def test_hashes_are_uniform_and_independent_of_company() -> None:
    draws = hashed_below(5, 3, torch.arange(50_000), 1)
    assert (draws.bincount(minlength=5) / 10_000 - 1).abs().max() < 0.03
    others = hashed_below(5, 3, torch.arange(50_000), 2)
    joint = (draws * 5 + others).bincount(minlength=25) / 2_000
    assert (joint - 1).abs().max() < 0.1
    assert torch.equal(
        hashed(3, torch.arange(50_000), 1)[[7, 3]], hashed(3, torch.tensor([7, 3]), 1)
    )
    # Known values: no version, device or platform may change anybody's views.
    assert hashed(0, torch.tensor([0, 1, 2**40]), 0, 1).tolist() == KNOWN


KNOWN = [4068904935, 3313493368, 67132247]


def test_every_image_passes_once_an_epoch_in_a_new_order() -> None:
    data = images(per_class=11)
    orders = []
    for epoch in range(2):
        batches = list(data.epoch(epoch, 8, seed=0))
        assert len(batches) == len(data.sizes(8))
        orders.append(torch.cat([batch.indices for batch in batches]))
        assert torch.equal(orders[-1].sort().values, data.train.indices.sort().values)
    assert not torch.equal(*orders)


@pytest.mark.parametrize(("count", "batch_size"), [(33, 8), (33, 16), (33, 32), (33, 33), (33, 64)])
def test_no_batch_has_a_single_image(count: int, batch_size: int) -> None:
    data = images(validation=0)
    assert len(data.train) == count
    sizes = [len(view.targets) for view in data.epoch(0, batch_size, seed=0)]
    assert sum(sizes) == count
    assert min(sizes) > 1
    assert sizes == data.sizes(batch_size)


def test_validation_is_stratified_seeded_and_apart() -> None:
    data = images(0.2, per_class=20)
    assert data.validation.targets.bincount().tolist() == [4, 4, 4]
    assert not set(data.validation.indices.tolist()) & set(data.train.indices.tolist())
    assert torch.equal(images(0.2, per_class=20).validation.indices, data.validation.indices)
    other = images(0.2, split_seed=1, per_class=20).validation.indices
    assert not torch.equal(other, data.validation.indices)
    assert images(0.001, per_class=20).validation.targets.bincount().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("label", "train_targets has a class outside 0 to 2"),
        ("dtype", r"train_images is torch.float32 of shape .*; it must be uint8"),
        ("class", 'class "y" has no training images; 2 are needed'),
    ],
)
def test_wrong_images_are_named(wrong: str, message: str) -> None:
    with pytest.raises(kdzoo.DataError, match=f'data "sample-odd": {message}'):
        images(wrong=wrong)


def test_a_single_image_of_a_class_and_a_single_class_are_too_few() -> None:
    with pytest.raises(kdzoo.DataError, match='class "x" has one training image; 2 are needed'):
        images(per_class=1)
    pixels, targets = torch.zeros(4, 1, 5, 5).byte(), torch.zeros(4, dtype=torch.int64)
    for classes, has in ((("x",), "has one class"), ((), "has no classes")):
        data = kdzoo.ImageData(pixels, targets, pixels, targets, classes, (0.5,), (0.25,))
        with pytest.raises(kdzoo.DataError, match=f"{has}; at least 2 are needed"):
            load_images("few", data, torch.device("cpu"), cache=Path("unused"))


def test_digits_are_what_they_are_said_to_be() -> None:
    data = registry().make(DataSource.kind, "digits", {}).load()
    assert data.train_images.shape == (1201, 1, 8, 8)
    assert data.test_images.shape == (596, 1, 8, 8)
    assert min(data.test_targets.bincount()) > 55
    pixels = data.train_images.float() / 255
    assert pixels.mean().item() == pytest.approx(data.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(data.std[0], abs=1e-4)
