"""Judging attribution: known answers, loops, and worlds where there is nothing to predict."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

import planted_influence as planted
from subnet.errors import InputError
from subnet.influence.baselines import random_scores
from subnet.influence.evaluation import compare_methods, linear_datamodelling_score
from subnet.influence.planting import mislabelled_auroc, plant_mislabelled
from subnet.influence.removal import leave_one_language_out
from subnet.influence.retraining import retrain_on_subsets, retrain_without_languages

Array = NDArray[np.float64]
#: Each trains a model of its own.
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]


class Regression:
    """Least squares, where influence functions are known in closed form."""

    def __init__(self, seed: int, n_train: int = 60, n_test: int = 12, d: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.x, self.x_test = rng.standard_normal((n_train, d)), rng.standard_normal((n_test, d))
        truth = rng.standard_normal(d)
        self.y = self.x @ truth + rng.standard_normal(n_train)
        self.y_test = self.x_test @ truth + rng.standard_normal(n_test)

    def predict(self, indices: NDArray[np.intp], seed: int = 0) -> Array:
        weights = np.linalg.lstsq(self.x[indices], self.y[indices], rcond=None)[0]
        return np.asarray(self.x_test @ weights)

    def loss(self, indices: NDArray[np.intp], seed: int = 0) -> Array:
        return np.asarray((self.predict(indices) - self.y_test) ** 2)

    def influence(self) -> tuple[Array, Array]:
        """On the prediction, and on −loss: ∂f(x_test) = x_testᵀ H⁻¹ x_j (y_j − f(x_j))."""
        weights = np.linalg.lstsq(self.x, self.y, rcond=None)[0]
        hessian = self.x.T @ self.x
        moved = self.x_test @ np.linalg.solve(
            hessian, (self.x * (self.y - self.x @ weights)[:, None]).T
        )
        slope = -2 * (self.x_test @ weights - self.y_test)
        return moved, slope[:, None] * moved


class TestDatamodelling:
    def test_it_is_the_mean_spearman_correlation_of_a_loop(self) -> None:
        rng = np.random.default_rng(0)
        scores = rng.standard_normal((5, 12))
        retrained = retrain_on_subsets(
            lambda indices, seed: np.random.default_rng([seed, *indices]).standard_normal(5), 12,
            n_subsets=9, fraction=0.25, seeds_per_subset=2, seed=4,
        )  # fmt: skip
        assert retrained.subsets.sum(axis=1).tolist() == [3] * 9
        assert len({tuple(row) for row in retrained.subsets}) > 1
        found = linear_datamodelling_score(scores, retrained)
        expected = []
        for i in range(5):
            predicted = [scores[i, subset].sum() for subset in retrained.subsets]
            loss = retrained.outcomes.mean(axis=1)[:, i]
            expected.append(stats.spearmanr(predicted, -loss).statistic)
        np.testing.assert_allclose(found.per_example, expected)
        assert found.value == pytest.approx(np.mean(expected))
        assert (found.n_test, found.n_subsets) == (5, 9)
        turned = linear_datamodelling_score(scores, retrained, lower_is_better=False)
        assert turned.value == pytest.approx(-found.value)

    def test_retraining_gets_the_subset_and_the_seed(self) -> None:
        calls = []

        def retrain(indices: NDArray[np.intp], seed: int) -> list[float]:
            calls.append((tuple(indices), seed))
            return [1.0 + seed]

        retrained = retrain_on_subsets(
            retrain, 10, n_subsets=4, fraction=0.3, seeds_per_subset=2, seed=7
        )
        assert [seed for _, seed in calls] == [7, 8] * 4
        for number, (indices, _) in enumerate(calls):
            assert np.flatnonzero(retrained.subsets[number // 2]).tolist() == list(indices)
        assert retrained.outcomes[:, :, 0].tolist() == [[8.0, 9.0]] * 4

    def test_exact_influence_scores_near_one(self) -> None:
        world = Regression(0)
        on_prediction, on_loss = world.influence()
        predictions = retrain_on_subsets(world.predict, 60, n_subsets=60, fraction=0.8)
        found = linear_datamodelling_score(on_prediction, predictions, lower_is_better=False)
        assert found.value > 0.95
        assert 0.9 < found.ci_low < found.value < found.ci_high <= 1
        losses = retrain_on_subsets(world.loss, 60, n_subsets=60, fraction=0.8)
        assert linear_datamodelling_score(on_loss, losses, n_resamples=9).value > 0.85
        # the wrong sign is as far from it as can be
        assert linear_datamodelling_score(-on_loss, losses, n_resamples=9).value < -0.85

    def test_random_scores_are_near_zero_within_the_interval(self) -> None:
        """Test examples share the subsets, so an interval over test examples alone would not do."""
        covered, values = [], []
        for seed in range(30):
            losses = retrain_on_subsets(Regression(seed).loss, 60, n_subsets=25, seed=seed)
            scores = random_scores(12, 60, seed=seed).scores
            # one direction of all test examples alike, as gradients have
            scores += 2 * random_scores(1, 60, seed=seed + 500).scores
            found = linear_datamodelling_score(scores, losses, seed=seed, n_resamples=100)
            values.append(found.value)
            covered.append(found.ci_low <= 0 <= found.ci_high)
        assert abs(np.mean(values)) < 0.06
        assert np.mean(covered) > 0.85

    def test_methods_are_compared_on_the_same_samples(self) -> None:
        world = Regression(1)
        losses = retrain_on_subsets(world.loss, 60, n_subsets=40)
        exact = world.influence()[1]
        methods = {
            "exact": exact,
            "twice": 2 * exact,
            "random": random_scores(12, 60, seed=0).scores,
        }
        table = compare_methods(methods, losses, reference="exact", n_resamples=200).set_index(
            "method"
        )
        for name, scores in methods.items():
            alone = linear_datamodelling_score(scores, losses, n_resamples=200)
            assert table["value"][name] == pytest.approx(alone.value)
            assert table["ci_low"][name] == pytest.approx(alone.ci_low)
        assert table["difference"]["twice"] == pytest.approx(0, abs=1e-12)
        assert table["difference_high"]["twice"] == pytest.approx(0, abs=1e-12)
        assert table["difference_high"]["random"] < -0.3

    def test_reliability_falls_with_training_noise(self) -> None:
        world = Regression(2)

        def noisy(size: float) -> Callable[[NDArray[np.intp], int], Array]:
            def retrain(indices: NDArray[np.intp], seed: int) -> Array:
                noise = np.random.default_rng([seed, *indices]).standard_normal(12)
                return world.predict(indices) + size * noise

            return retrain

        exact = world.influence()[0]
        found = []
        for size in (0.0, 0.1, 10.0):
            retrained = retrain_on_subsets(noisy(size), 60, n_subsets=40, seeds_per_subset=4)
            found.append(
                linear_datamodelling_score(exact, retrained, lower_is_better=False, n_resamples=9)
            )
        assert found[0].reliability == pytest.approx(1)
        assert 1 > found[1].reliability > found[2].reliability
        assert found[2].reliability < 0.5
        # what a nearly perfect prediction reached is about what could be reached
        assert found[1].value == pytest.approx(found[1].reliability, abs=0.1)
        one = retrain_on_subsets(world.predict, 60, n_subsets=5)
        assert math.isnan(linear_datamodelling_score(exact, one).reliability)

    def test_constant_predictions_have_no_correlation(self) -> None:
        losses = retrain_on_subsets(Regression(0).loss, 60, n_subsets=5)
        scores = np.ones((12, 60))
        found = linear_datamodelling_score(scores, losses)
        assert math.isnan(found.value)
        assert found.reason == "the predictions or the outcomes of every test example are all equal"
        scores[:3] = random_scores(3, 60, seed=0).scores
        assert linear_datamodelling_score(scores, losses).n_test == 3


class TestLeavingALanguageOut:
    languages = tuple("abcdefg")

    def world(self, seed: int, noise: float = 0.0) -> Any:
        """Losses that are sums of what every training example contributes."""
        rng = np.random.default_rng(seed)
        train = np.repeat(self.languages, rng.integers(4, 9, len(self.languages)))
        test = np.repeat(self.languages, 6)
        scores = rng.standard_normal((len(test), len(train)))
        scores += rng.standard_normal((7, 7))[
            np.ix_(np.searchsorted(self.languages, test), np.searchsorted(self.languages, train))
        ]

        def retrain(indices: NDArray[np.intp], seed: int) -> Array:
            return np.asarray(5 - scores[:, indices].sum(axis=1))

        return scores, train, test, retrain

    def test_exact_influence_predicts_every_removal(self) -> None:
        scores, train, test, retrain = self.world(0)
        retrained = retrain_without_languages(retrain, list(train))
        found = leave_one_language_out(
            scores, retrained, list(test), n_permutations=299, n_resamples=200
        )
        np.testing.assert_allclose(found.pairs["predicted"], found.pairs["actual"])
        row = found.pairs.set_index(["test_language", "train_language"]).loc[("b", "e")]
        block = scores[np.ix_(test == "b", train == "e")]
        assert row["actual"] == pytest.approx(block.sum(axis=1).mean())
        assert found.correlations["pairs"].tolist() == ["all", "between languages"]
        np.testing.assert_allclose(found.correlations["value"], 1)
        assert (found.correlations["p_value"] < 0.02).all()
        turned = leave_one_language_out(
            -scores, retrained, list(test), n_permutations=99, n_resamples=20
        )
        np.testing.assert_allclose(turned.correlations["value"], -1)

    def test_it_is_the_mean_spearman_correlation_of_a_loop(self) -> None:
        scores, train, test, retrain = self.world(1)
        retrained = retrain_without_languages(retrain, list(train), n_seeds=2)
        guess = scores + 4 * np.random.default_rng(0).standard_normal(scores.shape)
        found = leave_one_language_out(
            guess, retrained, list(test), n_permutations=99, n_resamples=20
        )
        for which, diagonal in (("all", True), ("between languages", False)):
            each = []
            for name in self.languages:
                rows = found.pairs[found.pairs["test_language"] == name]
                if not diagonal:
                    rows = rows[rows["train_language"] != name]
                each.append(stats.spearmanr(rows["predicted"], rows["actual"]).statistic)
            value = found.correlations.set_index("pairs")["value"][which]
            assert value == pytest.approx(np.mean(each))

    def test_a_table_of_means_gives_the_same(self) -> None:
        scores, train, test, retrain = self.world(2)
        retrained = retrain_without_languages(retrain, list(train))
        guess = scores + 3 * np.random.default_rng(0).standard_normal(scores.shape)
        means = pd.DataFrame(
            [
                [guess[np.ix_(test == a, train == b)].mean() for b in self.languages]
                for a in self.languages
            ],
            index=list(self.languages),
            columns=list(self.languages),
        )
        kwargs: dict[str, Any] = {"n_permutations": 99, "n_resamples": 20}
        table = leave_one_language_out(means.iloc[::-1, ::-1], retrained, list(test), **kwargs)
        whole = leave_one_language_out(guess, retrained, list(test), **kwargs)
        pd.testing.assert_frame_equal(table.pairs, whole.pairs)
        np.testing.assert_allclose(
            table.correlations["value"], whole.correlations["value"], rtol=1e-12
        )

    def test_unrelated_influence_is_not_found(self) -> None:
        p_values = []
        for seed in range(25):
            _, train, test, retrain = self.world(seed)
            retrained = retrain_without_languages(retrain, list(train))
            other = self.world(seed + 1000)[0]
            guess = np.resize(other, (len(test), len(train)))
            found = leave_one_language_out(
                guess, retrained, list(test), n_permutations=199, n_resamples=10, seed=seed
            )
            p_values += found.correlations["p_value"].tolist()
        assert np.mean(np.array(p_values) < 0.05) <= 0.14

    def test_a_useful_diagonal_alone_says_nothing_between_languages(self) -> None:
        """Every language helps itself; among the others the guess is noise."""
        scores, train, test, retrain = self.world(3)
        own = np.equal.outer(test, train) * 20.0
        retrained = retrain_without_languages(
            lambda indices, seed: retrain(indices, seed) - own[:, indices].sum(axis=1), list(train)
        )
        noise = np.random.default_rng(1).standard_normal(scores.shape)
        found = leave_one_language_out(
            own + noise, retrained, list(test), n_permutations=299, n_resamples=200
        )
        value = found.correlations.set_index("pairs")["value"]
        assert value["all"] > value["between languages"] + 0.2

    def test_few_languages_are_no_test(self) -> None:
        train, test = list("aabbcc"), list("abc")
        retrained = retrain_without_languages(lambda i, seed: [0.1 * i.sum(), 1.0 * i[0], 2], train)
        found = leave_one_language_out(
            np.arange(18.0).reshape(3, 6), retrained, test, n_resamples=20
        )
        first = found.correlations.iloc[0]
        assert math.isnan(first["p_value"])
        assert first["smallest_p"] == pytest.approx(2 / 6)
        assert first["reason"] == "no p-value: 3 languages cannot give one below 0.33"
        assert math.isnan(first["ci_low"])  # one test example per language
        assert found.correlations.iloc[1]["reason"] == "fewer than three training languages differ"


class TestPlanting:
    def test_the_area_is_the_share_of_pairs_in_the_right_order(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.integers(0, 6, 30).astype(float)
        wrong = rng.random(30) < 0.3
        pairs = [
            (a > b) + 0.5 * (a == b) for a, b in itertools.product(values[wrong], values[~wrong])
        ]
        found = mislabelled_auroc(values, wrong)
        assert found.auroc == pytest.approx(np.mean(pairs))
        assert found.ci_low < found.auroc < found.ci_high
        assert (found.n_planted, found.n_others) == (wrong.sum(), (~wrong).sum())
        assert mislabelled_auroc(np.ones(30), wrong).auroc == 0.5

    def test_the_interval_covers(self) -> None:
        """Normal scores one standard deviation apart: the area is Φ(1/√2)."""
        truth = stats.norm.cdf(1 / math.sqrt(2))
        covered = []
        for seed in range(100):
            rng = np.random.default_rng(seed)
            wrong = np.arange(80) < 20
            found = mislabelled_auroc(
                rng.standard_normal(80) + wrong, wrong, seed=seed, n_resamples=300
            )
            covered.append(found.ci_low <= truth <= found.ci_high)
        assert 0.88 < np.mean(covered) <= 0.99

    def test_planted_labels_are_wrong_and_known(self) -> None:
        labels = np.arange(100) % 4
        given, changed = plant_mislabelled(labels, share=0.2, n_labels=4, seed=0)
        assert changed.sum() == 20
        np.testing.assert_array_equal(given != labels, changed)
        assert set(given) == {0, 1, 2, 3}
        assert len(set((given - labels)[changed] % 4)) == 3  # every wrong label is drawn
        again = plant_mislabelled(labels, share=0.2, n_labels=4, seed=0)
        np.testing.assert_array_equal(given, again[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_mislabelled_examples_have_large_self_influence(seed: int) -> None:
    world = planted.train_world(seed)
    found = mislabelled_auroc(planted.self_influence_of(world), world.mislabelled)
    assert found.auroc > 0.8
    assert found.ci_low > 0.5
    chance = mislabelled_auroc(
        random_scores(1, len(world.mislabelled), seed=seed).scores[0], world.mislabelled
    )
    assert chance.ci_low < 0.5 < chance.ci_high


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("kind", "maker"), [("duplicates", planted.bert), ("translations", planted.BagOfWords)]
)
def test_planted_examples_of_another_language_rank_first(kind: Any, maker: Any, seed: int) -> None:
    """A duplicate has the test example's own gradient; of a translation one token is another."""
    world = planted.train_world(seed, kind, maker)
    names = [{row["language"] for row in (world.test[i], world.train[j])}
             for i, j in enumerate(world.same)]  # fmt: skip
    assert all(len(pair) == 2 for pair in names)
    assert np.mean(planted.ranks_of_the_same(world, "cosine") == 0) == 1
    chance = planted.ranks_in(
        random_scores(len(world.test), len(world.train), seed=seed).scores, world
    )
    assert np.mean(chance == 0) < 0.2


