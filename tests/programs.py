"""The programs run in this process, on noise and two small blocks."""

import shlex
from pathlib import Path

import numpy as np

from diffrate_jax import (
    benchmark,
    evaluate,
    finetune,
    quickstart,
    report,
    search,
    visualize,
)

ROOT = Path(__file__).parent.parent
PROGRAMS = {
    "benchmark": benchmark,
    "evaluate": evaluate,
    "finetune": finetune,
    "quickstart": quickstart,
    "report": report,
    "search": search,
    "visualize": visualize,
}
# Two blocks, 65 tokens of width 12, four steps of eight images.
RECIPE = """
from configs import quickstart

def get_config():
    config = quickstart.get_config()
    config.model_fields.update(depth=2, width=12)
    config.dataset = "arrays:{data}"
    config.target, config.refine_images = "92%", 16
    config.steps, config.batch_size, config.eval_batch_size = 4, 8, 8
    config.checkpoint_every, config.log_every, config.cpu_devices = 2, 1, 0
    return config
"""
NUM_TEST = 22  # Divides neither by batches nor by devices.
WEIGHTED = "--config={recipe} --workdir={work} --config.weights={weights}"
SEARCH, FINETUNE = f"search {WEIGHTED}", "finetune --config={recipe} --workdir={work}"
EVALUATE = f"evaluate {WEIGHTED}"
BENCHMARK = "benchmark --recipe={recipe} --rounds=1 --batch=1"


def command(text: str, paths: dict[str, Path]) -> list[str]:
    """Returns the words of a command line, "{name}" replaced by paths."""
    return shlex.split(text.format_map(paths))


def run(text: str, paths: dict[str, Path]) -> int:
    """Runs a program in this process; returns its exit status."""
    program, *flags = command(text, paths)
    return PROGRAMS[program].main([program, *flags])


def images(**changed: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the entries of a dataset of noise whose colour tells the class."""
    rng = np.random.default_rng(0)
    entries = {"num_classes": np.int64(10)}
    for split, count in {"train": 32, "test": NUM_TEST}.items():
        labels_N = np.arange(count) % 10
        noise = rng.integers(0, 100, (count, 32, 32, 3))
        image_NYXC = (noise + 15 * labels_N[:, None, None, None]).astype(np.uint8)
        entries |= {f"{split}_image": image_NYXC, f"{split}_label": labels_N}
    return entries | changed


def trained(folder: Path) -> dict[str, Path]:
    """Writes data, and by `finetune` and `search` weights and a schedule of them."""
    paths = {"recipe": folder / "recipe.py", "data": folder / "data.npz"}
    paths["recipe"].write_text(RECIPE.format_map(paths))
    np.savez(paths["data"], **images())
    paths["weights"] = folder / "train/weights.safetensors"
    paths["schedule"] = folder / "search/schedule.json"
    assert not run(f"finetune --config={{recipe}} --workdir={folder}/train", paths)
    text = "search --config={recipe} --config.weights={weights}"
    assert not run(f"{text} --workdir={folder}/search", paths)
    return paths
