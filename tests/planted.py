"""Directories in which it is known whether sharing goes with loss, made without this project.

Languages stand on a quarter circle. Each LoRA is a rotation of a common one by its place, so that
neighbours share most of their change; what training a language costs the others is a function of
that same distance (planted), or drawn without regard to it (null).
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

import checkpoint_makers as makers

LANGUAGES = ("de", "en", "ru", "uk", "ar", "fa", "hi", "th")


def write_arc(root: Path, *, planted: bool, seed: int = 0) -> Path:
    """Base, adapters and scores over a sequence of all languages."""
    generator = torch.Generator().manual_seed(seed)
    base = makers.bert()
    makers.save_base(base, root / "base")
    angles = [math.pi / 2 * place / (len(LANGUAGES) - 1) for place in range(len(LANGUAGES))]
    anchors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for place, language in enumerate(LANGUAGES):
        model = makers.lora(makers.bert(), seed=1000 + place)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if "lora_B" in name:
                    if name not in anchors:
                        first = torch.randn(parameter.shape, generator=generator)
                        second = torch.randn(parameter.shape, generator=generator)
                        anchors[name] = (first, second)
                    x, y = anchors[name]
                    parameter.copy_(
                        0.1 * (math.cos(angles[place]) * x + math.sin(angles[place]) * y)
                    )
                elif "lora_A" in name:
                    fixed = torch.Generator().manual_seed(len(name))
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(torch.randn(parameter.shape, generator=fixed) + 0.1 * noise)
        makers.save_adapter(model, root / "adapters" / language)

    order = [LANGUAGES[i] for i in torch.randperm(len(LANGUAGES), generator=generator)]
    place_of = {language: place for place, language in enumerate(LANGUAGES)}
    loss = dict.fromkeys(LANGUAGES, 3.0)  # no seed takes it below 0
    lines = ["stage,trained_language,language,metric,value"]
    lines += [f"0,,{language},loss,{loss[language]:.6f}" for language in LANGUAGES]
    for stage, trained in enumerate(order, start=1):
        for language in LANGUAGES:
            cosine = math.cos(angles[place_of[trained]] - angles[place_of[language]])
            cause = cosine if planted else torch.randn((), generator=generator).item()
            noise = 0.02 * torch.randn((), generator=generator).item()
            loss[language] += noise + (-0.3 if language == trained else 0.1 * cause)
            lines.append(f"{stage},{trained},{language},loss,{loss[language]:.6f}")
    (root / "scores.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root
