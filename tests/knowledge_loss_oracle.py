"""What the tables of the 52-language study must hold, by loops over the files of the runs."""

import hashlib
import json
from functools import partial

import numpy as np
import pandas as pd
import statsmodels.api as sm
from scipy import stats

from knowledge_loss_runs import CELLS, CHANCE, LATIN, OTHER, SHARED

PART = {cell: part for part, cells in CELLS.items() for cell in cells}
METRICS = ("loss", "accuracy")
VERSIONS = ("", "_relative", "_relative_to_chance")
HEADLINES = {"receiver": "lost_since_turn", "donor": "helped_others"}
RUNGS = {
    "nothing": (),
    "position": ("position",),
    "position, baseline": ("position", "baseline"),
    "position, truncation": ("position", "truncated"),
    "position, data size": ("position", "size"),
    "position, bytes": ("position", "bytes"),
    "everything but bytes": ("position", "baseline", "truncated", "size"),
    "everything": ("position", "baseline", "truncated", "size", "bytes"),
}


class Runs:
    """Everything read once; `only` keeps some of the runs."""

    def __init__(self, out):
        self.out = out
        self.orders = {}
        self.rows = []
        self.start = {metric: {} for metric in METRICS}
        for cell in PART:
            for folder in sorted((out / PART[cell] / cell / "runs").iterdir()):
                text = (folder / "subnet.toml").read_text()
                order = json.loads(text.partition("order = ")[2])
                self.orders[folder.name] = tuple(order)
                for metric in METRICS:
                    self._read(cell, folder, metric, order)
        self.rows = pd.DataFrame(
            self.rows,
            columns=["cell", "run", "metric", "role", "measure", "language", "value", "turn"],
        )
        self.covariates = self._covariates()

    def of_orders(self):
        """Runs of each distinct order."""
        found = {}
        for run, order in self.orders.items():
            found.setdefault(order, []).append(run)
        return list(found.values())

    def outcomes(self, runs=None):
        """(cell, role, metric, measure) to a table of value and position, the means over runs."""
        rows = self.rows if runs is None else self.rows[self.rows["run"].isin(runs)]
        keys = ["cell", "role", "metric", "measure"]
        by_language = rows.groupby([*keys, "language"])
        means = by_language[["value", "turn"]].mean().rename(columns={"turn": "position"})
        whole = by_language["value"].count() == by_language.size()
        means = means[whole].reset_index(keys)
        return {key: table[["value", "position"]] for key, table in means.groupby(keys)}

    def _read(self, cell, folder, metric, order):
        sign = -1 if metric == "loss" else 1
        scores = pd.read_csv(folder / "scores.csv").query("metric == @metric")
        table = scores.pivot_table(index="stage", columns="language", values="value")[order]
        s, v, last = table.to_numpy(), sign * table.to_numpy(), len(order)
        items = _items(folder, metric, order)
        everything = np.ones(1, bool) if items is None else np.ones(len(items[1]), bool)
        transfer = None
        if SHARED[cell] < 1:
            transfer = pd.read_csv(folder / "transfer.csv").query("metric == @metric")

        def add(role, measure, language, turn, change, earlier, spread):
            values = [change, np.nan, np.nan]
            for place, below in ((1, earlier), (2, sign * (earlier - CHANCE[metric]))):
                if below > max(0, 2 * spread):
                    values[place] = change / below
            for version, value in zip(VERSIONS, values, strict=True):
                value = 0.0 if abs(value) < 5e-7 else value
                self.rows.append(
                    (cell, folder.name, metric, role, measure + version, language, value, turn)
                )

        def spread(weights, mask=everything):
            """Standard error of a weighted sum of scores (stage, place)."""
            if items is None:
                return 0.001 * np.sqrt(sum(w**2 for w in weights.values()))
            combined = sum(w * items[0][place][mask] for place, w in weights.items())
            return stats.sem(combined)

        for j, language in enumerate(order):
            turn = j + 1
            keep = [k for k in range(len(order)) if k != j]
            stages = [t for t in range(1, last + 1) if t != turn]
            if folder.parents[1].name == "none-r8":  # the first cell that is read
                self.start[metric].setdefault(language, []).append(s[0, j])
            if turn < last:
                change, error = v[turn, j] - v[last, j], spread({(turn, j): 1})
                add("receiver", "lost_since_turn", language, turn, change, s[turn, j], error)
                if items is not None:
                    a, b = items[1], ~items[1]
                    means = {
                        half: {t: items[0][t, j][mask].mean() for t in range(turn, last + 1)}
                        for half, mask in (("a", a), ("b", b))
                    }
                    best = {
                        half: max(range(turn, last), key=lambda t, half=half: sign * means[half][t])
                        for half in "ab"
                    }
                    fall = [
                        sign * (means[score][best[pick]] - means[score][last])
                        for pick, score in ("ab", "ba")
                    ]
                    earlier = (means["b"][best["a"]] + means["a"][best["b"]]) / 2
                    error = np.hypot(
                        spread({(best["a"], j): 1}, b) / 2, spread({(best["b"], j): 1}, a) / 2
                    )
                    add(
                        "receiver", "lost_since_best", language, turn, np.mean(fall), earlier, error
                    )
            add(
                "receiver", "lost_since_start", language, turn, v[0, j] - v[last, j], s[0, j],
                spread({(0, j): 1}),
            )  # fmt: skip
            add(
                "receiver", "lost_per_stage", language, turn,
                np.mean([v[t - 1, j] - v[t, j] for t in stages]),
                np.mean([s[t - 1, j] for t in stages]),
                spread({(t - 1, j): 1 / len(stages) for t in stages}),
            )  # fmt: skip
            if transfer is None:
                change = np.mean([v[turn, k] - v[turn - 1, k] for k in keep])
                earlier = np.mean([s[turn - 1, k] for k in keep])
                error = spread({(turn - 1, k): 1 / len(keep) for k in keep})
            else:
                after = transfer[transfer["trained_language"] == language].set_index("language")
                given = [
                    sign * after.loc[order[k], "value"] - v[0, k] for k in keep
                ]  # its own parameters, against the start
                change, earlier, error = np.mean(given), np.mean([s[0, k] for k in keep]), 0
            add("donor", "helped_others", language, turn, change, earlier, error)
            # Every other language that is not written in Latin script has a script of its own.
            apart = [k for k in keep if order[k] in OTHER]
            if transfer is None:
                change = np.mean([v[turn, k] - v[turn - 1, k] for k in apart])
            else:
                change = np.mean([sign * after.loc[order[k], "value"] - v[0, k] for k in apart])
            change = 0.0 if abs(change) < 5e-7 else change
            self.rows.append(
                (cell, folder.name, metric, "donor", "helped_other_scripts", language, change, turn)
            )
            self.rows.append(
                (cell, folder.name, metric, "", "own_turn", language, v[turn, j], turn)
            )
            gain = v[turn, j] - v[turn - 1, j]
            self.rows.append((cell, folder.name, metric, "", "gain", language, gain, turn))

    def _covariates(self):
        folder = self.out / "sharing" / "none-r8"
        table = pd.read_csv(folder / "languages.csv", index_col="language")
        lines = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
        texts = pd.DataFrame(lines).groupby("language")["text"].agg("".join)
        found = pd.DataFrame(
            {
                "truncated": table["truncated_share"],
                "size": table["train_examples"],
                "bytes": texts.map(lambda text: len(text.encode()) / len(text)),
            }
        )
        for metric in METRICS:
            found[f"baseline {metric}"] = pd.Series(self.start[metric]).map(np.mean)
        return found


