"""Exported models: they run without the package, as live, or are refused."""

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import diffrate_jax as dr
from diffrate_jax import export, runner
from diffrate_jax.artefact import Delivery, appearing, exported, save_artefact
from diffrate_jax.budget import fit_to_budget, uniform
from diffrate_jax.compressions import parse_compression
from diffrate_jax.cost import macs_of
from diffrate_jax.data.photo import central
from diffrate_jax.preprocess import Preprocess, published

ROOT = Path(__file__).parent.parent
VIT = {
    "image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2,
    "num_classes": 5,
}  # fmt: skip
# In each family a share of the dense cost that its schedules can reach.
FAMILIES = {
    "cls": ("vit", VIT, 0.75),
    "avg": ("vit", VIT | {"pool": "avg"}, 0.75),
    "distilled": ("vit", VIT | {"distilled": True, "prefix_tokens": 2}, 0.75),
    "features": ("vit", VIT | {"num_classes": 0}, 0.75),
    "caformer": ("caformer", {"depths": (1, 1, 3, 1), "widths": (32, 32, 64, 64),
                              "num_classes": 7, "image_size": 64}, 0.93),
}  # fmt: skip
COMPRESSIONS = ("dense", "redundancy", "diffrate", "tome", "prune", "ToMe", "reference")
ALIEN = ("flax", "optax", "orbax", "ml_collections", "tensorflow", "safetensors", "PIL")

# What a process without the package does: -I keeps the folder, PYTHONPATH and user
# packages out, and should the package be installed it still cannot be imported.
ALONE = """
import sys
sys.modules["diffrate_jax"] = None
sys.path.insert(0, {artefact!r})
{code}
assert not [name for name in sys.modules if name.startswith("diffrate_jax.")]
assert not set({alien}) & set(sys.modules)
"""


@functools.cache
def made(family: str):
    """Returns a small model and its random weights."""
    kind, fields, _ = FAMILIES[family]
    model = dr.create_model(kind, **fields)
    # Of spread 0.02, as they are made, weights hardly tell images apart.
    return model, jax.tree.map(lambda w: w * 3.0, dr.init_weights(model, 1))


def compression_of(family: str, kind: str) -> Any:
    """Returns one of COMPRESSIONS for a model, None also where it is none."""
    model, share = made(family)[0], FAMILIES[family][2]
    if kind == "ToMe":
        return dr.ToMe(3)
    if kind == "prune":
        tokens = model.geometry.num_tokens
        return dr.Gathered(dr.Schedule([tokens - 4] * 2, [tokens - 6] * 2))
    if kind == "dense":
        return None
    rule = "diffrate" if kind == "reference" else kind
    schedule = uniform(model, rule)
    schedule = fit_to_budget(
        schedule, macs_of(model), share * dr.cost_macs(model, None)
    )
    return dr.Gathered(schedule, reference=kind == "reference")


def delivery_of(family: str, kind: str, **fields: Any) -> Delivery:
    """Returns what an artefact of a small model is made of."""
    model = made(family)[0]
    # Uneven, so that no mixing up of channels goes unseen.
    colours = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)}
    image = dataclasses.replace(published(model.image_size), **colours)
    compression = compression_of(family, kind)
    return Delivery(model, family, compression, kind, image, **fields)


def images_of(model: Any, number: int) -> np.ndarray:
    """Returns random bytes as images."""
    shape = (number, model.image_size, model.image_size, 3)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def live(delivery: Delivery, params: Any, images: np.ndarray) -> np.ndarray:
    """Returns the logits as users of the package compute them."""
    image = delivery.preprocess

    def logits(params: Any, images: np.ndarray) -> jax.Array:
        images = dr.normalise(images, image.mean, image.std)
        return dr.forward(delivery.model, params, images, delivery.compression).logits

    return np.asarray(jax.jit(logits)(params, images))


