"""Every number that the 52-language study prints is that of statsmodels on the files of the runs.

The runs have what can go wrong: two runs of one order, results of items whose halves differ from
their means, weak languages that have no ratio in one order, truncation of the training texts that
has nothing to do with that of the test texts, and rounding where nothing is shared.
"""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from knowledge_loss_oracle import Runs, expected
from knowledge_loss_runs import LATIN, OTHER, modules_of_the_study, write_runs

DRAWS = 199
LOST = {"order-1": 0.03, "order-2": 0.02, "order-3": 0.025, "order-1-again": 0.02}
#: In one order so weak after their turn that the distance to chance is negative: of loss for all
#: (and for one that came late), of accuracy for the last.
WEAK = {"order-2": {"ka": 2.4, "ta": 2.25, "hi": 2.8}}
KEYS = {
    "groups": ["cell", "role", "metric", "measure"],
    "contrasts": ["first", "second", "role", "metric", "measure", "equal", "of"],
    "ladder": ["role", "metric", "measure", "given"],
}
VALUE, CI, ORDERS = "value", ["value", "ci_low", "ci_high"], ["orders_low", "orders_high"]


@pytest.fixture(scope="module")
def study():
    """The modules of the study."""
    with modules_of_the_study() as found:
        yield found


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return write_runs(
        tmp_path_factory.mktemp("numbers") / "out", lost=LOST, helped=-0.02, seed=3, runs=3,
        again=True, items=("none-r8", "full-r8"), texts=True, starts=WEAK,
    )  # fmt: skip


@pytest.fixture(scope="module")
def read(study, out):
    return study.reading.read_study(study.design.trained_cells(out))


@pytest.fixture(scope="module")
def answers(study, read):
    return study.answers.answer(read, n_permutations=DRAWS)


@pytest.fixture(scope="module")
def runs(out):
    return Runs(out)


@pytest.fixture(scope="module")
def truth(runs):
    return dict(zip(KEYS, expected(runs), strict=True))


@pytest.fixture(scope="module")
def text(study, read, answers):
    return study.findings.write_findings(read, answers)


def test_every_measure_of_every_language_is_that_of_a_loop_over_the_raw_scores(read, runs):
    """Receivers and donors, absolute, relative to the earlier score and to its distance to chance.

    All cells and both metrics; what was lost since the best stage where items are known.
    """
    known = {key: table for key, table in runs.outcomes().items() if key[1]}
    found = read.outcomes[read.outcomes["role"] != ""]
    assert len(found) == sum(map(len, known.values()))
    measures = {
        name + version
        for name in (
            "lost_since_turn", "lost_since_best", "lost_since_start", "lost_per_stage",
            "helped_others",
        )
        for version in ("", "_relative", "_relative_to_chance")
    }  # fmt: skip
    measures.add("helped_other_scripts")
    assert {measure for cell, _, _, measure in known if cell == "full-r8"} == measures
    for keys, rows in found.groupby(KEYS["groups"]):
        table = known[keys].loc[rows["language"]]
        assert rows["value"].to_numpy() == pytest.approx(
            table["value"].to_numpy(), rel=1e-6, abs=1e-9
        )
        assert rows["position"].to_numpy() == pytest.approx(table["position"].to_numpy())


@pytest.mark.parametrize("name", KEYS)
def test_every_row_is_the_coefficient_that_statsmodels_gives(answers, truth, name):
    """With its HC3 interval; the mean at equal score with the p of its t statistic too.

    Groups in every cell, contrasts at equal steps and at equal score, every rung of the ladder.
    """
    table = getattr(answers, name)
    assert len(table) == len(truth[name])
    for _, row in table.iterrows():
        known = truth[name][tuple(row[KEYS[name]])]
        if isinstance(known, str):
            assert np.isnan(row["p_value"])
            continue
        assert tuple(row[CI]) == pytest.approx(known[:3], rel=1e-6, abs=1e-12)
        if name == "contrasts" and (row["equal"], row["of"]) == ("score", "mean"):
            assert row["p_value"] == pytest.approx(known[3], rel=1e-6)
        elif "to_chance" not in row["measure"]:  # permutation; ratios of the weak are outliers
            assert row["p_value"] == pytest.approx(known[3], abs=0.2)


@pytest.mark.parametrize("name", KEYS)
def test_over_orders_is_students_interval_of_the_values_of_single_orders(
    answers, runs, name, alone
):
    table = getattr(answers, name)
    assert len(alone) == 3 < len(runs.orders)
    undefined = 0
    for _, row in table.iterrows():
        key = tuple(row[KEYS[name]])
        values = [found[name].get(key, "none") for found in alone]
        if any(isinstance(value, str) for value in values):
            undefined += 1
            if "mean" not in key:  # the same in every language: that is its mean
                assert np.isnan(list(row[ORDERS].astype(float))).all()
            continue
        low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
        assert tuple(row[ORDERS]) == pytest.approx((low, high), rel=1e-6, abs=1e-9)
    assert undefined < len(table) / 3


