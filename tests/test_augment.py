"""Augmentation is a function of the key and the example's number, nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from diffrate_jax.data.augment import Augment, augment, normalise
from diffrate_jax.data.mix import symmetric_beta
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


EVERYTHING = Augment(
    mean=MEAN,
    std=STD,
    flip=True,
    shift=2,
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    erasing=0.5,
)


def pictures(size: int, side: int = 32) -> jax.Array:
    """Images whose every byte tells which image it is of, in pairs of 0 and 200."""
    levels_B = 200 * (np.arange(size) % 2)
    shape = (size, side, side, 3)
    return jnp.array(np.broadcast_to(levels_B[:, None, None, None], shape), jnp.uint8)


def mixed(size: int, **alphas: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns how much of each pixel [B, Y, X], and of each label [B], is its own."""
    labels_B = jnp.arange(size) % 2
    config = Augment(*PLAIN, **alphas)
    args = pictures(size), labels_B, jnp.arange(size), jax.random.key(5), config, 2
    images_BYXC, labels_BV = (np.asarray(x, np.float64) for x in jitted(*args))
    np.testing.assert_allclose(np.ptp(images_BYXC, axis=-1), 0, atol=1e-4)
    odd_BYX = images_BYXC[..., 0] / 200
    own_BYX = np.where(np.arange(size)[:, None, None] % 2, odd_BYX, 1 - odd_BYX)
    return own_BYX, labels_BV[np.arange(size), labels_B]


@pytest.mark.parametrize("parts", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_mixing_does_not_depend_on_the_number_of_devices(parts):
    images_BYXC, labels_B, index_B = random_batch(16)
    key = jax.random.key(3)
    whole = jitted(images_BYXC, labels_B, index_B, key, EVERYTHING, 5)
    shares = []
    for share in np.split(np.arange(16), parts):
        args = images_BYXC[share], labels_B[share], index_B[share]
        shares.append(jitted(*args, key, EVERYTHING, 5))
    for full, split in zip(whole, zip(*shares, strict=True), strict=True):
        np.testing.assert_array_equal(full, jnp.concatenate(split))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.1]))
def test_mixed_labels_are_probabilities(seed, smoothing):
    images_BYXC, labels_B, index_B = random_batch(8)
    config = Augment(*PLAIN, mixup=0.8, cutmix=1.0, label_smoothing=smoothing)
    args = images_BYXC, labels_B, index_B, jax.random.key(seed), config, 5
    _, labels_BV = jitted(*args)
    assert labels_BV.min() >= 0
    np.testing.assert_allclose(labels_BV.sum(axis=1), 1, atol=1e-6)
    # Neighbours keep the same share of themselves: together they lose nothing.
    plain_BV = np.eye(5)[labels_B] * (1 - smoothing) + smoothing / 5
    both = labels_BV.reshape(4, 2, 5).sum(axis=1), plain_BV.reshape(4, 2, 5).sum(axis=1)
    np.testing.assert_allclose(*both, atol=1e-6)


def test_mixup_mixes_neighbours_in_the_share_of_their_labels():
    own_BYX, share_B = mixed(2000, mixup=0.8)
    np.testing.assert_allclose(own_BYX, share_B[:, None, None] + 0 * own_BYX, atol=1e-5)
    np.testing.assert_array_equal(share_B[::2], share_B[1::2])
    # Beta(0.8, 0.8): its mean, its variance and their standard errors.
    share_G, variance = share_B[::2], 1 / (4 * (2 * 0.8 + 1))
    assert abs(share_G.mean() - 0.5) < 4 * np.sqrt(variance / 1000)
    assert abs(share_G.var() - variance) < 0.1 * variance


def test_cutmix_shows_a_rectangle_of_the_neighbour():
    own_BYX, share_B = mixed(2000, cutmix=1.0)
    assert set(np.unique(own_BYX.round(4))) == {0.0, 1.0}
    np.testing.assert_array_equal(own_BYX[::2].round(), own_BYX[1::2].round())
    np.testing.assert_allclose(own_BYX.mean(axis=(1, 2)), share_B, atol=1e-5)
    for own_YX in own_BYX[::40]:
        rows_Y, columns_X = ((own_YX < 0.5).any(axis=axis) for axis in (1, 0))
        inside_YX = rows_Y[:, None] & columns_X[None, :]
        np.testing.assert_array_equal(own_YX < 0.5, inside_YX)
        assert all(np.abs(np.diff(line)).sum() <= 2 for line in (rows_Y, columns_X))
    # Drawn evenly, before what lies outside the image is cut off.
    assert 0.6 < share_B.mean() < 0.8
    assert share_B.min() < 0.2 < 0.99 < share_B.max()


