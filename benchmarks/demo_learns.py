"""Does the demo learn, whatever the seed? Runs it with seeds 0, 1 and 2 and prints the tables.

After its own stage each language's lower 95 % bound of accuracy (Wilson 1927) must lie above the
share of the largest kind; the exit code is 1 where one does not.

    python benchmarks/demo_learns.py [--languages all] [--seeds 0 1 2] [--keep DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest

from subnet.training import run_demo


def main() -> int:
    """Run the demo with every seed and print what it learnt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--languages", default="default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="where to leave the checkpoint directories")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.keep or Path(scratch)
        results, reports, costs = {}, {}, []
        for seed in arguments.seeds:
            wall, cpu = time.perf_counter(), _cpu()
            demo = run_demo(
                root / f"seed-{seed}", languages=arguments.languages, seed=seed, overwrite=True
            )
            costs.append((seed, time.perf_counter() - wall, _cpu() - cpu, _summary(demo)))
            results[seed] = _own_stage(demo)
            reports[seed] = pd.read_csv(demo / "languages.csv", index_col="language")
    print("Accuracy after the language's own stage (lower 95 % bound), by seed\n")
    print(_own_stage_table(results))
    print("\nThe data (seed", arguments.seeds[0], end=")\n\n")
    print(_data_table(reports[arguments.seeds[0]]))
    print("\n| seed | wall, s | CPU, s | mean accuracy: start | own stage | end |")
    print("|---|---|---|---|---|---|")
    for seed, wall, cpu, (start, own, end) in costs:
        print(f"| {seed} | {wall:.0f} | {cpu:.0f} | {start:.3f} | {own:.3f} | {end:.3f} |")
    failed = [
        f"{language} (seed {seed})"
        for seed, table in results.items()
        for language, row in table.iterrows()
        if row["low"] <= row["majority"]
    ]
    print("\nNot learnt:", ", ".join(failed) if failed else "none")
    return 1 if failed else 0


def _own_stage(demo: Path) -> pd.DataFrame:
    """Per language: accuracy after its own stage, Wilson's lower bound, majority share."""
    order = json.loads((demo / "run.json").read_text())["orders"]["order-1"]
    items = pd.read_csv(demo / "items.csv").query("metric == 'accuracy'")
    majority = pd.read_csv(demo / "languages.csv", index_col="language")["majority_share"]
    rows = {}
    for stage, language in enumerate(order, start=1):
        own = (items["stage"] == stage) & (items["language"] == language)
        values = items.loc[own, "value"]
        interval = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
        rows[language] = {
            "accuracy": values.mean(),
            "low": interval.low,
            "majority": majority[language],
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _summary(demo: Path) -> tuple[float, float, float]:
    """Mean accuracy over languages: before the sequence, after the own stage, at the end."""
    scores = pd.read_csv(demo / "scores.csv").query("metric == 'accuracy'")
    table = scores.pivot_table(index="stage", columns="language", values="value")
    return table.iloc[0].mean(), _own_stage(demo)["accuracy"].mean(), table.iloc[-1].mean()


def _own_stage_table(results: dict[int, pd.DataFrame]) -> str:
    seeds = list(results)
    lines = [
        f"| language | {' | '.join(f'seed {seed}' for seed in seeds)} | majority share |",
        "|---" * (len(seeds) + 2) + "|",
    ]
    for language in sorted(results[seeds[0]].index):
        rows = [results[seed].loc[language] for seed in seeds]
        cells = [f"{row['accuracy']:.3f} ({row['low']:.3f})" for row in rows]
        lines.append(f"| {language} | {' | '.join(cells)} | {rows[0]['majority']:.3f} |")
    return "\n".join(lines)


def _data_table(report: pd.DataFrame) -> str:
    lines = [
        "| language | script | family | bytes per character | truncated | equal to English |",
        "|---|---|---|---|---|---|",
    ]
    for language, row in report.sort_index().iterrows():
        lines.append(
            f"| {language} | {row['script']} | {row['family']} | {row['bytes_per_character']:.2f} "
            f"| {row['truncated_share']:.3f} | {row['equal_to_english_share']:.3f} |"
        )
    return "\n".join(lines)


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


if __name__ == "__main__":
    sys.exit(main())
