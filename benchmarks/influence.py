"""What does attribution cost, beside a training step and beside other libraries?

    pip install "subnet-toolkit[bench]"
    python benchmarks/influence.py            # widths 96 and 256; minutes
    python benchmarks/influence.py --quick    # seconds, small sizes

Influence of every training on every test example at one checkpoint, of a BERT-shaped classifier
with random weights on padded sequences of different lengths: of the factors of a LoRA on all dense
layers, and of all linear layers without one. Every way has a process of its own, so that its peak
memory is its own, and is held against a loop of single backward passes in float64. A rival that is
not installed or refuses to run is listed with its error.

Seconds are of one processor core, the better of two runs. FLOPs are those that
`torch.utils.flop_counter` counts, over all examples, the final product included; the measure of
both is one batched forward and backward pass over the same examples.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

BYTES_OF_RSS = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Sizes:
    """What is attributed."""

    width: int
    lora: bool
    train: int = 128
    test: int = 16
    tokens: int = 32
    layers: int = 4
    rank: int = 8
    batch: int = 32


@dataclass(frozen=True)
class Result:
    """What one way took; `error` says why there is nothing."""

    seconds: float = float("nan")
    flops: float = float("nan")
    memory: float = float("nan")
    scores: Any = None
    error: str = ""


class Classifier(nn.Module):
    """A BERT whose inputs are tensors and whose output is one, as other libraries want it."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        import transformers
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=300, hidden_size=sizes.width, num_hidden_layers=sizes.layers,
            num_attention_heads=4, intermediate_size=4 * sizes.width, num_labels=5,
            max_position_embeddings=sizes.tokens, attn_implementation="eager",
            initializer_range=sizes.width**-0.5, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        model: Any = transformers.BertForSequenceClassification(config)
        if sizes.lora:
            pattern = r".*\.encoder\.layer\..*\.(query|key|value|dense)"
            model = get_peft_model(model, LoraConfig(r=sizes.rank, target_modules=pattern))
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(parameter, std=0.1)
        self.model = model
        chosen = [
            f"{name}.weight"
            for name, module in self.named_modules()
            if isinstance(module, nn.Linear) and (".lora_" in name) == sizes.lora
        ]
        for name in chosen:
            # Without biases: captum differentiates by all parameters of a layer.
            self.get_submodule(name.removesuffix(".weight")).bias = None
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen)
        self.chosen = chosen
        self.eval()

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[n, t] and [n, t] to logits [n, c]."""
        # As it is added to the attention: what makes it of [n, t] cannot be vmapped.
        dtype = next(self.parameters()).dtype
        added = (1 - mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
        added = added.expand(-1, -1, ids.shape[1], -1)
        return self.model(input_ids=ids, attention_mask=added).logits


@dataclass(frozen=True)
class Case:
    """The model and its data."""

    sizes: Sizes
    model: Classifier
    train: TensorDataset
    test: TensorDataset

    def loader(self, data: TensorDataset) -> DataLoader[Any]:
        """Batches in order."""
        return DataLoader(data, self.sizes.batch)


def make(sizes: Sizes) -> Case:
    """Random sequences of a quarter to all of the tokens, with random labels."""
    generator = torch.Generator().manual_seed(0)

    def rows(n: int) -> TensorDataset:
        lengths = torch.randint(sizes.tokens // 4, sizes.tokens + 1, (n,), generator=generator)
        mask = (torch.arange(sizes.tokens) < lengths[:, None]).long()
        ids = torch.randint(1, 300, (n, sizes.tokens), generator=generator) * mask
        return TensorDataset(ids, mask, torch.randint(5, (n,), generator=generator))

    train, test = rows(sizes.train), rows(sizes.test)
    return Case(sizes, Classifier(sizes), train, test)


def loss_of(model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    """[n]."""
    ids, mask, labels = batch
    return F.cross_entropy(model(ids, mask), labels, reduction="none")


# --- the ways ------------------------------------------------------------------------------------


def training(case: Case) -> None:
    """One forward and backward pass over all examples, gradients by the chosen parameters."""
    for data in (case.train, case.test):
        for batch in case.loader(data):
            loss_of(case.model, batch).mean().backward()


def loop(case: Case) -> np.ndarray:
    """A backward pass per example."""
    parameters = [case.model.get_parameter(name) for name in case.model.chosen]

    def rows(data: TensorDataset) -> Tensor:
        each = []
        for batch in DataLoader(data, 1):
            found = torch.autograd.grad(loss_of(case.model, batch).sum(), parameters)
            each.append(torch.cat([value.flatten() for value in found]))
        return torch.stack(each)

    return (rows(case.test) @ rows(case.train).T).numpy()


def exact(case: Case) -> np.ndarray:
    """The same in float64: what the others are held against."""
    case.model.double()
    return loop(case)


def ours(case: Case, **options: Any) -> np.ndarray:
    """`attribute`."""
    from subnet.influence import attribute

    return attribute(
        case.model, case.train, case.test, loss_fn=loss_of, batch_size=case.sizes.batch,
        modules=[name.removesuffix(".weight") for name in case.model.chosen], **options,
    ).scores  # fmt: skip


def ours_ekfac(case: Case) -> np.ndarray:
    """`attribute(method="ekfac")`, padding counted in the covariances as kronfluence does."""
    return ours(case, method="ekfac", tokens="all")


def _captum(case: Case, kind: Any, *, sample_wise: bool) -> np.ndarray:
    modules = [name.removesuffix(".weight") for name in case.model.chosen]
    tracin = kind(
        case.model, case.train, ["now"], lambda *_: 1.0,
        layers=modules, batch_size=case.sizes.batch,
        loss_fn=nn.CrossEntropyLoss(reduction="sum" if sample_wise else "none"),
        sample_wise_grads_per_batch=sample_wise,
    )  # fmt: skip
    return tracin.influence(case.loader(case.test)).detach().numpy()


def captum_default(case: Case) -> np.ndarray:
    """TracInCP of captum as it comes."""
    from captum.influence import TracInCP

    return _captum(case, TracInCP, sample_wise=False)


def captum_sample_wise(case: Case) -> np.ndarray:
    """TracInCP of captum with sample_wise_grads_per_batch."""
    from captum.influence import TracInCP

    # It takes hooks on the inputs of layers, which have to require a gradient.
    embeddings = case.model.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, given, output: output.requires_grad_())  # noqa: ARG005
    return _captum(case, TracInCP, sample_wise=True)


def ours_tracin(case: Case) -> np.ndarray:
    """`subnet.TracIn`, captum's class with our engine."""
    from subnet.influence.tracin import TracIn

    return _captum(case, TracIn, sample_wise=False)


