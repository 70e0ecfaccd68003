"""Checkpoints: Orbax behind one small class; the state is a tree of host arrays."""

import hashlib
import os
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from diffrate_jax import parallel
from diffrate_jax.distributed import is_first
from diffrate_jax.errors import UserError
from diffrate_jax.files import in_bucket, reason
from diffrate_jax.progress import say

Tree = Any
# How Orbax names what it has not finished.
UNFINISHED = "*.orbax-checkpoint-tmp*"
SEAL, PIECE = 32, 2**28  # bytes


class Checkpoints:
    """The checkpoints of one run, in one folder; the latest few are kept.

    Orbax writes into a temporary folder and renames it, so a process killed at any
    moment leaves only whole checkpoints behind. Each holds bytes, the hash of the state
    before the state itself, so that one damaged later is known. The first of many
    processes reads and writes for all of them.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 2) -> None:
        folder = epath.Path(folder)
        self._folder = folder if in_bucket(folder) else folder.resolve()
        self._manager = self._open(keep) if is_first() else None

    def _open(self, keep: int) -> ocp.CheckpointManager:
        # One process, by itself: the others have no part in it.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
        )
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            enable_async_checkpointing=False,
            multiprocessing_options=alone,
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.glob(UNFINISHED):
                left.rmtree()
            return ocp.CheckpointManager(self._folder, options=options)
        except OSError as error:
            raise UserError(
                f"cannot write checkpoints into {self._folder}: {reason(error)}; give "
                "a work directory that can be written"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._manager is not None:
            self._manager.close()

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint; None if there is none, or not on the first."""
        return None if self._manager is None else self._manager.latest_step()

    def save(self, step: int, state: Tree) -> None:
        """Saves the state after `step` steps, unless it is there already.

        Raises:
            UserError: the disk is full, or cannot be written to any more.
        """
        if self._manager is None or step == self.latest:
            return
        try:
            self._manager.save(step, args=ocp.args.StandardSave(pieces(state)))
        except (OSError, ValueError) as error:  # Python's, and TensorStore's.
            raise UserError(
                f"cannot write the checkpoint of step {step} into {self._folder}: "
                f"{reason(error)}; those before it are whole: make room and run the "
                "same command again"
            ) from error

    def restore(self, like: Tree) -> tuple[int, Tree]:
        """Returns step and state of the latest whole checkpoint, on all processes.

        Args:
            like: gives shapes and types; returned with step 0 if there is none.

        Raises:
            UserError: there are checkpoints, and none is whole.
        """
        like = host(like)
        step, state = (0, like) if self._manager is None else self._newest(like)
        step = parallel.of_first_host(step)
        return step, parallel.arrays_of_first_host(state) if step else like

    def _newest(self, like: Tree) -> tuple[int, Tree]:
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                state = self._read(step, like)
            except Exception as error:  # Anything may be wrong with a damaged file.
                damaged.append((step, reason(error)))
                continue
            for lost, why in damaged:
                say(
                    f"warning: the checkpoint of step {lost} is damaged ({why}); going "
                    f"on from that of step {step}"
                )
                # The run will come by there again and save it anew.
                self._manager.delete(lost)
            return step, state
        if damaged:
            step, why = damaged[0]
            raise UserError(
                f"no checkpoint in {self._folder} can be read, as that of step {step}: "
                f"{why}; remove the folder to start from the beginning"
            )
        return 0, like

    def _read(self, step: int, like: Tree) -> Tree:
        args = ocp.args.StandardRestore(pieces(like))
        found = self._manager.restore(step, args=args)["state"]
        return unpacked(np.concatenate(found), like)


def host(tree: Tree) -> Tree:
    """Returns a tree of arrays of the host."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def pieces(state: Tree) -> dict[str, list[np.ndarray]]:
    """Returns a state as Orbax gets it: in pieces that it can write side by side."""
    content = packed(state)
    starts = range(0, content.size, PIECE)
    return {"state": [content[start : start + PIECE] for start in starts]}


def packed(state: Tree) -> np.ndarray:
    """Returns a state as bytes: its hash, then its arrays."""
    state = host(state)
    raw = [np.ascontiguousarray(x).reshape(-1) for x in jax.tree.leaves(state)]
    seal = np.frombuffer(bytes.fromhex(fingerprint(state)), np.uint8)
    return np.concatenate([seal, *(x.view(np.uint8) for x in raw)])


def unpacked(content: np.ndarray, like: Tree) -> Tree:
    """Returns the state of some bytes.

    Args:
        content: what `packed` made.
        like: gives shapes and types.

    Raises:
        ValueError: the bytes are not what was saved, or of a state unlike this one.
    """
    leaves, tree = jax.tree.flatten(like)
    ends = SEAL + np.cumsum([leaf.nbytes for leaf in leaves])
    if content.nbytes == ends[-1]:
        parts = np.split(content, [SEAL, *ends])[1:-1]
        found = [
            part.view(leaf.dtype).reshape(leaf.shape)
            for part, leaf in zip(parts, leaves, strict=True)
        ]
        state = jax.tree.unflatten(tree, found)
        if fingerprint(state) == content[:SEAL].tobytes().hex():
            return state
    raise ValueError("its content is not what a run of this config saved")


def fingerprint(tree: Tree) -> str:
    """Returns the SHA-256 of the arrays of a tree, in the order of their names."""
    found = hashlib.sha256()
    for path, array in jax.tree.leaves_with_path(jax.device_get(tree)):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(array))
    return found.hexdigest()
