"""Scores mean the same whatever file held them."""

import json
import math

import pandas as pd
import pytest

import checkpoint_makers as makers
from subnet.checkpoint import describe_metric, open_checkpoint
from subnet.errors import InputError, MissingInputError, UnknownLanguageError

ORDER = ("de", "fr", "sw")
LONG = "stage,language,metric,value\n"
ITEMS = "stage,language,item,metric,value\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path.parent


def cells(scores, metric):
    """(stage, language) to value, by a plain loop."""
    rows = scores.frame[scores.frame["metric"] == metric]
    return {(row.stage, row.language): row.value for row in rows.itertuples()}


def test_a_long_table_is_read_as_it_stands(tmp_path):
    makers.write_scores(tmp_path / "scores.csv", ORDER)
    scores = open_checkpoint(tmp_path).scores
    text = pd.read_csv(tmp_path / "scores.csv")
    expected = {
        (row.stage, row.language): row.value for row in text.itertuples() if row.metric == "loss"
    }
    assert cells(scores, "loss") == expected
    assert list(scores.frame.columns) == [
        "run", "stage", "trained_language", "language", "metric", "value", "stderr",
    ]  # fmt: skip
    assert scores.frame["stage"].dtype == "int64"
    assert (scores.frame["stderr"] == 0.01).all()
    assert scores.sources == (tmp_path / "scores.csv",)


def test_long_wide_square_and_folder_names_of_stages_agree(tmp_path):
    write(
        tmp_path / "a" / "scores.csv",
        LONG + "0,de,accuracy,.1\n0,fr,accuracy,.2\n1,de,accuracy,.3\n1,fr,accuracy,.4\n",
    )
    write(
        tmp_path / "b" / "scores.csv",
        "stage,language,accuracy\n00-base,de,.1\n00-base,fr,.2\n01-de,de,.3\n01-de,fr,.4\n",
    )
    write(tmp_path / "c" / "accuracy.csv", "stage,de,fr\nbase,.1,.2\nde,.3,.4\n")
    write(tmp_path / "d" / "scores_accuracy.csv", "stage,de,fr\n0,.1,.2\n01-de,.3,.4\n")
    expected = {(0, "de"): 0.1, (0, "fr"): 0.2, (1, "de"): 0.3, (1, "fr"): 0.4}
    for name in "abcd":
        scores = open_checkpoint(tmp_path / name).scores
        assert cells(scores, "accuracy") == expected
        assert scores.order == {"main": {} if name == "a" else {"de": 1}}


def test_a_square_table_without_a_start_begins_at_stage_one(tmp_path):
    write(tmp_path / "loss.csv", "trained,de,fr\nde,1.5,2.5\nfr,2,1\n")
    scores = open_checkpoint(tmp_path).scores
    assert cells(scores, "loss") == {(1, "de"): 1.5, (1, "fr"): 2.5, (2, "de"): 2.0, (2, "fr"): 1.0}
    assert scores.order == {"main": {"de": 1, "fr": 2}}
    assert list(scores.frame["trained_language"].unique()) == ["de", "fr"]


def test_an_unmeasured_cell_stays_missing(tmp_path):
    write(tmp_path / "accuracy.csv", "stage,de,fr\nbase,.1,\nde,.3,.4\n")
    assert (0, "fr") not in cells(open_checkpoint(tmp_path).scores, "accuracy")


def test_the_order_comes_from_folders_settings_or_a_column(tmp_path):
    makers.write_stages(tmp_path / "folders", ORDER)
    makers.write_scores(tmp_path / "folders" / "scores.csv", ORDER)
    makers.write_scores(
        write(tmp_path / "toml" / "subnet.toml", 'order = ["de", "fr", "sw"]') / "scores.csv", ORDER
    )
    write(
        tmp_path / "column" / "scores.csv",
        "stage,trained_language,language,metric,value\n0,,de,loss,1\n1,de,de,loss,1\n2,fr,de,loss,2\n3,sw,de,loss,3\n",
    )
    for name in ("folders", "toml", "column"):
        found = open_checkpoint(tmp_path / name)
        assert found.scores.order == {"main": {"de": 1, "fr": 2, "sw": 3}}
        trained = found.scores.frame.drop_duplicates("stage")["trained_language"]
        assert list(trained) == ["", "de", "fr", "sw"]


