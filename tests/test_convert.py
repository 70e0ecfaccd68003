"""The program that converts weights, and model folders."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import diffrate_jax as dr
from diffrate_jax import convert
from diffrate_jax.model_folder import load_params
from diffrate_jax.models.presets import presets
from diffrate_jax.sources import from_safetensors

RECIPE = """
from configs import quickstart

def get_config():
    config = quickstart.get_config()
    config.model_fields = {fields}
    return config
"""
FIELDS = {
    "image_size": 16, "patch_size": 4, "width": 8, "depth": 2, "num_heads": 2,
    "num_classes": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def params() -> dict:
    """Weights of a small model."""
    return dr.init_weights(dr.create_model("vit", **FIELDS))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of that model."""
    path = tmp_path / "small.py"
    path.write_text(RECIPE.replace("{fields}", f"quickstart.base.ConfigDict({FIELDS})"))
    return path


@pytest.fixture
def source(tmp_path: Path, params: dict) -> Path:
    """Those weights under timm's names."""
    model = dr.create_model("vit", **FIELDS)
    dr.save_weights(model, params, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def run(*arguments: object) -> int:
    return convert.main(["convert", *map(str, arguments)])


def test_there_and_back(tmp_path: Path, recipe: Path, source: Path, capsys):
    out = tmp_path / "deep" / "model"
    assert run(f"--recipe={recipe}", f"--source={source}", f"--out={out}") == 0
    assert capsys.readouterr().out == (
        f"{out}: vit, 0.002323 million weights, 4.191e-05 GMACs at 16 x 16 pixels\n"
    )
    assert {file.name for file in out.iterdir()} == {
        "weights.safetensors",
        "model.json",
    }
    model, params = dr.load(out)
    assert model == dr.create_model("vit", **FIELDS)
    wanted = dr.load_weights(model, source)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    ours, theirs = (
        from_safetensors(out / "weights.safetensors"),
        from_safetensors(source),
    )
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    record = json.loads((out / "model.json").read_text())
    assert record["provenance"]["source"] == str(source)
    assert len(record["provenance"]["source_sha256"]) == 64


def test_other_size_and_classes(tmp_path: Path, recipe: Path, source: Path, capsys):
    out = tmp_path / "model"
    changes = ("--image_size=24", "--num_classes=7")
    assert (
        run(f"--recipe={recipe}", f"--source={source}", f"--out={out}", *changes) == 0
    )
    assert capsys.readouterr().out.splitlines()[:3] == [
        "head.bias is ignored: a new head was asked for",
        "head.weight is ignored: a new head was asked for",
        "pos_embed is resized from 4 x 4 patches to 6 x 6",
    ]
    model, params = dr.load(out)
    assert (model.image_size, model.num_classes) == (24, 7)
    images = np.zeros((1, 24, 24, 3), np.float32)
    assert dr.forward(model, params, images).logits.shape == (1, 7)


def test_a_model_is_not_replaced_unasked(tmp_path: Path, recipe: Path, source, capsys):
    flags = (f"--recipe={recipe}", f"--source={source}", f"--out={tmp_path / 'm'}")
    assert run(*flags) == 0
    before = (tmp_path / "m" / "model.json").read_bytes()
    assert run(*flags) == 2
    assert "holds a model; give --overwrite or another --out" in capsys.readouterr().err
    assert (tmp_path / "m" / "model.json").read_bytes() == before
    assert run(*flags, "--overwrite") == 0


def test_the_list_names_every_preset(capsys):
    assert run("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(presets())
    row = next(line for line in lines if line.startswith("deit_small_patch16_224 "))
    assert row.split()[1:] == ["224", "197", "4.599", "1000"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ((), "--source is needed; see --help for examples"),
        (("--source=a.pth",), "--out is needed"),
        (("--source=a", "--out=b"), "give either --model=NAME or --recipe=FILE"),
        (("--source=a", "--out=b", "--model=deit"), "unknown model 'deit'; did you me"),
        (
            ("--source=a.pth", "--out=b", "--model=deit_tiny_patch16_224"),
            "cannot read the weights a.pth: there is no such file; give .safetensors,",
        ),
    ],
)
def test_bad_flags_end_in_one_sentence(flags: tuple[str, ...], sentence: str, capsys):
    assert run(*flags) == 2
    found = capsys.readouterr().err
    assert sentence in found
    assert found.count("\n") == 1


def test_help_has_examples():
    command = [sys.executable, "-m", "diffrate_jax.convert", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--source=hf-hub:timm/deit_small_patch16_224.fb_in1k" in found


@pytest.fixture
def folder(tmp_path: Path, params: dict) -> Path:
    """That model as a folder of our own."""
    model = dr.create_model("vit", **FIELDS)
    dr.save_model(tmp_path / "m", model, params, provenance={"why": "a test"})
    return tmp_path / "m"


def test_a_folder_tells_what_shapes_do_not(folder: Path, params: dict):
    other = dr.create_model("vit", **FIELDS | {"num_heads": 4})
    with pytest.raises(dr.UserError, match="holds a model with num_heads 2, this"):
        load_params(other, folder)
    larger = dr.create_model("vit", **FIELDS | {"image_size": 24})
    assert load_params(larger, folder)["pos_embed"].shape == (1, 37, 8)
    same = load_params(dr.create_model("vit", **FIELDS), folder)
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: (m / "model.json").unlink(), "holds no model: expected weights.saf"),
        (lambda m: (m / "weights.safetensors").unlink(), "holds no model"),
        (lambda m: (m / "model.json").write_text("{"), "model.json is not JSON"),
        (lambda m: (m / "model.json").write_text("[]"), "describes no model; convert"),
        (lambda m: edit(m, version=9), "has version 9, this program reads version 1"),
        (lambda m: edit(m, fields=None), "model.json is damaged; convert"),
        (lambda m: edit(m, model=None), "model.json is damaged; convert"),
        (lambda m: edit(m, family=["vit"]), "model.json is damaged; convert"),
        (lambda m: edit(m, fields={"depth": 2}), "also needs image_size"),
        (lambda m: edit(m, fields=FIELDS | {"mlp_ratio": "4"}), "mlp_ratio must be of"),
        (lambda m: edit(m, weights_sha256="0"), "is not the file that model.json bes"),
    ],
)
def test_folders_that_are_not_whole(folder: Path, change, sentence: str):
    change(folder)
    with pytest.raises(dr.UserError, match=sentence):
        dr.load(folder)


def edit(folder: Path, **fields: object) -> None:
    """Changes fields of a folder's model.json."""
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
