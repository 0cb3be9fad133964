"""The wheel holds the whole tree, and every command of it runs alone: in another environment, from another folder."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from helpers import DEMO, GOLDEN, ROOT, TINY, serve_base
from hub_server import Hub

import dvt_timm

pytestmark = pytest.mark.slow

Run: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]
PHOTOS = str(ROOT / "examples/data")
IMPORTS = f"""
import importlib, pkgutil, sys
import timm, dvt_timm
print(dvt_timm.__file__)
for module in pkgutil.walk_packages(dvt_timm.__path__, "dvt_timm."):
    if module.name != "dvt_timm.__main__":
        importlib.import_module(module.name)
        print(module.name)
assert timm.create_model("{DEMO}", pretrained=True).denoiser.pos_embed.std() > 0
"""


OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # does not see this checkout


def files_below(folder: str) -> set[str]:
    """Paths of a folder's files, from the root."""
    found = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An sdist, and the wheel built from it; what earlier builds left in this checkout takes no part."""
    folder = tmp_path_factory.mktemp("clone")
    left_behind = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "site", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=left_behind, dirs_exist_ok=True)
    subprocess.run([sys.executable, "-m", "build", "-q", folder], check=True, timeout=600)
    return {"sdist": next(folder.glob("dist/*.tar.gz")), "wheel": next(folder.glob("dist/*.whl"))}


@pytest.fixture(scope="module")
def binaries(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel and sees this one's dependencies, but not this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", built["wheel"]]
    subprocess.run(pip, check=True, timeout=300, env=OUTSIDE)
    installed = sysconfig.get_path("purelib", vars={"base": str(folder)})
    dependencies = sysconfig.get_path("purelib")  # a path only: editable installs there are not followed
    Path(installed, "dependencies.pth").write_text(f"{dependencies}\n")
    return folder / "bin"


@pytest.fixture
def run(binaries: Path, hub: Hub, tmp_path: Path) -> Run:
    """A program of that environment, in a folder of the test's own, with the tests' Hub."""
    ours = {"HF_TOKEN": "hf_secret", "HF_HOME": str(tmp_path / "hf-home"), "HF_HUB_DISABLE_XET": "1"}
    environment = {**OUTSIDE, **ours, "CUDA_VISIBLE_DEVICES": ""}

    def ended(program: str, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [binaries / program, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, done.stderr
        return done

    return ended


def test_every_file_of_the_tree_is_in_it(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = wheel.namelist()
    weights = {f"dvt_timm/{name}" for name in files_below("weights")}
    code_and_data = {name for name in names if ".dist-info/" not in name}
    assert code_and_data == files_below("dvt_timm") | weights | {"dvt_timm_command.py"}
    licenses = {name.partition("/licenses/")[2] for name in names if "/licenses/" in name}
    assert licenses == {"LICENSE", "NOTICE", "weights/demo/LICENSE"}


def test_the_description_has_no_links_that_lead_nowhere(built: dict[str, Path]) -> None:
    """On a package index there is no repository beside it."""
    with zipfile.ZipFile(built["wheel"]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = wheel.read(name).decode()
    assert "timm.create_model" in metadata
    assert "](https://" in metadata
    assert not re.search(r"\]\((?!https?:)", metadata)


def test_every_file_of_the_tree_is_in_the_sdist(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    assert files_below("dvt_timm") | files_below("weights") | {"dvt_timm_command.py"} <= names
    assert {"LICENSE", "NOTICE", "README.md", "pyproject.toml", "setup.cfg", "setup.py"} <= names


def test_every_module_can_be_imported(run: Run, binaries: Path) -> None:
    where, *modules = run("python", "-c", IMPORTS).stdout.splitlines()
    assert Path(where).is_relative_to(binaries.parent)
    code = (Path(name).with_suffix("") for name in files_below("dvt_timm") if name.endswith(".py"))
    tree = {".".join(path.parts).removesuffix(".__init__") for path in code}
    assert {"dvt_timm", "dvt_timm.__main__", *modules} == tree | {"dvt_timm.weights"}


def test_version_and_list(run: Run) -> None:
    assert run("dvt-timm", "--version").stdout == f"dvt-timm {dvt_timm.__version__}\n"
    assert DEMO in run("dvt-timm", "list").stdout


def test_features(run: Run, tmp_path: Path) -> None:
    run("dvt-timm", "features", PHOTOS, "--panels", "--size", "28", "--out", "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("cat.png", "cat.safetensors", "puppy.png", "puppy.safetensors")
    }


def test_the_three_stages(run: Run, tmp_path: Path) -> None:
    short = ["--batch-size", "1", "--workers", "0", "--held-out", "1"]
    run("dvt-timm", "fit", PHOTOS, "--out", "store", "--views", "2", "--size", "56", "--panel")
    run("dvt-timm", "train", "--store", "store", "--out", "head", "--steps", "2", *short)
    run("dvt-timm", "distill", "--base", DEMO, "--denoiser", "head", "--images", PHOTOS, "--out", "plain",
        "--size", "28", "--steps", "1", *short)  # fmt: skip
    for written in ("store/panels/cat.png", "head/model.safetensors", "plain/model.safetensors"):
        assert (tmp_path / written).is_file()


def test_convert_and_push(run: Run, hub: Hub) -> None:
    serve_base(hub)
    run("dvt-timm", "convert", str(GOLDEN / "official_denoiser_d64_g9_b1.pth"), "--base", TINY, "--out", "head")
    run("dvt-timm", "push", "head", "me/head")
    assert hub.repos["me/head"].files().keys() >= {"README.md", "config.json", "model.safetensors"}


def test_an_error_is_one_line(run: Run) -> None:
    done = run("dvt-timm", "train", "--store", "nowhere", "--out", "head", status=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("dvt-timm: error: ")
    assert "nowhere" in line
    assert done.stdout == ""
