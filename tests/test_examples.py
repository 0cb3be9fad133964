"""The examples run as they are, without a network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY, random_head, serve_base
from hub_server import Hub
from PIL import Image

import dvt_timm


def ended(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)


def run(*arguments: str, **environment: str) -> str:
    done = ended(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage1.py", "views"], "views needs --photos DIR"),
        (["stage1.py", "views", "--stores", "a=b"], "views needs --photos DIR"),
        (["stage1.py", "camvid", "--photos", "examples/data"], "camvid needs --camvid DIR"),
        (["heads.py", "error", "--heads", "a=b"], "error needs --photos DIR"),
        (
            ["heads.py", "leakage", "--photos", "a", "--folds", "5"],
            "--fit 250 --test 100 allows --folds 1 to 3, got 5",
        ),
    ],
)
def test_benchmarks_say_what_they_need(arguments: list[str], message: str) -> None:
    script, *rest = arguments
    done = ended(f"examples/benchmarks/{script}", *rest)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"{script}: error: {message}"


@pytest.mark.slow
def test_benchmark_of_the_explorer() -> None:
    output = run("examples/benchmarks/explore.py", "examples/data", "--count", "2", "--size", "112")
    assert "2 photos of 8 x 8 patches: " in output
    assert "position leakage: not measured" in output
    assert "error of similarities: 0.0" in output


@pytest.mark.slow
def test_quickstart() -> None:
    output = run("examples/quickstart.py")
    assert "forward_features (1, 1370, 384)" in output
    assert "class token unchanged True" in output


@pytest.mark.slow
def test_push_head(hub: Hub, tmp_path: Path) -> None:
    online = {
        "HF_HUB_OFFLINE": "",
        "HF_TOKEN": "hf_secret",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    assert "equal bit for bit: True" in run("examples/push_head.py", "me/demo", "--private", **online)
    assert hub.repos["me/demo"].private
    serve_base(hub)
    folder = dvt_timm.save_head(random_head(64), tmp_path / "head", base=TINY)
    output = run("examples/push_head.py", "me/mine", str(folder), **online)
    assert "equal bit for bit: True" in output
    assert "features (1, 197, 64)" in output


@pytest.mark.slow
def test_swap_backbone() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    assert "the mask depends on the head: True" in run("examples/swap_backbone.py")


@pytest.mark.slow
def test_anomaly_dino() -> None:
    pytest.importorskip("anomalib")
    output = run("examples/anomaly_dino.py")
    rows = re.findall(r"^\| (raw|denoised) \| ([\d.]+) to ([\d.]+) \| ([\d.]+) to ([\d.]+) \|", output, re.MULTILINE)
    assert [name for name, *_ in rows] == ["raw", "denoised"]
    for _, *scores in rows:
        lowest, whole, scratched, highest = map(float, scores)
        assert 0 < lowest < whole < scratched < highest < 1
    assert rows[0][1:] != rows[1][1:]


@pytest.mark.slow
def test_denoise_then_upsample(tmp_path: Path) -> None:
    output = run("examples/denoise_then_upsample.py", "examples/data/puppy.jpg", str(tmp_path / "fine.png"))
    assert "map (1, 384, 17, 16) upsampled (1, 384, 238, 224)" in output
    assert Image.open(tmp_path / "fine.png").size == (2 * 224, 238)


@pytest.mark.slow
def test_nearest_photos(tmp_path: Path) -> None:
    for name in ("cat", "puppy"):
        photo = Image.open(ROOT / f"examples/data/{name}.jpg")
        for part, box in {"a": (0, 0, 400, 370), "b": (30, 5, 430, 370)}.items():
            photo.crop(box).save(tmp_path / f"{name}-{part}.png")
    output = run("examples/nearest_photos.py", str(tmp_path), "112")
    nearest = dict(re.findall(r"^(\S+) -> (\S+) ", output, re.MULTILINE))
    pairs = {"cat-a": "cat-b", "cat-b": "cat-a", "puppy-a": "puppy-b", "puppy-b": "puppy-a"}
    assert nearest == {f"{one}.png": f"{other}.png" for one, other in pairs.items()}


@pytest.mark.slow
def test_cluster_folder(tmp_path: Path) -> None:
    output = run("examples/cluster_folder.py", "examples/data", "3", str(tmp_path / "out"))
    assert len(re.findall(r"\.png shares of the clusters( [01]\.\d\d){3}$", output, re.MULTILINE)) == 2
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").iterdir()}
    assert sizes == {"0000-cat.png": (294, 224), "0001-puppy.png": (224, 238)}


@pytest.mark.slow
def test_extract_benchmark() -> None:
    options = ["--photos", "examples/data", "--size", "56", "--batch-size", "2"]
    output = run("examples/benchmarks/extract.py", "speed", *options, "--count", "2", "--laps", "2")
    assert len(re.findall(r"^(passes|extract|files) .* photos/s, .* of the bare passes", output, re.MULTILINE)) == 3
    output = run("examples/benchmarks/extract.py", "memory", *options, "--count", "10")
    assert len(re.findall(r"^(extract,|command) .* photos: .*\d+ MB$", output, re.MULTILINE)) == 7


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    pytest.importorskip("nbmake")
    run("-m", "pytest", "--nbmake", "-q", "examples/dvt_timm.ipynb")


def test_the_notebook_has_no_outputs() -> None:
    cells = json.loads((ROOT / "examples/dvt_timm.ipynb").read_text())["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
def test_fit_one_image(tmp_path: Path) -> None:
    output = run("examples/fit_one_image.py", "examples/data/puppy.jpg", str(tmp_path / "panel.png"))
    assert "semantics  (37, 37, 384)" in output
    assert "finer      (74, 74, 384)" in output
    assert (tmp_path / "panel.png").is_file()


@pytest.mark.slow
def test_planted_picture(tmp_path: Path) -> None:
    output = run("examples/planted_picture.py", "examples/data/cat.jpg", str(tmp_path / "planted.png"))
    assert "31 % of the plaid's power is left, squared distance to the truth 0.34 before, 0.22 after" in output
    assert (tmp_path / "planted.png").is_file()


@pytest.mark.slow
def test_planted_film(tmp_path: Path) -> None:
    output = run("examples/planted_film.py", str(tmp_path / "film"), "4")
    raw, denoised = map(float, re.findall(r"([\d.]+) %", output))
    assert raw > denoised
    assert len(list((tmp_path / "film").iterdir())) == 4


@pytest.mark.slow
def test_train_head(tmp_path: Path) -> None:
    options = ["--out", str(tmp_path / "out"), "--views", "3", "--view-pairs", "2", "--size", "112", "--steps", "2"]
    for _ in range(2):  # the second time it finds all done
        output = run("examples/train_head.py", "examples/data", *options)
        assert "2 photos of 3 pairs of features, 0 skipped" in output
        assert "features (1, 65, 384)" in output
    assert (tmp_path / "out/head/model.safetensors").is_file()


@pytest.mark.slow
def test_heads_benchmark(tmp_path: Path) -> None:
    script = ["examples/benchmarks/heads.py"]
    out, cache = tmp_path / "out", tmp_path / "cache"
    options = ["--photos", "examples/data", "--heads", "demo=weights/demo/head.safetensors", "--cache", str(cache)]
    output = run(*script, "leakage", *options, "--fit", "1", "--test", "1")
    assert output.count("| raw |") == output.count("| demo |") == 1
    assert len(list(cache.iterdir())) == 2
    assert run(*script, "leakage", *options, "--fit", "1", "--test", "1") == output
    output = run(*script, "leakage", *options, "--fit", "1", "--test", "1", "--folds", "2", "--upside-down")
    assert "more than demo" in output
    assert output.count("| raw |") == 2
    assert output.count("| demo |") == 1
    assert len(list(cache.iterdir())) == 4
    output = run(*script, "passed", *options, "--count", "2")
    assert "| raw | 1.000 ±0.000 | 1.000 ±0.000 | 1.000 ±0.000 |" in output
    assert output.count("| F of 12 views and it |") == output.count("| demo |") == 2  # tables: what is left, errors
    output = run(*script, "targets", "--photos", "examples/data", "--cache", str(cache), "--count", "2")
    assert output.count("| 4 views, smoothness 1.0 |") == output.count("| 12 views, smoothness 0.1 |") == 1
    run(*script, "pictures", *options, "--count", "2", "--out", str(out))
    assert sorted(path.name for path in out.iterdir()) == ["cat.png", "puppy.png"]


def random_photo(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, size=(6, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((160, 120)).save(path)


def label_map(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)


@pytest.mark.slow
def test_evaluate_benchmark(tmp_path: Path) -> None:
    for i in range(6):
        random_photo(tmp_path / f"{i}.png", i)
    options = ["--photos", str(tmp_path), "--count", "6", "--size", "112", "--mic", "1", "--laps", "1"]
    output = run("examples/benchmarks/evaluate.py", *options)
    assert re.search(r"6 photos of 112 x 112: passes [\d.]+ s, artifacts [\d.]+ s, ratio [\d.]+ \(", output)


@pytest.mark.slow
def test_denoising_benchmark(tmp_path: Path) -> None:
    """On a few pictures in each benchmark's own layout: that every measure runs, and goes on."""
    rows = np.indices((120, 160))[1]
    for split, count in (("train", 2), ("val", 1)):
        for i in range(count):
            random_photo(tmp_path / "camvid" / split / f"{i}.png", i)
            label_map(tmp_path / f"camvid/{split}annot/{i}.png", rows > 80)
    for i in range(2):
        random_photo(tmp_path / f"voc/JPEGImages/{i}.jpg", i)
        label_map(tmp_path / f"voc/SegmentationClass/{i}.png", 8 * (rows < 20))
        random_photo(tmp_path / f"spair/JPEGImages/cat/{i}.jpg", i)
    pair = {"src_imname": "0.jpg", "trg_imname": "1.jpg", "category": "cat", "trg_bndbox": [0, 0, 160, 120]}
    pair |= {"src_kps": [[10, 20], [100, 60]], "trg_kps": [[12, 20], [90, 60]]}
    (tmp_path / "spair/PairAnnotation/test").mkdir(parents=True)
    (tmp_path / "spair/PairAnnotation/test/0.json").write_text(json.dumps(pair))
    names = ["jitter:2", "jitter:4", "jitter:4/mean", "jitter:4/slow3+smooth8", "positions@0.3:2", "head"]
    names.append("jitter:4/shared4")
    names.append("head:weights/demo/head.safetensors")
    few = [
        "--calibrate",
        str(tmp_path / "camvid/train"),
        "--size",
        "112",
        "--train",
        "2",
        "--test",
        "1",
        "--fit",
        "1",
        "--leak-test",
        "1",
        "--rows",
        *names,
    ]
    for measure, data in (("planted", "camvid"), ("backdrops", "voc"), ("keypoints", "spair"), ("leakage", "photos")):
        folder = ROOT / "examples/data" if data == "photos" else tmp_path / data
        options = [f"--{data}", str(folder), "--cache", str(tmp_path / "cache"), *few]
        output = run("examples/benchmarks/denoising.py", measure, *options)
        assert all(f"| {name} |" in output for name in names)
        assert output.count("| raw |") == (2 if measure == "planted" else 1)  # there among the differences, too
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
        assert run("examples/benchmarks/denoising.py", measure, *options) == output
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == kept
    run("examples/benchmarks/denoising.py", "pictures", *options, "--out", str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("cat-plant-0.png", "cat.png", "puppy-plant-0.png", "puppy.png")
    ]


