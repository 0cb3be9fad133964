"""What `stage1.py` measures by predicting views that took no part in a fit, on photos through the embedded backbone."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from functools import partial

import torch
from alternatives import ALTERNATIVES
from measuring import timed
from photos import HELD_OUT, ClosedForm, ViewCache, aligned_mean, mean_artifact, spread, subset
from PIL import Image
from planted import plant
from torch import Tensor
from tqdm import tqdm

from dvt_timm._util.images import read_image
from dvt_timm.offline import Decomposition, LeastSquaresSolver, NeuralFieldSolver, Views, unexplained
from dvt_timm.offline.grid_field import GridField

KINDS = ("jitter", "crops")
PLANTED_COUNTS, REAL_COUNTS = (8, 16, 32, 64, 128, 256, 512, 768), (8, 16, 24, 32, 48, 64)
NUM_VIEWS = 24
PLANTS = 4
BORDER = 3  # patches
SMOOTHNESS, DENSITIES = (0.03, 0.1, 0.3, 1.0, 3.0), (1.0, 1.5, 2.0, 3.0)


def shares(solution: Decomposition, views: Views) -> dict[str, float]:
    """Unexplained share of held-out views: of all patches, those within three of the border, and the others."""
    sums = unexplained(solution, views)
    inner = torch.zeros(sums.shape[:2], dtype=torch.bool)
    inner[BORDER:-BORDER, BORDER:-BORDER] = True
    parts = {"all": sums.flatten(0, 1), "border": sums[~inner], "inner": sums[inner]}
    return {name: (part[:, 0].sum() / part[:, 1].sum()).item() for name, part in parts.items()}


def as_map(semantics: Tensor, artifact: Tensor | None = None) -> Decomposition:
    """Maps [h, w, C] of the whole image as a decomposition; without an artifact, it is zero."""
    artifact = torch.zeros_like(semantics) if artifact is None else artifact
    h, w, _ = semantics.shape
    field = GridField(semantics)
    inside = torch.tensor([w, h])

    def semantics_at(xy: Tensor) -> Tensor:  # patch centers are the nodes; outside the outermost, their value
        return field(((xy * inside - 0.5) / (inside - 1)).clamp(0, 1))

    return Decomposition(semantics, semantics, artifact, torch.zeros_like(semantics), {}, semantics_at)


def without_artifact_of_others(maps: list[dict[str, Tensor]], i: int) -> Decomposition:
    """A photo's raw map less the mean G of all other photos."""
    artifact = mean_artifact(maps[:i] + maps[i + 1 :])
    return as_map(maps[i]["raw"] - artifact, artifact)


def averaged(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.mean(row[key] for row in rows) for key in rows[0]}


def print_rows(header: list[str], rows: dict[str, dict[str, float]]) -> None:
    print("| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|")
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values.values()) + " |", flush=True)


def held_out_views(arguments: argparse.Namespace) -> None:
    """24 views of each kind, solved and averaged, and the raw map, predicting 8 jittered views and 8 crops."""
    cache, solvers = ViewCache(arguments.cache), {kind: ClosedForm() for kind in KINDS}
    rows: dict[str, list[dict[str, float]]] = {}
    maps: list[dict[str, Tensor]] = []
    photos = spread(arguments.photos, arguments.count or 40)

    def add(name: str, solution: Decomposition, image: Image.Image) -> None:
        measured = {kind: shares(solution, cache.held_out(image, kind)) for kind in KINDS}
        rows.setdefault(name, []).append({f"{part} {k}": v for k in KINDS for part, v in measured[k].items()})

    for path in tqdm(photos, unit="photo", disable=None):
        image = read_image(path)
        maps.append({})
        for kind in KINDS:
            views = cache.take(image, kind, NUM_VIEWS)
            solution = solvers[kind].fit(views)
            maps[-1] |= {"raw": solution.raw, f"G {kind}": solution.artifact}
            add(f"F from {NUM_VIEWS} {kind}", solution, image)
            add(f"mean of {NUM_VIEWS} aligned {kind}", as_map(aligned_mean(views)), image)
        add("raw", as_map(solution.raw), image)
        print(path.stem, {name: round(of_photos[-1]["all jitter"], 3) for name, of_photos in rows.items()}, flush=True)
    for i, path in enumerate(photos):
        add("raw - mean G of the other photos", without_artifact_of_others(maps, i), read_image(path))
    table = {name: averaged(of_photos) for name, of_photos in rows.items()}
    print(f"\nunexplained share of held-out views, {len(photos)} photos (jitter: {HELD_OUT})\n")
    print_rows(["fit", *next(iter(table.values()))], table)


