"""Is it a subnetwork: what is lost without it, what it can do alone, how much of it is needed."""

from subnet.validation._plan import AblationCost, ablation_cost
from subnet.validation._subjects import Subject
from subnet.validation._sweep import Sweep, sweep
from subnet.validation.ablation import ablate
from subnet.validation.result import Ablation
from subnet.validation.stability import Stability, measure_stability

__all__ = [
    "Ablation",
    "AblationCost",
    "Stability",
    "Subject",
    "Sweep",
    "ablate",
    "ablation_cost",
    "measure_stability",
    "sweep",
]