@pytest.mark.slow
def test_train_benchmark() -> None:
    output = run("examples/benchmarks/train.py", "--quick", "--laps", "1", "--batch-size", "2")
    for measure in ("store", "online", "fit", "distill"):
        assert output.count(f"| {measure} |") == 1


@pytest.mark.slow
def test_stage_1_benchmark(tmp_path: Path) -> None:
    """On two photos and next to no views: that it runs."""
    script = ["examples/benchmarks/stage1.py"]
    photos = ["--photos", "examples/data", "--kinds", "jitter=2", "--cache", str(tmp_path)]
    for _ in range(2):
        output = run(*script, "leakage", *photos, "--fit", "1", "--test", "1")
        assert output.count("| F jitter |") == output.count("| raw |") == output.count("| mean jitter |") == 1
    output = run(*script, "information", *photos, "--count", "2")
    assert output.count("| G jitter |") == 1
    assert len(list(tmp_path.iterdir())) == 2
    store = str(tmp_path / "store")
    run("-m", "dvt_timm", "fit", "examples/data", "--out", store, "--views", "2", "--size", "56")
    output = run(*script, "leakage", "--stores", f"jitter={store}", "--fit", "1", "--test", "1")
    assert output.count("| F jitter |") == output.count("| raw |") == 1