def kronfluence_identity(case: Case) -> np.ndarray:
    """Products of gradients by kronfluence: its strategy `identity`."""
    return _kronfluence(case, "identity")


def kronfluence_ekfac(case: Case) -> np.ndarray:
    """EK-FAC by kronfluence, on the true labels."""
    return _kronfluence(case, "ekfac")


def _kronfluence(case: Case, strategy: str) -> np.ndarray:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:  # noqa: ARG002
            return loss_of(model, batch).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return loss_of(model, batch).sum()

        def get_influence_tracked_modules(self) -> list[str]:
            return [name.removesuffix(".weight") for name in case.model.chosen]

    task = Classification()
    model = prepare_model(case.model, task)
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("bench", model, task, cpu=True, output_dir=folder, disable_tqdm=True)
        arguments = FactorArguments(strategy=strategy, use_empirical_fisher=True)
        analyzer.fit_all_factors(
            "f", case.train, per_device_batch_size=case.sizes.batch, factor_args=arguments
        )
        analyzer.compute_pairwise_scores(
            "s", "f", case.test, case.train, per_device_query_batch_size=case.sizes.batch,
            per_device_train_batch_size=case.sizes.batch,
            score_args=ScoreArguments(damping_factor=None),  # a tenth of the mean eigenvalue
        )  # fmt: skip
        return analyzer.load_pairwise_scores("s")["all_modules"].numpy()


