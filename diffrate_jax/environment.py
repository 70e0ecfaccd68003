"""What a figure depends on: device, versions, and the commit that gave it."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

from diffrate_jax.files import Json
from diffrate_jax.version import __version__

CHECKOUT = Path(__file__).resolve().parent.parent
CPU_INFO = Path("/proc/cpuinfo")


def environment(*packages: str) -> dict[str, Json]:
    """Returns what a figure depends on.

    Args:
        packages: whose versions belong there besides; None where one is not installed.
    """
    device = jax.devices()[0]
    return {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "cpus": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "diffrate_jax": __version__,
        "commit": commit(CHECKOUT),
        **{name: installed(name) for name in ("jax", "flax", "optax", *packages)},
    }


def processor() -> str:
    """Returns the name of the CPU, or of its architecture where none is told."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    named = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return named[0].strip() if named else platform.machine()


def installed(package: str) -> str | None:
    """Returns a package's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit(checkout: Path) -> str | None:
    """Returns the commit of a checkout, with "+" if files differ from it.

    None where there is no checkout, or no git to ask.
    """
    if not (checkout / ".git").exists():
        return None
    ask = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=12"]
    ask += ["--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