@settings(max_examples=8, deadline=None)
@given(st.floats(0.1, 5))
def test_shares_follow_the_beta_distribution(alpha):
    uniform_4N = jax.random.uniform(jax.random.key(7), (4, 20000), minval=1e-30)
    found_N = np.asarray(symmetric_beta(jnp.float32(alpha), *uniform_4N))
    # Near 1 a float has fewer places than near 0.
    found_N = np.minimum(found_N, 1 - found_N)
    expected = lambda x: 2 * scipy.stats.beta(alpha, alpha).cdf(x)  # noqa: E731
    distance = scipy.stats.ks_1samp(found_N, expected).statistic
    assert distance < 0.015 + expected(1e-7)


def test_each_takes_half_of_the_pairs():
    own_BYX, _ = mixed(2000, mixup=0.8, cutmix=1.0)
    cut_B = (np.abs(own_BYX - 0.5) > 0.4999).all(axis=(1, 2))
    assert abs(cut_B.mean() - 0.5) < 4 * np.sqrt(0.25 / 1000)


def test_probabilities_are_mixed_and_not_smoothed():
    images_BYXC, labels_B, index_B = random_batch(8)
    hard_BV = np.eye(5, dtype=np.float32)[labels_B]
    rest = index_B, jax.random.key(0)
    sharp = Augment(*PLAIN, mixup=0.8, cutmix=1.0)
    wanted = jitted(images_BYXC, labels_B, *rest, sharp, 5)
    smooth = dataclasses.replace(sharp, label_smoothing=0.1)
    found = jitted(images_BYXC, hard_BV, *rest, smooth, 5)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_half_a_pair_is_refused_in_a_sentence(mixing):
    images_BYXC, labels_B, index_B = random_batch(3)
    config = Augment(mean=MEAN, std=STD, **mixing)
    with pytest.raises(
        UserError, match="an even number of them, got 3 per device; cha"
    ):
        jitted(images_BYXC, labels_B, index_B, jax.random.key(0), config, 5)


def test_erasing_puts_noise_into_a_rectangle():
    size, side = 2000, 40
    config = Augment(*PLAIN, erasing=0.25)
    images = jnp.full((size, side, side, 3), 200, jnp.uint8)
    args = jnp.zeros(size, jnp.int32), jnp.arange(size), jax.random.key(2), config, 2
    found, _ = jitted(images, *args)
    found = np.asarray(found)
    erased_BYX = (np.abs(found - 200) > 1e-3).all(axis=-1)
    hit_B = erased_BYX.any(axis=(1, 2))
    assert abs(hit_B.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / size)
    np.testing.assert_allclose(found[~erased_BYX], 200, rtol=1e-6)
    noise = found[erased_BYX]
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    sides = []
    for erased_YX in erased_BYX[hit_B]:
        rows_Y, columns_X = erased_YX.any(axis=1), erased_YX.any(axis=0)
        np.testing.assert_array_equal(erased_YX, rows_Y[:, None] & columns_X[None, :])
        sides.append((rows_Y.sum(), columns_X.sum()))
    high_B, wide_B = np.array(sides).T
    # Both sides are rounded to pixels.
    area_B = high_B * wide_B / side**2
    assert 0.01 < area_B.min() < 0.05
    assert 0.28 < area_B.max() < 0.36
    assert 0.2 < (high_B / wide_B).min() < 0.5
    assert 2 < (high_B / wide_B).max() < 5


def test_everything_random_can_be_left_out():
    assert EVERYTHING.plain() == Augment(mean=MEAN, std=STD, label_smoothing=0.1)


def test_everything_lowers_for_a_tpu():
    images_BYXC, labels_B, index_B = random_batch(4)
    args = images_BYXC, labels_B, index_B, jax.random.key(0)
    traced = jitted.trace(*args, EVERYTHING, 5)
    assert "module" in traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"shift": -1}, "shift must be 0 or more pixels, found -1"),
        ({"mixup": -0.1}, "mixup must be 0 or more, found -0.1; raise it"),
        ({"cutmix": -1.0}, "cutmix must be 0 or more, found -1.0; raise it"),
        ({"erasing": 1.5}, "erasing must be from 0 to 1, found 1.5; change it"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(bad, sentence):
    with pytest.raises(UserError, match=sentence):
        Augment(**{"mean": MEAN, "std": STD, **bad})