@pytest.fixture(scope="module")
def alone(runs):
    """The same of the runs of each order alone."""
    return [dict(zip(KEYS, expected(runs, names), strict=True)) for names in runs.of_orders()]


def test_variance_inflation_is_of_script_given_what_is_held_fixed(answers, runs):
    import statsmodels.api as sm

    table = runs.outcomes()["full-r8", "donor", "loss", "helped_others"]
    about = runs.covariates.loc[table.index].assign(position=table["position"])
    latin = pd.Series([float(x in LATIN) for x in table.index], index=table.index)
    for given, columns in (
        ("position", ["position"]),
        ("everything", ["position", "baseline loss", "truncated", "size", "bytes"]),
    ):
        explained = sm.OLS(latin, sm.add_constant(about[columns])).fit().rsquared
        row = one(answers.ladder, role="donor", metric="loss", measure="helped_others", given=given)
        assert row["variance_inflation"] == pytest.approx(1 / (1 - explained), rel=1e-6)


def test_a_ratio_that_one_run_lacks_is_left_out_and_too_few_leave_it_undefined(read, answers, text):
    label = {"cell": "full-r8", "metric": "accuracy", "measure": "lost_since_turn"}
    ratio = label | {"measure": "lost_since_turn_relative_to_chance"}
    o = read.outcomes
    chosen = o[np.logical_and.reduce([o[name] == value for name, value in ratio.items()])]
    assert set(LATIN + OTHER) - set(chosen["language"]) == {"hi"}
    assert {"order-1", "order-3"} <= set(
        read.single.query("cell == 'full-r8' and language == 'hi' and metric == 'accuracy'").query(
            "measure == 'lost_since_turn_relative_to_chance'"
        )["run"]
    )
    row = one(answers.groups, **ratio)
    assert (row["n_members"], row["n_others"]) == (8, 9)
    assert np.isfinite(row["value"])
    absolute = one(answers.groups, **label)
    assert (absolute["n_members"], absolute["n_others"]) == (9, 9)

    few = one(answers.groups, **ratio | {"metric": "loss"})
    assert few[["value", "ci_low", "ci_high", "p_value", "q_value"]].isna().all()
    assert (few["n_members"], few["n_others"]) == (5, 9)
    assert few["reason"] == "5 of 9 languages of a group have a value"
    assert (
        "| receiver | loss | lost_since_turn_relative_to_chance | 5, 9 | – "
        "| 5 of 9 languages of a group have a value |  |  |  |" in text
    )


def test_where_nothing_is_shared_there_is_no_difference_to_test(answers):
    none = answers.groups.query("cell == 'none-r8' and role == 'receiver'")
    nothing = none[~none["measure"].str.startswith("lost_since_start")]
    assert len(nothing) == 18
    assert nothing[["value", "p_value", "q_value"]].isna().all().all()
    assert (nothing["reason"] != "").all()
    assert (nothing["overall_mean"] == 0).all()


def test_what_repeats_a_headline_has_no_q_and_what_repeats_another_row_has_its_q(answers):
    pair = {"metric": "loss", "role": "receiver"}
    group = {"of": "group", "equal": "steps"} | pair
    stated = answers.groups[answers.groups["headline"]]
    rung = {"measure": "lost_since_turn", "given": "position"} | pair
    copies = [
        one(answers.contrasts, first="full-r8", second="none-r8", **group),
        one(answers.ladder, **rung),
        one(answers.ladder, **rung | {"role": "donor", "measure": "helped_others"}),
    ]
    for row in (*copies, *(row for _, row in stated.iterrows())):
        assert np.isfinite(row["p_value"])
        assert np.isnan(row["q_value"])
    tested = pd.concat([answers.groups, answers.contrasts, answers.ladder])
    tested = tested[tested["p_value"].notna()]
    assert tested["q_value"].isna().sum() == len(stated) + len(copies)
    twice = one(answers.contrasts, first="partial-r8", second="none-r8", **group)
    label = {"cell": "partial-r8", "measure": "lost_since_turn"} | pair
    assert twice["q_value"] == one(answers.groups, **label)["q_value"]


