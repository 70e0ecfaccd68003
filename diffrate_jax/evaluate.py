r"""Evaluates schedules on every example of a split, each exactly once.

Examples:
  python -m diffrate_jax.evaluate --config=configs/quickstart.py --workdir=runs/eval \
      --config.weights=runs/quickstart/train/weights.safetensors \
      --schedule=runs/quickstart/schedule.json --baselines
  python -m diffrate_jax.evaluate --config=configs/deit_small.py --workdir=runs/2.9 \
      --config.weights=deit_small.safetensors --schedule=published:2.9
  … --config.dataset=folder:/data/imagenet   class folders in train and val
  … --costs=60%,50%,40%                      what hand-made schedules reach, no search

--config     recipe; any field of it can be set with --config.field=value
--workdir    folder for evaluation.json, of this evaluation alone; the same command
             goes on where it stopped
--schedule   none (default), published:2.9, tome:8, uniform:60% or a path; with
             @8 after it its counts are rounded to eights
--against    more of these, separated by commas, each perhaps with a name: mine=a.json;
             names and paths have no commas
--baselines  also evaluate the dense model and every baseline at the schedule's cost
--costs      the dense model and every baseline at each of these budgets: 60%,50%,2.9;
             a schedule that was learned for one of them stands with its baselines
--draws      with --baselines or --costs: number of random schedules (default 5)

--config.corruption=noise:0.1   spoils the images: noise, blur or contrast and how much
"""

import itertools
import sys
from collections.abc import Sequence
from functools import partial

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from diffrate_jax import arguments, cli
from diffrate_jax.baselines import NUM_RANDOM, baselines
from diffrate_jax.budget import parse_budget
from diffrate_jax.compressions import Cases, cost_of, parse_compression, schedule_of
from diffrate_jax.cost import macs_of
from diffrate_jax.errors import UserError
from diffrate_jax.files import write_json
from diffrate_jax.models import Model
from diffrate_jax.models.vit import Compression
from diffrate_jax.recipes import latency_of, model_of
from diffrate_jax.runs import Groups, run_evaluation
from diffrate_jax.schedule import Schedule
from diffrate_jax.tables import evaluation_tables, published_table
from diffrate_jax.workdir import CONFIG, has, make_folder, read


def define(values: flags.FlagValues) -> None:
    """Adds this program's own flags."""
    flags.DEFINE_string("schedule", "none", "What is in place.", flag_values=values)
    flags.DEFINE_string("against", "", "What else to evaluate.", flag_values=values)
    flags.DEFINE_bool(
        "baselines", default=False, help="Compare at equal cost.", flag_values=values
    )
    flags.DEFINE_string("costs", "", "Compare at these.", flag_values=values)
    flags.DEFINE_integer(
        "draws", NUM_RANDOM, "Random ones.", lower_bound=0, flag_values=values
    )


def evaluate(
    config: ConfigDict, workdir: epath.Path, values: flags.FlagValues, command: str
) -> None:
    """Evaluates and prints a table."""
    make_folder(workdir)
    if has(workdir, CONFIG) and read(workdir, CONFIG).get("program") == "finetune":
        raise UserError(
            f"{workdir} is a training's, which compares its weights there; give "
            "another --workdir"
        )
    groups = groups_of(config, values)
    record = run_evaluation(config, workdir, groups, command)
    write_json(workdir / "evaluation.json", record)
    tables = [evaluation_tables(record), published_table(record)]
    print("\n\n".join(filter(None, tables)))


def groups_of(config: ConfigDict, values: flags.FlagValues) -> Groups:
    """Returns what the flags name, by the budget that it was made for.

    Raises:
        UserError: schedules or budgets that do not fit the model, or two ways to say
            what baselines are to cost.
    """
    check_together(values)
    model = model_of(config)
    compression = parse_compression(values.schedule, model, config.model)
    name, target = named(values.schedule, compression)
    against = others(values.against, model, config.model)
    cases = joined({name: compression}, against)
    if values.costs:
        return at_costs(config, model, cases, values)
    if values.baselines:
        made = at_cost_of(compression, config, model, values)
        cases = joined({"dense": None}, cases, made)
    return {target: cases}


