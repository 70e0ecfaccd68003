"""Dense models of others, timed beside ours where PyTorch and timm are installed."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from diffrate_jax.cost import cost_macs
from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.models import FAMILIES, Model, architecture, create_model
from diffrate_jax.models.vit import ViT
from diffrate_jax.timing import Timed

# timm's models use PyTorch's fused attention; compiled, PyTorch fuses the rest too.
PEERS = ("timm", "timm_compiled")


class PeerError(Exception):
    """A peer failed: which one, and why; ours are to be timed without it."""

    def __init__(self, peer: str, error: Exception) -> None:
        what = str(error).strip().split("\n")[0]
        super().__init__(f"{peer} failed, {type(error).__name__}: {what}")
        self.peer = peer


@contextmanager
def blaming(peer: str) -> Iterator[None]:
    """Makes a `PeerError` of whatever goes wrong in another's code."""
    try:
        yield
    except Exception as error:
        raise PeerError(peer, error) from error


def packages(peers: Sequence[str]) -> tuple[str, ...]:
    """Returns the packages that peers come from."""
    return ("torch", "timm") if peers else ()


def prepare(peers: Sequence[str]) -> None:
    """Makes sure, before anything is compiled, that peers can be timed.

    Raises:
        UserError: an unknown peer, one that is named twice, or PyTorch or timm is not
            installed.
    """
    for peer in peers:
        if peer not in PEERS:
            raise UserError(f"unknown peer {peer!r}; {did_you_mean(peer, PEERS)}")
    if len(set(peers)) < len(peers):
        raise UserError(f"--peers takes each peer once, got {','.join(peers)}")
    if not peers:
        return
    try:
        import timm  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--peers needs PyTorch and timm, and {error.name} is not installed; "
            "install timm, or leave --peers out"
        ) from error
    # JAX would take three quarters of a GPU's memory at once, and leave PyTorch a
    # quarter. It reads this when it first looks for devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def check_model(name: str, model: Model) -> None:
    """Refuses a model that others do not have.

    Raises:
        UserError: it is no preset, or one with other fields than its own.
    """
    if name not in FAMILIES:
        # Images of another size are all that timm's are asked for too.
        preset = create_model(name, image_size=model.image_size)
        if architecture(model) == architecture(preset):
            return
    raise UserError(
        f"--peers times timm's model of the same name, and this {name!r} is no preset "
        "as it is; give --model=NAME, or leave --peers out"
    )


def timed(peer: str, name: str, model: Model, batch_size: int, dtype: str) -> Timed:
    """Returns timm's dense model, with random weights, ready to be timed.

    Args:
        peer: of `PEERS`, after `prepare`.
        name: of the preset.
        model: ours, for its size and cost.
        batch_size: images to a call.
        dtype: of weights and activations.

    Raises:
        PeerError: it cannot be built, compiled or run; `load` and `run` raise it too.
    """
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"

    def load(images: np.ndarray) -> Any:
        with blaming(peer):
            images_BCYX = torch.from_numpy(images).to(device, getattr(torch, dtype))
            images_BCYX = images_BCYX.permute(0, 3, 1, 2).contiguous()
            wait(device)
            return images_BCYX

    with blaming(peer):
        network = network_of(name, model).to(device, getattr(torch, dtype))
        if peer == "timm_compiled":
            # What was compiled before would make it compile for any batch size now.
            torch.compiler.reset()
            network = torch.compile(network, dynamic=False)
    run = without_gradients(network, peer)
    size = model.image_size
    images = load(np.zeros((batch_size, size, size, 3), np.float32))
    began = time.perf_counter()
    run(images)
    compile_seconds = time.perf_counter() - began if peer == "timm_compiled" else 0.0
    macs = cost_macs(model, None)
    return Timed(
        peer, macs, dense=True, load=load, run=run, compile_seconds=compile_seconds
    )


def network_of(name: str, model: Model) -> Any:
    """Returns timm's model of a preset's architecture, with random weights."""
    import timm

    # Pooling aside a tag tells weights apart, and these are random.
    fields = {"img_size": model.image_size} if isinstance(model, ViT) else {}
    fields |= {"global_pool": "avg"} if getattr(model, "pool", "") == "avg" else {}
    return timm.create_model(name.split(".")[0], **fields).eval()


def without_gradients(network: Any, peer: str) -> Callable[[Any], None]:
    """Returns a function that runs a network on images and waits for the end."""
    import torch

    device = next(network.parameters()).device.type

    def run(images_BCYX: Any) -> None:
        with blaming(peer), torch.inference_mode():
            network(images_BCYX)
            wait(device)

    return run


def wait(device: str) -> None:
    """Waits until a device has nothing left to do."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