def neural(arguments: argparse.Namespace) -> None:
    """The released method and the closed form on the same 24 jittered views, photo by photo, and the baselines."""
    cache, rows = ViewCache(arguments.cache), {}
    photos = [(path.stem, read_image(path)) for path in spread(arguments.photos, arguments.count or 5)]
    maps: list[dict[str, Tensor]] = []
    for name, image in photos:
        views = cache.take(image, "jitter", NUM_VIEWS)
        there = Views(views.features.to(arguments.device), views.xy.to(arguments.device))
        unseen = cache.held_out(image, "jitter")
        closed, closed_seconds = timed(partial(LeastSquaresSolver().fit, there))
        released, released_seconds = timed(partial(NeuralFieldSolver(num_steps=arguments.steps).fit, there))
        maps.append({"raw": closed.raw, "G jitter": closed.artifact})
        solutions = {"closed": closed, "released": released, "mean": as_map(aligned_mean(views))}
        solutions["raw"] = as_map(closed.raw)
        rows[name] = {solver: shares(solution, unseen)["all"] for solver, solution in solutions.items()}
        rows[name] |= {"closed, s": closed_seconds, "released, s": released_seconds}
        print(name, rows[name], flush=True)
    for i, (name, image) in enumerate(photos):
        solution = without_artifact_of_others(maps, i)
        rows[name]["raw - mean G"] = shares(solution, cache.held_out(image, "jitter"))["all"]
    rows["mean"] = averaged(list(rows.values()))
    print(f"\nunexplained share of held-out jittered views; released: {arguments.steps} steps\n")
    print_rows(["photo", *rows["mean"]], rows)


def views(arguments: argparse.Namespace) -> None:
    """Planted error and held-out views explained, against the number of views, crops against jitter."""
    curves = {
        f"planted, {kind} {'evenly spread' if spread_out else 'drawn one by one'}": planted_curve(kind, spread_out)
        for kind in KINDS
        for spread_out in (True, False)
    }
    cache, photos = ViewCache(arguments.cache), spread(arguments.photos, arguments.count or 8)
    for path in tqdm(photos, unit="photo", disable=None):
        image = read_image(path)
        unseen = {kind: cache.held_out(image, kind) for kind in KINDS}
        for kind in KINDS:
            taken = cache.take(image, kind, max(REAL_COUNTS))
            for count in REAL_COUNTS:
                solution = LeastSquaresSolver().fit(subset(taken, count))
                for k in KINDS:
                    curve = curves.setdefault(f"real, {kind} predicting {k}", {})
                    curve[count] = curve.get(count, 0) + shares(solution, unseen[k])["all"] / len(photos)
    for counts, prefix in ((PLANTED_COUNTS, "planted"), (REAL_COUNTS, "real")):
        rows = {name: {str(n): curve[n] for n in counts} for name, curve in curves.items() if name.startswith(prefix)}
        print_rows(["views", *map(str, counts)], rows)
        print()
    if arguments.plot:
        plot(curves, arguments)


def planted_curve(kind: str, low_discrepancy: bool) -> dict[int, float]:
    """Number of views -> error of F, the mean over several plants."""
    curve = {}
    for count in PLANTED_COUNTS:
        truths = (plant(count, kind, seed=seed, low_discrepancy=low_discrepancy) for seed in range(PLANTS))
        curve[count] = statistics.mean(t.error(LeastSquaresSolver().fit(t.views).semantics) for t in truths)
    return curve


def plot(curves: dict[str, dict[int, float]], arguments: argparse.Namespace) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    panels = {"planted": ("error of F", PLANTED_COUNTS), "real": ("unexplained share of held-out views", REAL_COUNTS)}
    for axis, (prefix, (label, counts)) in zip(axes, panels.items(), strict=True):
        for name, curve in curves.items():
            if name.startswith(prefix):
                axis.plot(list(curve), list(curve.values()), "o-", label=name.split(", ")[1])
        axis.set(xscale="log", xlabel="views", ylabel=label, title=prefix, ylim=(0, None))
        axis.set_xticks(counts, map(str, counts))
        axis.minorticks_off()
        axis.legend(fontsize="small")
    figure.savefig(arguments.plot, dpi=100)


def options(arguments: argparse.Namespace) -> None:
    """Smoothness, density, the held-out rule and variations of the problem: on planted views, and on photos."""
    truth, few = plant(256), plant(NUM_VIEWS, "jitter")
    base = LeastSquaresSolver()
    solvers: dict[str, LeastSquaresSolver] = {"as it is": base}
    solvers |= {f"smoothness {value}": dataclasses.replace(base, smoothness=value) for value in (*SMOOTHNESS, "auto")}
    solvers |= {f"density {value}": dataclasses.replace(base, density=value) for value in DENSITIES}
    fits = {name: solver.fit for name, solver in solvers.items()} | ALTERNATIVES
    rows = {
        name: {str(len(t.views)): t.error(fit(t.views).semantics) for t in (truth, few)} for name, fit in fits.items()
    }
    cache, photos = ViewCache(arguments.cache), spread(arguments.photos, arguments.count or 8)
    for path in tqdm(photos, unit="photo", disable=None):
        image = read_image(path)
        unseen, taken = cache.held_out(image, "jitter"), cache.take(image, "jitter", NUM_VIEWS)
        for name, fit in fits.items():
            rows[name]["real"] = rows[name].get("real", 0) + shares(fit(taken), unseen)["all"] / len(photos)
    print_rows(["option", "planted, 256 crops", f"planted, {NUM_VIEWS} jitter", "real, unexplained"], rows)
