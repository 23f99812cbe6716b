"""Every method of finding subnetworks on one checkpoint: how long, how large, how alike.

python benchmarks/extraction_methods.py demo

Runs `subnet extract` and then `subnet analyze` for each method, one after another, and prints the
table of methods that stands in the README. Influence and probes, which do not depend on the method,
are left out of the analysis, and so is ablation, for its time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import subnet
from subnet.subnetwork import METHODS, load_subnetworks

#: Method and settings, what is selected, and on what grounds.
ROWS = (
    ("magnitude", (), "weights", "largest change in training (LT-SFT; LoRA's ΔW)"),
    ("fisher", (), "weights", "largest mean squared gradient (FISH)"),
    ("taylor", (), "weights", "largest mean absolute gradient × weight"),
    ("wanda", (), "weights", "largest magnitude × norm of the input"),
    ("head-pruning", (), "heads", "left when the least important are pruned (Michel et al.)"),
    ("attribution", (), "heads", "largest gradient × activation, by captum"),
    ("attribution", ("units=neuron",), "neurons", "the same of neurons"),
    (
        "attribution",
        ("attribution=conductance", "baseline=padding", "n_steps=16"),
        "heads",
        "largest conductance, by captum",
    ),
    ("lape", (), "neurons", "fire for few languages (LAPE)"),
    ("directions", (), "directions", "of ΔW: own, and shared with others"),
    ("random", (), "weights", "the control"),
)


def run(*arguments: object) -> float:
    """Seconds that a command of `subnet` takes."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "subnet_cli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--examples", type=int, default=256)
    options = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    said = f"{threads} of {os.cpu_count()} cores; at most {options.examples} examples of a language"
    print(f"\n{said}\n")
    print(
        "| method | selects | on the ground of | density | Jaccard (chance) | extract | analyze |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for number, (method, further, units, ground) in enumerate(ROWS):
            masks, report = Path(place) / f"masks{number}", Path(place) / f"report{number}"
            given = [argument for pair in further for argument in ("--set", pair)]
            if hasattr(METHODS[method], "n_examples"):
                given += ["--examples", options.examples]
            seconds = run("extract", options.checkpoint, "--method", method, *given, "-o", masks)
            analysed = run(
                "analyze",
                options.checkpoint,
                "--masks",
                masks,
                "--no-ablation",
                "--no-influence",
                "--no-probes",
                "-o",
                report,
            )
            found = load_subnetworks(subnet.open_checkpoint(masks))
            density = sum(mask.density for mask in found) / len(found)
            summary = json.loads((report / "summary.json").read_text(encoding="utf-8"))
            numbers = summary["overlap"].get("masks", {}).get("jaccard")
            jaccard = f"{numbers['mean']:.2f} ({numbers['floor']:.2f})" if numbers else "–"
            name = f"`{method}`" + "".join(f" `{pair}`" for pair in further)
            print(
                f"| {name} | {units} | {ground} | {100 * density:.1f} % | {jaccard} "
                f"| {seconds:.0f} s | {analysed:.0f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