def _items(folder, metric, order):
    """Results [stage, language, item] of one metric and which items are in the first half."""
    if not (folder / "items.csv").is_file():
        return None
    table = pd.read_csv(folder / "items.csv").query("metric == @metric")
    wide = table.pivot_table(index=["stage", "language"], columns="item", values="value")
    first = [hashlib.blake2b(f"0\n{x}".encode(), digest_size=1).digest()[0] % 2 == 0 for x in wide]
    stages = range(len(order) + 1)
    return np.array([wide.loc[t].loc[list(order)].to_numpy() for t in stages]), np.array(first)


def members(role):
    """The group that is published to lose more, or to help more; then the others."""
    return (LATIN, OTHER) if role == "donor" else (OTHER, LATIN)


def _fit(values, given, groups=None, *, alone=False):
    """Coefficient of membership (the intercept without groups) with HC3 interval and p; or why not.

    Args:
        values: Of each language.
        given: Columns held fixed.
        groups: Members and others.
        alone: Only the coefficient, which is faster.
    """
    columns = pd.DataFrame(given, index=values.index)
    if groups is not None:
        known = [sum(language in values.index for language in group) for group in groups]
        for group, count in zip(groups, known, strict=True):
            if count < 0.75 * len(group):
                return f"{count} of {len(group)} languages of a group have a value"
        columns.insert(0, "member", [float(x in groups[0]) for x in values.index])
        keep = [x in groups[0] + groups[1] for x in values.index]
        values, columns = values[keep], columns[keep]
    if np.ptp(values) < 1e-12:
        return "no spread"
    columns = columns.astype(float)
    if alone:
        design = np.column_stack([np.ones(len(values)), columns])
        return np.linalg.lstsq(design, values.to_numpy(), rcond=None)[0][int(groups is not None)]
    found = sm.OLS(values, sm.add_constant(columns)).fit(cov_type="HC3", use_t=True)
    name = "const" if groups is None else "member"
    low, high = found.conf_int().loc[name]
    return found.params[name], low, high, found.pvalues[name]