def opacus(case: Case) -> np.ndarray:
    """Gradients of each example by opacus' GradSampleModule, then our product."""
    from opacus import GradSampleModule

    # It works in training mode alone; the model has no dropout.
    wrapped = GradSampleModule(
        case.model.train(), batch_first=True, loss_reduction="sum", strict=False
    )

    def rows(data: TensorDataset) -> Tensor:
        parts = []
        for batch in case.loader(data):
            wrapped.zero_grad()
            loss_of(wrapped, batch).sum().backward()
            parts.append(torch.cat([
                case.model.get_parameter(name).grad_sample.flatten(1) for name in case.model.chosen
            ], dim=1))  # fmt: skip
        return torch.cat(parts)

    return (rows(case.test) @ rows(case.train).T).detach().numpy()


def trak(case: Case) -> np.ndarray:
    """Gradients of each example by TRAK's gradient computer, then our product."""
    from trak.gradient_computers import FunctionalGradientComputer
    from trak.modelout_functions import AbstractModelOutput

    class Loss(AbstractModelOutput):
        def __init__(self) -> None:
            """Nothing to keep."""

        @staticmethod
        def get_output(
            model: nn.Module, weights: Any, buffers: Any, ids: Tensor, mask: Tensor, label: Tensor
        ) -> Tensor:
            call = torch.func.functional_call(model, (weights, buffers), (ids[None], mask[None]))
            return F.cross_entropy(call, label[None])

        def get_out_to_loss_grad(self, *_: Any) -> Tensor:
            raise NotImplementedError

    size = sum(case.model.get_parameter(name).numel() for name in case.model.chosen)
    computer = FunctionalGradientComputer(
        case.model, Loss(), size, torch.float32, torch.device("cpu"), grad_wrt=case.model.chosen
    )
    # It differentiates by all weights it is given: those that are chosen are enough.
    computer.func_weights = {n: case.model.get_parameter(n) for n in case.model.chosen}
    computer.func_buffers |= {
        n: p for n, p in case.model.named_parameters() if n not in computer.func_weights
    }

    def rows(data: TensorDataset) -> Tensor:
        parts = []
        for batch in case.loader(data):
            found = computer.compute_per_sample_grad(batch)
            parts.append(
                torch.cat([found[n].flatten(1) for n in case.model.chosen], dim=1).detach()
            )
        return torch.cat(parts)

    return (rows(case.test) @ rows(case.train).T).numpy()


def dattri(case: Case) -> np.ndarray:
    """TracInAttributor of dattri without its projection."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    def loss(weights: Any, data: Any) -> Tensor:
        ids, mask, label = data
        output = torch.func.functional_call(case.model, weights, (ids[None], mask[None]))
        return F.cross_entropy(output, label[None])

    task = AttributionTask(loss, case.model, case.model.state_dict())
    attributor = TracInAttributor(
        task, weight_list=torch.ones(1), normalized_grad=False, layer_name=case.model.chosen
    )
    attributor.projector_kwargs = None
    with torch.no_grad():
        found = attributor.attribute(case.loader(case.train), case.loader(case.test))
    return found.T.detach().numpy()


#: Label to what it runs and the package it needs.
WAYS: dict[str, tuple[Callable[[Case], Any], str]] = {
    "training: forward and backward, batched": (training, "torch"),
    "loop of single backward passes": (loop, "torch"),
    "attribute(method='tracin')": (ours, "subnet-toolkit"),
    "subnet.TracIn": (ours_tracin, "subnet-toolkit"),
    "captum TracInCP": (captum_default, "captum"),
    "captum TracInCP, sample-wise": (captum_sample_wise, "captum"),
    "kronfluence, identity": (kronfluence_identity, "kronfluence"),
    "opacus GradSampleModule": (opacus, "opacus"),
    "TRAK gradient computer": (trak, "traker"),
    "dattri TracInAttributor": (dattri, "dattri"),
    "attribute(method='ekfac')": (ours_ekfac, "subnet-toolkit"),
    "kronfluence, EK-FAC": (kronfluence_ekfac, "kronfluence"),
}
_EKFAC = ("attribute(method='ekfac')", "kronfluence, EK-FAC")


def measure(way: str, sizes: Sizes) -> Result:
    """Run a way twice in this process: once small, so that all is imported, and once counted."""
    work = exact if way == "exact" else WAYS[way][0]
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            work(make(replace(sizes, train=4, test=2, batch=2)))
            case = make(sizes)
            before = peak_memory()
            scores = work(case)
            memory = peak_memory() - before
            seconds = min(timed(work, make(sizes)) for _ in range(2))
            with FlopCounterMode(display=False) as counter:
                work(make(sizes))
        except Exception as error:  # noqa: BLE001 - a rival may fail in any way
            text = " ".join(str(error).split())
            return Result(error=f"{type(error).__name__}: {text}"[:160])
    return Result(seconds, counter.get_total_flops(), memory, scores)


def timed(work: Callable[[Case], Any], case: Case) -> float:
    """Processor seconds, which other processes on the machine hardly change."""
    start = time.process_time()
    work(case)
    return time.process_time() - start


def peak_memory() -> float:
    """Largest resident size of this process so far, in bytes."""
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * BYTES_OF_RSS


def alone(way: str, sizes: Sizes) -> Result:
    """Measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, way, sizes).result()


