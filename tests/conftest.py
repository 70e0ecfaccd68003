"""Strict switches for all tests, and the golden models."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# On two cores the collectives of four fake devices deadlock in a smaller thread pool.
os.environ.setdefault("NPROC", "16")

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import diffrate_jax as dr

# Tests of speed run on the one device that users have.
jax.config.update("jax_num_cpu_devices", int(os.environ.get("TEST_DEVICES", "4")))
jax.config.update("jax_default_matmul_precision", "highest")

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)
FIELDS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "num_heads",
}


@dataclasses.dataclass
class Golden:
    """One golden model: reference values of the published implementation."""

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]
    model: Any
    params: Any

    @property
    def images(self) -> np.ndarray:
        """Input of every reference value."""
        return self.arrays["images"].astype(np.float32)


def load_golden(name: str) -> Golden:
    """Reads one golden file and its model."""
    about = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    fields = {FIELDS[key]: value for key, value in about["config"].items()}
    pool = "avg" if about["kind"] == "mae" else "cls"
    model = dr.create_model("vit", **fields, num_classes=10, pool=pool)
    weights = {
        key.removeprefix("weights/"): value
        for key, value in arrays.items()
        if key.startswith("weights/")
    }
    return Golden(about, arrays, model, dr.load_weights(model, weights))


@pytest.fixture(scope="session")
def deit() -> Golden:
    """The golden DeiT: class token, six blocks."""
    return load_golden("deit")


@pytest.fixture(scope="session")
def mae() -> Golden:
    """The golden MAE: patch tokens are averaged, the last block keeps all."""
    return load_golden("mae")


@pytest.fixture(params=["deit", "mae"])
def golden(request: pytest.FixtureRequest) -> Golden:
    """Each golden model in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Compiles each program once for all tests and processes of a file, and fast."""
    folder = tmp_path_factory.mktemp("compiled")
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def compiles_fast() -> Iterator[None]:
    """Where compiling takes most of the time, and nothing has to run fast."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data, weights and a schedule that `finetune` and `search` wrote."""
    import programs  # all of them: only where a test runs them

    return programs.trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def paths(trained: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Paths that commands name; `work` is a folder of the test's own."""
    return trained | {"work": tmp_path / "work", "tmp": tmp_path}


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium, as Playwright drives it; the system's own."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium; on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium) -> Iterator[Callable[..., Any]]:
    """Opens an HTML file in a window of its own, with options of Playwright's contexts.

    In the end no page may have asked for anything but itself and what it carries, nor
    complained.
    """
    contexts, wrong = [], []

    def open_file(path: Path, **options: Any) -> Any:
        context = chromium.new_context(offline=True, **options)
        contexts.append(context)
        page, url = context.new_page(), path.resolve().as_uri()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: wrong.append(request.url))
        page.goto(url)
        assert wrong.pop(0) == url
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert not [text for text in wrong if not text.startswith("data:")]
