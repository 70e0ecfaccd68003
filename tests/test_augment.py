"""Augmentation is a function of the key and the example's number, nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffrate_jax.data.augment import Augment, augment, normalise
from diffrate_jax.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
PLAIN = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))

jitted = jax.jit(augment, static_argnames=("config", "num_classes"))


def random_batch(size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    images_BYXC = rng.integers(0, 256, (size, 9, 7, 3)).astype(np.uint8)
    labels_B = np.arange(size, dtype=np.int32) % 5
    return jnp.array(images_BYXC), jnp.array(labels_B), jnp.arange(size)


def moved(image_YXC: np.ndarray, down: int, right: int, *, flip: bool) -> np.ndarray:
    """Shifts by padding and slicing, as one would by hand."""
    reach = 2
    if flip:
        image_YXC = image_YXC[:, ::-1]
    # A flip follows the shift, hence turns its direction around.
    right = -right if flip else right
    padded = np.pad(image_YXC, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width, _ = image_YXC.shape
    return padded[reach - down :, reach - right :][:height, :width]


def test_normalise_matches_numpy_for_bytes_and_floats():
    images_BYXC = np.asarray(random_batch(3)[0])
    expected = (images_BYXC / 255 - np.array(MEAN)) / np.array(STD)
    for dtype in (np.uint8, np.float32):
        found = normalise(jnp.array(images_BYXC.astype(dtype)), MEAN, STD)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_nothing_asked_nothing_done():
    images_BYXC, labels_B, index_B = random_batch(4)
    config = Augment(mean=MEAN, std=STD)
    found, soft_BV = augment(
        images_BYXC, labels_B, index_B, jax.random.key(0), config, num_classes=5
    )
    np.testing.assert_array_equal(found, normalise(images_BYXC, MEAN, STD))
    np.testing.assert_array_equal(soft_BV, np.eye(5)[labels_B])


@pytest.mark.parametrize("parts", [2, 4])
def test_result_does_not_depend_on_the_number_of_devices(parts):
    images_BYXC, labels_B, index_B = random_batch(8)
    config = Augment(mean=MEAN, std=STD, flip=True, shift=2, label_smoothing=0.1)
    key = jax.random.key(3)
    whole = jitted(images_BYXC, labels_B, index_B, key, config, 5)
    halves = []
    for share in np.split(np.arange(8), parts):
        args = images_BYXC[share], labels_B[share], index_B[share]
        halves.append(jitted(*args, key, config, 5))
    for full, split in zip(whole, zip(*halves, strict=True), strict=True):
        np.testing.assert_array_equal(full, jnp.concatenate(split))


def test_every_image_is_a_shift_and_flip_of_its_original():
    images_BYXC, labels_B, index_B = random_batch(64)
    config = Augment(*PLAIN, flip=True, shift=2)
    found, _ = jitted(images_BYXC, labels_B, index_B, jax.random.key(1), config, 5)
    found = np.round(np.asarray(found)).astype(np.uint8)
    seen = set()
    for original_YXC, image_YXC in zip(np.asarray(images_BYXC), found, strict=True):
        ways = [
            (down, right, flip)
            for down in range(-2, 3)
            for right in range(-2, 3)
            for flip in (False, True)
            if np.array_equal(image_YXC, moved(original_YXC, down, right, flip=flip))
        ]
        assert len(ways) == 1
        seen.update(ways)
    assert len(seen) > 30  # of 50 ways, 64 draws reach 36 on average
    assert {flip for _, _, flip in seen} == {False, True}
    assert {down for down, _, _ in seen} == {right for _, right, _ in seen}
    assert {down for down, _, _ in seen} == set(range(-2, 3))


def test_keys_and_indices_change_the_draw():
    images_BYXC, labels_B, index_B = random_batch(16)
    config = Augment(mean=MEAN, std=STD, shift=2)
    args = images_BYXC, labels_B
    first, _ = jitted(*args, index_B, jax.random.key(0), config, 5)
    other_key, _ = jitted(*args, index_B, jax.random.key(1), config, 5)
    other_index, _ = jitted(*args, index_B + 16, jax.random.key(0), config, 5)
    assert not np.array_equal(first, other_key)
    assert not np.array_equal(first, other_index)


def test_smoothed_labels_are_probabilities():
    images_BYXC, labels_B, index_B = random_batch(4)
    config = Augment(mean=MEAN, std=STD, label_smoothing=0.2)
    _, soft_BV = augment(images_BYXC, labels_B, index_B, jax.random.key(0), config, 5)
    np.testing.assert_allclose(soft_BV, np.eye(5)[labels_B] * 0.8 + 0.04, atol=1e-7)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"shift": -1}, "shift must be 0 or more pixels, found -1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(bad, sentence):
    with pytest.raises(UserError, match=sentence):
        Augment(**{"mean": MEAN, "std": STD, **bad})