def test_contradicting_orders_are_refused(tmp_path):
    makers.write_stages(tmp_path, ORDER)
    write(tmp_path / "subnet.toml", 'order = ["fr", "de", "sw"]')
    with pytest.raises(InputError, match=r"stage 1 of run 'main' trained fr; expected de"):
        open_checkpoint(tmp_path)


def test_runs_are_a_column_or_directories(tmp_path):
    write(
        tmp_path / "one" / "scores.csv",
        "run," + LONG + "a,0,de,loss,1\na,1,de,loss,2\nb,0,de,loss,3\nb,1,de,loss,4\n",
    )
    for run, values in (("a", (1, 2)), ("b", (3, 4))):
        text = LONG + "".join(f"{s},de,loss,{v}\n" for s, v in enumerate(values))
        write(tmp_path / "two" / "runs" / run / "scores.csv", text)
        write(tmp_path / "three" / run / "scores.csv", text)
    column = open_checkpoint(tmp_path / "one")
    folders = open_checkpoint(tmp_path / "two")
    several = open_checkpoint([tmp_path / "three" / "a", tmp_path / "three" / "b"])
    assert column.runs == folders.runs == several.runs == ("a", "b")
    pd.testing.assert_frame_equal(column.scores.frame, folders.scores.frame)
    pd.testing.assert_frame_equal(column.scores.frame, several.scores.frame)


def test_runs_of_a_column_share_the_order_of_the_directory(tmp_path):
    folder = write(tmp_path / "subnet.toml", 'order = ["de", "fr"]')
    rows = [f"{run},{stage},de,loss,1" for run in "ab" for stage in range(3)]
    write(folder / "scores.csv", "run,stage,language,metric,value\n" + "\n".join(rows))
    assert open_checkpoint(folder).scores.order == {run: {"de": 1, "fr": 2} for run in "ab"}


def test_each_run_may_have_its_own_order(tmp_path):
    for run, order in (("one", ORDER), ("two", ORDER[::-1])):
        folder = write(tmp_path / "runs" / run / "subnet.toml", f"order = {json.dumps(order)}")
        makers.write_scores(folder / "scores.csv", ORDER)
    assert open_checkpoint(tmp_path).scores.order == {
        "one": {"de": 1, "fr": 2, "sw": 3},
        "two": {"sw": 1, "fr": 2, "de": 3},
    }


def test_labels_of_one_language_meet_under_the_first_label(tmp_path):
    makers.write_lora_directory(tmp_path, ("zh_Hans", "en"))
    write(
        tmp_path / "scores.csv",
        LONG + "0,zh-CN,loss,1\n0,en_US,loss,2\n1,cmn,loss,3\n1,en,loss,1\n",
    )
    with pytest.raises(UnknownLanguageError, match="are the same language"):
        open_checkpoint(tmp_path)
    write(tmp_path / "scores.csv", LONG + "0,zh-CN,loss,1\n0,en_US,loss,2\n")
    found = open_checkpoint(tmp_path)
    assert set(found.scores.frame["language"]) == {"zh_Hans", "en"}
    assert [language.label for language in found.languages] == ["en", "zh_Hans"]


def test_the_documented_table_counts_where_a_log_says_the_same_cell(tmp_path):
    write(
        tmp_path / "scores.csv",
        LONG + "0,de,loss,1\n1,de,loss,2\n2,de,loss,3\n",
    )
    write(tmp_path / "accuracy.csv", "stage,de,fr\nbase,.1,.2\nde,.3,.4\nfr,.5,.6\n")
    write(tmp_path / "loss.csv", "stage,de,fr\nbase,7,7\nde,7,7\nfr,7,7\n")
    found = open_checkpoint(tmp_path)
    loss = cells(found.scores, "loss")
    assert (loss[0, "de"], loss[0, "fr"]) == (1.0, 7.0)
    assert any("stand in scores.csv too" in skipped.reason for skipped in found.skipped)


def test_items_are_read_with_their_names_as_written(tmp_path):
    makers.write_scores(tmp_path / "scores.csv", ORDER)
    makers.write_items(tmp_path / "items.csv", ORDER)
    items = open_checkpoint(tmp_path).scores.items
    assert list(items.columns) == ["run", "stage", "language", "item", "metric", "value"]
    assert set(items["item"]) == {"000", "001", "002", "003"}
    assert len(items) == 4 * 3 * 4
    expected = pd.read_csv(tmp_path / "items.csv", dtype={"item": str})
    merged = items.merge(expected, on=["stage", "language", "item", "metric"])
    assert (merged["value_x"] == merged["value_y"]).all()


