"""Names of the base under whatever is wrapped around it: PEFT adapters, `torch.compile`."""

from __future__ import annotations

from typing import Any

from torch import nn


def base_model(model: nn.Module) -> nn.Module:
    """The transformers model inside the wrappers; its adapted layers stay adapted."""
    compiled = getattr(model, "_orig_mod", None)
    if isinstance(compiled, nn.Module):
        return base_model(compiled)
    unwrap = getattr(model, "get_base_model", None)
    return base_model(unwrap()) if callable(unwrap) else model


def base_layer(module: nn.Module) -> nn.Module:
    """The layer that an adapter is wrapped around; the layer itself where there is none."""
    inner = getattr(module, "base_layer", None)
    return base_layer(inner) if isinstance(inner, nn.Module) else module


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Module name as in the base to the module that runs, adapter included.

    What stands inside an adapter's wrapper (`lora_A`, the wrapped layer) is no module of the base.
    """
    found: dict[str, nn.Module] = {}
    inside: list[str] = []
    for name, module in base_model(model).named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if base_layer(module) is not module:
            inside.append(f"{name}.")
        found[name] = module
    return found


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameter name as in the base's `state_dict` to the parameter that is in use.

    Factors of adapters are left out. Of a module that PEFT trains whole (`modules_to_save`) it is
    the trained copy that is in use. Tied weights appear under each of their names.
    """
    found: dict[str, nn.Parameter] = {}
    for name, module in base_modules(model).items():
        layer = base_layer(module)
        for leaf, parameter in layer.named_parameters(recurse=False):
            plain = _without_copies(f"{name}.{leaf}" if name else leaf)
            if plain is not None:
                found[plain] = parameter
    for name, module in base_modules(model).items():
        copies = getattr(module, "modules_to_save", None)
        if not isinstance(copies, nn.ModuleDict):
            continue
        wrapper: Any = module
        for adapter in wrapper.active_adapters:
            if adapter in copies:
                for leaf, parameter in copies[adapter].named_parameters():
                    found[f"{name}.{leaf}"] = parameter
    return found


def _without_copies(name: str) -> str | None:
    if ".modules_to_save." in f".{name}":
        return None
    return name.replace(".original_module.", ".")
