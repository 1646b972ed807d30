"""`clebsch demo --model`: dynamics of a crystal with a trained SevenNet, as it is and accelerated."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import clebsch
from clebsch.data import draw_momenta
from clebsch.demo.console import UserError, output_directory, print_table, progress, threads

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from rich.console import Console

TIMESTEP = 2.0  # fs
# Where the atoms start: about what they do at room temperature.
DISPLACEMENT = 0.05  # Angstrom
TEMPERATURE = 300.0  # K
STEPS, QUICK_STEPS = 40, 3
# What rounding to float32 may make of forces, of their rms, and of the energy, which has seven digits.
FORCE_TOLERANCE = 1e-4
ENERGY_TOLERANCE = 1e-6
LABELS = {"sevenn": "SevenNet", "clebsch": "accelerated"}


@dataclasses.dataclass
class Run:
    """Constant-energy dynamics: total energies (eV) of every step and of the start, seconds of every step."""

    energies: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Differences:
    """Of both models along one trajectory, the largest of every step: eV and eV/Angstrom."""

    energies: list[float] = dataclasses.field(default_factory=list)
    forces: list[float] = dataclasses.field(default_factory=list)
    agree: bool = True

    def add(self, stock: Calculator, fast: Calculator) -> None:
        """What both have computed of the same atoms."""
        energy, forces = (np.asarray(stock.results[name]) for name in ("energy", "forces"))
        self.energies.append(float(abs(fast.results["energy"] - energy)))
        self.forces.append(float(np.abs(fast.results["forces"] - forces).max()))
        self.agree &= self.energies[-1] <= ENERGY_TOLERANCE * abs(float(energy))
        self.agree &= self.forces[-1] <= FORCE_TOLERANCE * float(np.sqrt(np.mean(forces**2)))


def main(options: argparse.Namespace) -> int:
    """Runs it with the options of `clebsch demo`; the exit status is 1 if the models disagree."""
    needed = ("ase", "matplotlib", "rich", "sevenn")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'--model needs {", ".join(missing)}: pip install "clebsch[sevennet]"')
    from rich.console import Console

    report = _run(options, Console(highlight=False))
    if not report["agree"]:
        print("clebsch demo: the accelerated model does not compute what the model does", file=sys.stderr)
    return 0 if report["agree"] else 1


def _run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    started = time.perf_counter()
    output = output_directory(options.output)
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    atoms = make_crystal(options.crystal or "cu-al", options.seed)
    stock, *fast = _calculators(options.model)
    title = f"{options.model}, {atoms.get_chemical_formula()}"
    console.print(
        f"[bold]model[/]       {options.model}, trained: {_num_parameters(stock):,} parameters, float32, "
        f"{threads(torch.get_num_threads())}",
        soft_wrap=True,
    )
    runs, differences = simulate(atoms, stock, *fast, steps, console)
    report = {
        "problem": title,
        "atoms": len(atoms),
        "edges": stock.results["num_edges"],
        "timestep": TIMESTEP,
        "energies": {name: run.energies for name, run in runs.items()},
        "conservation": {name: conservation(run, len(atoms)) for name, run in runs.items()},
        "energy_difference": differences.energies,
        "force_difference": differences.forces,
        "agree": differences.agree,
        "milliseconds": {name: 1e3 * statistics.median(run.seconds) for name, run in runs.items()},
        "ratio": _ratio(runs),
        "threads": torch.get_num_threads(),
        "seconds": time.perf_counter() - started,
    }
    (output / "dynamics.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(output / "dynamics.png", report)
    print_table(console, title, _rows(report))
    console.print(f"written     {output}/dynamics.png, dynamics.json", soft_wrap=True)
    return report


def _num_parameters(calculator: Calculator) -> int:
    return sum(parameter.numel() for parameter in calculator.model.parameters())


def _calculators(name: str) -> tuple[Calculator, Calculator, Calculator]:
    """Of the unmodified model, and two of the accelerated one: for its own dynamics, and to compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SevenNet's, that no accelerator is in use
        from sevenn.calculator import SevenNetCalculator

        stock = SevenNetCalculator(name, device="cpu")
        model = clebsch.accelerate(stock.model, strict=True)
        return stock, SevenNetCalculator(model, device="cpu"), SevenNetCalculator(model, device="cpu")