def test_without_items_there_are_none(tmp_path):
    makers.write_scores(tmp_path / "scores.csv", ORDER)
    assert open_checkpoint(tmp_path).scores.items is None


def test_a_language_whose_code_is_nan_is_no_missing_value(tmp_path):
    write(tmp_path / "scores.csv", LONG + "0,nan,loss,1\n1,nan,loss,2\n")
    write(tmp_path / "items.csv", ITEMS + "0,nan,a,loss,1\n1,nan,a,loss,2\n")
    scores = open_checkpoint(tmp_path).scores
    assert set(scores.frame["language"]) == set(scores.items["language"]) == {"nan"}


@pytest.mark.parametrize(
    ("name", "higher", "limits"),
    [
        ("loss", False, (0, math.inf)),
        ("eval_loss", False, (0, math.inf)),
        ("perplexity", False, (0, math.inf)),
        ("wer", False, (0, math.inf)),
        ("accuracy", True, (0, 1)),
        ("xnli:acc_norm", True, (0, 1)),
        ("exact_match,strict-match", True, (0, 1)),
        ("macro_f1", True, (0, 1)),
        ("bleu", True, (0, 100)),
        ("mcc", True, (-1, 1)),
    ],
)
def test_direction_and_range_of_usual_metrics(name, higher, limits):
    metric = describe_metric(name)
    assert (metric.higher_is_better, metric.range, metric.assumed) == (higher, limits, False)


def test_a_metric_of_unknown_direction_is_marked_as_assumed(tmp_path):
    write(tmp_path / "scores.csv", LONG + "0,de,zing,1\n1,de,zing,-2\n")
    assert open_checkpoint(tmp_path).scores.metrics["zing"].assumed
    write(tmp_path / "subnet.toml", "[scores.zing]\nhigher_is_better = false\nchance = 3.0")
    metric = open_checkpoint(tmp_path).scores.metrics["zing"]
    assert (metric.higher_is_better, metric.chance, metric.assumed) == (False, 3.0, False)


def test_per_cent_can_be_declared(tmp_path):
    write(tmp_path / "scores.csv", LONG + "0,de,accuracy,56.5\n")
    with pytest.raises(
        InputError, match=r"line 2: accuracy of de after stage 0 is 56\.5; expected between 0 and 1"
    ):
        open_checkpoint(tmp_path)
    write(tmp_path / "subnet.toml", "[scores.accuracy]\nrange = [0, 100]")
    assert cells(open_checkpoint(tmp_path).scores, "accuracy") == {(0, "de"): 56.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LONG + "0,de,accuracy,good\n", r"line 2: accuracy of de is 'good'; expected a finite"),
        (LONG + "0,de,loss,nan\n", "line 2: loss of de is 'nan'"),
        (LONG + "0,de,loss,inf\n", "line 2: loss of de is 'inf'"),
        (LONG + "0,de,loss,-1\n", r"loss of de after stage 0 is -1; expected at least 0"),
        (LONG + "0,de,loss,1\n2,de,loss,1\n", r"has no rows for stage 1 of run 'main'"),
        (
            LONG + "0,de,loss,1\n0,de,loss,2\n",
            r"line 3: loss of de after stage 0 stands twice, first in line 2",
        ),
        (LONG + "first,de,loss,1\n", r"line 2: stage is 'first'; expected its number"),
        (LONG + "0,xxxxx,loss,1\n", r"'xxxxx' is no language code"),
        (LONG + "0,de,loss,1\n0,deu,loss,2\n", "'de' and 'deu' are the same language"),
        ("stage,language,metric,value,stderr\n0,de,loss,1,-1\n", "stderr is -1"),
        (LONG + "0,de,loss\n", "line 2 has 3 fields"),
        ("when,who\n0,de\n", r"has the columns when, who; expected stage,language,metric,value"),
        (LONG, "has a header and no rows"),
        ("stage,language\n0,de\n", "expected metric,value beside them"),
    ],
)
def test_a_score_table_that_cannot_be_used_is_one_line_that_says_why(tmp_path, text, message):
    write(tmp_path / "scores.csv", text)
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert "scores.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stage_that_was_trained_and_not_scored_is_named_with_its_folder(tmp_path):
    makers.write_stages(tmp_path, ORDER)
    makers.write_scores(tmp_path / "scores.csv", ORDER[:2], ORDER)
    with pytest.raises(InputError, match=r"scores\.csv: has no rows for stage 3 \(03-sw\)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ITEMS + "0,de,a,loss,x\n", "loss of item 'a' is 'x'; expected a finite number"),
        (ITEMS + "0,de,a,loss,inf\n", "loss of item 'a' is 'inf'"),
        (ITEMS + "0,de,a,loss,1\n0,de,a,loss,2\n", "item 'a' has loss of de after stage 0 twice"),
        ("stage,item,metric,value\n0,a,loss,1\n", "has no column 'language'"),
    ],
)
def test_items_that_cannot_be_used_are_one_line_that_says_why(tmp_path, text, message):
    makers.write_scores(tmp_path / "scores.csv", ORDER)
    write(tmp_path / "items.csv", text)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path).scores  # noqa: B018


