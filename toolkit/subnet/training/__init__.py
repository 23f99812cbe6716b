"""Training what the analyses compare: sequences of languages, and the embedded demo.

`train` follows a configuration: languages one after another with parameters that they share, share
in part or do not share, every language tested after every stage. `run_demo` is the small experiment
behind `subnet demo`. Both write checkpoint directories of the documented form.
"""

from subnet.training._progress import Progress
from subnet.training.config import TrainingConfig, explain, read_config
from subnet.training.data import DemoData, Example, load_data
from subnet.training.demo import run_demo
from subnet.training.languages import DEFAULT_LANGUAGES, MASSIVE_LANGUAGES, resolve_languages
from subnet.training.recipe import Recipe
from subnet.training.run import Trained, find_cells, train
from subnet.training.settings import DemoSettings
from subnet.training.tokenizer import build_tokenizer

__all__ = [
    "DEFAULT_LANGUAGES",
    "MASSIVE_LANGUAGES",
    "DemoData",
    "DemoSettings",
    "Example",
    "Progress",
    "Recipe",
    "Trained",
    "TrainingConfig",
    "build_tokenizer",
    "explain",
    "find_cells",
    "load_data",
    "read_config",
    "resolve_languages",
    "run_demo",
    "train",
]
