"""What all programs share: flags, configs, and errors that are one sentence."""

import difflib
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.files import Json
from diffrate_jax.version import __version__

BAD_INPUT = 2


def run_with_config(
    main: Callable[[ConfigDict, Path, flags.FlagValues], None],
    *,
    about: str,
    define: Callable[[flags.FlagValues], None] = lambda values: None,
    argv: Sequence[str] | None = None,
) -> int:
    """Runs a program that takes `--config`, `--workdir` and `--config.key=value`.

    Args:
        main: called with the locked config, the work directory and all flags.
        about: help text with examples.
        define: adds flags of the program's own.
        argv: with the program's name first; the process's own by default.

    Returns:
        Exit status: 0, or 2 after one sentence about bad input.
    """
    argv = sys.argv if argv is None else argv
    if {"--help", "-h"} & set(argv):
        print(about)
        return 0
    if "--version" in argv:
        print(f"diffrate_jax {__version__}")
        return 0
    logging.set_verbosity(logging.ERROR)

    def parsed() -> None:
        values = parse_flags(argv, define)
        config = values.config
        use_devices(config)
        main(config, Path(values.workdir), values)

    return report_errors(parsed)


def parse_flags(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None]
) -> flags.FlagValues:
    """Returns the parsed flags.

    Raises:
        UserError: a flag or config field that does not exist or has another type, or
            a config or work directory that is missing.
    """
    check_config_path(argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    define(values)
    try:
        rest = values(list(argv))[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(flag_sentence(error, values)) from error
    if rest:
        raise UserError(f"expected flags only, got {rest[0]!r}; see --help")
    if not values.workdir:
        raise UserError("a run needs a folder: give --workdir=DIR")
    return values


def check_config_path(argv: Sequence[str]) -> None:
    """Refuses a missing `--config` before anything is read.

    Raises:
        UserError: no --config, or a file that does not exist.
    """
    given = [arg.split("=", 1)[1] for arg in argv if arg.startswith("--config=")]
    if not given:
        raise UserError("a run needs a recipe: give --config=configs/quickstart.py")
    path = Path(given[-1].split(":")[0])
    if not path.is_file():
        near = (
            [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        )
        raise UserError(f"no config file {path}; {did_you_mean(str(path), near)}")


def flag_sentence(error: Exception, values: flags.FlagValues) -> str:
    """Returns a parsing error as one line, with the nearest field that exists."""
    text = str(error.args[0] if error.args else error).strip().split("\n")[0]
    unknown = getattr(error, "flagname", "")
    if unknown and "config" in values:
        known = [f"config.{name}" for name in values["config"].value or ()]
        close = difflib.get_close_matches(unknown, [*known, *values], n=1)
        if close:
            return f"unknown flag --{unknown}; did you mean --{close[0]}?"
    return f"{text}; see --help"


def use_devices(config: ConfigDict) -> None:
    """Makes virtual CPU devices and keeps compilations, as the config asks."""
    if config.cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def report_errors(main: Callable[[], None]) -> int:
    """Runs a program; bad input ends in one sentence and status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("stopped; run the same command to go on", file=sys.stderr)
        return 130
    return 0


def load_recipe(path: Path) -> ConfigDict:
    """Returns the config of a recipe file, for programs that run several."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().lock()


def environment() -> dict[str, Json]:
    """Returns what a figure depends on: device, versions, processor."""
    device = jax.devices()[0]
    return {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "diffrate_jax": __version__,
        **{name: version(name) for name in ("jax", "flax", "optax")},
    }


def command(module: str, argv: Sequence[str]) -> str:
    """Returns the command line that a user would type to run this again."""
    return " ".join([f"python -m diffrate_jax.{module}", *argv[1:]])
