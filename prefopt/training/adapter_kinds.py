"""Kinds of adapters that are not trained, because what is saved of them would be another model.

All others of peft are trained, saved, loaded and merged exactly; the table of them is in
``docs/adapters.md``, and each of its lines is a test.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from prefopt.engine.guard import undisturbed
from prefopt.engine.partitioned import whole_where_used
from prefopt.engine.probe import probe_inputs, refuse_virtual_tokens
from prefopt.engine.quantised import inner_tensors
from prefopt.engine.wrapper import around_forward
from prefopt.reference.adapters import active_adapters, copy_without_adapters, is_sharded

# Starts of LoRA that peft takes out of the base model and, when it loads the adapter, cannot take
# out again as they were: by a random decomposition, or from data that are not saved.
_UNREPEATED = ("pissa_niter", "corda", "lora_ga", "loftq")

# Starts that are taken out of the base model, and again in the same way when they are loaded.
_REPEATED = ("pissa", "olora")

# Weights of each tensor that are compared to see whether it was changed.
_SAMPLE = 64


def check_kinds(model: Any) -> None:
    """Raise for an active adapter that cannot be trained, or not be saved or merged exactly.

    Args:
        model: A peft model.

    Raises:
        ValueError: Saying what to use instead.
    """
    for name in active_adapters(model):
        config = model.peft_config[name]
        refuse_virtual_tokens(config, name)
        problem = (
            _start(getattr(config, "init_lora_weights", None))
            or _own_training(model, config)
            or _unmerged(model)
            or _saved_in_part(config)
            or _shared_weights(model, config)
        )
        if problem is not None:
            raise ValueError(f"the adapter {name!r} ({type(config).__name__}) {problem}")


def _start(init: Any) -> str | None:
    if not isinstance(init, str) or not init.startswith(_UNREPEATED):
        return None
    return (
        f"starts by init_lora_weights={init!r}, which changes the base model in a way that peft "
        "does not repeat when it loads the adapter: that would be another model. Use 'pissa' or "
        "'olora', which it repeats exactly, or leave init_lora_weights out"
    )


def _own_training(model: Any, config: Any) -> str | None:
    """Return what an adapter would need in training that prefopt does not do."""
    if hasattr(type(model.base_model), "update_and_allocate"):
        return (
            "shares out its ranks anew after each step, and prefopt does not ask it to "
            "(update_and_allocate): use LoRA with a rank_pattern"
        )
    if getattr(config, "arrow_config", None):
        return "mixes adapters that are saved elsewhere (arrow_config): train each by itself"
    own = [name for name in ("kasa_config", "monteclora_config") if getattr(config, name, None)]
    if own:
        return f"adds a penalty of its own to the loss ({own[0]}), which prefopt does not: use LoRA"
    causal_lm = model.get_base_model()
    with undisturbed(model), whole_where_used(model):
        found = around_forward(model, causal_lm, probe_inputs(causal_lm))
    if found is not None and abs(found.penalty) > 1e-6:
        return "adds a penalty of its own to the model's loss, which prefopt does not: use LoRA"
    return None


def _unmerged(model: Any) -> str | None:
    if hasattr(model.base_model, "merge_and_unload"):
        return None
    return "cannot be merged into the base model: use LoRA"


def _saved_in_part(config: Any) -> str | None:
    if not getattr(config, "save_only_topk_weights", False):
        return None
    return (
        "is saved in part (save_only_topk_weights=True), so that no checkpoint can be trained "
        "further: leave that out"
    )


# Weights in several places ------------------------------------------------------------------------


def _shared_weights(model: Any, config: Any) -> str | None:
    """Return what is wrong where an adapter acts on a weight that is used in another place too.

    Merging writes its change into the weight, and so into the other place.
    """
    if getattr(config, "layer_replication", None):
        return (
            "is on layers that share their weights (layer_replication): merged into them it would "
            "change each of them by the adapters of all. Save a base model in which the layers are "
            "copies, and train an adapter on that"
        )
    for adapted, other in _in_two_places(model):
        return (
            f"is on {adapted}, whose weights are those of {other} too (tie_word_embeddings): "
            "merged into them it would change both. Leave it out of target_modules; "
            "modules_to_save trains a copy of it instead"
        )
    return None


def _in_two_places(model: Any) -> Iterator[tuple[str, str]]:
    """Yield layers with an adapter, each with another module that uses its weight without it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        if not owner.endswith(".original_module"):  # of which a copy is trained
            places.setdefault(id(parameter), []).append(owner)
    for owners in places.values():
        for owner in owners if len(owners) > 1 else ():
            layer = modules[owner.removesuffix(".base_layer")]
            others = [other for other in owners if other != owner]
            if owner.endswith(".base_layer") and not hasattr(layer, "trainable_tokens_delta"):
                yield _short(owner), _short(others[0])


def _short(name: str) -> str:
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")


# The base model -----------------------------------------------------------------------------------


def weight_samples(model: Any) -> dict[str, Tensor]:
    """Return some numbers of each weight of a model, or of the base of one with an adapter.

    Of a model whose weights are not all in this process, none.
    """
    if is_sharded(model):
        return {}
    bare = copy_without_adapters(model) if hasattr(model, "peft_config") else model
    return {
        f"{name}.{part}".removesuffix("."): tensor.flatten()[
            :: max(1, tensor.numel() // _SAMPLE)
        ].clone()
        for name, parameter in bare.named_parameters(remove_duplicate=False)
        for part, tensor in (inner_tensors(parameter.detach()) or {"": parameter.detach()}).items()
        if isinstance(tensor, Tensor)
    }


def changes_base(model: Any) -> bool:
    """Whether the adapter of a peft model took its start out of the base, which is now another."""
    configs = model.peft_config.values()
    return any(getattr(config, "init_lora_weights", None) in _REPEATED for config in configs)


def check_base_unchanged(model: Any, before: Mapping[str, Tensor]) -> None:
    """Raise where putting an adapter on a model changed it otherwise than loading it would.

    Args:
        model: The model with its new adapter.
        before: ``weight_samples`` of it without.

    Raises:
        ValueError: Naming the first weight.
    """
    config = model.peft_config[active_adapters(model)[0]]
    if getattr(config, "init_lora_weights", None) in _REPEATED:
        return
    after = weight_samples(model)
    changed = [name for name in before if not _same(before[name], after.get(name))]
    if changed:
        check_kinds(model)  # which may know more
        raise ValueError(
            f"{type(config).__name__} changes {len(changed)} weights of the base model, the first "
            f"is {changed[0]}; that they are changed in the same way when the adapter is loaded is "
            "not known of this kind: use LoRA"
        )


def _same(before: Tensor, after: Tensor | None) -> bool:
    """Whether two samples have the same bits: packed 4-bit weights are no numbers, some NaN."""
    if after is None or (before.dtype, before.shape) != (after.dtype, after.shape):
        return False
    return torch.equal(before.view(torch.uint8), after.view(torch.uint8))
