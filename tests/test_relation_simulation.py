"""What the tests of association do on data whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from subnet.relation import Association, associate


@dataclass(frozen=True)
class World:
    """Outcome and predictor over l languages, each with effects of rows and of columns.

    Attributes:
        n: Languages.
        effects: Deviation of the row and column effects; that of single pairs is 1.
        slope: True slope of the outcome on the predictor.
        confounding: Strength of something that raises both; known as a control.
        symmetric: Whether the predictor is.
        gaps: Share of pairs, those where the predictor is smallest, at which it is not known.
        triangular: Whether the outcome is known for one direction only.
        coupled: Whether consecutive rows of the outcome share a score, as stages do.
    """

    n: int = 10
    effects: float = 1.0
    slope: float = 0.0
    confounding: float = 0.0
    symmetric: bool = False
    gaps: float = 0.0
    triangular: bool = False
    coupled: bool = False

    def draw(self, seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        rng = np.random.default_rng(seed)
        n = self.n
        a, b, c, d = self.effects * rng.standard_normal((4, n))
        x, y, z = rng.standard_normal((3, n, n))
        if self.symmetric:
            x, d = (x + x.T) / np.sqrt(2), c
        x = x + c[:, None] + d + self.confounding * z
        if self.coupled:
            scores = 1.5 * rng.standard_normal((n + 1, n))
            y = np.diff(scores, axis=0)
        y = y + a[:, None] + b + self.slope * x + self.confounding * z
        if self.gaps:
            x = np.where(x < np.quantile(x, self.gaps), np.nan, x)
        if self.triangular:
            y = np.where(np.tri(n, k=-1, dtype=bool), y, np.nan)
        names = [f"l{index}" for index in range(n)]
        outcome, predictor, control = (pd.DataFrame(m, names, names) for m in (y, x, z))
        return outcome, predictor, control

    @property
    def true_slope(self) -> float:
        """Standardised slope in a world of endless languages."""
        variance = 1 + 2 * self.effects**2
        return self.slope * np.sqrt(variance) / np.sqrt((self.slope**2 + 1) * variance)


def share_below(p_values: list[float]) -> float:
    return float(np.mean(np.array(p_values) <= 0.05))


def p_values_of(
    world: World, n_draws: int, *, control: bool = False, **options: object
) -> list[float]:
    found: list[Association] = []
    for seed in range(n_draws):
        outcome, predictor, z = world.draw(seed)
        held = {"z": z} if control else {}
        found.append(
            associate(outcome, predictor, held, n_permutations=399, seed=seed, **options)  # type: ignore[arg-type]
        )
    return [one.p_value for one in found]


def pearson(world: World, n_draws: int) -> list[float]:
    found = []
    for seed in range(n_draws):
        outcome, predictor, _ = world.draw(seed)
        apart = ~np.eye(world.n, dtype=bool)
        known = stats.pearsonr(outcome.to_numpy()[apart], predictor.to_numpy()[apart])
        found.append(float(known.pvalue))
    return found


def test_row_and_column_effects_fool_pearson_and_not_the_permutation_of_languages() -> None:
    world = World(n=14, effects=1.5)
    assert share_below(pearson(world, 100)) > 0.25
    assert share_below(p_values_of(world, 100)) < 0.12
    assert share_below(p_values_of(world, 100, method="qap")) < 0.12


def test_a_known_confounder_fools_qap_and_not_double_semi_partialing() -> None:
    world = World(n=10, confounding=1.5)
    assert share_below(p_values_of(world, 50, method="qap")) > 0.80
    assert share_below(p_values_of(world, 100, control=True)) < 0.12


def test_a_planted_relation_is_found_with_its_sign_in_spite_of_a_confounder() -> None:
    for slope in (-0.6, 0.6):
        world = World(n=10, slope=slope, effects=0.5, confounding=1.0)
        found = []
        for seed in range(20):
            outcome, predictor, z = world.draw(seed)
            found.append(associate(outcome, predictor, {"z": z}, n_permutations=399))
        assert share_below([one.p_value for one in found]) >= 0.9
        assert all(np.sign(one.estimate) == np.sign(slope) for one in found)


def test_missing_pairs_do_not_make_a_relation() -> None:
    for world in (World(n=8, gaps=0.2), World(n=8, triangular=True, gaps=0.1)):
        assert share_below(p_values_of(world, 80, control=True)) < 0.13


@pytest.mark.slow
@pytest.mark.parametrize(
    "world",
    [
        World(n=6),
        World(n=12),
        World(n=24, effects=1.5),
        World(n=12, symmetric=True),
        World(n=12, confounding=1.5),
        World(n=12, triangular=True),
        World(n=12, gaps=0.2),
        World(n=12, gaps=0.2, triangular=True),
        World(n=12, coupled=True),
    ],
    ids=str,
)
def test_double_semi_partialing_rejects_between_two_and_seven_percent(world: World) -> None:
    rate = share_below(p_values_of(world, 1000, control=True))
    plain = share_below(pearson(world, 1000)) if not (world.gaps or world.triangular) else np.nan
    print(f"{world}: MRQAP rejects {rate:.3f}, Pearson over pairs {plain:.3f}")  # noqa: T201
    assert 0.02 <= rate <= 0.07


@pytest.mark.slow
@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("effects", [0.0, 0.7, 1.5])
@pytest.mark.parametrize("n", [6, 12, 24])
def test_the_interval_covers_the_true_slope(n: int, effects: float, slope: float) -> None:
    world = World(n=n, effects=effects, slope=slope)
    hits, widths = [], []
    for seed in range(600):
        outcome, predictor, _ = world.draw(seed)
        found = associate(outcome, predictor, n_permutations=1)
        hits.append(found.ci_low <= world.true_slope <= found.ci_high)
        widths.append(found.ci_high - found.ci_low)
    covered = float(np.mean(hits))
    print(f"{world}: covers {covered:.3f}, mean width {np.mean(widths):.2f}")  # noqa: T201
    # Right where languages have effects of their own, too wide where pairs are independent.
    assert covered >= 0.92