def alone(folder: Path, artefact: Path, code: str) -> str:
    """Returns what code prints in a process without the package."""
    text = ALONE.format(artefact=str(artefact), alien=ALIEN, code=code)
    command = [sys.executable, "-I", "-c", text]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=plain_environment()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain_environment() -> dict[str, str]:
    """Returns this environment without ways to the package."""
    hidden = ("PYTHONPATH", "JAX_PLATFORMS")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    # As the fixture `cache` has it, where a test uses it.
    fast = str(int(jax.config.values["jax_disable_most_optimizations"]))
    return kept | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": fast}


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Returns the largest difference, of the largest logit where that is above 1."""
    return float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max()))


RUN_ALL = """
import numpy as np
from run import Predict
predict = Predict("a")
for number in (1, 7, 64):
    np.save(f"a_{number}_logits.npy", predict(np.load(f"a_{number}.npy")))
"""


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("family", "kind"),
    [("cls", "redundancy"), pytest.param("caformer", "ToMe", marks=pytest.mark.slow)],
)
def test_alone_as_live(tmp_path: Path, family: str, kind: str):
    delivery, (model, params) = delivery_of(family, kind), made(family)
    save_artefact(tmp_path / "a", delivery, params)
    for number in (1, 7, 64):
        np.save(tmp_path / f"a_{number}.npy", images_of(model, number))
    alone(tmp_path, tmp_path / "a", RUN_ALL)
    for number in (1, 7, 64):
        found = np.load(tmp_path / f"a_{number}_logits.npy")
        wanted = live(delivery, params, images_of(model, number))
        assert found.dtype == np.float32
        assert np.ptp(wanted, axis=1).min() > 0.01  # There is something to see.
        assert distance(found, wanted) <= 1e-6


@pytest.mark.slow
def test_deit_small_alone_as_live(tmp_path: Path):
    name = "deit_small_patch16_224"
    model = dr.create_model(name)
    params = dr.init_weights(model)
    dr.save_model(tmp_path / "w", model, params, name=name)
    flags = (f"--weights={tmp_path / 'w'}", "--schedule=published:2.9")
    assert run(*flags, f"--out={tmp_path / 'a'}") == 0
    for number in (1, 7, 64):
        np.save(tmp_path / f"a_{number}.npy", images_of(model, number))
    alone(tmp_path, tmp_path / "a", RUN_ALL)
    compression = parse_compression("published:2.9", model, name)
    image = Preprocess(**record_of(tmp_path / "a")["preprocessing"])
    delivery = Delivery(model, name, compression, "published:2.9", image)
    for number in (1, 7, 64):
        found = np.load(tmp_path / f"a_{number}_logits.npy")
        wanted = live(delivery, params, images_of(model, number))
        print(
            f"{number}: {np.abs(found - wanted).max():.2g}, {distance(found, wanted)}"
        )
        assert distance(found, wanted) <= 1e-6


# The families and compressions that a commit waits for; the others take as long again.
OFTEN = {
    *(("cls", "diffrate"), ("avg", "redundancy"), ("distilled", "ToMe")),
    *(("caformer", "tome"), ("features", "prune")),
}
CASES = [
    pytest.param(
        *(family, kind), marks=() if (family, kind) in OFTEN else pytest.mark.slow
    )
    for family in FAMILIES
    for kind in COMPRESSIONS
    if (family, kind) not in {("caformer", "prune"), ("avg", "reference")}
]


# Slow on a TPU, where it is many small steps.
SCATTER = re.compile(r"stablehlo\.scatter\b")


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_everything_lowers_for_any_number_of_images(family: str, kind: str):
    delivery = delivery_of(family, kind)
    params = flatten_dict(made(family)[1], sep=".")
    program = exported(delivery, params)
    assert program.platforms == ("cpu", "cuda", "tpu")
    text = program.mlir_module()
    assert f"tensor<?x{delivery.model.image_size}x" in text
    assert SCATTER.findall(text) == []
    # And the expression would have found one.
    scatter = jax.jit(lambda x_N: x_N.at[jnp.array([1, 3])].add(1.0))
    assert SCATTER.findall(scatter.lower(jnp.zeros(8)).as_text())


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("family", "kind"), [case.values for case in CASES])
def test_every_form_as_live(family: str, kind: str):
    delivery, (model, params) = delivery_of(family, kind), made(family)
    flat = flatten_dict(params, sep=".")
    program = jax.export.deserialize(exported(delivery, flat).serialize())
    for number in (1, 7):
        images = images_of(model, number)
        found = np.asarray(jax.jit(program.call)(flat, images))
        assert distance(found, live(delivery, params, images)) <= 1e-6
    for platform in ("tpu", "cuda"):
        alone_there = exported(delivery, flat, [platform])
        assert alone_there.platforms == (platform,)
        assert SCATTER.findall(alone_there.mlir_module()) == []


TINY = VIT | {"patch_size": 8, "width": 8}
RECIPE = """
from configs import quickstart