def test_the_counts_are_those_of_the_tables(answers, text):
    groups = answers.groups
    rest = groups[groups["p_value"].notna() & ~groups["headline"].astype(bool)]
    apart, over, published, apart_published = 0, 0, 0, 0
    for row in rest.itertuples():
        if row.q_value <= 0.05 and row.ci_low * row.ci_high > 0:
            apart += 1
            apart_published += row.value > 0
            same = row.orders_low * row.orders_high > 0 and row.orders_low * row.value > 0
            over += same
            published += same and row.value > 0
    assert len(rest) > apart > over > published > 0
    assert apart_published > published
    said = re.search(
        r"of (\d+) tested, (\d+) differ between the groups at q ≤ 0.05 over languages .*; (\d+) of "
        r"these do so over orders too, (\d+) in the published direction",
        text,
    )
    assert tuple(map(int, said.groups())) == (len(rest), apart, over, published)


def test_a_row_that_one_of_the_orders_has_no_value_for_does_not_hold_over_orders(study, read):
    """Too few languages in one order say nothing about what other orders could have given."""
    few = read.outcomes[(read.outcomes["cell"] == "full-r8") & (read.outcomes["metric"] == "loss")]
    single = read.single[(read.single["cell"] == "full-r8") & (read.single["metric"] == "loss")]
    without = (
        (single["run"] == "order-2")
        & (single["measure"] == "lost_since_start")
        & single["language"].isin(OTHER[:3])
    )
    part = replace(read, outcomes=few, single=single[~without])
    answers = study.answers.answer(part, n_permutations=DRAWS)
    row = one(answers.groups, measure="lost_since_start")
    assert row["q_value"] <= 0.05 < row["value"]
    assert np.isnan(row["orders_low"])
    rest = answers.groups[~answers.groups["headline"].astype(bool)]
    holds = (rest["q_value"] <= 0.05) & (rest["ci_low"] * rest["ci_high"] > 0)
    holds &= (rest["orders_low"] * rest["orders_high"] > 0) & (
        rest["orders_low"] * rest["value"] > 0
    )
    text = study.findings.write_findings(part, answers)
    said = re.search(r"; (\d+) of these do so over orders", text).group(1)
    assert int(said) == holds.sum()


def test_the_printed_tables_are_the_tables(answers, truth, text):
    """Signs, digits, intervals and numbers of languages, row by row."""
    seen = {"groups": 0, "contrasts": 0, "ladder": 0}
    for printed in markdown_tables(text):
        name = next(
            name for column, name in (("measure", "groups"), ("first", "contrasts"),
                                      ("given", "ladder")) if column in printed[0]
        )  # fmt: skip
        for cells in printed:
            label = {key: cells[key] for key in KEYS[name] if key in cells}
            if name == "groups":
                label["cell"] = "full-r8"
            if name != "groups":
                label["metric"] = "loss"
            if name == "ladder":
                label["measure"] = {"receiver": "lost_since_turn", "donor": "helped_others"}[
                    label["role"]
                ]
            row = one(getattr(answers, name), **label)
            seen[name] += 1
            headline = bool(row.get("headline", False))
            assert cells["n"] == (
                f"{row['n_members']}, {row['n_others']}" if row["n_others"] else "18"
            )
            assert_printed(cells["difference"], row["value"])
            if np.isnan(row["ci_low"]):
                assert cells["95 % over languages"] == row["reason"] != ""
                assert cells["p"] == cells["q"] == ""
                continue
            for column, kind in (("95 % over languages", "ci"), ("95 % over orders", "orders")):
                low, high = cells[column].strip("[]").split(", ")
                assert_printed(low, row[f"{kind}_low"])
                assert_printed(high, row[f"{kind}_high"])
            assert_p(cells["p"], row["p_value"])
            if headline:
                assert cells["q"] == "headline"
            elif np.isnan(row["q_value"]):
                assert cells["q"] == ""
            else:
                assert_p(cells["q"], row["q_value"])
            if "VIF" in cells:
                assert float(cells["VIF"]) == pytest.approx(row["variance_inflation"], abs=0.051)
    assert seen == {"groups": 14, "contrasts": 40, "ladder": 16}


