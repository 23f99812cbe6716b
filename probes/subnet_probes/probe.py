"""The probes: linear, standardised, in scikit-learn's manner."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted


class _Linear(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What both probes share: standardise, rotate where asked, fit one linear model."""

    pipeline_: Pipeline

    def _model(self) -> Any:
        raise NotImplementedError

    def fit(self, X: Any, y: Any) -> Any:  # noqa: N803
        """Fit to representations.

        Args:
            X: [n, d].
            y: [n] labels, or values.

        Returns:
            The probe.
        """
        steps: list[tuple[str, Any]] = []
        if self.standardize:
            steps.append(("standardize", StandardScaler()))
        if self.components is not None:
            pca = PCA(self.components, random_state=self.random_state)
            steps.append(("reduce", pca))
        self.pipeline_ = Pipeline([*steps, ("model", self._model())]).fit(X, y)
        first = self.pipeline_[0]
        self.n_features_in_ = first.n_features_in_
        if hasattr(first, "feature_names_in_"):
            self.feature_names_in_ = first.feature_names_in_
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803
        """Predictions for representations X [n, d]."""
        check_is_fitted(self)
        return self.pipeline_.predict(X)

    @property
    def coef_(self) -> NDArray[np.floating[Any]]:
        """Weights on standardised units: [classes, d]; [1, d] of two classes; [d] of values."""
        check_is_fitted(self)
        weights = self.pipeline_["model"].coef_
        if "reduce" in self.pipeline_.named_steps:
            weights = weights @ self.pipeline_["reduce"].components_
        return np.asarray(weights)

    def affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the probe computes of representations as they are: W [outputs, d] and b [outputs].

        `x @ W.T + b` is the decision function (of values: the prediction) of x [n, d].
        """
        weights = np.atleast_2d(np.asarray(self.coef_, dtype=np.float64))
        bias = np.atleast_1d(np.asarray(self.pipeline_["model"].intercept_, dtype=np.float64))
        if "reduce" in self.pipeline_.named_steps:
            bias = bias - weights @ self.pipeline_["reduce"].mean_
        if "standardize" in self.pipeline_.named_steps:
            scaler = self.pipeline_["standardize"]
            weights = weights / scaler.scale_
            bias = bias - weights @ scaler.mean_
        return weights, bias

    @property
    def n_iter_(self) -> int:
        """Iterations of the solver; 1 where there is a closed form."""
        found = self.pipeline_["model"].n_iter_
        return 1 if found is None else int(np.max(found))


class Probe(ClassifierMixin, _Linear):  # type: ignore[misc]  # scikit-learn has no types
    """Multinomial logistic regression on standardised representations.

    Minimises Σᵢ −log p(yᵢ | xᵢ) + ‖W‖² / (2C) by L-BFGS (scikit-learn's `LogisticRegression`), with
    one fit for all classes. Single precision stays single precision; experiments take double where
    the penalty is too weak for single.

    Args:
        C: Inverse strength of the penalty, against the *sum* of the losses, so that it weighs less
            the more examples there are. The default suits hundreds to thousands of examples in
            hundreds of dimensions.
        standardize: Give every unit mean 0 and deviation 1 over the training examples. Without it
            the outlier dimensions of language models rule the penalty.
        components: Fit on that many principal components only; None on all dimensions. What lies in
            directions of little variance is then lost to the probe.
        class_weight: As of `LogisticRegression`; `"balanced"` weighs classes equally.
        tol: Largest component of the gradient of the mean loss at which the solver stops.
            Experiments (`probe_labels` and others) fit many probes at once by a solver of their
            own, which at the same `tol` is nearer to the optimum.
        max_iter: Most iterations.
        random_state: Seed of the randomised solver of the principal components.

    Attributes:
        pipeline_: The scikit-learn pipeline.
        classes_: [classes], labels in order.
        coef_: [classes, d], weights on standardised units ([1, d] of two classes).

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
        >>> probe = Probe().fit(x[:100], x[:100, 2] > 0)
        >>> bool(probe.score(x[100:], x[100:, 2] > 0) > 0.9)
        True
        >>> int(np.abs(probe.coef_).argmax())
        2
    """

    def __init__(
        self,
        C: float = 0.1,  # noqa: N803 scikit-learn's name
        *,
        standardize: bool = True,
        components: int | None = None,
        class_weight: str | None = None,
        tol: float = 1e-3,
        max_iter: int = 1000,
        random_state: int = 0,
    ) -> None:
        self.C = C
        self.standardize = standardize
        self.components = components
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def _model(self) -> LogisticRegression:
        return LogisticRegression(
            C=self.C, class_weight=self.class_weight, tol=self.tol, max_iter=self.max_iter
        )

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        """[n, classes], probabilities in the order of `classes_`."""
        check_is_fitted(self)
        return self.pipeline_.predict_proba(X)

    def decision_function(self, X: Any) -> Any:  # noqa: N803
        """[n, classes], logits in the order of `classes_`; [n] of two classes."""
        check_is_fitted(self)
        return self.pipeline_.decision_function(X)

    @property
    def classes_(self) -> Any:
        """[classes], labels in order."""
        return self.pipeline_["model"].classes_


class RegressionProbe(RegressorMixin, _Linear):  # type: ignore[misc]  # no types
    """Ridge regression on standardised representations.

    Args:
        alpha: Strength of the penalty ‖W‖², against the sum of the squared errors, per dimension:
            the ridge's own is `alpha · d`, since standardised examples have squared norm d.
        standardize: Give every unit mean 0 and deviation 1 over the training examples.
        components: Fit on that many principal components only; None on all dimensions.
        random_state: Seed of the randomised solver of the principal components.

    Attributes:
        pipeline_: The scikit-learn pipeline.
        coef_: [d] or [targets, d], weights on standardised units.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        standardize: bool = True,
        components: int | None = None,
        random_state: int = 0,
    ) -> None:
        self.alpha = alpha
        self.standardize = standardize
        self.components = components
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Any:  # noqa: N803
        """Fit to representations X [n, d] and values y [n] or [n, targets]."""
        matrix = np.asarray(X)
        self._width = matrix.shape[1] if matrix.ndim == 2 else 1
        return super().fit(X, y)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _model(self) -> Ridge:
        return Ridge(alpha=self.alpha * self._width)
