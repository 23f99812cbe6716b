"""Surgery on a live model: loading, its heads and neurons, gates, weights, and what it loses."""

from subnet.model._finding import find_units
from subnet.model._names import base_layer, base_model, base_modules, base_parameters
from subnet.model.evaluation import (
    ExampleLosses,
    evaluate_languages,
    example_losses,
    find_task,
    logits_of,
    per_example_loss,
)
from subnet.model.gradients import gate_gradients
from subnet.model.hooks import Captured, capture, evaluation_mode, gate_heads, gate_neurons
from subnet.model.loading import load_model
from subnet.model.units import Attention, FeedForward, Projection, Units
from subnet.model.weights import covered_parameters, swap_parameters

__all__ = [
    "Attention",
    "Captured",
    "ExampleLosses",
    "FeedForward",
    "Projection",
    "Units",
    "base_layer",
    "base_model",
    "base_modules",
    "base_parameters",
    "capture",
    "covered_parameters",
    "evaluate_languages",
    "evaluation_mode",
    "example_losses",
    "find_task",
    "find_units",
    "gate_gradients",
    "gate_heads",
    "gate_neurons",
    "load_model",
    "logits_of",
    "per_example_loss",
    "swap_parameters",
]