def test_the_sentences_say_the_numbers_of_their_rows(study, answers, read, runs, text):
    number = r"(0\.0000|[+−]\d+\.\d+)"
    pattern = (
        rf"(Receivers|Donors)\. .*: {number} nats \[{number}, {number}\], p = (\S+), (\d+) against "
        rf"(\d+) languages, .*; over orders \[{number}, {number}\]\."
    )
    found = re.findall(pattern, text)
    assert [name for name, *_ in found] == ["Receivers", "Donors"]
    for name, value, low, high, p, members, others, orders_low, orders_high in found:
        row = study.answers.headline(answers, name[:-1].lower())
        printed = (value, low, high, orders_low, orders_high)
        for one_printed, column in zip(printed, [*CI, *ORDERS], strict=True):
            assert_printed(one_printed, row[column])
        assert_p(p, row["p_value"])
        assert (int(members), int(others)) == (9, 9)
    assert "The published direction appears: non-Latin-script languages lose more." in text
    assert (
        "The opposite of the published direction appears: non-Latin-script languages help" in text
    )

    within = re.findall(
        rf"(receiver|donor)s of about three bytes .* by {number} nats \[{number}, {number}\], "
        r"p = (\S+), q = (\S+) \((\d+) against (\d+) languages",
        text,
    )
    wide = runs.covariates["bytes"].loc[list(OTHER)] > 2.4
    for role, value, low, high, p, q, members, others in within:
        row = answers.ladder[
            answers.ladder["given"].str.startswith("other scripts only")
            & (answers.ladder["role"] == role)
            & (answers.ladder["metric"] == "loss")
        ].iloc[0]
        for printed, column in zip((value, low, high), CI, strict=True):
            assert_printed(printed, row[column])
        assert_p(p, row["p_value"])
        assert_p(q, row["q_value"])
        assert (int(members), int(others)) == (wide.sum(), (~wide).sum())
    assert [role for role, *_ in within] == ["receiver", "donor"]

    assert "18 languages (9 in Latin script, 9 in others), 4 runs" in text
    gains = re.search(rf"improves it by {number} accuracy, {number} loss on average", text)
    for printed, metric in zip(gains.groups(), ("accuracy", "loss"), strict=True):
        assert_printed(printed, runs.outcomes()["full-r8", "", metric, "gain"]["value"].mean())
    turned = replace(answers, groups=answers.groups.assign(value=-answers.groups["value"]))
    assert f"`full-r8`: −{found[0][1][1:]} nats" in study.findings.write_findings(read, turned)


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (0.1234, "+0.123"), (-0.1234, "−0.123"), (-0.0051, "−0.0051"), (-1.234, "−1.23"),
        (0.9996, "+1.00"), (0.0, "0.000"), (-0.00001, "0.0000"), (math.nan, "–"),
    ],
)  # fmt: skip
def test_numbers_keep_their_sign(study, value, printed):
    assert study.findings._signed(value) == printed


def one(table, **wanted):
    chosen = table
    for column, value in wanted.items():
        chosen = chosen[chosen[column] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


def markdown_tables(text):
    """Tables as lists of rows, each a mapping of column to cell."""
    for block in text.split("\n\n"):
        if block.startswith("|"):
            lines = [
                [cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()
            ]
            yield [dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]]


def assert_printed(printed, value):
    """A number with its sign, rounded by at most half of its last digit."""
    if np.isnan(value):
        assert printed == "–"
        return
    assert "-" not in printed
    digits = len(printed.partition(".")[2])
    assert digits >= 2
    assert float(printed.replace("−", "-")) == pytest.approx(value, abs=0.5001 * 10**-digits)
    if float(printed.lstrip("+−")):
        assert printed.startswith("+" if value > 0 else "−")


def assert_p(printed, value):
    if value < 0.001:
        assert printed == "< 0.001"
    else:
        assert float(printed) == pytest.approx(value, abs=0.00051)


def test_who_is_helped_apart_is_neither_latin_nor_of_the_donors_own_script():
    """Ukrainian and Russian share a script: neither is judged by the other, German by both."""
    languages = ["de", "fr", "ru", "uk", "ar"]
    scripts = dict(zip(languages, ["Latn", "Latn", "Cyrl", "Cyrl", "Arab"], strict=True))
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(7, 5))  # the last is the reference, not a stage
    matrix = SimpleNamespace(
        run="a", metric=SimpleNamespace(name="loss"), sign=-1, scores=scores, languages=languages,
        stages=list(range(6)), trained={3: "de", 1: "fr", 2: "ru", 5: "uk", 4: "ar"},
    )  # fmt: skip
    judged = {"de": (2, 3, 4), "fr": (2, 3, 4), "ru": (4,), "uk": (4,), "ar": (2, 3)}
    forgetting = SimpleNamespace(matrices=[matrix])
    own = pd.DataFrame(
        [
            ("a", donor, name, "loss", float(rng.normal()))
            for donor in languages
            for name in languages
        ],
        columns=["run", "trained_language", "language", "metric", "value"],
    )
    with modules_of_the_study() as study:
        shared = study.reading.helped_apart(forgetting, scripts, None)
        apart = study.reading.helped_apart(forgetting, scripts, own)
    assert len(shared) == len(apart) == 5
    for stage, donor in matrix.trained.items():
        places = list(judged[donor])
        fall = np.mean([scores[stage - 1, k] - scores[stage, k] for k in places])
        assert one(shared, language=donor)["value"] == pytest.approx(fall)
        after = own[own["trained_language"] == donor].set_index("language")["value"]
        fall = np.mean([scores[0, k] - after[languages[k]] for k in places])
        assert one(apart, language=donor)["value"] == pytest.approx(fall)
