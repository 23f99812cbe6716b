"""Which parameters a language uses: packed masks, set algebra on them, their file format."""

from subnet.subnetwork.collection import Subnetworks
from subnet.subnetwork.controls import random_like
from subnet.subnetwork.conversion import convert, write_masks
from subnet.subnetwork.extraction import extract
from subnet.subnetwork.foreign import FORMATS, read_masks, source_files
from subnet.subnetwork.formats import load_subnetwork, load_subnetworks
from subnet.subnetwork.mask import Subnetwork
from subnet.subnetwork.selection import Selection, top_k
from subnet.subnetwork.settings import (
    METHODS,
    FisherSettings,
    MagnitudeSettings,
    TaylorSettings,
    WandaSettings,
)
from subnet.subnetwork.units import selected_units, subnetwork_of_units, unit_parameters

__all__ = [
    "FORMATS",
    "METHODS",
    "FisherSettings",
    "MagnitudeSettings",
    "Selection",
    "Subnetwork",
    "Subnetworks",
    "TaylorSettings",
    "WandaSettings",
    "convert",
    "extract",
    "load_subnetwork",
    "load_subnetworks",
    "random_like",
    "read_masks",
    "selected_units",
    "source_files",
    "subnetwork_of_units",
    "top_k",
    "unit_parameters",
    "write_masks",
]
