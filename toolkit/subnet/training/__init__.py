"""Training what the analyses compare: the embedded demo experiment.

`run_demo` generates parallel multilingual data from CLDR, trains a small encoder, an adapter per
language and a sequence of languages, and writes a checkpoint directory of the documented form.
"""

from subnet.training._progress import Progress
from subnet.training.data import DemoData, Example, load_data
from subnet.training.demo import run_demo
from subnet.training.languages import DEFAULT_LANGUAGES, MASSIVE_LANGUAGES, resolve_languages
from subnet.training.settings import DemoSettings
from subnet.training.tokenizer import build_tokenizer

__all__ = [
    "DEFAULT_LANGUAGES",
    "MASSIVE_LANGUAGES",
    "DemoData",
    "DemoSettings",
    "Example",
    "Progress",
    "build_tokenizer",
    "load_data",
    "resolve_languages",
    "run_demo",
]
