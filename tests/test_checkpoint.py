"""Checkpoints: whole or passed over, on a full disk too."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import logging

import diffrate_jax as dr
from diffrate_jax import checkpoint
from diffrate_jax.checkpoint import Checkpoints, fingerprint

ROOT = Path(__file__).parent.parent
STEPS = (3, 5)


def state_after(step: int) -> dict[str, np.ndarray]:
    """Returns a state of some types and shapes, nothing of it zero."""
    rng = np.random.default_rng(step)
    return {
        "rates": rng.standard_normal((3, 4)).astype(np.float32),
        "inner": {"count": np.array(step, np.int32), "long": np.arange(1, 3000.0)},
        "flags": np.array([True, step % 2 == 0]),
    }


def assert_same(found: dict, wanted: dict) -> None:
    assert fingerprint(found) == fingerprint(wanted)
    assert found["rates"].dtype == wanted["rates"].dtype


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, state_after(step))
    return folder


def restored(folder: Path) -> tuple[int, dict]:
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(state_after(0))


def test_the_latest_comes_back_to_the_last_bit(whole):
    step, state = restored(whole)
    assert step == 5
    assert_same(state, state_after(5))


def test_a_large_state_is_saved_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PIECE", 1000)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state_after(5))
        step, state = checkpoints.restore(state_after(0))
    assert step == 5
    assert_same(state, state_after(5))


def test_without_any_the_start_comes_back(tmp_path):
    step, state = restored(tmp_path / "none")
    assert step == 0
    assert_same(state, state_after(0))


def test_the_latest_few_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 3):
            checkpoints.save(step, state_after(step))
        assert checkpoints.latest == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def changed_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "missing": None,
    "cut in half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a bit changed": changed_bit,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damaged_file_of_the_latest_is_survived(whole, tmp_path, damage, capfd):
    """The state is that of the latest or of the one before, and never another."""
    passed_over = 0
    for number, file in enumerate(files_of(whole / "5")):
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder)
        broken = folder / file.relative_to(whole)
        if DAMAGES[damage] is None:
            broken.unlink()
        elif file.stat().st_size:
            broken.write_bytes(DAMAGES[damage](file.read_bytes()))
        capfd.readouterr()
        step, state = restored(folder)
        assert_same(state, state_after(step))
        said = capfd.readouterr().err
        assert (step == 3) == ("the checkpoint of step 5 is damaged (" in said), said
        if step == 3:
            passed_over += 1
            assert "; going on from that of step 3\n" in said
            # The run comes by step 5 again.
            with Checkpoints(folder) as checkpoints:
                checkpoints.save(5, state_after(5))
            assert_same(restored(folder)[1], state_after(5))
    assert passed_over >= (damage != "a bit changed")


def test_none_that_is_whole_is_an_error(whole, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    for file in files_of(folder):
        file.write_bytes(b"")
    with pytest.raises(
        dr.UserError, match="no checkpoint in .* can be read, as .* 5: "
    ):
        restored(folder)
    assert len(files_of(folder)) == len(files_of(whole))


def test_a_state_of_another_shape_is_an_error(whole):
    other = state_after(0) | {"rates": np.zeros((2, 2), np.float32)}
    with Checkpoints(whole) as checkpoints:
        with pytest.raises(dr.UserError, match="no checkpoint in .* can be read"):
            checkpoints.restore(other)
        assert checkpoints.latest == 5


def test_what_a_killed_save_left_is_cleared_away(whole, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    shutil.copytree(folder / "5", folder / "7.orbax-checkpoint-tmp")
    assert restored(folder)[0] == 5
    assert sorted(path.name for path in folder.iterdir()) == ["3", "5"]


def fill_up(folder: str, most: str) -> None:
    """Saves, and again where files may have only so many bytes, in its own process."""
    logging.set_verbosity(logging.FATAL)  # As programs do.
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, state_after(3))
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
        try:
            checkpoints.save(5, state_after(5))
        except dr.UserError as error:
            print(error)


@pytest.mark.parametrize("most", [0, 200, 1000])
def test_a_full_disk_leaves_the_checkpoints_before_it(tmp_path, most):
    """A limit on the size of files stands for it: the system refuses to write."""
    code = "import sys, test_checkpoint; test_checkpoint.fill_up(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run", str(most)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("cannot write the checkpoint of step 5 into "), done
    assert f": {os.strerror(errno.EFBIG)}; those before it are whole" in done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    step, state = restored(tmp_path / "run")
    assert step == 3
    assert_same(state, state_after(3))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(dr.UserError, match="cannot write checkpoints into .*Not a dir"):
        Checkpoints(tmp_path / "file/run")