def make_crystal(name: str, seed: int) -> Atoms:
    """108 atoms of fcc Cu with every fourth replaced by Al at random, or 216 of silicon; in motion."""
    from ase.build import bulk

    rng = np.random.default_rng(seed)
    if name == "si":
        atoms = bulk("Si", "diamond", a=5.46, cubic=True) * (3, 3, 3)
    else:
        atoms = bulk("Cu", "fcc", a=3.68, cubic=True) * (3, 3, 3)
        atoms.symbols[rng.permutation(len(atoms))[: len(atoms) // 4]] = "Al"
    atoms.positions += DISPLACEMENT * rng.standard_normal((len(atoms), 3))
    draw_momenta(atoms, TEMPERATURE, rng)
    return atoms


def simulate(
    atoms: Atoms, stock: Calculator, fast: Calculator, probe: Calculator, steps: int, console: Console
) -> tuple[dict[str, Run], Differences]:
    """Both dynamics step by step in turn; `probe`, of the accelerated model, follows the unmodified one's."""
    calculators = {"sevenn": stock, "clebsch": fast}
    runs, differences = {name: Run() for name in calculators}, Differences()
    dynamics = {name: _dynamics(atoms, calculator) for name, calculator in calculators.items()}
    with progress(console) as bar:
        task = bar.add_task("dynamics", total=steps, note="")
        for step in range(steps + 1):
            for name, run in runs.items():
                _advance(dynamics[name], run, move=step > 0)
            probe.calculate(dynamics["sevenn"].atoms)
            differences.add(stock, probe)
            if step > 0:
                times = ", ".join(f"{name} {1e3 * run.seconds[-1]:.0f} ms" for name, run in runs.items())
                bar.update(task, advance=1, note=times)
    return runs, differences


def _dynamics(atoms: Atoms, calculator: Calculator) -> Any:
    from ase import units
    from ase.md.verlet import VelocityVerlet

    atoms = atoms.copy()
    atoms.calc = calculator
    return VelocityVerlet(atoms, TIMESTEP * units.fs)


def _advance(dynamics: Any, run: Run, move: bool) -> None:
    if move:
        start = time.perf_counter()
        dynamics.run(1)
        run.seconds.append(time.perf_counter() - start)
    run.energies.append(float(dynamics.atoms.get_total_energy()))


def conservation(run: Run, num_atoms: int) -> dict[str, float]:
    """ "drift" (meV/atom/ps), the slope of a line through the total energy, and "fluctuation" (meV/atom), the
    rms distance from that line.
    """
    times = 1e-3 * TIMESTEP * np.arange(len(run.energies))
    per_atom = 1e3 * (np.asarray(run.energies) - run.energies[0]) / num_atoms
    slope, start = np.polyfit(times, per_atom, 1)
    return {"drift": float(slope), "fluctuation": float(np.std(per_atom - start - slope * times))}


def _ratio(runs: dict[str, Run]) -> float:
    """Median of the ratios of neighbouring steps."""
    pairs = zip(runs["sevenn"].seconds, runs["clebsch"].seconds, strict=True)
    return statistics.median(stock / fast for stock, fast in pairs)


def _rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    steps = len(report["force_difference"]) - 1
    times = report["milliseconds"]
    energy, forces = (max(report[name]) for name in ("energy_difference", "force_difference"))
    rows = [
        ("atoms, edges", f"{report['atoms']}, {report['edges']:,}"),
        ("dynamics", f"{steps} steps of {report['timestep']:.0f} fs"),
        ("largest difference of the energy", f"{1e3 * energy / report['atoms']:.1e} meV/atom"),
        ("largest difference of a force", f"{1e3 * forces:.1e} meV/Å"),
    ]
    for name, label in LABELS.items():
        found = report["conservation"][name]
        rows.append((f"total energy, drift, {label}", f"{found['drift']:+.3f} meV/atom/ps"))
        rows.append((f"total energy, rms fluctuation, {label}", f"{found['fluctuation']:.4f} meV/atom"))
    rows += [
        (f"a step, {LABELS['sevenn']}", f"{times['sevenn']:.0f} ms"),
        (f"a step, {LABELS['clebsch']}", f"{times['clebsch']:.0f} ms ({report['ratio']:.1f} x)"),
        (f"whole run, {threads(report['threads'])}", f"{report['seconds']:.0f} s"),
    ]
    return rows


def draw(path: Path, report: dict[str, Any]) -> None:
    """Total energies, differences and speed side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    figure.suptitle(f"{report['problem']}, {report['edges']:,} edges, {threads(report['threads'])}")
    conserved, differences, bars = figure.subplots(1, 3)
    times = report["timestep"] * np.arange(len(report["force_difference"]))
    for (name, label), style in zip(LABELS.items(), ({"linewidth": 4, "alpha": 0.4}, {}), strict=True):
        energies = np.asarray(report["energies"][name])
        conserved.plot(times, 1e3 * (energies - energies[0]) / report["atoms"], label=label, **style)
    conserved.set(title="total energy", xlabel="time, fs", ylabel="change, meV/atom")
    conserved.legend()

    per_atom = 1e3 * np.asarray(report["energy_difference"]) / report["atoms"]
    differences.plot(times, 1e3 * np.asarray(report["force_difference"]), ".", label="forces, meV/Å")
    differences.plot(times, per_atom, ".", label="energy, meV/atom")
    differences.set_ylim(bottom=0)
    differences.set(title="largest difference at the same positions", xlabel="time, fs")
    differences.legend()
    for place, (name, label) in enumerate(LABELS.items()):
        drawn = bars.bar(place, report["milliseconds"][name], 0.6, label=label)
        bars.bar_label(drawn, fmt="%.0f")
    bars.set_xticks(range(len(LABELS)), LABELS.values())
    bars.set(title=f"time of a step: {report['ratio']:.1f} x faster", ylabel="ms, median")
    bars.margins(y=0.2)
    figure.savefig(path, dpi=150)
