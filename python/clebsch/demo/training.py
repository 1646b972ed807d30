"""`clebsch demo`: from geometries to a trained interatomic potential, checked and timed, in a few minutes."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from clebsch import data
from clebsch.demo.console import UserError, output_directory, print_table, progress, threads
from clebsch.models.batch import Structure, collate, prepare
from clebsch.models.checks import energy_conservation, equivariance_error
from clebsch.models.potential import (
    Potential,
    fit_config,
    load_checkpoint,
    save_checkpoint,
    species_of,
)
from clebsch.models.training import (
    EpochRecord,
    Errors,
    TrainingSettings,
    evaluate,
    train,
    training_step,
)

if TYPE_CHECKING:
    from rich.console import Console

CUTOFF = 4.5  # Angstrom
GOLDEN_RATIO = 0.6180339887
NUM_TRAIN, NUM_VALIDATION, NUM_TEST = 280, 20, 100
# What a frame costs beside its edges, in edges: the many small tensors of a step.
FRAME_COST = 100
# What training may cost in edges and frames seen: thirty epochs of ethanol, about a minute on two cores.
TRAINING_BUDGET = 30 * NUM_TRAIN * (FRAME_COST + 72)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much of everything; `--quick` is a smoke test."""

    hidden: str
    num_layers: int
    frames: tuple[int, int, int]
    trajectory_frames: int
    label_stride: int
    md_steps: int
    timing_rounds: int


