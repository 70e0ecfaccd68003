"""A benchmark as a run: which programs, how, and the record that it leaves."""

import dataclasses

from diffrate_jax.compressions import Cases, cost_of, schedule_of
from diffrate_jax.environment import environment
from diffrate_jax.files import Json
from diffrate_jax.inference import compile_inference
from diffrate_jax.models import Model, Params
from diffrate_jax.models.vit import Compression
from diffrate_jax.timing import Timed, matrix_peak, ours, peers, time_in_turn
from diffrate_jax.timing.peers import PeerError


@dataclasses.dataclass(frozen=True)
class Speed:
    """How to time programs.

    Attributes:
        batch_size: images to a call.
        dtype: of weights and activations.
        rounds: times that each program runs.
        attention: see `compile_inference`.
        peers: names of dense models of others to time beside ours (`peers.PEERS`).
    """

    batch_size: int
    dtype: str
    rounds: int
    attention: str = "auto"
    peers: tuple[str, ...] = ()


def run_benchmark(
    model: Model, name: str, params: Params, cases: Cases, speed: Speed, command: str
) -> dict[str, Json]:
    """Times each case, dense first, alternately in one run.

    Returns:
        The record; of peers that failed it has a sentence each instead of a row.
    """

    def compiled(case: str, compression: Compression | None) -> Timed:
        predict = compile_inference(
            model,
            params,
            compression,
            batch_size=speed.batch_size,
            dtype=speed.dtype,
            attention=speed.attention,
        )
        macs = cost_of(model, compression)
        return ours(case, predict, macs, dense=compression is None)

    timed = [compiled(case, compression) for case, compression in cases.items()]
    failed = {}
    for peer in speed.peers:
        try:
            timed.append(peers.timed(peer, name, model, speed.batch_size, speed.dtype))
        except PeerError as error:
            failed[peer] = str(error)
    rows = rows_without(failed, timed, model.image_size, speed)
    peak = matrix_peak(speed.dtype)
    for row, compression in zip(rows, cases.values(), strict=False):  # Peers have none.
        schedule = schedule_of(compression, model.geometry)
        row |= {"rule": schedule.rule, "prune": schedule.prune, "merge": schedule.merge}
    for row in rows:
        row["of_peak"] = 2 * row["macs"] * row["images_per_second"] / peak
    return {
        "kind": "benchmark",
        "command": command,
        "environment": environment(*peers.packages(speed.peers)),
        "model": name,
        "batch_size": speed.batch_size,
        "dtype": speed.dtype,
        "peak_flops": peak,
        "rows": rows,
        "failed_peers": failed,
    }


def rows_without(
    failed: dict[str, str], timed: list[Timed], image_size: int, speed: Speed
) -> list[dict[str, Json]]:
    """Returns rows of programs in turn; all begin anew where a peer fails.

    Args:
        failed: why, by peer; those that fail now are added to it.
        timed: the programs.
        image_size: rows and columns of an image, in pixels.
        speed: how to time them.
    """
    while True:
        left = [program for program in timed if program.name not in failed]
        try:
            return time_in_turn(left, image_size, speed.batch_size, rounds=speed.rounds)
        except PeerError as error:
            failed[error.peer] = str(error)
