"""Corrupted images: what each corruption keeps, and that an image decides its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffrate_jax.data.corrupt import KINDS, Corruption
from diffrate_jax.errors import UserError

few = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 2**32 - 1)
SIZE = 16


@functools.partial(jax.jit, static_argnames="corruption")
def corrupted(corruption: Corruption, images, number=None) -> jax.Array:
    number = jnp.arange(len(images)) if number is None else number
    return corruption(images, number)


def photos(seed: int, count: int = 3) -> np.ndarray:
    """Returns bytes [count, 16, 16, 3] of mild colours, no two images alike."""
    rng = np.random.default_rng(seed)
    return rng.integers(60, 190, (count, SIZE, SIZE, 3)).astype(np.uint8)


@few
@given(seed=seeds, kind=st.sampled_from(sorted(KINDS)))
def test_severity_0_changes_nothing(seed: int, kind: str):
    images = photos(seed)
    np.testing.assert_array_equal(corrupted(Corruption(kind, 0.0), images), images)


@few
@given(seed=seeds, kind=st.sampled_from(sorted(KINDS)))
def test_a_little_changes_little(seed: int, kind: str):
    """No jump at 0, and no severity leaves the range of colours."""
    images = photos(seed)
    slight = corrupted(Corruption(kind, 1e-4), images)
    np.testing.assert_allclose(slight, images, atol=0.2)
    for severity in (0.5, KINDS[kind][0]):
        out = np.asarray(corrupted(Corruption(kind, severity), images))
        assert out.dtype == np.float32
        assert 0 <= out.min() <= out.max() <= 255


@few
@given(seed=seeds, std=st.sampled_from([0.01, 0.02, 0.05]))
def test_noise_has_mean_0_and_its_standard_deviation(seed: int, std: float):
    images = photos(seed, count=24)
    noise = np.asarray(corrupted(Corruption("noise", std), images)) / 255
    noise = noise - images / 255.0
    error = std / np.sqrt(noise.size)
    assert abs(noise.mean()) < 6 * error
    assert abs(noise.std() / std - 1) < 6 / np.sqrt(2 * noise.size)
    # Every image has noise of its own.
    between = np.corrcoef(noise.reshape(24, -1)) - np.eye(24)
    assert np.abs(between).max() < 6 / np.sqrt(noise[0].size)


@few
@given(seed=seeds, kind=st.sampled_from(sorted(KINDS)))
def test_an_image_s_number_decides_and_not_its_place(seed: int, kind: str):
    """So batches, devices and hosts do not matter, and numbers do for noise alone."""
    images, corruption = photos(seed, count=4), Corruption(kind, 0.3)
    number = np.array([5, 0, 9, 2])
    whole = corrupted(corruption, images, number)
    order = np.random.default_rng(seed).permutation(4)
    np.testing.assert_array_equal(
        corrupted(corruption, images[order], number[order]), whole[order]
    )
    np.testing.assert_array_equal(
        corrupted(corruption, images[:1], number[:1]), whole[:1]
    )
    other = np.asarray(corrupted(corruption, images, number + 1))
    assert (kind == "noise") == (np.abs(other - whole).max() > 1)


@few
@given(seed=seeds, lost=st.sampled_from([0.05, 0.5, 1.0]))
def test_contrast_keeps_the_mean_and_loses_its_share(seed: int, lost: float):
    images = photos(seed)
    out = np.asarray(corrupted(Corruption("contrast", lost), images))
    mean = images.mean(axis=(1, 2))
    np.testing.assert_allclose(out.mean(axis=(1, 2)), mean, atol=2e-3)
    spread = images.std(axis=(1, 2)) * (1 - lost)
    np.testing.assert_allclose(out.std(axis=(1, 2)), spread, atol=2e-3)


@few
@given(seed=seeds, sigma=st.sampled_from([0.4, 1.0, 2.0]))
def test_blur_keeps_what_is_flat_and_smooths_the_rest(seed: int, sigma: float):
    blur = Corruption("blur", sigma)
    flat = np.full((1, SIZE, SIZE, 3), seed % 256, np.uint8)
    np.testing.assert_allclose(corrupted(blur, flat), flat, atol=1e-3)
    images = photos(seed)
    out = np.asarray(corrupted(blur, images))
    assert (out.std(axis=(1, 2)) < images.std(axis=(1, 2))).all()
    more = np.asarray(corrupted(Corruption("blur", 2 * sigma), images))
    assert (more.std(axis=(1, 2)) < out.std(axis=(1, 2))).all()
    # Mirrored images stay mirrored.
    np.testing.assert_allclose(
        corrupted(blur, images[:, ::-1, ::-1]), out[:, ::-1, ::-1], atol=1e-3
    )


def test_blur_spreads_a_point_as_a_gaussian():
    sigma, size = 1.2, 41
    point = np.zeros((1, size, size, 3), np.uint8)
    point[0, 20, 20] = 255
    out = np.asarray(corrupted(Corruption("blur", sigma), point))[0, :, :, 0]
    place = np.arange(size) - 20
    share = out / out.sum()
    np.testing.assert_allclose(out.sum(), 255, rtol=1e-4)
    np.testing.assert_allclose(
        (share.sum(axis=1) * place**2).sum(), sigma**2, rtol=0.01
    )
    ratio = out[20, 22] / out[20, 20]
    np.testing.assert_allclose(ratio, np.exp(-2 / sigma**2), rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nois:0.1", "unknown corruption 'nois'; did you mean 'noise'"),
        ("noise", "is noise:0.1, blur:1.0 or contrast:0.5, or nothing, got 'noise'"),
        ("blur:much", "or nothing, got 'blur:much'"),
        ("noise:1.5", r"severity of noise must be from 0 to 1 \(standard deviation"),
        ("contrast:-0.1", "severity of contrast must be from 0 to 1"),
        ("blur:nan", "severity of blur must be from 0 to 100"),
        ("blur:inf", "severity of blur must be from 0 to 100"),
    ],
)
def test_what_is_no_corruption_is_one_sentence(text: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        Corruption.parse(text)


def test_corruptions_are_read():
    assert Corruption.parse("") is None
    assert Corruption.parse("noise:0.1") == Corruption("noise", 0.1)
    assert Corruption.parse("blur:1") == Corruption("blur", 1.0)