@pytest.mark.slow
def test_forward_benchmark() -> None:
    output = run("examples/benchmarks/forward.py", "--quick")
    assert "denoised/minimal" in output
    assert output.count("vit_small_patch14_dinov2") >= 1


def colored_halves(folder: Path) -> None:
    """Eight photos whose right half is of another class, as `dvt-timm evaluate segmentation` takes them."""
    for i in range(8):
        random_photo(folder / f"images/{i}.png", i)
        label_map(folder / f"masks/{i}.png", np.indices((120, 160))[1] > 80)


@pytest.mark.slow
def test_gpu_benchmark(tmp_path: Path) -> None:
    colored_halves(tmp_path)
    options = [str(tmp_path), "--quick", "--out", str(tmp_path / "out")]
    output = run("examples/benchmarks/gpu.py", *options)
    assert len(re.findall(r"^[\w ,1-9]+: done, \d+ s$", output, re.MULTILINE)) == 5
    done = ended("examples/benchmarks/gpu.py", *options, "--minutes", "0")
    assert done.returncode == 1
    assert done.stdout.count(": stopped, the time is over, 0 s") == 5


@pytest.mark.slow
def test_visbench_referee(tmp_path: Path) -> None:
    pytest.importorskip("visbench")
    colored_halves(tmp_path)
    options = [str(tmp_path), "--size", "56", "--limit", "3", "--epochs", "2", "--seeds", "1"]
    output = run("examples/visbench_referee.py", *options)
    assert "3 images train, 3 test, 56 pixels" in output
    assert output.count("\n| ours, ") == 2
    assert re.search(r"visbench and patch: (the same direction|opposite directions), [\d.]+ points apart;", output)


