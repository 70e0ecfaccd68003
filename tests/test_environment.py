"""What a figure depends on."""

import subprocess
from pathlib import Path

import jax
import pytest

import diffrate_jax as dr
from diffrate_jax import environment as module
from diffrate_jax.environment import commit, environment


def test_versions_and_device_are_told():
    found = environment("torchless-package")
    assert found["jax"] == jax.__version__
    assert found["diffrate_jax"] == dr.__version__
    assert found["device"] == f"{jax.device_count()} x cpu"
    assert found["torchless-package"] is None


def test_a_checkout_tells_its_commit_and_whether_files_differ(tmp_path: Path):
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "--quiet")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "--quiet", "--message=a")
    git("tag", "--annotate", "--message=b", "v1")
    full = git("rev-parse", "HEAD")
    assert full.startswith(commit(tmp_path))
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == full[:12] + "+"


def test_without_a_checkout_or_git_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert commit(tmp_path) is None
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(tmp_path) is None


def test_a_processor_without_a_name_is_its_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: Fast One 3\n" * 2)
    monkeypatch.setattr(module, "CPU_INFO", info)
    assert module.processor() == "Fast One 3"
    info.unlink()
    assert module.processor() == module.platform.machine()
