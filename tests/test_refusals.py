"""What the programs refuse, each in one sentence, and what they leave alone."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from programs import (
    BENCHMARK,
    EVALUATE,
    FINETUNE,
    NUM_TEST,
    SEARCH,
    WEIGHTED,
    images,
    run,
)
from safetensors.numpy import load_file, save_file

from diffrate_jax import (
    finetuning,
)

pytestmark = pytest.mark.usefixtures("compiles_fast")

# What each command must say; every one ends in one sentence and status 2.
REFUSED = {
    # Flags and configs.
    "search": "give --config=configs/quickstart.py",
    "search --config={recipe}": "give --workdir=DIR",
    "search --config= --workdir={work}": "give --config=",
    "search --config={tmp}/none.py --workdir={work}": "no config file none.py",
    "search --config={tmp} --workdir={work}": "no config file",
    "search --config={wrong}/syntax.py --workdir={work}": "syntax.py SyntaxError",
    "search --config={wrong}/raises.py --workdir={work}": "raises.py KeyError 'x'",
    "search --config={wrong}/nothing.py --workdir={work}": "ConfigDict, got None",
    "search --config={wrong}/empty.py --workdir={work}": "get_config",
    "search --config={wrong}/typo.py --workdir={work}": "'tarject' mean 'target'?",
    "search --config={wrong}/bare.py --workdir={work}": "not set base.get_config()",
    "search --config={wrong}/type.py --workdir={work}": "steps to 'ten' 1000",
    "search --config={wrong}/depth.py --workdir={work}": "depth at least 1, got 'two'",
    "search --config --config": "no config file",
    f"{SEARCH} --config.tarject=50%": "'config.tarject' did you mean 'config.target'?",
    f"{SEARCH} --config.model_fields.deph=2": "mean 'config.model_fields.depth'?",
    f"{SEARCH} --wrokdir=x": "--wrokdir did you mean 'workdir'?",
    f"{SEARCH} --workdir": "Missing value --workdir",
    f"{SEARCH} extra": "'extra'",
    f"{SEARCH} --config.steps=abc": "config.steps must be a whole number, got 'abc'",
    f"{SEARCH} --config.steps=1.5": "config.steps must be a whole number, got '1.5'",
    f"{SEARCH} --config.flip=maybe": "config.flip true or false, got 'maybe'",
    f"{SEARCH} --config.learning_rate=fast": "config.learning_rate a number 'fast'",
    f"{SEARCH} --config.learning_rate=nan": "config.learning_rate nan",
    f"{SEARCH} --config.model_fields=3": "config.model_fields",
    f"{SEARCH} --config.mean=grey": "config.mean three numbers 'grey'",
    f"{SEARCH} --config.std=0": "std",
    f"{SEARCH} --config.steps=0": "config.steps must be at least 1, got 0",
    f"{SEARCH} --config.log_every=0": "config.log_every at least 1",
    f"{SEARCH} --config.checkpoint_every=0": "config.checkpoint_every at least 1",
    f"{SEARCH} --config.method=penalised --config.granularity=0": "granularity 1 0",
    f"{SEARCH} --config.granularity=65": "granularity 1 64 65",
    f"{SEARCH} --config.drop_path=1": "config.drop_path 0 1",
    f"{SEARCH} --config.seed=-1": "config.seed -1",
    f"{SEARCH} --config.penalty_unit=flops": "relative gmacs 'flops'",
    f"{SEARCH} --config.rule=nonsense": "unknown rule 'nonsense' redundancy tome",
    f"{SEARCH} --config.rule=redundency": "'redundency' did you mean 'redundancy'?",
    f"{SEARCH} --config.method=nonsense": "method 'nonsense' projected penalised",
    f"{SEARCH} --config.objective=nonsense": "objective 'nonsense' match_logits",
    f"{SEARCH} --config.blocks=nonsense": "blocks 'nonsense' all model",
    f"{SEARCH} --config.start=nonsense": "uniform:60% file that exists 'nonsense'",
    f"{SEARCH} --config.start={{wrong}}/short.json": "2 attention blocks for 1",
    f"{SEARCH} --config.tighten=1": "config.tighten 0 1",
    f"{SEARCH} --config.spread=0": "config.spread 0",
    f"{SEARCH} --config.refine_images=-1": "config.refine_images at least 0, got -1",
    f"{SEARCH} --config.latency_table={{tmp}}/no.json": "cannot read no.json: No such",
    f"{SEARCH} --config.compare_images=-1": "config.compare_images at least 0, got -1",
    f"{SEARCH} --config.label_smoothing=1": "label_smoothing 1.0",
    f"{SEARCH} --config.crop=centre": "unknown crop 'centre'",
    f"{FINETUNE} --config.warmup_steps=4": "warmup_steps fewer than the 4 steps",
    f"{FINETUNE} --config.distill=1.5": "config.distill must be from 0 to 1, got 1.5",
    f"{FINETUNE} --config.temperature=0": "config.temperature at least 0.001",
    f"{FINETUNE} --config.layer_decay=2": "config.layer_decay from 0.001 to 1, got 2",
    f"{FINETUNE} --config.ema=1": "config.ema from 0 to 0.999999, got 1",
    f"{FINETUNE} --config.distill=0.5": "teacher --config.weights=FILE distill=0",
    f"{FINETUNE} --config.model_fields.num_classes=12": "12 classes has 10 distill=1",
    f"{FINETUNE} --config.model_fields.num_classes=0": "0",
    # Models and weights.
    f"{SEARCH} --config.model=deit_smal_patch16_224": "'deit_small_patch16_224'?",
    f"{SEARCH} --config.model_fields.num_heads=5": "width multiple of num_heads 5",
    f"{SEARCH} --config.model_fields.patch_size=0": "patch_size at least 1",
    "search --config={recipe} --workdir={work}": "give --config.weights=FILE",
    f"{SEARCH} --config.weights=none.safetensors": "none.safetensors no such file",
    f"{SEARCH} --config.weights=w.pth": "no such file w.pth .safetensors",
    f"{SEARCH} --config.weights={{wrong}}/cut.safetensors": "cut.safetensors",
    f"{SEARCH} --config.model_fields.depth=3": "missing blocks.2.attn.qkv.weight",
    f"{SEARCH} --config.model_fields.width=24": "shape (12,), expected (24,)",
    # Targets and schedules.
    f"{SEARCH} --config.target=5%": "5% is out of reach between GMACs 100%",
    f"{SEARCH} --config.target=9": "9 is out of reach between GMACs",
    f"{SEARCH} --config.target=half": "'2.9' '60%' 'half'",
    f"{SEARCH} --config.targets=\"('92%','5%')\"": "5% is out of reach between GMACs",
    f"{EVALUATE} --schedule=uniform:half": "'60%' 'half'",
    f"{EVALUATE} --schedule=tome:many": "'many'",
    f"{EVALUATE} --schedule=tome:-1": "-1",
    f"{EVALUATE} --schedule=published:2.9": "no schedule was published 'vit'",
    f"{EVALUATE} --schedule=none.json": "a file that exists 'none.json'",
    f"{EVALUATE} --schedule={{wrong}}": "cannot read the schedule Is a directory",
    f"{EVALUATE} --schedule={{wrong}}/short.json": "2 attention blocks for 1",
    f"{EVALUATE} --schedule={{wrong}}/zero.json": "positive integers, got 0",
    f"{EVALUATE} --schedule={{wrong}}/negative.json": "positive integers, got -3",
    f"{EVALUATE} --schedule={{wrong}}/half.json": "positive integers, got 9.5",
    f"{EVALUATE} --schedule={{wrong}}/large.json": "2 and 65 tokens 66",
    f"{EVALUATE} --schedule={{wrong}}/text.json": "text.json is not JSON",
    f"{EVALUATE} --schedule={{wrong}}/other.json": "other.json is not a schedule",
    f"{EVALUATE} --schedule={{wrong}}/newer.json": "version 3 reads versions 2 update",
    f"{EVALUATE} --baselines=3": "baselines",
    f"{EVALUATE} --baselines --costs=92%": "--baselines --costs give one of them",
    f"{EVALUATE} --costs=92%,92%": "--costs has 92% twice leave one out",
    f"{EVALUATE} --costs=5%": "5% is out of reach between GMACs 100%",
    f"{EVALUATE} --costs=9ms": "9ms needs a latency table",
    f"{EVALUATE} --costs=,": "--costs got ',' one is empty; leave out the comma",
    f"{EVALUATE} --costs=92%,": "--costs got '92%,' one is empty; leave out",
    f"{EVALUATE} --draws=-1": "draws",
    f"{EVALUATE} --draws=3": "--draws random --baselines or --costs leave --draws out",
    f"{EVALUATE} --baselines": "none costs as much as dense fewer tokens, --costs=60%",
    f"{EVALUATE} --schedule=tome:0 --baselines": "tome:0 costs as much as the dense",
    f"{EVALUATE} --schedule={{schedule}} --against=learned=tome:4": "called 'learned'",
    f"{EVALUATE} --schedule=tome:4 --against=dense=tome:2 --costs=90%": "NAME=SCHEDULE",
    f"{EVALUATE} --schedule=tome:4 --against=uniform=tome:2 --baselines": "'uniform'",
    f"{EVALUATE} --config.corruption=nois:1": "unknown corruption 'nois' 'noise'",
    f"{EVALUATE} --config.corruption=noise": "noise:0.1 blur:1.0 got 'noise'",
    f"{FINETUNE} --schedule={{wrong}}/zero.json": "positive integers, got 0",
    f"{BENCHMARK} --schedule={{wrong}}/zero.json": "positive integers, got 0",
    # Data.
    f"{SEARCH} --config.dataset=arrays:none.npz": "none.npz",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/text.npz": "text.npz numpy.savez",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/small.npz": "32 x 32 16 x 16",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/grey.npz": "uint8 [N, Y, X, 3] 1]",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/float.npz": "uint8 float32",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/classes.npz": "labels 0 to 9 11",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/more.npz"
    " --config.objective=cross_entropy": "tells 10 classes apart, has 12; match_logits",
    f"{EVALUATE} --config.dataset=arrays:{{wrong}}/more.npz": "tells 10 apart, has 12",
    f"{FINETUNE} --config.final_evaluation --config.eval_split=tset": "no split 'tset'",
    f"{FINETUNE} --config.final_evaluation --config.eval_batch_size=10": "devices, 10",
    f"{FINETUNE} --config.final_evaluation --config.corruption=noise": "got 'noise'",
    f"{SEARCH} --config.dataset=arrays:{{wrong}}/none.npz": "must have examples",
    f"{SEARCH} --config.train_split=trian": "no split 'trian' did you mean 'train'?",
    f"{SEARCH} --config.train_split=train[5:5]": "'train[5:5]' hold at least one",
    f"{EVALUATE} --config.eval_split=validation": "no split 'validation' test",
    f"{SEARCH} --config.batch_size=10": "multiple of the 4 devices, got 10",
    f"{SEARCH} --config.batch_size=0": "config.batch_size at least 1",
    f"{SEARCH} --config.batch_size=64": "at most the 32 examples 64",
    f"{EVALUATE} --config.eval_batch_size=10": "multiple of the 4 devices, got 10",
    # Folders.
    f"{SEARCH} --workdir={{data}}/below": "cannot write data.npz/below Not a directory",
    f"{FINETUNE} --workdir={{data}}/below": "cannot write Not a directory",
    f"{EVALUATE} --workdir={{data}}/below": "cannot write Not a directory",
    f"{EVALUATE} --workdir={{data}}": "cannot write File exists",
    f"{SEARCH} --workdir={{wrong}}/claimed": "claimed target='50%' this one has '92%'",
    f"{SEARCH} --workdir={{wrong}}/damaged": "config.json is not JSON",
    f"{FINETUNE} --workdir={{wrong}}/model": "weights.safetensors another --workdir",
    f"{BENCHMARK} --schedule=tome:4 --out={{data}}/below": "cannot write",
    "quickstart --workdir={data}/below": "cannot write Not a directory",
    # Programs without a config.
    "benchmark": "give --schedule=SCHEDULE to time, or --latency_table=FILE",
    "benchmark --cells={tmp}/no.json": "--cells needs a folder for its records",
    "benchmark --cells=a --out={tmp} --schedule=none": "--cells brings models and sch",
    "benchmark --cells={tmp}/no.json --out={tmp}": "cannot read",
    f"{SEARCH} --config.target=9ms": "9ms needs a latency table",
    f"{SEARCH} --config.latency_table={{data}}": "data.npz",
    f"{SEARCH} --config.latency_table={{tmp}}/none.json": "none.json",
    f"{BENCHMARK} --schedule=uniform:9ms": "9ms needs a latency table",
    "benchmark --schedule=tome:4": "either --model=NAME or --recipe=FILE",
    f"{BENCHMARK} --schedule=tome:4 --model=vit": "either --model=NAME or --recipe",
    "benchmark --model=deit_smal --schedule=tome:4": "unknown model 'deit_smal'",
    "benchmark --recipe={tmp}/no.py --schedule=tome:4": "no config file",
    "benchmark --recipe={wrong}/raises.py --schedule=tome:4": "raises.py KeyError",
    f"{BENCHMARK} --schedule=tome:4 --batch=0": "1,8,64 '0'",
    f"{BENCHMARK} --schedule=tome:4 --batch=2,x": "1,8,64 '2,x'",
    f"{BENCHMARK} --schedule=tome:4 --dtype=int8": "dtype float32 bfloat16 'int8'",
    f"{BENCHMARK} --schedule=tome:4 --rounds=0": "--rounds at least 1",
    f"{BENCHMARK} --schedule=tome:4 --rounds=few": "--rounds 'few'",
    f"{BENCHMARK} --schedule=tome:4 --weights=none.safetensors": "none.safetensors",
    f"{BENCHMARK} --schedule=tome:4 --wieghts=x": "--wieghts=x",
    "quickstart --worker=3": "--worker=3",
    "report --results={tmp}/none --out={tmp}/report.html": "none",
    "report --results={data} --out={tmp}/report.html": "data.npz",
    "report --results={tmp} --out=": "--out: expected the name of a file, got ''",
}


@pytest.fixture(scope="module")
def wrong(trained, tmp_path_factory) -> Path:
    """A folder of files that no program may accept."""
    folder = tmp_path_factory.mktemp("wrong")
    write_configs(folder)
    write_schedules(folder)
    write_data(folder)
    whole = trained["weights"].read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    shutil.copytree(trained["schedule"].parent, folder / "claimed")
    claimed = folder / "claimed/config.json"
    claimed.write_text(claimed.read_text().replace("92%", "50%"))
    (folder / "model").mkdir()
    shutil.copy(trained["weights"], folder / "model")
    (folder / "damaged").mkdir()
    (folder / "damaged/config.json").write_text("{")
    return folder


def write_configs(folder: Path) -> None:
    """Writes config files that do not run, or make no config."""
    (folder / "syntax.py").write_text("def get_config(:\n")
    (folder / "raises.py").write_text("def get_config():\n    return {}['x']\n")
    (folder / "nothing.py").write_text("def get_config():\n    pass\n")
    (folder / "empty.py").write_text("")
    changes = {
        "typo": "config.tarject = '50%'",
        "bare": "config = type(config)()",
        "type": "del config.steps; config.steps = 'ten'",
        "depth": "config.model_fields = type(config)({'depth': 'two'})",
    }
    for name, change in changes.items():
        (folder / f"{name}.py").write_text(
            "from configs import base\n\ndef get_config():\n"
            f"    config = base.get_config()\n    {change}\n    return config\n"
        )


def write_schedules(folder: Path) -> None:
    """Writes schedule files that are wrong for two blocks of 65 tokens."""
    good = {"format": "diffrate_jax.schedule", "version": 1, "prune": None}
    merges = {
        "short": [65],
        "zero": [65, 0],
        "negative": [65, -3],
        "half": [65, 9.5],
        "large": [66, 5],
    }
    changes = {name: {"merge": merge} for name, merge in merges.items()}
    changes["newer"] = {"merge": [65, 5], "version": 3}
    changes["other"] = {"merge": [65, 5], "format": "other"}
    for name, change in changes.items():
        (folder / f"{name}.json").write_text(json.dumps(good | change))
    (folder / "text.json").write_text("prune: 9")


def write_data(folder: Path) -> None:
    """Writes datasets that are wrong for images of 32 x 32 in ten classes."""
    right = images()
    image, label = right["train_image"], right["train_label"]
    many = {"train_label": np.arange(32) % 12, "test_label": np.arange(NUM_TEST) % 12}
    changes = {
        "small": {"train_image": image[:, :16, :16]},
        "grey": {"train_image": image[..., :1]},
        "float": {"train_image": image.astype(np.float32)},
        "classes": many,
        "more": many | {"num_classes": np.int64(12)},
        "none": {"train_image": image[:0], "train_label": label[:0]},
    }
    for name, change in changes.items():
        np.savez(folder / f"{name}.npz", **images(**change))
    (folder / "text.npz").write_text("images")


def brief(text: str) -> str:
    """Returns a command without what all commands have."""
    common = "--config={recipe} ", "--workdir={work} ", "--config.weights={weights} "
    for part in common:
        text = text.replace(part, "")
    return text


@pytest.mark.parametrize("text", REFUSED, ids=brief)
def test_bad_input_is_one_sentence(text, paths, wrong, capfd):
    before = {p: p.stat().st_mtime_ns for p in wrong.rglob("*")}
    assert run(text, paths | {"wrong": wrong}) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: .*\n", printed.err), printed.err
    missing = [word for word in REFUSED[text].split() if word not in printed.err]
    assert not missing, printed.err
    assert before == {p: p.stat().st_mtime_ns for p in wrong.rglob("*")}
    assert not [p for p in paths["tmp"].rglob("*") if p.is_file()]


def test_evaluation_without_a_finite_loss_is_refused(paths, capfd):
    tensors = load_file(paths["weights"])
    tensors["head.weight"] = np.full_like(tensors["head.weight"], 3e38)
    save_file(tensors, paths["tmp"] / "huge.safetensors")
    text = f"{EVALUATE} --config.weights={{tmp}}/huge.safetensors"
    assert run(text, paths) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the loss of 'dense' is not finite")
    assert not (paths["work"] / "evaluation.json").exists()


def test_loss_that_is_not_finite_names_its_step_every_time(paths, capfd):
    text = f"{FINETUNE} --config.model_fields.depth=1 --config.checkpoint_every=1"
    text += " --config.learning_rate=1e30"
    for _ in range(2):
        assert run(text, paths) == 2
        last = capfd.readouterr().err.splitlines()[-1]
        assert re.match(r"error: the loss of step 2 is not finite; .* kept", last)
        folder = paths["work"] / "checkpoints"
        assert [p.name for p in folder.iterdir()] == ["1"]
    assert not (paths["work"] / "weights.safetensors").exists()


def test_weights_that_are_not_finite_are_not_saved(paths, capfd, monkeypatch):
    monkeypatch.setattr(
        finetuning, "train", lambda *_, **__: {"head": np.full(3, np.nan)}
    )
    assert run(FINETUNE, paths) == 2
    assert "\nerror: the trained weights are not finite; " in capfd.readouterr().err
    assert not (paths["work"] / "weights.safetensors").exists()


def test_a_folder_is_one_program_s(paths, capfd):
    text = WEIGHTED.replace("{work}", str(paths["schedule"].parent))
    before = paths["schedule"].read_bytes()
    assert run(f"finetune {text}", paths) == 2
    assert "program='search'" in capfd.readouterr().err
    assert paths["schedule"].read_bytes() == before
    tuned = f"{EVALUATE} --workdir={paths['weights'].parent}"
    assert run(tuned, paths) == 2
    assert "is a training's, which" in capfd.readouterr().err
