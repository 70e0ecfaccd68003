"""Command lines: flags of programs without a config, and words to run them again."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from diffrate_jax.distributed import coordinator
from diffrate_jax.errors import UserError
from diffrate_jax.version import __version__


class Parser(argparse.ArgumentParser):
    """Flags of a program without a config: `--version`, and errors of one line."""

    def __init__(self, program: str, about: str, examples: str) -> None:
        super().__init__(
            prog=f"python -m diffrate_jax.{program}",
            description=about,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        version = f"diffrate_jax {__version__}"
        self.add_argument("--version", action="version", version=version)

    def parse_args(
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> argparse.Namespace:
        """Returns the flags.

        Raises:
            UserError: some that are wrong, or a launcher of many processes.
        """
        if coordinator() is not None:
            raise UserError(f"{self.prog} is one process; run it without a launcher")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Refuses what was given, in the form of all other bad input."""
        raise UserError(f"{message}; see --help")


def command(module: str, argv: Sequence[str]) -> str:
    """Returns the command line that a user would type to run this again."""
    return shlex.join(["python", "-m", f"diffrate_jax.{module}", *argv[1:]])


def file_name(text: str) -> str:
    """Returns a flag's value that has to name a file, for `type` of `add_argument`."""
    if not Path(text).name:
        raise argparse.ArgumentTypeError(f"expected the name of a file, got {text!r}")
    return text


def folder_name(text: str) -> str:
    """Returns a flag's value that has to name a folder, likewise."""
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a folder, got ''")
    return text
