"""Which parameters each language uses, which are shared, and whether that explains forgetting.

Functions are verbs, rooms and results are nouns. Everything here is loaded when it is first used,
so that `import subnet` costs nothing.

Example:
    >>> import subnet
    >>> checkpoint = subnet.open_checkpoint("checkpoint/")  # doctest: +SKIP
    >>> subnets = subnet.extract(checkpoint, method="magnitude", density=0.05)  # doctest: +SKIP
    >>> overlap = subnet.measure_overlap(subnets)  # doctest: +SKIP
    >>> graph = overlap.graph(measure="jaccard")  # doctest: +SKIP
    >>> forgetting = subnet.measure_forgetting(checkpoint.scores)  # doctest: +SKIP
    >>> relation = subnet.relate(forgetting, overlap=overlap)  # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from subnet._version import __version__

if TYPE_CHECKING:
    from subnet.analysis import Analysis, analyze
    from subnet.checkpoint import Checkpoint, Scores, Step, Update, open_checkpoint
    from subnet.errors import SubnetError
    from subnet.forgetting import Forgetting, measure_forgetting
    from subnet.influence import Influence, TracIn, attribute
    from subnet.language import Language, parse_language
    from subnet.overlap import Overlap, measure_overlap
    from subnet.relation import Relation, relate
    from subnet.subnetwork import Subnetwork, Subnetworks, extract, load_subnetwork
    from subnet.training import run_demo
    from subnet.validation import Ablation, Stability, Sweep, ablate, measure_stability, sweep

__all__ = [
    "Ablation",
    "Analysis",
    "Checkpoint",
    "Forgetting",
    "Influence",
    "Language",
    "Overlap",
    "Relation",
    "Scores",
    "Stability",
    "Step",
    "SubnetError",
    "Subnetwork",
    "Subnetworks",
    "Sweep",
    "TracIn",
    "Update",
    "__version__",
    "ablate",
    "analyze",
    "attribute",
    "extract",
    "load_subnetwork",
    "measure_forgetting",
    "measure_overlap",
    "measure_stability",
    "open_checkpoint",
    "parse_language",
    "relate",
    "run_demo",
    "sweep",
]

if not TYPE_CHECKING:
    _ROOMS = {
        "analysis": ("Analysis", "analyze"),
        "checkpoint": ("Checkpoint", "Scores", "Step", "Update", "open_checkpoint"),
        "errors": ("SubnetError",),
        "forgetting": ("Forgetting", "measure_forgetting"),
        "influence": ("Influence", "TracIn", "attribute"),
        "language": ("Language", "parse_language"),
        "overlap": ("Overlap", "measure_overlap"),
        "relation": ("Relation", "relate"),
        "subnetwork": ("Subnetwork", "Subnetworks", "extract", "load_subnetwork"),
        "training": ("run_demo",),
        "validation": ("Ablation", "Stability", "Sweep", "ablate", "measure_stability", "sweep"),
    }
    _ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

    def __getattr__(name):
        """Load a public name, or a room, when it is first asked for."""
        import importlib

        if name in _ROOM_OF:
            value = getattr(importlib.import_module(f"subnet.{_ROOM_OF[name]}"), name)
        elif name in _ROOMS:
            value = importlib.import_module(f"subnet.{name}")
        else:
            raise AttributeError(f"module 'subnet' has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__():
        """Public names and rooms, loaded or not."""
        return sorted({*globals(), *__all__, *_ROOMS})
