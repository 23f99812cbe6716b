"""What does attribution cost on a GPU, beside a training step, at the sizes that people use?

    python benchmarks/influence_gpu.py                    # the first CUDA device; a few minutes
    python benchmarks/influence_gpu.py --tiny             # any machine, seconds: does it run?
    python benchmarks/influence_gpu.py --models llama-1b --tokens 512 --batch 8

Two shapes with random weights, made of a configuration so that nothing is downloaded: XLM-R base
(a classifier) and a Llama of 1.2 billion parameters (a causal language model), in bfloat16, with a
LoRA of rank 8 on all linear layers of their blocks. Compared are one forward and backward pass over
all examples in batches, gradients of the LoRA accumulating as in a training step, and influence of
every training on every test example: `attribute` with scores of all pairs, and with means by
language only. The product of the two sets of gradients is included.

Seconds are the best of three runs after one that is not counted: of the device on a GPU, of the
processor without one. FLOPs are those of `torch.utils.flop_counter`. Memory is what PyTorch took on
the device beyond the model; without a GPU it is not measured. The error is the largest difference
from a loop of single backward passes of the same model over a few examples, relative to the largest
score: in bfloat16 a batch and a single example differ by rounding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

RANK = 8
#: Examples of each side that the loop goes over.
N_LOOP = 4


@dataclass(frozen=True)
class Case:
    """A model and its data.

    Attributes:
        model: In bfloat16 with a LoRA that alone takes gradients.
        train, test: Rows of `input_ids`, `labels` and `language`.
        batch: Examples per pass.
    """

    model: Any
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    batch: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


def xlmr(*, tiny: bool) -> Any:
    """XLM-R base with a classifier of 20 labels."""
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 250_002, "max_position_embeddings": 514}
    if tiny:
        sizes |= {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2,
                  "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip
    config = transformers.XLMRobertaConfig(**sizes, num_labels=20, type_vocab_size=1)
    return transformers.XLMRobertaForSequenceClassification(config)


def llama(*, tiny: bool) -> Any:
    """A Llama of 16 layers and width 2048, as Llama 3.2 1B is built."""
    import transformers

    sizes = {
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 4096,
    }  # fmt: skip
    if tiny:
        sizes |= {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64}
        sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, tie_word_embeddings=True, pad_token_id=0)
    )


#: Name to how it is made and which of its linear layers get a LoRA.
MODELS: dict[str, tuple[Callable[..., Any], str]] = {
    "xlm-r-base": (xlmr, r".*\.encoder\.layer\..*\.(query|key|value|dense)"),
    "llama-1b": (llama, r".*\.layers\..*_proj"),
}


def make(name: str, given: argparse.Namespace, device: torch.device) -> Case:
    """A model with a LoRA whose B is not 0, and examples of half to all of the tokens."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    build, pattern = MODELS[name]
    with torch.device(device):
        base = build(tiny=given.tiny).bfloat16()
    model: Any = get_peft_model(base, LoraConfig(r=RANK, target_modules=pattern)).to(device)
    for path, parameter in model.named_parameters():
        if "lora_B" in path:
            nn.init.normal_(parameter, std=0.02)
    model = model.bfloat16().eval()
    generator = np.random.default_rng(0)
    causal = name.startswith("llama")
    vocabulary = int(model.config.vocab_size)

    def rows(n: int) -> list[dict[str, Any]]:
        lengths = generator.integers(given.tokens // 2, given.tokens + 1, n)
        found = []
        for number, length in enumerate(lengths):
            ids = generator.integers(3, vocabulary, length).tolist()
            label = ids if causal else int(generator.integers(20))
            language = ("de", "fr", "sw", "ru")[number % 4]
            found.append({"input_ids": ids, "labels": label, "language": language})
        return found

    return Case(model, rows(given.train), rows(given.test), given.batch)


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])

    mask = torch.tensor([[int(i < len(row["input_ids"])) for i in range(width)] for row in rows])
    ids = padded("input_ids", 1)
    if isinstance(rows[0]["labels"], list):
        return {"input_ids": ids, "attention_mask": mask, "labels": padded("labels", -100)}
    labels = torch.tensor([row["labels"] for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what the model does not take."""
    return [{key: row[key] for key in ("input_ids", "labels")} for row in rows]


def training(case: Case) -> None:
    """A forward and a backward pass over all examples in batches."""
    from subnet.model import example_losses

    for rows in (case.train, case.test):
        for start in range(0, len(rows), case.batch):
            batch = collate(plain(rows[start : start + case.batch]))
            batch = {key: value.to(case.device) for key, value in batch.items()}
            example_losses(case.model, batch).sum().backward()
    case.model.zero_grad(set_to_none=True)


def influence(case: Case, *, few: bool = False, **options: Any) -> np.ndarray:
    """`attribute`."""
    from subnet.influence import attribute

    n = N_LOOP if few else None
    return attribute(
        case.model, case.train[:n], case.test[:n], collate_fn=collate, batch_size=case.batch,
        **options,
    ).scores  # fmt: skip


def loop(case: Case) -> np.ndarray:
    """Scores of a few examples by single backward passes."""
    from subnet.model import example_losses

    parameters = [p for p in case.model.parameters() if p.requires_grad]

    def side(rows: list[dict[str, Any]]) -> torch.Tensor:
        each = []
        for row in plain(rows[:N_LOOP]):
            batch = {key: value.to(case.device) for key, value in collate([row]).items()}
            loss = example_losses(case.model, batch).sum()
            found = torch.autograd.grad(loss, parameters)
            each.append(torch.cat([value.flatten().double() for value in found]))
        return torch.stack(each)

    return (side(case.test) @ side(case.train).T).cpu().numpy()


WAYS: dict[str, Callable[[Case], Any]] = {
    "training step: forward and backward": training,
    "attribute(method='tracin')": influence,
    "attribute(method='cosine')": lambda case: influence(case, method="cosine"),
    "attribute(level='language')": lambda case: influence(case, level="language"),
    "attribute(level='language', method='cosine')": lambda case: influence(
        case, level="language", method="cosine"
    ),
}


def timed(work: Callable[[Case], Any], case: Case) -> float:
    """Seconds of the device, or of the processor where there is no other."""
    if case.device.type != "cuda":
        start = time.process_time()
        work(case)
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work(case)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(work: Callable[[Case], Any], case: Case) -> float:
    """Bytes beyond what was there before; NaN without a GPU."""
    if case.device.type != "cuda":
        work(case)
        return float("nan")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work(case)
    return float(torch.cuda.max_memory_allocated() - before)


def flops(work: Callable[[Case], Any], case: Case) -> float:
    """Counted operations."""
    with FlopCounterMode(display=False) as counter:
        work(case)
    return float(counter.get_total_flops())


def report(name: str, case: Case) -> None:
    """Print a table."""
    n_weights = sum(p.numel() for p in case.model.parameters())
    n_lora = sum(p.numel() for p in case.model.parameters() if p.requires_grad)
    print(f"\n{name}: {n_weights:,} weights, of which {n_lora:,} are the LoRA's")
    print("| way | seconds | × training | FLOPs × training | memory |")
    print("|---|---:|---:|---:|---:|")
    step: tuple[float, float] | None = None
    for way, work in WAYS.items():
        memory = peak(work, case)  # the first run, which is not timed
        seconds = min(timed(work, case) for _ in range(3))
        counted = flops(work, case)
        step = step or (seconds, counted)
        shown = "–" if np.isnan(memory) else f"{memory / 2**20:,.0f} MiB"
        print(
            f"| {way} | {seconds:.3f} | {seconds / step[0]:.2f} | {counted / step[1]:.3f} | "
            f"{shown} |",
            flush=True,
        )
    truth = loop(case)
    error = abs(influence(case, few=True) - truth).max() / abs(truth).max()
    print(f"Error of {N_LOOP} × {N_LOOP} scores against a loop: {error:.0e}")


def main() -> None:
    """Measure every model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--train", type=int, default=256)
    parser.add_argument("--test", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--tiny", action="store_true", help="small models and few examples")
    given = parser.parse_args()
    if given.tiny:
        given.train, given.test, given.tokens, given.batch = 16, 8, 16, 4
        given.device = given.device if torch.cuda.is_available() else "cpu"
    elif given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny runs anywhere, --device cpu takes hours")
    device = torch.device(given.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__}, {where}, bfloat16, LoRA of rank {RANK}")
    print(f"{given.train} training and {given.test} test examples of {given.tokens // 2} to "
          f"{given.tokens} tokens, batches of {given.batch}")  # fmt: skip
    for name in given.models:
        report(name, make(name, given, device))
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