def report(sizes: Sizes) -> None:
    """Print a table, and after it why a rival is not in it."""
    truth = alone("exact", sizes).scores
    results = {way: alone(way, sizes) for way in WAYS}
    step = results["training: forward and backward, batched"]
    what = f"LoRA of rank {sizes.rank} on all dense layers" if sizes.lora else "all linear layers"
    print(f"\nWidth {sizes.width}, {what}")
    print("| way | seconds | × training | FLOPs × training | memory | error |")
    print("|---|---:|---:|---:|---:|---:|")
    refused = []
    for way, found in results.items():
        if found.error:
            refused.append(f"- {way}: {found.error}")
            continue
        error = ""
        if found.scores is not None:
            # Nobody's loop: kronfluence is held against ours, which tests hold against dense ones.
            other = truth
            if way in _EKFAC:
                other = results[_EKFAC[0]].scores if _EKFAC[0] in results else None
            if way != _EKFAC[0] and other is not None:
                error = f"{abs(found.scores - other).max() / abs(other).max():.0e}"
        print(
            f"| {way} | {found.seconds:.2f} | {found.seconds / step.seconds:.2f} | "
            f"{found.flops / step.flops:.2f} | {found.memory / 2**20:,.0f} MiB | {error or '–'} |",
            flush=True,
        )
    if refused:
        print("\nDid not run:\n")
        print("\n".join(refused), flush=True)


def main() -> None:
    """Measure every way on every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[96, 256])
    parser.add_argument("--quick", action="store_true", help="width 32, few examples")
    for name in ("train", "test", "tokens", "layers", "batch"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Sizes, name))
    parser.add_argument(
        "--without", nargs="+", default=[], help="leave out ways in whose name one of these stands"
    )
    given = parser.parse_args()
    for way in [way for way in WAYS if any(part in way for part in given.without)]:
        del WAYS[way]
    sizes = Sizes(0, True, given.train, given.test, given.tokens, given.layers, batch=given.batch)
    if given.quick:
        sizes = replace(sizes, train=32, test=4, tokens=16, batch=8)
    packages = sorted({package for _, package in WAYS.values()} - {"subnet-toolkit"})
    versions = []
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    load = f"; {os.getloadavg()[0]:.0f} processes at work" if hasattr(os, "getloadavg") else ""
    print(f"{', '.join(versions)}; 1 of {os.cpu_count()} cores{load}")
    print(f"{sizes.train} training and {sizes.test} test examples of up to {sizes.tokens} tokens, "
          f"{sizes.layers} layers, batches of {sizes.batch}")  # fmt: skip
    for width in [32] if given.quick else given.widths:
        for lora in (True, False):
            report(replace(sizes, width=width, lora=lora))


if __name__ == "__main__":
    main()