def get_config():
    config = quickstart.get_config()
    config.model_fields = quickstart.base.ConfigDict({fields})
    config.resize, config.mean, config.std = 20, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    return config
"""


def run(*arguments: object) -> int:
    return export.main(["export", *map(str, arguments)])


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a tiny model, its weights, a model folder and a schedule."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "tiny.py").write_text(RECIPE.replace("{fields}", str(TINY)))
    model = dr.create_model("vit", **TINY)
    params = dr.init_weights(model)
    dr.save_weights(model, params, folder / "w.safetensors")
    dr.save_model(folder / "model", model, params)
    dr.Schedule([5, 4], [5, 3]).save(folder / "schedule.json")
    (folder / "labels.txt").write_text("ant\nbee\ncat\ndog\nélan\n", "utf-8")
    return folder


def flags_of(source: Path, **changes: object) -> list[str]:
    """Returns the flags that export the tiny model."""
    flags = {
        "recipe": source / "tiny.py",
        "weights": source / "w.safetensors",
        "schedule": source / "schedule.json",
        "labels": source / "labels.txt",
    } | changes
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


@pytest.fixture(scope="module")
def artefact(source: Path) -> Path:
    """The tiny model, exported by the program."""
    out = source / "tiny.jaxexport"
    assert run(*flags_of(source, out=out)) == 0
    return out


def test_what_the_program_says_and_writes(source: Path, tmp_path: Path, capsys):
    out = tmp_path / "deep" / "tiny.jaxexport"
    assert run(*flags_of(source, out=out)) == 0
    said = capsys.readouterr()
    assert re.fullmatch(
        rf"{out}: [\d.]+ MB \(weights [\d.]+, program [\d.]+\), 1.518e-05 of 1.62e-05 "
        rf"GMACs, [\d.]+ s\ntry: python {out}/run.py --help\n",
        said.out,
    ), said.out
    assert "tracing for cpu, cuda, tpu; preprocessing (recipe): short" in said.err
    files = {file.name for file in out.iterdir()}
    assert files == {"manifest.json", "program.bin", "weights.safetensors", "run.py"}
    assert list(out.parent.iterdir()) == [out]
    assert len({file.stat().st_mode for file in out.iterdir()}) == 1
    record = record_of(out)
    assert record["labels"] == ["ant", "bee", "cat", "dog", "élan"]
    model, schedule = dr.create_model("vit", **TINY), dr.Schedule([5, 4], [5, 3])
    assert record["schedule"] == {
        "given": "schedule.json", "kind": "gathered", "rule": "diffrate",
        "reference": False, "prune": [5, 4], "merge": [5, 3],
        "macs": dr.cost_macs(model, schedule),
        "dense_macs": dr.cost_macs(model, None),
    }  # fmt: skip
    assert record["model"]["name"] == "vit"
    assert dr.create_model("vit", **record["model"]["fields"]) == dr.create_model(
        "vit", **TINY
    )
    assert record["input"]["shape"] == ["b", 16, 16, 3]
    assert record["output"]["shape"] == ["b", 5]
    assert record["preprocessing"]["resize"] == 20
    assert record["platforms"] == ["cpu", "cuda", "tpu"]
    assert record["versions"]["jax"] == jax.__version__


def test_the_same_again_is_the_same_to_the_byte(
    source: Path, artefact: Path, tmp_path: Path
):
    flags = flags_of(source, out=tmp_path / "again")
    command = [sys.executable, "-m", "diffrate_jax.export", *flags]
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    # As conftest has it: the precision of products is part of a program.
    environment |= {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    for file in artefact.iterdir():
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    content = (artefact / "program.bin").read_bytes()
    assert b".py" not in content
    assert str(ROOT).encode() not in content


def test_an_export_is_replaced_only_when_asked(source: Path, tmp_path: Path, capsys):
    out = tmp_path / "a"
    assert run(*flags_of(source, out=out, platforms="cpu")) == 0
    before = (out / "manifest.json").read_bytes()
    assert run(*flags_of(source, out=out)) == 2
    assert "holds an exported model; give --overwrite or" in capsys.readouterr().err
    assert (out / "manifest.json").read_bytes() == before
    assert run(*flags_of(source, out=out, schedule="none"), "--overwrite") == 0
    assert record_of(out)["schedule"]["kind"] == "dense"
    assert list(tmp_path.iterdir()) == [out]
    other = tmp_path / "other"
    other.mkdir()
    assert run(*flags_of(source, out=other), "--overwrite") == 2
    assert "exists and is no exported model; give another" in capsys.readouterr().err


def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path):
    def fill(text: str, error: Exception | None = None) -> None:
        with appearing(tmp_path / "a") as part:
            (part / "file").write_text(text)
            if error:
                raise error

    fill("first")
    with pytest.raises(dr.UserError, match="No space left on device; give a place"):
        fill("second", OSError(28, "No space left on device"))
    with pytest.raises(KeyboardInterrupt):
        fill("third", KeyboardInterrupt())
    assert (tmp_path / "a" / "file").read_text() == "first"
    fill("fourth")
    assert (tmp_path / "a" / "file").read_text() == "fourth"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"weights": None}, "--weights is needed; see --help for examples"),
        ({"schedule": None}, "--schedule is needed"),
        ({"out": None}, "--out is needed"),
        ({"model": "deit_tiny_patch16_224"}, "give either --model=NAME or --recipe="),
        ({"recipe": None}, "w.safetensors does not say what model it belongs to"),
        ({"schedule": "tome:x"}, "tome:r takes the whole number of tokens removed"),
        ({"dtype": "float16"}, "unknown dtype 'float16'; did you mean"),
        ({"platforms": "cpu,gpu"}, "unknown platform 'gpu'"),
        ({"platforms": ""}, "unknown platform ''"),
        ({"preprocess": "tim"}, "unknown --preprocess=tim; did you mean 'timm'?"),
        ({"preprocess": "timm"}, "the model is no preset but 'vit', so nothing says"),
        ({"labels": "none.txt"}, "cannot read the labels none.txt: No such file"),
        ({"out": "gs://bucket/a"}, "is in a bucket; write a local folder and copy it"),
    ],
)
def test_bad_flags_end_in_one_sentence(
    source: Path, tmp_path, changes, sentence, capsys
):
    assert run(*flags_of(source, **{"out": tmp_path / "a"} | changes)) == 2
    found = capsys.readouterr().err
    assert sentence in found
    assert found.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_labels_are_as_many_as_classes(source: Path, tmp_path: Path, capsys):
    (tmp_path / "labels.txt").write_text("ant\nbee\n")
    flags = flags_of(source, out=tmp_path / "a", labels=tmp_path / "labels.txt")
    assert run(*flags) == 2
    assert "tells 5 classes apart, got 2 labels; give one" in capsys.readouterr().err


def test_a_model_folder_says_what_it_holds(source: Path, tmp_path: Path, capsys):
    flags = {"recipe": None, "weights": source / "model", "labels": None}
    assert run(*flags_of(source, out=tmp_path / "a", **flags)) == 2
    assert "nothing says how its images are prepared; give" in capsys.readouterr().err
    flags |= {"preprocess": "published", "schedule": "tome:1", "platforms": "cpu,cpu"}
    assert run(*flags_of(source, out=tmp_path / "a", **flags)) == 0
    record = record_of(tmp_path / "a")
    assert record["labels"] == ["0", "1", "2", "3", "4"]
    assert record["schedule"]["kind"] == "tome"
    assert record["schedule"]["merge"] == [4, 3]
    assert record["platforms"] == ["cpu"]
    assert record["preprocessing"]["source"] == "published"


def test_a_preset_brings_its_own_preprocessing():
    flags = export.parser().parse_args(["--model=vit_small_patch16_224"])
    model, name, image = export.chosen_model(flags)
    assert (name, model.width) == ("vit_small_patch16_224", 384)
    assert (image.source, image.resize, image.mean) == ("timm", 248, (0.5, 0.5, 0.5))


@pytest.mark.usefixtures("cache")
def test_bfloat16_is_that_of_the_fast_path(tmp_path: Path):
    delivery, (model, params) = delivery_of("cls", "diffrate"), made("cls")
    delivery = dataclasses.replace(delivery, dtype="bfloat16", platforms=("cpu",))
    sizes = save_artefact(tmp_path / "a", delivery, params)
    wide = ("patch_embed", "pos_embed", "cls_token")
    total = sum(
        weight.size * (4 if path[0] in wide else 2)
        for path, weight in flatten_dict(params).items()
    )
    assert total < sizes["weights.safetensors"] < total + 8000
    images, image = images_of(model, 4), delivery.preprocess
    found = np.asarray(runner.Predict(tmp_path / "a")(images))
    schedule = delivery.compression.schedule
    predict = dr.compile_inference(
        model, params, schedule, batch_size=4, dtype="bfloat16"
    )
    wanted = np.asarray(predict(dr.normalise(images, image.mean, image.std)))
    assert found.dtype == np.float32
    print(f"bfloat16: {distance(found, wanted):.2g}")
    # Eight bits of mantissa; measured 0, but two programs may round apart.
    assert distance(found, wanted) <= 2**-7
    assert not np.array_equal(found, live(delivery, params, images))


# What the runner refuses.


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_damage_goes_unseen(artefact: Path, data: st.DataObject):
    name = data.draw(st.sampled_from(["manifest.json", "program.bin", runner.WEIGHTS]))
    whole = (artefact / name).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "more"]))
    flipped = bytes([whole[place] ^ data.draw(st.integers(1, 255))])
    broken = {
        "flip": whole[:place] + flipped + whole[place + 1 :],
        "cut": whole[:place],
        "more": whole + flipped,
    }[kind]
    (artefact / name).write_bytes(broken)
    try:
        if name != "manifest.json":
            with pytest.raises(runner.ArtefactError, match="is damaged: its SHA-256"):
                runner.Predict(artefact)
        # Other spaces between its words do a manifest no harm.
        elif meaning(broken) != json.loads(whole):
            with pytest.raises(runner.ArtefactError, match="damaged|describes|version"):
                runner.Predict(artefact)
    finally:
        (artefact / name).write_bytes(whole)


def meaning(text: bytes) -> Any:
    """Returns what JSON says, None if it is none."""
    try:
        return json.loads(text.decode())
    except ValueError:
        return None


def changed(folder: Path, **fields: object) -> None:
    """Changes what a manifest says, and its hash."""
    record = record_of(folder) | fields
    record["sha256"] = runner.fingerprint(record)
    (folder / "manifest.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda a: (a / "manifest.json").unlink(),
            "holds no exported model: cannot re",
        ),
        (lambda a: (a / "program.bin").unlink(), "program.bin (No such file or direct"),
        (lambda a: changed(a, version=9), "has version 9, this runner reads version 1"),
        (lambda a: changed(a, platforms=["tpu"]), "runs on tpu, jax here on cpu; set"),
        (lambda a: future(a), "which jax 99.0 wrote; exports are kept readable for"),
    ],
)
def test_the_runner_refuses_in_one_sentence(
    artefact: Path, tmp_path: Path, change, sentence: str, capsys
):
    shutil.copytree(artefact, tmp_path / "a")
    change(tmp_path / "a")
    assert runner.main([f"--artefact={tmp_path / 'a'}", "photo.jpg"]) == 2
    found = capsys.readouterr().err
    assert sentence in found
    assert found.count("\n") == 1


def future(folder: Path) -> None:
    """Makes the program one that this jax does not read."""
    (folder / "program.bin").write_bytes(b"of the future" * 9)
    record = record_of(folder)
    record["files"]["program.bin"] = export.digest(folder / "program.bin")
    changed(folder, files=record["files"], versions={"jax": "99.0"})


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (
            np.zeros((2, 16, 16, 3), np.float32),
            "images must be uint8 [b, 16, 16, 3], got",
        ),
        (np.zeros((2, 8, 8, 3), np.uint8), "got uint8 [2, 8, 8, 3]; resize them"),
        (np.zeros((16, 16, 3), np.uint8), "got uint8 [16, 16, 3]"),
        ([[1]], "got <class 'list'> [1, 1]"),
        (np.zeros((0, 16, 16, 3), np.uint8), "at least one image, got none; give"),
    ],
)
def test_images_that_do_not_fit(artefact: Path, images, sentence: str):
    with pytest.raises(runner.ArtefactError, match=re.escape(sentence)):
        runner.Predict(artefact)(images)


# The runner as a program.


@pytest.mark.usefixtures("cache")
def test_photos_are_classified(artefact: Path, tmp_path: Path):
    rng = np.random.default_rng(3)
    for number in range(3):
        pixels = rng.integers(0, 256, (25, 31, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    photos = [f"{number}.png" for number in range(3)]
    command = [sys.executable, "-I", artefact / "run.py", "--batch=2", "--top=2"]
    done = subprocess.run(
        [*command, *photos], cwd=tmp_path, capture_output=True, text=True,
        env=plain_environment() | {"PYTHONUTF8": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "compiling for 2 at once\n"
    model = dr.create_model("vit", **TINY)
    params = dr.load_weights(model, artefact.parent / "w.safetensors")
    image = Preprocess(**record_of(artefact)["preprocessing"])
    schedule = dr.Gathered(dr.Schedule.load(artefact.parent / "schedule.json"))
    delivery = Delivery(model, "vit", schedule, "", image)
    pixels = np.stack(
        [
            central(Image.open(tmp_path / photo), resize=20, image_size=16,
                    interpolation=image.interpolation)
            for photo in photos
        ]
    )  # fmt: skip
    shares = np.asarray(jax.nn.softmax(live(delivery, params, pixels)))
    labels, wanted = record_of(artefact)["labels"], ""
    for photo, share_V in zip(photos, shares, strict=True):
        wanted += f"{photo}\n"
        for label in np.argsort(-share_V)[:2]:
            wanted += f"  {share_V[label]:6.1%}  {labels[label]}\n"
    assert done.stdout == wanted


def test_without_photos_it_says_what_it_is(artefact: Path, capsys):
    assert runner.main([f"--artefact={artefact}"]) == 0
    assert capsys.readouterr().out == (
        "vit, schedule schedule.json: 1.518e-05 of 1.62e-05 GMACs\n"
        f"float32, on cpu, cuda, tpu; written by jax {jax.__version__}\n"
        "takes uint8 [b, 16, 16, 3], RGB: shorter side to 20, bicubic, central square; "
        "normalises by itself\n"
        "gives float32 logits [b, 5]\n"
    )


def test_a_file_that_is_no_photo(artefact: Path, capsys):
    assert runner.main([f"--artefact={artefact}", str(artefact / "run.py")]) == 2
    said = capsys.readouterr().err
    assert "cannot decode" in said
    assert "compiling" not in said


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.integers(16, 40),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    mode=st.sampled_from(["RGB", "L", "RGBA", "P"]),
)
def test_photos_are_prepared_as_in_evaluation(
    tmp_path_factory, width, height, resize, interpolation, mode
):
    path = tmp_path_factory.getbasetemp() / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    how = {"resize": resize, "image_size": 16, "interpolation": interpolation}
    wanted = central(Image.open(path).convert("RGB"), **how)
    np.testing.assert_array_equal(runner.read_image(path, how), wanted)


@pytest.mark.usefixtures("cache")
def test_the_readme_s_example_runs(tmp_path: Path):
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"^```python\n([^`]*deit_s\.jaxexport[^`]*)^```", text, re.M)
    fields = TINY | {"image_size": 224, "patch_size": 56, "num_classes": 1000}
    model = dr.create_model("vit", **fields)
    delivery = Delivery(model, "vit", dr.ToMe(2), "tome:2", published(224))
    save_artefact(tmp_path / "deit_s.jaxexport", delivery, dr.init_weights(model))
    alone(tmp_path, tmp_path, code + "\nassert logits.shape == (7, 1000)")


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    assert (
        "--weights=weights/deit_s --schedule=published:2.9" in capsys.readouterr().out
    )
