"""`clebsch demo`: a potential trained from geometries, or a trained SevenNet made faster, both checked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

__all__ = ["CRYSTALS", "MODELS", "main"]

# The trained models that come with sevenn, others are fetched from the network; and crystals for them.
MODELS = ("7net-0", "7net-l3i5")
CRYSTALS = ("cu-al", "si")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a demonstration with command-line `arguments`.

    The exit status is 2 for bad ones, 1 if an accelerated model does not compute what the model does.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    _refuse_mixtures(parser, options)
    # Only now, as `--help` should not wait for torch.
    from clebsch.demo import sevennet, training
    from clebsch.demo.console import UserError

    try:
        return (training if options.model is None else sevennet).main(options)
    except UserError as error:
        print(f"clebsch demo: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clebsch demo", description=__doc__.partition(": ")[2])
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="rMD17 .npz or extended .xyz; without it, ethanol is labelled with GFN2-xTB",
    )
    parser.add_argument("--output", metavar="DIR", default="demo-output", help="default: %(default)s")
    parser.add_argument("--epochs", type=_positive, help="default: as many as fit into about a minute")
    parser.add_argument(
        "--model",
        choices=MODELS,
        help="instead of training: dynamics of a crystal with this SevenNet, as it is and accelerated",
    )
    parser.add_argument(
        "--crystal", choices=CRYSTALS, help="with --model, of 108 or 216 atoms; default: cu-al"
    )
    parser.add_argument("--steps", type=_positive, help="with --model, of dynamics; default: 40")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    return parser


def _refuse_mixtures(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    for name, with_model in (("data", False), ("epochs", False), ("crystal", True), ("steps", True)):
        if getattr(options, name) is not None and with_model != (options.model is not None):
            parser.error(f"--{name} does not go {'without' if with_model else 'with'} --model")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
