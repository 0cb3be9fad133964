"""The package as a whole: what it imports, and what wheel and sdist contain and do in another environment."""

import ast
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import DEMO, ROOT

from dvt_timm.manifest import weights_path

PACKAGE = ROOT / "dvt_timm"
ORDER = [  # a module imports from those further right only
    "__main__",
    "cli",
    "stages",
    "train_command",
    "fit_command",
    "console",
    "train",
    "train.run",
    "train.denoiser",
    "train.distill",
    "train.loop",
    "train.stage",
    "train.watch",
    "train.log",
    "train.evaluation",
    "train.loss",
    "train.data",
    "train.config",
    "train.checkpoint",
    "offline",
    "offline.run",
    "offline.fit",
    "offline.store",
    "offline.neural_field",
    "offline.hash_grid",
    "offline.least_squares",
    "offline.normal_equations",
    "offline.grid_field",
    "offline.views",
    "offline.solution",
    "offline.coords",
    "evaluate",
    "evaluate.leakage",
    "evaluate.mic",
    "evaluate.probes",
    "pins",
    "listing",
    "push",
    "card",
    "extract",
    "registry",
    "factory",
    "published",
    "saved",
    "checkpoints",
    "bases",
    "hub",
    "loading",
    "models",
    "stride",
    "convert",
    "head",
    "images",
    "manifest",
    "files",
    "viz",
    "panel",
    "schedule",
    "ahead",
    "_version",
]
DATA = {"manifest.json", "card.md", "demo/backbone.safetensors", "demo/head.safetensors", "demo/README.md"}


def file_of(module: str) -> Path:
    path = PACKAGE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(module: str) -> set[str]:
    """The modules of this package that one imports, anywhere in its code."""
    tree = ast.parse(file_of(module).read_text())
    inside = module.split(".") if file_of(module).name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*inside[: len(inside) - node.level + 1], *(node.module or "").split(".")]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {".".join([*base[:-1], name.rsplit(".")[-1]] if node.module is None else base) for name in names}
    return found


def test_imports_point_down() -> None:
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    assert set(ORDER) == {module.removesuffix(".__init__") for module in modules} - {"__init__"}
    for i, module in enumerate(ORDER):
        assert imports(module) <= set(ORDER[i + 1 :]), module


def test_only_one_module_touches_the_registry_and_one_opens_pickles() -> None:
    for module in ORDER:
        text = file_of(module).read_text()
        assert ("register_model" in text) == (module == "registry")
        assert ("safe_globals" in text) == (module == "convert")
        assert "weights_only=False" not in text


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """sdist, and the wheel built from it."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "-q", "--outdir", out, ROOT], check=True, timeout=600)
    return {"sdist": next(out.glob("*.tar.gz")), "wheel": next(out.glob("*.whl"))}


@pytest.mark.slow
def test_contents(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {f"weights/{file}" for file in DATA} | {"LICENSE", "NOTICE", "README.md", "setup.cfg"} <= names
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = set(wheel.namelist())
    assert {f"dvt_timm/weights/{file}" for file in DATA} | {"dvt_timm/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests", "examples", "weights"))]
    assert {Path(name).name for name in names if ".dist-info/" in name} >= {"LICENSE", "NOTICE", "METADATA"}


def test_code_that_is_run_in_a_clone_finds_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, the clone's own folder hides an installed package."""
    monkeypatch.setitem(sys.modules, "dvt_timm.weights", None)  # not to be imported
    assert weights_path("manifest.json").samefile(ROOT / "weights/manifest.json")


@pytest.mark.slow
def test_the_wheel_works_alone(built: dict[str, Path], tmp_path: Path) -> None:
    """In another environment, which sees this one's dependencies but not this checkout."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    run = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True, "timeout": 300}
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", built["wheel"]]
    subprocess.run(pip, **run)
    where = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], **run)
    path_file = Path(where.stdout.strip(), "dependencies.pth")
    path_file.write_text(f"{sysconfig.get_path('purelib')}\n")  # paths only: editable installs are not followed
    code = (
        "import dvt_timm, timm; assert 'venv' in dvt_timm.__file__, dvt_timm.__file__;"
        f"model = timm.create_model('{DEMO}', pretrained=True); assert model.denoiser.pos_embed.std() > 0;"
        "from dvt_timm.manifest import weights_path; print(weights_path('manifest.json'))"
    )
    done = subprocess.run([python, "-c", code], **run)
    assert str(tmp_path) in done.stdout
    command = [tmp_path / "venv/bin/dvt-timm", "features", ROOT / "examples/data/cat.jpg", "--size", "112"]
    done = subprocess.run(command, **run)
    assert (tmp_path / done.stdout.strip()).is_file()
