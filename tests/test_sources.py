"""Files of weights in other layouts, and those that cannot be read."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import load_golden
from safetensors.numpy import save_file

import diffrate_jax as dr
from diffrate_jax.sources import open_source
from diffrate_jax.weights import to_timm

ATTENTION = "MultiHeadDotProductAttention_1"


@pytest.fixture(scope="module")
def tensors(deit) -> dict[str, np.ndarray]:
    """The golden weights under timm's names."""
    found = to_timm(deit.model, deit.params)
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def google(tensors: dict[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """Writes weights in Google's layout, by hand; parity with timm's reader is slow."""
    t, found = tensors, {}
    width = t["norm.weight"].shape[0]
    found["cls"], found["Transformer/posembed_input/pos_embedding"] = (
        t["cls_token"], t["pos_embed"],
    )  # fmt: skip
    found["embedding/kernel"] = t["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    found["embedding/bias"] = t["patch_embed.proj.bias"]
    found["head/kernel"], found["head/bias"] = t["head.weight"].T, t["head.bias"]
    for kind, own in (("weight", "scale"), ("bias", "bias")):
        found[f"Transformer/encoder_norm/{own}"] = t[f"norm.{kind}"]
    blocks = sum(name.endswith("qkv.weight") for name in t)
    for number in range(blocks):
        b, block = f"Transformer/encoderblock_{number}/", f"blocks.{number}."
        for norm, own in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            found[f"{b}{own}/scale"] = t[f"{block}{norm}.weight"]
            found[f"{b}{own}/bias"] = t[f"{block}{norm}.bias"]
        for dense in (0, 1):
            own = f"{b}MlpBlock_3/Dense_{dense}/"
            found[f"{own}kernel"] = t[f"{block}mlp.fc{dense + 1}.weight"].T
            found[f"{own}bias"] = t[f"{block}mlp.fc{dense + 1}.bias"]
        qkv = np.split(t[f"{block}attn.qkv.weight"], 3)
        biases = np.split(t[f"{block}attn.qkv.bias"], 3)
        names = ("query", "key", "value")
        for name, matrix, bias in zip(names, qkv, biases, strict=True):
            own = f"{b}{ATTENTION}/{name}/"
            found[f"{own}kernel"] = matrix.T.reshape(width, heads, -1)
            found[f"{own}bias"] = bias.reshape(heads, -1)
        own = f"{b}{ATTENTION}/out/"
        found[f"{own}kernel"] = t[f"{block}attn.proj.weight"].T.reshape(
            heads, -1, width
        )
        found[f"{own}bias"] = t[f"{block}attn.proj.bias"]
    return found


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_googles_layout_bit_for_bit(deit, tensors, tmp_path: Path, prefix: str):
    arrays = google(tensors, deit.model.num_heads)
    np.savez(tmp_path / "w.npz", **{prefix + name: a for name, a in arrays.items()})
    found = dr.load_weights(deit.model, tmp_path / "w.npz")
    jax.tree.map(np.testing.assert_array_equal, found, deit.params)


def test_googles_layout_with_parts_missing_or_left_over(deit, tensors, tmp_path: Path):
    arrays = google(tensors, deit.model.num_heads)
    arrays["pre_logits/kernel"] = np.zeros((2, 2), np.float32)
    del arrays["embedding/bias"]
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(dr.UserError) as error:
        dr.load_weights(deit.model, tmp_path / "w.npz")
    assert "missing patch_embed.proj.bias; " in str(error.value)
    assert "unexpected pre_logits/kernel; " in str(error.value)
    del arrays[f"Transformer/encoderblock_1/{ATTENTION}/key/kernel"]
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(dr.UserError, match=r"lack .*encoderblock_1/.*/key/kernel; "):
        dr.load_weights(deit.model, tmp_path / "w.npz")


def test_an_npz_of_timms_names(deit, tensors, tmp_path: Path):
    np.savez(tmp_path / "w.npz", **tensors)
    found = dr.load_weights(deit.model, tmp_path / "w.npz")
    jax.tree.map(np.testing.assert_array_equal, found, deit.params)


class Harm:
    """Unpickling it would make a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_pickles_in_an_npz_are_not_run(deit, tensors, tmp_path: Path):
    harm = np.array([Harm(tmp_path / "mark")], object)
    np.savez(tmp_path / "w.npz", **tensors | {"cls_token": harm})
    with pytest.raises(dr.UserError, match="cannot read cls_token in .*w.npz"):
        dr.load_weights(deit.model, tmp_path / "w.npz")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("broken", ["empty", "cut", "text"])
def test_files_that_are_not_whole(deit, tensors, tmp_path: Path, suffix, broken: str):
    path = tmp_path / f"w{suffix}"
    np.savez(path, **tensors) if suffix == ".npz" else save_file(tensors, path)
    content = path.read_bytes()
    kinds = {"empty": b"", "cut": content[: len(content) // 2], "text": b"weights\n"}
    path.write_bytes(kinds[broken])
    with pytest.raises(dr.UserError, match=r"cannot read the weights .*; give a whole"):
        dr.load_weights(deit.model, path)


def test_pytorch_is_asked_for_where_it_is_missing(monkeypatch, tmp_path: Path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(dr.UserError, match="needs PyTorch, which is not installed;"):
        open_source(path)


@pytest.fixture
def hub(monkeypatch, tmp_path: Path) -> Path:
    """A hub that cannot be reached, and the folder of its cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def cached(hub: Path, repository: str, tensors: dict[str, np.ndarray]) -> None:
    """Puts weights where the hub's client would have put them."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    revision = "0" * 40
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    save_file(tensors, folder / "snapshots" / revision / "model.safetensors")


def test_the_hubs_cache_is_used(deit, tensors, hub: Path):
    cached(hub, "timm/deit", tensors)
    found = dr.load_weights(deit.model, "hf-hub:timm/deit")
    jax.tree.map(np.testing.assert_array_equal, found, deit.params)


def test_a_hub_that_cannot_be_reached(deit, hub: Path):
    with pytest.raises(dr.UserError, match="hf-hub:timm/deit is not in the local"):
        dr.load_weights(deit.model, "hf-hub:timm/deit")
    with pytest.raises(dr.UserError, match=r"cannot fetch hf-hub:a/b/c: .*; check its"):
        dr.load_weights(deit.model, "hf-hub:a/b/c")


def test_golden_weights_of_mae_are_averaged(tmp_path: Path):
    golden = load_golden("mae")
    dr.save_weights(golden.model, golden.params, tmp_path / "w.safetensors")
    found = dr.load_weights(golden.model, tmp_path / "w.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found, golden.params)
