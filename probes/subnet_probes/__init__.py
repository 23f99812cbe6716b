"""What representations encode, per language, layer and subnetwork.

Functions are verbs or name what they return, results are nouns. Everything here is loaded when it
is first used, so that `import subnet_probes` costs nothing.

Example:
    >>> from subnet_probes import language_similarity, representations
    >>> found = representations("checkpoint/", layers="all", pool="mean")  # doctest: +SKIP
    >>> found.array("2").shape  # doctest: +SKIP
    (6480, 96)
    >>> language_similarity(found, "cka", "2")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subnet_probes._measure import Measure
    from subnet_probes.agreement import unit_agreement
    from subnet_probes.canonical import PWCCA, SVCCA
    from subnet_probes.checkpoint_probing import probe_checkpoint
    from subnet_probes.checkpoint_probing_result import CheckpointProbing
    from subnet_probes.checkpoint_probing_settings import CheckpointProbingSettings
    from subnet_probes.cka import CKA, StreamedCKA, linear_cka
    from subnet_probes.comparison import compare
    from subnet_probes.control import control_labels, permuted_labels
    from subnet_probes.cosine import Cosine, CosineContrast
    from subnet_probes.distances import DistanceRegression, regress
    from subnet_probes.extraction import representations
    from subnet_probes.languages import language_similarity
    from subnet_probes.mdl import Codelength, online_codelength
    from subnet_probes.measures import MEASURES
    from subnet_probes.model_units import rank_model_units
    from subnet_probes.probe import Probe, RegressionProbe
    from subnet_probes.probe_settings import ProbeSettings
    from subnet_probes.probing import probe_labels, probe_language, probe_tokens
    from subnet_probes.probing_result import Probing, Transfer
    from subnet_probes.procrustes import Procrustes
    from subnet_probes.ranking import UnitRanking, rank_units
    from subnet_probes.report import report_sections
    from subnet_probes.report_extension import ProbeExtension
    from subnet_probes.representation import Representations
    from subnet_probes.retrieval import Retrieval, nearest_neighbours
    from subnet_probes.splits import grouped_folds, split_groups
    from subnet_probes.stages import drift
    from subnet_probes.transfer import cross_lingual_transfer

__all__ = [
    "CKA",
    "MEASURES",
    "PWCCA",
    "SVCCA",
    "CheckpointProbing",
    "CheckpointProbingSettings",
    "Codelength",
    "Cosine",
    "CosineContrast",
    "DistanceRegression",
    "Measure",
    "Probe",
    "ProbeExtension",
    "ProbeSettings",
    "Probing",
    "Procrustes",
    "RegressionProbe",
    "Representations",
    "Retrieval",
    "StreamedCKA",
    "Transfer",
    "UnitRanking",
    "compare",
    "control_labels",
    "cross_lingual_transfer",
    "drift",
    "grouped_folds",
    "language_similarity",
    "linear_cka",
    "nearest_neighbours",
    "online_codelength",
    "permuted_labels",
    "probe_checkpoint",
    "probe_labels",
    "probe_language",
    "probe_tokens",
    "rank_model_units",
    "rank_units",
    "regress",
    "report_sections",
    "representations",
    "split_groups",
    "unit_agreement",
]

if not TYPE_CHECKING:
    _MODULES = {
        "agreement": ("unit_agreement",),
        "control": (
            "control_labels",
            "permuted_labels",
        ),
        "distances": (
            "DistanceRegression",
            "regress",
        ),
        "model_units": ("rank_model_units",),
        "mdl": (
            "Codelength",
            "online_codelength",
        ),
        "probe": (
            "Probe",
            "RegressionProbe",
        ),
        "probe_settings": ("ProbeSettings",),
        "probing": (
            "probe_labels",
            "probe_language",
            "probe_tokens",
        ),
        "probing_result": (
            "Probing",
            "Transfer",
        ),
        "ranking": (
            "UnitRanking",
            "rank_units",
        ),
        "splits": (
            "grouped_folds",
            "split_groups",
        ),
        "transfer": ("cross_lingual_transfer",),
        "canonical": ("PWCCA", "SVCCA"),
        "checkpoint_probing": ("probe_checkpoint",),
        "checkpoint_probing_result": ("CheckpointProbing",),
        "checkpoint_probing_settings": ("CheckpointProbingSettings",),
        "cka": ("CKA", "StreamedCKA", "linear_cka"),
        "comparison": ("compare",),
        "cosine": ("Cosine", "CosineContrast"),
        "extraction": ("representations",),
        "languages": ("language_similarity",),
        "measures": ("MEASURES",),
        "_measure": ("Measure",),
        "procrustes": ("Procrustes",),
        "report": ("report_sections",),
        "report_extension": ("ProbeExtension",),
        "representation": ("Representations",),
        "retrieval": ("Retrieval", "nearest_neighbours"),
        "stages": ("drift",),
    }
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name):
        """Load a public name when it is first asked for."""
        import importlib

        if name not in _MODULE_OF:
            raise AttributeError(f"module 'subnet_probes' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"subnet_probes.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value

    def __dir__():
        """Public names, loaded or not."""
        return sorted({*globals(), *__all__})
