"""What programs with a config share: its file, its fields as flags, devices."""

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from diffrate_jax.distributed import joined
from diffrate_jax.errors import UserError, did_you_mean
from diffrate_jax.exits import report_errors
from diffrate_jax.ranges import check_ranges
from diffrate_jax.version import __version__
from diffrate_jax.workdir import flat

BASE = Path(__file__).resolve().parent.parent / "configs" / "base.py"
OVERRIDE = re.compile(r"--?(?:no)?(config\.[^=]+)")
WRONG_VALUE = re.compile(r"flag --config\.([\w.]+)=(.*?): ")
KINDS = {bool: "true or false", int: "a whole number", float: "a number"}


def run_with_config(
    main: Callable[[ConfigDict, epath.Path, flags.FlagValues], None],
    *,
    about: str,
    define: Callable[[flags.FlagValues], None] = lambda values: None,
    argv: Sequence[str] | None = None,
    needs_workdir: Callable[[flags.FlagValues], bool] = lambda values: True,
) -> int:
    """Runs a program that takes `--config`, `--workdir` and `--config.key=value`.

    Args:
        main: called with the locked config, the work directory and all flags.
        about: help text with examples.
        define: adds flags of the program's own.
        argv: with the program's name first; the process's own by default.
        needs_workdir: whether to refuse to run without `--workdir`.

    Returns:
        Exit status: 0, or another after one sentence: see `report_errors`.
    """
    argv = sys.argv if argv is None else argv
    if {"--help", "-h"} & set(argv):
        print(about)
        return 0
    if "--version" in argv:
        print(f"diffrate_jax {__version__}")
        return 0
    logging.set_verbosity(logging.FATAL)  # What goes wrong is said in one sentence.

    def parsed() -> None:
        values = parse_flags(argv, define)
        if needs_workdir(values) and not values.workdir:
            raise UserError("a run needs a folder: give --workdir=DIR")
        config = values.config
        check_ranges(config)
        use_devices(config)
        with joined():
            main(config, epath.Path(values.workdir or ""), values)

    return report_errors(parsed)


def parse_flags(
    argv: Sequence[str], define: Callable[[flags.FlagValues], None]
) -> flags.FlagValues:
    """Returns the parsed flags.

    Raises:
        UserError: a flag or config field that does not exist or has another type, or
            a config that is missing.
    """
    path, argv = split_config(argv)
    config = load_recipe(path)
    check_names(argv, config)
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=argv
        )
        flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
        define(values)
        rest = values(argv)[1:]
    except (flags.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(flag_sentence(error, config, values)) from error
    if rest:
        raise UserError(f"expected flags only, got {rest[0]!r}; see --help")
    return values


def split_config(argv: Sequence[str]) -> tuple[Path, list[str]]:
    """Returns what `--config=PATH` or `--config PATH` names, and the other words.

    Raises:
        UserError: there is none.
    """
    words, path = [], ""
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("--config", "-config"):
            path = value if equals else next(rest, "")
        else:
            words.append(word)
    if not path:
        raise UserError("a run needs a recipe: give --config=configs/quickstart.py")
    return Path(path), words


def load_recipe(path: Path) -> ConfigDict:
    """Returns the locked config of a recipe file.

    Args:
        path: of the file; what follows a colon is passed to its `get_config`.

    Raises:
        UserError: no such file, or one that does not run, or that makes no config.
    """
    file, colon, argument = str(path).partition(".py:")
    path = Path(f"{file}.py") if colon else path
    if path.suffix != ".py" or not path.is_file():
        near = [str(near) for near in path.parent.glob("*.py")]
        hint = did_you_mean(str(path), near) if near else "give the path of a .py file"
        raise UserError(f"no config file {path}; {hint}")
    root = str(BASE.parent.parent)
    if root not in sys.path:  # Recipes import `configs`, wherever they are run.
        sys.path.append(root)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*([argument] if colon else []))
    except Exception as error:  # A config file is a program: anything may happen.
        what = str(error).strip().split("\n")[0]
        raise UserError(
            f"the config file {path} does not run: {type(error).__name__}: {what}; "
            "correct it, or start from one in configs/"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"get_config() of {path} must return a ConfigDict, got {config!r}"
        )
    if path.resolve() != BASE:
        check_fields(path, config, load_recipe(BASE))
    return config.lock()


def check_fields(path: Path, config: ConfigDict, base: ConfigDict) -> None:
    """Refuses a recipe whose fields are not those of the base recipe.

    Raises:
        UserError: a field that no program reads, is missing, or has another type.
    """
    for name in config:
        if name not in base:
            raise UserError(
                f"{path} sets {name!r}, which no program reads; "
                f"{did_you_mean(name, base)}"
            )
    for name, default in base.items():
        if name not in config:
            raise UserError(
                f"{path} does not set {name!r}; begin with base.get_config(), as "
                "configs/quickstart.py does"
            )
        kinds = (float, int) if isinstance(default, float) else type(default)
        if not isinstance(config[name], kinds):
            raise UserError(
                f"{path} sets {name} to {config[name]!r}; it must be like {default!r}"
            )


def check_names(argv: Sequence[str], config: ConfigDict) -> None:
    """Refuses `--config.name=value` where the config has no such field.

    Raises:
        UserError: naming the nearest field that exists.
    """
    known = [f"config.{name}" for name in {**config, **flat(config.to_dict())}]
    for flag in argv:
        match = OVERRIDE.match(flag)
        if match and match[1] not in known:
            raise UserError(
                f"the config has no field {match[1]!r}; {did_you_mean(match[1], known)}"
            )


def flag_sentence(
    error: Exception, config: ConfigDict, values: flags.FlagValues
) -> str:
    """Returns a parsing error as one line that says what was expected."""
    text = str(error.args[0] if error.args else error).strip().split("\n")[0]
    unknown = getattr(error, "flagname", "")
    if unknown:
        own = [name for name in values if not name.startswith("config.")]
        return f"unknown flag --{unknown}; {did_you_mean(unknown, own)}"
    wrong = WRONG_VALUE.match(text)
    default = flat(config.to_dict()).get(wrong[1]) if wrong else None
    if type(default) in KINDS:
        return f"config.{wrong[1]} must be {KINDS[type(default)]}, got {wrong[2]!r}"
    return f"{text}; see --help"


def use_devices(config: ConfigDict) -> None:
    """Makes virtual CPU devices and keeps compilations, as the config asks."""
    if config.cpu_devices:
        # On few cores the collectives of virtual devices deadlock in a small pool.
        os.environ.setdefault("NPROC", "16")
        if "JAX_NUM_CPU_DEVICES" not in os.environ:  # A launcher's word counts more.
            jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