FULL = Scale("64x0e+32x1o+16x2e", 3, (NUM_TRAIN, NUM_VALIDATION, NUM_TEST), 20, 10, 1000, 15)
QUICK = Scale("8x0e+4x1o+4x2e", 2, (16, 4, 4), 4, 3, 20, 2)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Frames with labels, disjoint."""

    name: str
    train: list[data.Frame]
    validation: list[data.Frame]
    test: list[data.Frame]


@dataclasses.dataclass(frozen=True)
class Speed:
    """Milliseconds (medians), and the median of the ratios of neighbouring runs; None without e3nn."""

    what: str
    clebsch: float
    e3nn: float | None
    ratio: float | None


def main(options: argparse.Namespace) -> int:
    """Runs it with the options of `clebsch demo`. UserError for what cannot be used."""
    _require_extras(labelling=options.data is None)
    from rich.console import Console

    _run(options, Console(highlight=False))
    return 0


def _require_extras(labelling: bool) -> None:
    needed = ["ase", "matplotlib", "rich", *(["tblite"] if labelling else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'needs {", ".join(missing)}: pip install "clebsch[demo]"')


def _run(options: argparse.Namespace, console: Console) -> None:
    started = time.perf_counter()
    scale = QUICK if options.quick else FULL
    output = output_directory(options.output)
    torch.manual_seed(options.seed)

    problem = _problem(options, scale, console)
    model, structures, settings = _set_up(problem, scale, options)
    _print_set_up(console, problem, model, structures, settings)
    history = _train(console, model, structures, settings)
    errors, parity = evaluate(model, structures["test"])
    save_checkpoint(output / "potential.pt", model)
    model = load_checkpoint(output / "potential.pt")  # what is measured from here on is what was saved

    console.print("[bold]checking[/]    equivariance, molecular dynamics, speed")
    report = {
        "problem": problem.name,
        "errors": dataclasses.asdict(errors),
        "forces_rms": float(np.sqrt(np.mean(parity[1] ** 2))),
        "equivariance": equivariance_error(model, structures["test"][:4], options.seed),
        "dynamics": energy_conservation(
            model, problem.test[0], _dynamics_steps(structures["test"][0], scale.md_steps), options.seed
        ),
        **compare_with_e3nn(model, problem, structures, settings, scale.timing_rounds),
        "threads": torch.get_num_threads(),
        "epochs": [dataclasses.asdict(record) for record in history],
    }
    report["seconds"] = time.perf_counter() - started
    (output / "report.json").write_text(json.dumps(report, indent=1, default=dataclasses.asdict) + "\n")
    draw(output / "demo.png", problem.name, history, errors, parity, report["speed"])
    print_table(console, report["problem"], _rows(report))
    console.print(f"written     {output}/demo.png, potential.pt, report.json", soft_wrap=True)


def _dynamics_steps(structure: Structure, wanted: int) -> int:
    """Fewer for a large system, as for training."""
    return min(wanted, max(100, 2000 * 100 // max(1, len(structure.senders))))


# Data


def _problem(options: argparse.Namespace, scale: Scale, console: Console) -> Problem:
    num_train, num_validation, num_test = scale.frames
    if options.data is None:
        return _label(scale, options.seed, console)
    try:
        frames = data.read(options.data)
        pool, test = data.split(frames, num_train + num_validation, num_test, options.seed)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    unseen = set(species_of(test)) - set(species_of(pool))
    if unseen:
        raise UserError(f"data: no training frame has the atomic numbers {sorted(unseen)} of a test frame")
    num_train = max(1, len(pool) * num_train // (num_train + num_validation))
    return Problem(Path(options.data).name, pool[:num_train], pool[num_train:], test)


def _label(scale: Scale, seed: int, console: Console) -> Problem:
    """Short trajectories of ethanol; those of the test are never trained on."""
    _load_tblite_single_threaded()
    num_train, num_validation, num_test = scale.frames
    length = scale.trajectory_frames
    shares = [-(-count // length) for count in (num_train + num_validation, num_test)]
    frames = []
    with progress(console) as bar:
        task = bar.add_task("labelling", total=sum(shares) * length, note="ethanol, GFN2-xTB")
        for i in range(sum(shares)):
            frames += data.label_ethanol(
                length,
                seed=1000 * seed + i,
                start_dihedral=360 * GOLDEN_RATIO * i % 360,  # any few in a row go round the whole circle
                stride=scale.label_stride,
                equilibration_steps=15 * scale.label_stride,
                on_frame=lambda: bar.advance(task),
            )
    pool, test = frames[: shares[0] * length], frames[shares[0] * length :]
    pool = [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))]
    train, validation = pool[:num_train], pool[num_train : num_train + num_validation]
    return Problem("ethanol, GFN2-xTB, 500 K", train, validation, test[:num_test])


def _load_tblite_single_threaded() -> None:
    """Its own OpenMP reads the variable when it is loaded; for nine atoms a second thread only waits."""
    name = "OMP_NUM_THREADS"
    given = os.environ.get(name)
    os.environ.setdefault(name, "1")
    importlib.import_module("tblite.ase")
    if given is None:
        del os.environ[name]


# Training


def _set_up(
    problem: Problem, scale: Scale, options: argparse.Namespace
) -> tuple[Potential, dict[str, list[Structure]], TrainingSettings]:
    species = species_of(problem.train)
    try:
        structures = {
            part: [prepare(frame, species, CUTOFF) for frame in getattr(problem, part)]
            for part in ("train", "validation", "test")
        }
    except ValueError as error:  # a species that no training frame has
        raise UserError(f"data: {error}") from error
    frames, epochs = _affordable(structures["train"], options.epochs)
    structures["train"] = structures["train"][:frames]
    config = fit_config(
        problem.train[:frames],
        structures["train"],
        cutoff=CUTOFF,
        hidden=scale.hidden,
        num_layers=scale.num_layers,
    )
    settings = TrainingSettings(
        epochs=2 if options.quick and options.epochs is None else epochs, seed=options.seed
    )
    return Potential(config), structures, settings


def _affordable(train_structures: list[Structure], epochs: int | None) -> tuple[int, int]:
    """Frames and epochs within the budget: fewer epochs for larger systems, then fewer frames."""
    cost = FRAME_COST + statistics.fmean(len(s.senders) for s in train_structures)
    frames = len(train_structures)
    if epochs is None:
        frames = min(frames, max(20, int(TRAINING_BUDGET / (10 * cost))))
        epochs = min(200, max(10, round(TRAINING_BUDGET / (frames * cost))))
    return frames, epochs


def _print_set_up(console, problem, model, structures, settings) -> None:
    atoms = statistics.fmean(len(s.species) for s in structures["train"])
    edges = statistics.fmean(len(s.senders) for s in structures["train"])
    parameters = sum(p.numel() for p in model.parameters())
    console.print(
        f"[bold]data[/]        {problem.name}: {len(structures['train'])} frames to train, "
        f"{len(structures['validation'])} to validate, {len(structures['test'])} to test; "
        f"{atoms:.0f} atoms, {edges:.0f} edges within {CUTOFF} Å",
        soft_wrap=True,
    )
    console.print(
        f"[bold]model[/]       {model.config.num_layers} layers of {model.config.hidden}, "
        f"{parameters:,} parameters, {settings.epochs} epochs, {threads(torch.get_num_threads())}",
        soft_wrap=True,
    )


def _train(console: Console, model: Potential, structures, settings: TrainingSettings) -> list[EpochRecord]:
    report_every = max(1, settings.epochs // 8)
    with progress(console) as bar:
        steps = settings.epochs * -(-len(structures["train"]) // settings.batch_size)
        task = bar.add_task("training", total=steps, note="")

        def on_epoch(record: EpochRecord) -> None:
            energy, forces = 1e3 * record.validation.energy, 1e3 * record.validation.forces
            note = f"loss {record.loss:.1e}, MAE {energy:.1f} meV, {forces:.1f} meV/Å"
            bar.update(task, note=note)
            # Into a file or a pipe rich draws the bar only once, at the end.
            if not console.is_terminal and record.epoch % report_every == 0:
                console.print(f"  epoch {record.epoch:3d}/{settings.epochs}  {note}")

        return train(
            model,
            structures["train"],
            structures["validation"],
            settings,
            on_step=lambda loss: bar.advance(task),
            on_epoch=on_epoch,
        )


# Comparison with e3nn


def compare_with_e3nn(
    model, problem: Problem, structures, settings: TrainingSettings, rounds: int
) -> dict[str, Any]:
    """Times of the same weights in both sets of layers, run in turn, and the difference of their forces."""
    models = {"clebsch": copy.deepcopy(model)}
    agreement = None
    if importlib.util.find_spec("e3nn") is not None:
        models["e3nn"] = Potential(model.config, layers="e3nn")
        models["e3nn"].load_state_dict(model.state_dict())
        batch = collate(structures["test"][:10])
        forces = {name: each.energy_and_forces(batch)[1] for name, each in models.items()}
        agreement = float((forces["clebsch"] - forces["e3nn"]).abs().max())
    force_calls = {name: _force_call(each, problem.test[0]) for name, each in models.items()}
    force_call = _alternate("force call", force_calls, 4 * rounds)
    batch = collate(structures["train"][: settings.batch_size])
    steps = {name: _step(each, batch, settings) for name, each in models.items()}
    return {"speed": [_alternate("training step", steps, rounds), force_call], "force_difference": agreement}


def _force_call(model: Potential, frame: data.Frame) -> Callable[[], Any]:
    """One call as dynamics makes it: through the ASE calculator, neighbours included."""
    from ase import Atoms

    from clebsch.models.calculator import PotentialCalculator

    atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
    calculator = PotentialCalculator(model)
    return lambda: calculator.calculate(atoms)


def _step(model: Potential, batch, settings: TrainingSettings) -> Callable[[], Any]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)
    return lambda: training_step(model, optimizer, batch, settings.energy_weight)


def _alternate(what: str, calls: dict[str, Callable[[], Any]], rounds: int) -> Speed:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_ >= 2:  # the first two warm up
                times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(each) for name, each in times.items()}
    ratio = None
    if "e3nn" in times:
        ratio = statistics.median(b / a for a, b in zip(times["clebsch"], times["e3nn"], strict=True))
    return Speed(what, medians["clebsch"], medians.get("e3nn"), ratio)


# Report


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    errors, symmetry, dynamics = report["errors"], report["equivariance"], report["dynamics"]
    rows = [
        ("energy, test MAE", f"{1e3 * errors['energy']:.1f} meV"),
        ("forces, test MAE", f"{1e3 * errors['forces']:.1f} meV/Å"),
        ("forces, rms of the labels", f"{1e3 * report['forces_rms']:.0f} meV/Å"),
        ("energy under rotation and inversion, float64", f"{symmetry['energy']:.1e} eV"),
        ("forces under rotation and inversion, float64", f"{symmetry['forces']:.1e} relative"),
        (f"NVE over {dynamics['picoseconds']:.2f} ps, energy drift", f"{dynamics['drift']:+.3f} meV/atom/ps"),
        ("NVE, rms fluctuation of the total energy", f"{dynamics['fluctuation']:.3f} meV/atom"),
    ]
    if report["force_difference"] is not None:
        difference = 1e3 * report["force_difference"]
        rows.append(("largest force difference to e3nn layers", f"{difference:.1e} meV/Å"))
    for speed in report["speed"]:
        rows.append((f"{speed.what}, clebsch layers", f"{speed.clebsch:.2f} ms"))
        if speed.e3nn is not None:
            rows.append((f"{speed.what}, e3nn layers", f"{speed.e3nn:.2f} ms ({speed.ratio:.1f} x)"))
    if report["force_difference"] is None:
        rows.append(("e3nn layers", "not installed"))
    rows.append((f"whole run, {threads(report['threads'])}", f"{report['seconds']:.0f} s"))
    return rows


def draw(
    path: Path, name: str, history: list[EpochRecord], errors: Errors, parity: np.ndarray, speed: list[Speed]
):
    """Learning curve, force parity and speed side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle(name)
    curve, scatter, bars = figure.subplots(1, 3)
    epochs = [record.epoch for record in history]
    curve.semilogy(epochs, [1e3 * r.validation.forces for r in history], label="forces, meV/Å")
    curve.semilogy(epochs, [1e3 * r.validation.energy for r in history], label="energy, meV")
    curve.set(title="learning curve", xlabel="epoch", ylabel="validation MAE")
    curve.legend()

    limit = 1.05 * np.abs(parity).max()
    scatter.plot([-limit, limit], [-limit, limit], color="0.7", linewidth=1)
    scatter.plot(parity[1], parity[0], ".", markersize=2)
    scatter.set(
        title=f"test forces, MAE {1e3 * errors.forces:.1f} meV/Å", xlabel="label, eV/Å", ylabel="model, eV/Å"
    )
    scatter.set_aspect("equal")
    _draw_speed(bars, speed)
    figure.savefig(path, dpi=150)


def _draw_speed(axes, speed: list[Speed]) -> None:
    places = np.arange(len(speed))
    pairs = [("clebsch layers", -0.2, [s.clebsch for s in speed])]
    if all(s.e3nn is not None for s in speed):
        pairs.append(("e3nn layers", 0.2, [s.e3nn for s in speed]))
    for label, offset, values in pairs:
        drawn = axes.bar(places + offset, values, 0.4, label=label)
        axes.bar_label(drawn, fmt="%.1f")
    names = [s.what if s.ratio is None else f"{s.what}\n{s.ratio:.1f} x" for s in speed]
    axes.set_xticks(places, names)
    axes.set(title="speed", ylabel="ms, median")
    axes.margins(y=0.3)  # room for the legend
    axes.legend()
