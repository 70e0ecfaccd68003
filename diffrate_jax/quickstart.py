"""Trains a small ViT on digits, learns its schedule, evaluates, times and reports.

Example:
  python -m diffrate_jax.quickstart --workdir=runs/quickstart

Five to nine minutes on two CPU cores. Every step is kept in the work directory; the
same command goes on where it stopped, and shows the table again when all is done.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from diffrate_jax import arguments, cli, recipes
from diffrate_jax.compress import Gathered
from diffrate_jax.files import Json, read_json, write_json
from diffrate_jax.finetuning import run_training
from diffrate_jax.reporting import write_report
from diffrate_jax.runs import run_evaluation, with_baselines
from diffrate_jax.schedule import Schedule
from diffrate_jax.searching import SCHEDULE, run_search
from diffrate_jax.sources import ABOUT, WEIGHTS
from diffrate_jax.tables import benchmark_table, evaluation_table, search_table
from diffrate_jax.timing.speed import Speed, run_benchmark
from diffrate_jax.workdir import make_folder

CONFIGS = Path(__file__).parent.parent / "configs"
TIMING = Speed(batch_size=64, dtype="float32", rounds=30)


def quickstart(workdir: Path, command: str) -> None:
    """Runs what is not done yet, writes the report and prints the tables."""
    make_folder(workdir)
    config = prepared(workdir, "quickstart")
    cli.use_devices(config)
    if not (workdir / "train" / ABOUT).exists():
        say("training a small ViT on handwritten digits")
        run_training(prepared(workdir, "quickstart_train"), workdir / "train")
    if not (workdir / SCHEDULE).exists():
        say(f"learning which tokens it needs, for {config.target} of its cost")
        run_search(config, workdir)
    schedule = Schedule.load(workdir / SCHEDULE)
    if (workdir / "benchmark.json").exists():
        say("all is done already; remove the work directory to start again")
    evaluation = once(
        workdir / "evaluation.json",
        lambda: evaluate(config, workdir, schedule, command),
    )
    speed = once(workdir / "benchmark.json", lambda: time(config, schedule, command))
    write_report(workdir, workdir / "report.html", workdir / "pictures")
    print(search_table(schedule))
    print(f"all of it, with pictures: {workdir / 'report.html'}")
    print(f"\n{benchmark_table(speed)}\n\n{evaluation_table(evaluation)}")


def prepared(workdir: Path, recipe: str) -> ConfigDict:
    """Returns a recipe of the quickstart, its paths inside the work directory."""
    config = cli.load_recipe(CONFIGS / f"{recipe}.py")
    with config.unlocked():
        config.data_dir = str(workdir / "data")
        config.compilation_cache = str(workdir / "compiled")
        if recipe == "quickstart":
            config.weights = str(workdir / "train" / WEIGHTS)
    return config


def evaluate(
    config: ConfigDict, workdir: Path, schedule: Schedule, command: str
) -> dict[str, Json]:
    """Evaluates dense, learned and baselines on every test image."""
    say("evaluating it and the baselines on every test image")
    model = recipes.model_of(config)
    cases = with_baselines(model, schedule, config.seed)
    return run_evaluation(config, workdir, {config.target: cases}, command)


def time(config: ConfigDict, schedule: Schedule, command: str) -> dict[str, Json]:
    """Times the dense model and the learned schedule."""
    say("timing dense against learned, in turn")
    model = recipes.model_of(config)
    params = recipes.params_of(config, model)
    cases = {"dense": None, "learned": Gathered(schedule)}
    return run_benchmark(model, config.model, params, cases, TIMING, command)


def once(path: Path, make: Callable[[], dict[str, Json]]) -> dict[str, Json]:
    """Returns what a file holds; makes and writes it if there is none."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def say(text: str) -> None:
    """Announces a step."""
    print(f"== {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    flags = arguments.Parser("quickstart", *__doc__.split("\n\n", 1))
    flags.add_argument("--workdir", default="runs/quickstart", help="folder of the run")
    command = arguments.command("quickstart", argv)
    return cli.report_errors(
        lambda: quickstart(Path(flags.parse_args(argv[1:]).workdir), command)
    )


if __name__ == "__main__":
    sys.exit(main())