class TestBadInput:
    def test_subsets(self) -> None:
        with pytest.raises(
            InputError, match=r"a share 1\.0 of 10 examples is 10; expected some, and"
        ):
            retrain_on_subsets(lambda i, s: [1.0], 10, fraction=1.0)
        with pytest.raises(InputError, match="2 subsets and 1 seeds of each; expected at least 3"):
            retrain_on_subsets(lambda i, s: [1.0], 10, n_subsets=2)
        with pytest.raises(
            InputError, match=r"retrain gave \[2\] outcomes for subset 0, 1 of them"
        ):
            retrain_on_subsets(lambda i, s: [1.0, math.nan], 10)

    def test_scores_that_do_not_fit(self) -> None:
        retrained = retrain_on_subsets(lambda i, s: [1.0 * i[0]], 10)
        with pytest.raises(
            InputError, match=r"scores are \[2, 10\], 0 not finite; expected \[1, 10"
        ):
            linear_datamodelling_score(np.ones((2, 10)), retrained)
        with pytest.raises(InputError, match="reference is 'b'; expected one of a"):
            compare_methods({"a": np.ones((1, 10))}, retrained, reference="b")

    def test_languages(self) -> None:
        with pytest.raises(InputError, match="1 training languages and 1 seeds"):
            retrain_without_languages(lambda i, s: [1.0], ["a", "a"])
        retrained = retrain_without_languages(lambda i, s: [1.0, 2.0], ["a", "b", "b"])
        with pytest.raises(InputError, match="1 test languages for 2 outcomes"):
            leave_one_language_out(np.ones((2, 3)), retrained, ["a"])
        with pytest.raises(InputError, match=r"scores are \[2, 2\]; expected \[2, 3\] finite"):
            leave_one_language_out(np.ones((2, 2)), retrained, ["a", "b"])
        with pytest.raises(
            InputError, match="the table of scores has no b; expected test languages"
        ):
            leave_one_language_out(pd.DataFrame({"a": [1.0]}, index=["a"]), retrained, ["a", "a"])

    def test_planting(self) -> None:
        with pytest.raises(InputError, match="0 of 3 examples are mislabelled"):
            mislabelled_auroc([1, 2, 3], [False] * 3)
        with pytest.raises(InputError, match=r"self-influence is \[2\] for \[3\] labels"):
            mislabelled_auroc([1, 2], [True, False, False])
        with pytest.raises(InputError, match=r"a share 0\.01 of 10 examples with 3 labels"):
            plant_mislabelled(np.zeros(10), share=0.01, n_labels=3, seed=0)