def check_together(values: flags.FlagValues) -> None:
    """Refuses flags that contradict each other, or that nothing would heed.

    Raises:
        UserError: naming them.
    """
    if values.baselines and values.costs:
        raise UserError(
            "--baselines is at the schedule's cost, --costs at others; give one of them"
        )
    drawn = not values["draws"].using_default_value
    if drawn and not (values.baselines or values.costs):
        raise UserError(
            "--draws is a number of random schedules among baselines, and none are "
            "asked for; give --baselines or --costs too, or leave --draws out"
        )


def at_cost_of(
    compression: Compression | None,
    config: ConfigDict,
    model: Model,
    values: flags.FlagValues,
) -> Cases:
    """Returns the baselines at the cost of a schedule.

    Raises:
        UserError: it is the dense model's, which every baseline would be again.
    """
    cost = cost_of(model, compression)
    if cost >= cost_of(model, None):
        raise UserError(
            "--baselines compares at the cost of --schedule, and "
            f"{values.schedule} costs as much as the dense model; give a schedule that "
            "keeps fewer tokens, or --costs=60% in place of --baselines"
        )
    rule = schedule_of(compression, model.geometry).rule
    return baselines(macs_of(model), cost, config.seed, rule, values.draws)


def at_costs(
    config: ConfigDict, model: Model, cases: Cases, values: flags.FlagValues
) -> Groups:
    """Returns the baselines at each cost of a list, with what was learned for it.

    Raises:
        UserError: a budget twice, or an empty one, or one that the model cannot meet.
    """
    table, rule = latency_of(config), config.rule
    latency = None if table is None else table.measure(model, rule)
    costs = [part.strip() for part in values.costs.split(",")]
    if "" in costs:
        raise UserError(
            "--costs takes budgets with a comma between them, as in 60%,50%, got "
            f"{values.costs!r}, where one is empty; leave out the comma too many"
        )
    twice = [text for text in costs if costs.count(text) > 1]
    if twice:
        raise UserError(f"--costs has {twice[0]} twice; leave one out")
    joined({"dense": None}, cases)
    groups: dict[str | None, Cases] = {None: {"dense": None}}
    groups |= {text: {} for text in costs}
    for name, compression in cases.items():
        target = named(name, compression)[1]
        groups[target if target in costs else None][name] = compression
    for text in costs:
        budget = parse_budget(text, model, latency)
        how = (config.seed, rule, values.draws)
        made = baselines(budget.measure, budget.limit, *how)
        groups[text] = joined(groups[text], made)
    return groups


def joined(*parts: Cases) -> Cases:
    """Returns all cases as one.

    Raises:
        UserError: a name stands for two schedules.
    """
    found: Cases = {}
    for name, compression in itertools.chain(*(part.items() for part in parts)):
        if found.setdefault(name, compression) != compression:
            raise UserError(
                f"two schedules would be called {name!r}; give the one of --against "
                "another name, as in --against=NAME=SCHEDULE"
            )
    return found


def others(text: str, model: Model, preset: str) -> dict[str, Compression | None]:
    """Returns what `--against` names, by its names.

    Raises:
        UserError: the same name twice, or something that is no schedule.
    """
    found = {}
    for part in filter(None, text.split(",")):
        name, _, source = part.rpartition("=")
        name = name or source
        if name in found:
            raise UserError(
                f"--against needs a name for each schedule, got {name!r} twice; write "
                "NAME=SCHEDULE"
            )
        found[name] = parse_compression(source.strip(), model, preset)
    return found


def named(text: str, compression: Compression | None) -> tuple[str, str | None]:
    """Returns the name of a row, and the budget that its schedule was learned for."""
    if compression is None:
        return "dense", None
    schedule = getattr(compression, "schedule", None)
    if isinstance(schedule, Schedule) and "target" in schedule.provenance:
        return "learned", schedule.provenance["target"]
    return text, None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    argv = sys.argv if argv is None else argv
    run = partial(evaluate, command=arguments.command("evaluate", argv))
    return cli.run_with_config(run, about=__doc__, define=define, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