def expected(runs, chosen=None):
    """Every row of the tables: their keys to (value, low, high, p), or to why there is none.

    Args:
        runs: A `Runs`.
        chosen: Names of the runs of one order, of which only values are given; None for all.

    Returns:
        Those of `groups`, `contrasts` and `ladder`.
    """
    o = runs.outcomes(chosen)
    fit = partial(_fit, alone=chosen is not None)
    groups, contrasts, ladder = {}, {}, {}
    for (cell, role, metric, measure), table in o.items():
        if role:
            groups[cell, role, metric, measure] = fit(
                table["value"], table[["position"]], members(role)
            )
    pairs = [
        ("full-r8", "partial-r8"), ("full-r8", "none-r8"), ("partial-r8", "none-r8"),
        ("full-r8", "full-r2"), ("full-r32", "full-r8"),
    ]  # fmt: skip
    for first, second in pairs:
        for metric in METRICS:
            turn = [o[cell, "", metric, "own_turn"]["value"] for cell in (first, second)]
            reached = pd.Series(turn[0] - turn[1], name="reached")
            for role, measure in HEADLINES.items():
                one, two = (o[cell, role, metric, measure] for cell in (first, second))
                paired = one["value"] - two["value"]
                key = first, second, role, metric, measure
                reached_here, position = reached[paired.index], one["position"]
                at_score = pd.DataFrame({"reached": reached_here, "position": position})
                contrasts[*key, "steps", "mean"] = fit(paired, {})
                contrasts[*key, "score", "mean"] = fit(paired, at_score[["reached"]])
                contrasts[*key, "steps", "group"] = fit(
                    paired, at_score[["position"]], members(role)
                )
                contrasts[*key, "score", "group"] = fit(paired, at_score, members(role))
    for role, measure in HEADLINES.items():
        for metric in METRICS:
            for version in VERSIONS:
                table = o["full-r8", role, metric, measure + version]
                about = runs.covariates.loc[table.index].assign(position=table["position"])
                about["baseline"] = about[f"baseline {metric}"]
                for name, given in RUNGS.items():
                    ladder[role, metric, measure + version, name] = fit(
                        table["value"], about[list(given)], members(role)
                    )
            table = o["full-r8", role, metric, measure]
            wide = runs.covariates["bytes"].loc[list(OTHER)]
            apart = tuple(wide.index[wide > 2.4]), tuple(wide.index[wide <= 2.4])
            ladder[role, metric, measure, "other scripts only: three bytes minus two"] = fit(
                table["value"], table[["position"]], apart
            )
    return groups, contrasts, ladder
