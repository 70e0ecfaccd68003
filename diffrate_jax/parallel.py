"""Data parallelism: pmap over the local devices, all reductions in one place.

A step is written once as a plain function of (state, constants, batch) and wrapped
here. State and constants live whole on every device, without a leading axis.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffrate_jax.errors import UserError
from diffrate_jax.files import Json

AXIS = "devices"
Tree = Any


def pmap_step(step: Callable[..., Tree], *, donate_state: bool = True) -> Callable:
    """Wraps `step(state, constants, batch)` over the local devices.

    What it returns must be equal on all devices: reduce with `mean` or `total`.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        donate_argnums=(0,) if donate_state else (),
    )


def on_one_device(step: Callable[..., Tree]) -> Callable:
    """Wraps `step(state, constants, batch)` for one device's share, under jit.

    It can be lowered for another platform, and asked what it takes, which a pmapped
    function cannot.
    """
    mesh = Mesh(np.array(jax.local_devices()[:1]), (AXIS,))
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    # That all devices agree on what is returned is for the step to see to.
    body = jax.shard_map(
        step, mesh=mesh, in_specs=(whole, whole, split), out_specs=whole,
        check_vma=False,
    )  # fmt: skip
    return jax.jit(body, donate_argnums=0)


def mean(tree: Tree) -> Tree:
    """Returns the mean over all devices of all hosts, inside a step."""
    return jax.lax.pmean(tree, AXIS)


def total(tree: Tree) -> Tree:
    """Returns the sum over all devices of all hosts, inside a step."""
    return jax.lax.psum(tree, AXIS)


def every_example(tree: Tree) -> Tree:
    """Returns the examples of this host's devices in order, inside a step."""
    # Groups by host: the axis runs over the devices of all hosts.
    devices = np.arange(jax.lax.axis_size(AXIS))
    hosts = devices.reshape(jax.process_count(), -1).tolist()
    return jax.lax.all_gather(tree, AXIS, axis_index_groups=hosts, tiled=True)


def all_examples(tree: Tree) -> Tree:
    """Returns the examples of all devices of all hosts in order, inside a step."""
    return jax.lax.all_gather(tree, AXIS, tiled=True)


def of_first_host(record: Json) -> Json:
    """Returns on every host the JSON that the first one passes."""
    if jax.process_count() == 1:
        return record
    text = json.dumps(record).encode()
    size = int(broadcast_one_to_all(np.int32(len(text))))
    # What other hosts pass does not matter, but its length must be the same.
    letters = np.frombuffer(text[:size].ljust(size), np.uint8)
    return json.loads(bytes(np.asarray(broadcast_one_to_all(letters))))


def arrays_of_first_host(tree: Tree) -> Tree:
    """Returns on every host the host arrays that the first one passes.

    To the last bit: as bytes, which no sum rounds. Others pass arrays of equal shapes.
    """
    if jax.process_count() == 1:
        return tree
    raw = lambda x: np.ascontiguousarray(x).reshape(-1).view(np.uint8)  # noqa: E731
    sent = broadcast_one_to_all(jax.tree.map(raw, tree))
    return jax.tree.map(
        lambda x, own: np.asarray(x).view(own.dtype).reshape(own.shape), sent, tree
    )


def replicate(tree: Tree) -> Tree:
    """Copies a tree of host arrays whole onto every local device."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    # From host numpy: a donated buffer must belong to the step alone.
    return jax.device_put(jax.device_get(tree), NamedSharding(mesh, PartitionSpec()))


def check_batch_size(batch_size: int) -> None:
    """Refuses a global batch that the devices cannot share equally.

    Raises:
        UserError: not a positive multiple of the number of devices.
    """
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        raise UserError(
            f"batch_size must be a positive multiple of the {devices} devices, "
            f"got {batch_size}; change it, or the number of devices"
        )


def shard(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits this host's part of a batch over its devices [devices, b, ...].

    Adds `index`, each example's number in the global batch, so that randomness can
    belong to the example and not to the device.
    """
    devices, size = jax.local_device_count(), len(batch["image"])
    index_B = np.arange(size, dtype=np.int32) + jax.process_index() * size
    split = lambda x: np.asarray(x).reshape(devices, size // devices, *x.shape[1:])  # noqa: E731
    return {name: split(x) for name, x in (batch | {"index": index_B}).items()}
