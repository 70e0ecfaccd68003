"""Dense models of others, timed beside ours where PyTorch and timm are installed."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from diffrate_jax.cost import cost_macs
from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.models import Model
from diffrate_jax.models.vit import ViT
from diffrate_jax.timing import Timed

# timm's models use PyTorch's fused attention; compiled, PyTorch fuses the rest too.
PEERS = ("timm", "timm_compiled")


def packages(peers: Sequence[str]) -> tuple[str, ...]:
    """Returns the packages that peers come from."""
    return ("torch", "timm") if peers else ()


def timed(peer: str, name: str, model: Model, batch_size: int, dtype: str) -> Timed:
    """Returns timm's dense model, with random weights, ready to be timed.

    Args:
        peer: of `PEERS`.
        name: of the preset.
        model: ours, for its size and cost.
        batch_size: images to a call.
        dtype: of weights and activations.

    Raises:
        UserError: an unknown peer, or PyTorch or timm is not installed.
    """
    if peer not in PEERS:
        raise UserError(f"unknown peer {peer!r}; {did_you_mean(peer, PEERS)}")
    try:
        import timm
        import torch
    except ImportError as error:
        raise UserError(
            f"--peers needs PyTorch and timm, and {error.name} is not installed; "
            "install timm, or leave --peers out"
        ) from error
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    # Pooling aside a tag tells weights apart, and these are random.
    fields = {"img_size": model.image_size} if isinstance(model, ViT) else {}
    fields |= {"global_pool": "avg"} if getattr(model, "pool", "") == "avg" else {}
    network = timm.create_model(name.split(".")[0], **fields).eval()
    network = network.to(device, getattr(torch, dtype))
    if peer == "timm_compiled":
        network = torch.compile(network)
    run = without_gradients(network)

    def load(images: np.ndarray) -> Any:
        images_BCYX = torch.from_numpy(images).to(device, getattr(torch, dtype))
        images_BCYX = images_BCYX.permute(0, 3, 1, 2).contiguous()
        wait(device)
        return images_BCYX

    size = model.image_size
    images = load(np.zeros((batch_size, size, size, 3), np.float32))
    began = time.perf_counter()
    run(images)
    compile_seconds = time.perf_counter() - began if peer == "timm_compiled" else 0.0
    macs = cost_macs(model, None)
    return Timed(
        peer, macs, dense=True, load=load, run=run, compile_seconds=compile_seconds
    )


def without_gradients(network: Any) -> Callable[[Any], None]:
    """Returns a function that runs a network on images and waits for the end."""
    import torch

    device = next(network.parameters()).device.type

    def run(images_BCYX: Any) -> None:
        with torch.inference_mode():
            network(images_BCYX)
        wait(device)

    return run


def wait(device: str) -> None:
    """Waits until a device has nothing left to do."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
