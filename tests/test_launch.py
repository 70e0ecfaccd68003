"""The launchers: what they run, in stand-ins that write down their calls."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAUNCHERS = ("local_pod.sh", "tpu_pod.sh", "slurm.sbatch")
# Writes its name and words as a line of JSON, and leaves as it is told to.
STAND_IN = """#!{python}
import json, os, sys
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
shown = {{name: os.environ.get(name, "") for name in {shown}}}
with open("{log}", "a") as log:
    print(json.dumps([call, shown]), file=log)
sys.exit(int(os.environ.get("STATUS_" + call[0].upper(), "0")))
"""
SHOWN = ("DIFFRATE_COORDINATOR", "JAX_LOCAL_DEVICE_IDS")


class Machine:
    """A machine with stand-ins for the programs of a site, and what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._log = folder, folder / "calls"
        (folder / "bin").mkdir()
        for name in ("gcloud", "srun", "scontrol"):
            self.stand_in(folder / "bin" / name)

    def stand_in(self, path: Path) -> None:
        """Puts a program there that writes down its calls."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = STAND_IN.format(python=sys.executable, log=self._log, shown=SHOWN)
        path.write_text(text)
        path.chmod(0o755)

    @property
    def path(self) -> str:
        return f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def run(self, *words: str, cwd: Path = ROOT, **variables: str):
        """Runs a launcher."""
        done = subprocess.run(
            ["bash", *words],
            cwd=cwd,
            env=os.environ | {"PATH": self.path} | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    @property
    def calls(self) -> list[list[str]]:
        return [call for call, _ in self.records]

    @property
    def records(self) -> list:
        if not self._log.exists():
            return []
        return [json.loads(line) for line in self._log.read_text().splitlines()]


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def shellcheck() -> str:
    """Returns the program; requirements-test.txt brings it."""
    own = Path(sys.executable).parent / "shellcheck"
    found = str(own) if own.exists() else shutil.which("shellcheck")
    assert found, "expected shellcheck, of requirements-test.txt"
    return found


def test_shellcheck_finds_nothing():
    scripts = sorted(str(path) for path in (ROOT / "launch").iterdir())
    done = subprocess.run(
        [shellcheck(), "--external-sources", *scripts, ".ci/run"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_shows_an_example(machine, name):
    done = machine.run(f"launch/{name}", "--help")
    assert done.returncode == 0
    assert "Usage: " in done.stdout
    assert "Example: " in done.stdout
    assert not done.stderr
    assert not machine.calls


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("local_pod.sh", "give the command after --"),
        ("local_pod.sh --", "give the command after --"),
        (
            "local_pod.sh --processes=0 -- true",
            "--processes must be at least 1, got '0'",
        ),
        (
            "local_pod.sh --devices=two -- true",
            "--devices must be at least 1, got 'two'",
        ),
        ("local_pod.sh --procs=2 -- true", "unknown argument --procs=2"),
        ("tpu_pod.sh -- true", "which TPU? Give --name"),
        ("tpu_pod.sh --name=a -- true", "where is a? Give --zone"),
        ("tpu_pod.sh --name= --zone=z -- true", "unknown or empty argument --name="),
        ("tpu_pod.sh --name=a --zone=z", "give the command after --"),
        ("tpu_pod.sh --name=a --zone=z python", "unknown or empty argument python"),
        ("slurm.sbatch configs/mae_huge.py", "this is a batch script"),
    ],
)
def test_wrong_arguments_are_one_sentence(machine, words, sentence):
    done = machine.run(*shlex.split(f"launch/{words}"), SLURM_JOB_ID="")
    assert done.returncode == 2
    assert done.stderr.startswith(f"launch: {sentence}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not machine.calls


COMMAND = [
    "python",
    "-m",
    "diffrate_jax.search",
    "--config.targets=('60%','50%')",
    "a b",
]


def test_a_tpu_pod_gets_the_checkout_and_the_command(machine):
    place = ["--name=my-v4-32", "--zone=z1", "--project=p"]
    done = machine.run("launch/tpu_pod.sh", *place, "--", *COMMAND)
    assert done.returncode == 0, done.stderr
    where = ["--zone=z1", "--project=p", "--worker=all"]
    copy, install, search = machine.calls
    assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert copy[5].endswith("/diffrate_jax.tar.gz")
    assert copy[6:] == ["my-v4-32:", *where]
    for call in (install, search):
        assert call[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-v4-32"]
        assert call[6:9] == where
        assert call[9].startswith("--command=")
    assert "jax[tpu]" in install[9]
    home = host(machine, "python")
    command = search[9].removeprefix("--command=")
    subprocess.run(["bash", "-c", command], cwd=home, check=True)
    call, shown = machine.records[-1]
    assert call == COMMAND
    assert shown["DIFFRATE_COORDINATOR"] == "auto"


def host(machine: Machine, program: str) -> Path:
    """Returns the home folder of a host where everything is installed."""
    home = machine.folder / "home"
    machine.stand_in(home / "diffrate_jax/.venv/bin" / program)
    (home / "diffrate_jax/launch").mkdir()
    shutil.copy(ROOT / "launch/venv.sh", home / "diffrate_jax/launch")
    return home


def test_a_tpu_pod_that_fails_says_how_to_go_on(machine):
    words = ["launch/tpu_pod.sh", "--name=a", "--zone=z", "--", *COMMAND]
    done = machine.run(*words, STATUS_GCLOUD="75")
    assert done.returncode == 2
    assert done.stderr.endswith(
        "launch: gcloud could not copy to a; mend what it says and rerun.\n"
    )
    assert len(machine.calls) == 1
    # Copying and installing work, the program does not.
    gcloud = machine.folder / "bin/gcloud"
    text = gcloud.read_text().replace("sys.exit(", "if 'exec' in call[-1]: sys.exit(")
    gcloud.write_text(text)
    done = machine.run(*words, STATUS_GCLOUD="75")
    assert done.returncode == 75
    last = done.stderr.splitlines()[-1]
    assert last.startswith("launch: the run on a ended with status 75; go on with: ")
    assert shlex.split(last.partition("with: ")[2]) == ["bash", *words]


@pytest.fixture
def cluster(machine) -> Path:
    """A checkout that the nodes of a cluster see."""
    checkout = machine.folder / "checkout"
    machine.stand_in(checkout / ".venv/bin/python")
    (checkout / "launch").mkdir()
    (checkout / "configs").mkdir()
    shutil.copy(ROOT / "launch/venv.sh", checkout / "launch")
    shutil.copy(ROOT / "configs/mae_huge.py", checkout / "configs")
    # Slurm runs a copy of the script from a place of its own.
    shutil.copy(ROOT / "launch/slurm.sbatch", machine.folder / "slurm_script")
    return checkout


def job(machine: Machine, checkout: Path, *words: str, **variables: str):
    """Runs the batch script as a job."""
    slurm = {"SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(checkout)}
    script = str(machine.folder / "slurm_script")
    return machine.run(script, *words, cwd=machine.folder, **slurm | variables)


def test_a_slurm_job_searches_on_all_nodes(machine, cluster):
    words = ["configs/mae_huge.py", "--config.targets=('60%','50%')"]
    done = job(machine, cluster, *words, SLURM_GPUS_ON_NODE="8")
    assert done.returncode == 0, done.stderr
    ((call, shown),) = machine.records
    assert call == [
        "srun", "--kill-on-bad-exit=1", ".venv/bin/python", "-m",
        "diffrate_jax.search", "--config=configs/mae_huge.py",
        "--workdir=runs/mae_huge",
        "--config.targets=('60%','50%')",
    ]  # fmt: skip
    assert shown["DIFFRATE_COORDINATOR"] == "auto"
    assert shown["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3,4,5,6,7"


def test_a_slurm_job_of_a_recipe_with_a_choice(machine, cluster):
    job(machine, cluster, "configs/mae_huge.py:tuned")
    ((call, _),) = machine.records
    assert call[-2:] == [
        "--config=configs/mae_huge.py:tuned",
        "--workdir=runs/mae_huge_tuned",
    ]


def test_a_slurm_job_has_the_work_directory_that_it_is_given(machine, cluster):
    job(machine, cluster, "configs/mae_huge.py", "--workdir=gs://b/run")
    ((call, shown),) = machine.records
    assert call[-1] == "--workdir=gs://b/run"
    assert shown["JAX_LOCAL_DEVICE_IDS"] == os.environ.get("JAX_LOCAL_DEVICE_IDS", "")


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (2, False), (69, False)])
def test_a_slurm_job_queues_up_again_after_saving(machine, cluster, status, requeued):
    done = job(machine, cluster, "configs/mae_huge.py", STATUS_SRUN=str(status))
    assert done.returncode == (0 if requeued else status)
    last = ["scontrol", "requeue", "17"] if requeued else machine.calls[0]
    assert machine.calls[-1] == last
    assert ("go on with: sbatch launch/slurm.sbatch" in done.stderr) == (status == 69)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "expected a recipe such as configs/mae_huge.py, got ''"),
        ("configs/none.py", "expected a recipe .* got 'configs/none.py'"),
    ],
)
def test_a_slurm_job_without_a_recipe(machine, cluster, words, sentence):
    done = job(machine, cluster, *words.split())
    assert done.returncode == 2
    assert done.stderr.startswith(f"launch: {sentence.split(' .*')[0]}")
    assert not machine.calls


def test_sbatch_options_keep_a_job_alive():
    text = (ROOT / "launch/slurm.sbatch").read_text()
    options = [line[8:] for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert {"--ntasks-per-node=1", "--signal=TERM@180", "--requeue"} <= set(options)


def pod(machine: Machine, code: str, **variables: str):
    """Runs a line of Python as two processes."""
    words = ["launch/local_pod.sh", "--", sys.executable, "-c", code]
    return machine.run(*words, VIRTUAL_ENV=sys.prefix, **variables)


def test_a_local_pod_shows_what_process_0_prints(machine):
    code = (
        "import os, sys; "
        "print(*[os.environ[n] for n in ('DIFFRATE_PROCESS', 'DIFFRATE_PROCESSES', "
        "'JAX_NUM_CPU_DEVICES')]); print('spoken', file=sys.stderr)"
    )
    done = pod(machine, code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 2 2\n", "spoken\n")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("status", [2, 3, 75])
def test_a_local_pod_ends_as_the_first_that_fails(machine, number, status):
    """The other says that it has lost somebody, or never ends."""
    code = (
        "import os, sys, time; number = int(os.environ['DIFFRATE_PROCESS'])\n"
        f"if number == {number}: sys.exit(print('why', file=sys.stderr) or {status})\n"
        f"sys.exit(69)"
    )
    done = pod(machine, code)
    assert done.returncode == status
    assert done.stderr.startswith("why\n")
    goes_on = {2: "", 75: "launch: all is saved; go on with: bash "}
    wanted = goes_on.get(status, f"launch: process {number} ended with status 3 and")
    assert done.stderr.removeprefix("why\n").startswith(wanted)
    assert (status == 2) == (done.stderr == "why\n")