def test_a_log_that_evaluates_no_language_is_skipped(tmp_path):
    history = [{"step": 2, "eval_loss": 1.0, "eval_runtime": 0.1}]
    write(tmp_path / "checkpoint-2" / "trainer_state.json", json.dumps({"log_history": history}))
    found = open_checkpoint(tmp_path)
    assert any("evaluates no language by name" in skipped.reason for skipped in found.skipped)
    with pytest.raises(MissingInputError, match="there are no scores"):
        found.scores  # noqa: B018


def test_a_stage_folder_may_be_a_trainer_run_of_its_own(tmp_path):
    for stage, language in enumerate(ORDER, start=1):
        history = [
            {"step": step, "eval_de_loss": 10.0 * stage + step, "eval_de_runtime": 1.0}
            for step in (1, 2)
        ]
        write(
            tmp_path / "stages" / f"{stage:02d}-{language}" / "trainer_state.json",
            json.dumps({"log_history": history}),
        )
    assert cells(open_checkpoint(tmp_path).scores, "loss") == {
        (1, "de"): 12.0,
        (2, "de"): 22.0,
        (3, "de"): 32.0,
    }


def test_a_diverged_evaluation_in_a_log_is_named(tmp_path):
    history = [{"step": 2, "eval_de_loss": math.nan, "eval_de_runtime": 1.0}]
    write(tmp_path / "checkpoint-2" / "trainer_state.json", json.dumps({"log_history": history}))
    with pytest.raises(InputError, match="eval_de_loss at step 2 is nan"):
        open_checkpoint(tmp_path)


def test_a_square_table_without_rows_or_names_is_refused(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("stage,de,fr\n")
    with pytest.raises(InputError, match="has a header and no rows"):
        open_checkpoint(tmp_path)
    path.write_text("stage,de,fr\n,.1,.2\n")
    with pytest.raises(InputError, match="line 2: the row has no name"):
        open_checkpoint(tmp_path)


def test_semicolons_are_named(tmp_path):
    (tmp_path / "scores.csv").write_text("stage;language;metric;value\n0;de;f1;0,5\n")
    with pytest.raises(InputError, match="is separated by semicolons"):
        open_checkpoint(tmp_path)


def test_blanks_beside_commas_are_no_part_of_a_cell(tmp_path):
    (tmp_path / "scores.csv").write_text("stage, language, metric, value\n0, de , f1, .5\n")
    (tmp_path / "items.csv").write_text("stage, language, item, metric, value\n0, de, a, f1, .5\n")
    scores = open_checkpoint(tmp_path).scores
    assert list(scores.frame["language"]) == ["de"]
    assert list(scores.items["language"]) == ["de"]


def test_items_stand_in_a_table_of_tabs_too(tmp_path):
    makers.write_scores(tmp_path / "scores.csv", ("de",))
    (tmp_path / "items.tsv").write_text(
        "stage\tlanguage\titem\tmetric\tvalue\n0\tde\ta, b\taccuracy\t1\n"
    )
    items = open_checkpoint(tmp_path).scores.items
    assert list(items["item"]) == ["a, b"]


def test_a_column_of_items_that_stands_twice_is_refused(tmp_path):
    makers.write_scores(tmp_path / "scores.csv", ("de",))
    (tmp_path / "items.csv").write_text("stage,language,item,metric,value,value\n0,de,a,f1,1,0\n")
    with pytest.raises(InputError, match="names the column 'value' twice"):
        open_checkpoint(tmp_path).scores  # noqa: B018
