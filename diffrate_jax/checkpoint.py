"""Checkpoints: Orbax behind one small class; the state is a tree of host arrays."""

import os
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffrate_jax.errors import UserError

Tree = Any


class Checkpoints:
    """The checkpoints of one run, in one folder; the latest few are kept.

    Orbax writes into a temporary folder and renames it, so a process killed at any
    moment leaves only whole checkpoints behind.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 2) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=False
        )
        try:
            self._manager = ocp.CheckpointManager(
                Path(folder).absolute(), options=options
            )
        except OSError as error:
            raise UserError(
                f"cannot write checkpoints into {folder}: {error.strerror}; give a "
                "work directory that can be written"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """Step of the latest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Tree) -> None:
        """Saves the state after `step` steps, unless it is there already."""
        if step != self.latest:
            host = jax.tree.map(np.asarray, jax.device_get(state))
            self._manager.save(step, args=ocp.args.StandardSave(host))

    def restore(self, like: Tree) -> Tree:
        """Returns the latest state as host arrays; `like` gives shapes and types."""
        host = jax.tree.map(np.asarray, jax.device_get(like))
        return self._manager.restore(self.latest, args=ocp.args.StandardRestore(host))
