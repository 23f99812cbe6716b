"""Which parameters a language uses: packed masks, set algebra on them, their file format."""

from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.controls import random_like
from subnet.subnetwork.conversion import convert, write_masks
from subnet.subnetwork.directions import Directions, measure_directions
from subnet.subnetwork.extraction import extract, extract_halves
from subnet.subnetwork.foreign import FORMATS, read_masks, source_files
from subnet.subnetwork.formats import load_subnetwork, load_subnetworks
from subnet.subnetwork.gradient_masks import FactorMask, factor_masks, gradient_masks
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.random_masks import write_controls
from subnet.subnetwork.selection import Selection, top_k
from subnet.subnetwork.settings import (
    METHODS,
    AttributionSettings,
    DirectionSettings,
    FisherSettings,
    HeadPruningSettings,
    LapeSettings,
    MagnitudeSettings,
    RandomSettings,
    TaylorSettings,
    WandaSettings,
)
from subnet.subnetwork.unit_conversion import units_to_weights, weights_to_units
from subnet.subnetwork.units import selected_units, subnetwork_of_units, unit_parameters

__all__ = [
    "FORMATS",
    "METHODS",
    "AttributionSettings",
    "DirectionSettings",
    "Directions",
    "FactorMask",
    "FisherSettings",
    "HeadPruningSettings",
    "LapeSettings",
    "MagnitudeSettings",
    "RandomSettings",
    "Selection",
    "Subnetwork",
    "Subnetworks",
    "TaylorSettings",
    "WandaSettings",
    "convert",
    "extract",
    "extract_halves",
    "factor_masks",
    "gradient_masks",
    "load_subnetwork",
    "load_subnetworks",
    "measure_directions",
    "random_like",
    "read_masks",
    "selected_units",
    "source_files",
    "subnetwork_of_units",
    "top_k",
    "unit_parameters",
    "units_to_weights",
    "weights_to_units",
    "write_controls",
    "write_masks",
]
