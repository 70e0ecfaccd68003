"""PyTorch's files: every layout that is found in the wild, and harmful ones."""

import argparse
import os
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="launch/parity.sh has an environment for it"
)
from conftest import load_golden  # noqa: E402

import diffrate_jax as dr  # noqa: E402
from diffrate_jax.weights import read_weights, to_timm  # noqa: E402


@pytest.fixture(scope="module", params=["deit", "mae"])
def golden(request: pytest.FixtureRequest):
    return load_golden(request.param)


def state_of(golden) -> dict[str, torch.Tensor]:
    tensors = to_timm(golden.model, golden.params)
    return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in tensors.items()}


def zeros(state: dict) -> dict:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


LAYOUTS = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "arch": "deit"},
    "averaged": lambda state: {"state_dict": zeros(state), "state_dict_ema": state},
    "model_ema": lambda state: {"model": zeros(state), "model_ema": state},
    "wrapped": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "flags": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_every_layout_bit_for_bit(golden, tmp_path: Path, layout: str, suffix: str):
    path = tmp_path / f"w{suffix}"
    torch.save(LAYOUTS[layout](state_of(golden)), path)
    loaded = read_weights(golden.model, path)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, golden.params)
    assert bool(loaded.notes) == (layout != "bare")


def test_the_old_file_format(golden, tmp_path: Path):
    path = tmp_path / "w.pth"
    torch.save(state_of(golden), path, _use_new_zipfile_serialization=False)
    found = dr.load_weights(golden.model, path)
    jax.tree.map(np.testing.assert_array_equal, found, golden.params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(golden, tmp_path: Path, dtype: torch.dtype):
    path = tmp_path / "w.pth"
    halves = {name: tensor.to(dtype) for name, tensor in state_of(golden).items()}
    torch.save(halves, path)
    back = to_timm(golden.model, dr.load_weights(golden.model, path))
    for name, half in halves.items():
        np.testing.assert_array_equal(back[name], half.float().numpy())


class Harm:
    """Unpickling it would run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_in_a_file_is_run(golden, tmp_path: Path):
    mark = tmp_path / "mark"
    for number, content in enumerate(
        ({"model": state_of(golden), "x": Harm(f"touch {mark}")}, Harm(f"touch {mark}"))
    ):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        with pytest.raises(dr.UserError, match="nothing of it was run"):
            dr.load_weights(golden.model, path)
    path = tmp_path / "plain.pth"
    path.write_bytes(pickle.dumps(Harm(f"touch {mark}"), protocol=2))
    with pytest.raises(dr.UserError):
        dr.load_weights(golden.model, path)
    assert not mark.exists()


@pytest.mark.parametrize("broken", ["empty", "cut", "renamed", "text"])
def test_files_that_are_not_whole(golden, tmp_path: Path, broken: str):
    whole, path = tmp_path / "whole.pth", tmp_path / "w.pth"
    torch.save(state_of(golden), whole)
    content = whole.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": content[: len(content) // 2],
            "renamed": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",
            "text": b"weights\n",
        }[broken]
    )
    with pytest.raises(dr.UserError) as error:
        dr.load_weights(golden.model, path)
    assert "\n" not in str(error.value)
    assert "w.pth" in str(error.value)


def test_a_file_without_weights(golden, tmp_path: Path):
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, path)
    with pytest.raises(dr.UserError, match="found epoch, optimizer; save its state_d"):
        dr.load_weights(golden.model, path)
