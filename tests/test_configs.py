"""The configs: each loads, and no field of theirs is dead."""

import dataclasses
import re

import pytest
from programs import (
    ROOT,
)

from configs import base
from diffrate_jax import (
    cli,
)
from diffrate_jax.recipe import Recipe

CONFIGS = sorted((ROOT / "configs").glob("[a-z]*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_loads_and_is_locked(path):
    config = cli.load_recipe(path)
    assert config.is_locked
    with pytest.raises(AttributeError, match="target"):
        config.tarject = "50%"
    assert set(config) == set(base.get_config())


def test_every_field_of_the_configs_is_read_and_every_field_read_exists():
    texts = [path.read_text() for path in (ROOT / "diffrate_jax").rglob("*.py")]
    sources = "".join(text for text in texts if "ConfigDict" in text)
    sources = sources.replace("jax.config.", "")
    read = set(re.findall(r"\bconfig\.([a-z]\w+)\b(?!\()", sources))
    # Where a search gets all that its recipe holds, by name.
    assert "{name: config[name] for name in names}" in sources
    read |= {field.name for field in dataclasses.fields(Recipe)} - {"augment"}
    assert read - {"json", "name", "value", "key", "field"} == set(base.get_config())