@pytest.mark.slow
def test_average_heads(tmp_path: Path) -> None:
    heads = [random_head(64, (4, 4), seed) for seed in (0, 1)]
    folders = [str(dvt_timm.save_head(head, tmp_path / str(i), base=TINY)) for i, head in enumerate(heads)]
    run("examples/demo_head/average_heads.py", *folders, folders[1], "--out", str(tmp_path / "mean"))
    mean = dvt_timm.load_head(tmp_path / "mean").state_dict()
    first, second = (head.state_dict() for head in heads)
    for key, value in mean.items():
        torch.testing.assert_close(value, (first[key] + 2 * second[key]) / 3)
    config = (tmp_path / "mean/config.json").read_text()
    assert config == (tmp_path / "0/config.json").read_text()
    other = str(dvt_timm.save_head(random_head(64, (5, 5)), tmp_path / "other", base=TINY))
    lone = f"{folders[0]}/model.safetensors"  # does not say its backbone
    for refused in ([folders[0], other], [lone, lone]):
        done = ended("examples/demo_head/average_heads.py", *refused, "--out", str(tmp_path / "none"))
        assert done.returncode == 2
        assert "give folders that save_head or train wrote" in done.stderr
        assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_random_windows(tmp_path: Path) -> None:
    photos, first, second = (tmp_path / name for name in ("photos", "first", "second"))
    photos.mkdir()
    values = np.arange(90 * 60 * 3).reshape(60, 90, 3) % 251
    Image.fromarray(values.astype(np.uint8)).save(photos / "a.png")
    run("examples/demo_head/random_windows.py", str(photos), "--count", "3", "--out", str(first))
    (photos / "a.png").rename(photos / "another name.png")
    run("examples/demo_head/random_windows.py", str(photos), "--count", "3", "--out", str(second))
    windows = {path.name: Image.open(path) for path in first.iterdir()}
    assert len(windows) == 3
    assert all(0.5 * 90 <= window.width <= 0.9 * 90 for window in windows.values())
    assert all(abs(window.width / window.height - 1.5) < 0.1 for window in windows.values())
    assert {p.name: p.read_bytes() for p in second.iterdir()} == {p.name: p.read_bytes() for p in first.iterdir()}


@pytest.mark.slow
def test_plain_windows(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    values = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    values[:, 40:] = 128
    Image.fromarray(values).save(tmp_path / "photos/a.png")
    options = ["--count", "3", "--plain", "--out", str(tmp_path / "plain")]
    run("examples/demo_head/random_windows.py", str(tmp_path / "photos"), *options)
    windows = [Image.open(path).convert("L") for path in sorted((tmp_path / "plain").iterdir())]
    assert len(windows) == 3
    assert all(0.15 * 90 - 1 <= window.width <= 0.4 * 90 + 1 for window in windows)
    assert all(np.asarray(window, dtype=float).std() < 5 for window in windows)  # of the half without noise
