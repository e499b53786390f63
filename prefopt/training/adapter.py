"""The adapter of a policy: a new one, or one that transformers added, and what is trained."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prefopt.config import PreferenceConfig
from prefopt.reference.adapters import (
    active_adapters,
    adapter_containers,
    place_of_adapter,
    remove_adapters,
)
from prefopt.training.adapter_kinds import check_base_unchanged, check_kinds, weight_samples


def add_adapter(model: Any, peft_config: Any, args: PreferenceConfig) -> Any:
    """Return the model with an adapter around it if one is asked for.

    Raises:
        ImportError: If peft is not installed.
        TypeError: If ``peft_config`` is not a peft configuration.
        ValueError: If the model has an adapter already, or the new one changes the base model.
    """
    if peft_config is not None:
        try:
            import peft
        except ImportError:
            raise ImportError("peft_config needs peft: pip install 'prefopt[peft]'") from None
        if not isinstance(peft_config, peft.PeftConfig):
            raise TypeError(
                f"peft_config must be a peft.PeftConfig, got {type(peft_config).__name__}"
            )
        if getattr(model, "peft_config", None):
            raise ValueError(second_adapter("the model has"))
        options: Any = args.model_init_kwargs or {}
        before = weight_samples(model)
        model = peft.get_peft_model(model, peft_config, revision=options.get("revision"))
        check_base_unchanged(model, before)
    if is_peft(model):
        _name_base(model)
    if is_peft(model) and args.gradient_checkpointing:
        # Frozen embeddings would leave the checkpointed layers without any input that wants
        # gradients.
        model.enable_input_require_grads()
    return model


def _name_base(model: Any) -> None:
    """Let adapters name the folder of their base model so that it is found from elsewhere too."""
    for config in model.peft_config.values():
        name = config.base_model_name_or_path
        if name and Path(name).expanduser().is_dir():
            config.base_model_name_or_path = str(Path(name).expanduser().absolute())


def second_adapter(what_is: str) -> str:
    """Return what to say where an adapter is asked for beside one that is there."""
    return (
        f"{what_is} an adapter already and peft_config asks for another; leave peft_config out "
        "(--use_peft on the command line) to train the first further, or merge that into its base "
        "model (PeftModel.merge_and_unload()) and pass the result"
    )


def is_peft(model: Any) -> bool:
    """Whether a model is wrapped by peft."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


# Adapters that transformers added -----------------------------------------------------------------


def added_by_transformers(model: Any) -> list[str]:
    """Return the names of the adapters that a model has without peft's wrapper, if any.

    ``model.add_adapter`` and ``model.load_adapter`` make such, and ``from_pretrained`` of an
    adapter's folder.
    """
    is_bare = not hasattr(model, "get_base_model")
    return list(getattr(model, "peft_config", None) or {}) if is_bare else []


def as_peft_model(model: Any) -> Any:
    """Return peft's wrapper around a model with adapters that transformers added, changed in place.

    The parameters stay the same objects, so an optimiser that holds them goes on; which of them are
    trained, which adapters are active and how they are scaled stay too. A single adapter is called
    ``default`` from now on: under that name peft saves it in the folder itself, as transformers
    would. Several keep their names.

    Raises:
        ValueError: If peft cannot build these adapters anew.
    """
    names = added_by_transformers(model)
    called = {name: "default" if len(names) == 1 else name for name in names}
    try:
        return _rebuilt(model, called)
    except Exception as error:  # peft may raise anything for what it did not wrap itself
        raise ValueError(
            f"the adapters that transformers added to the model ({', '.join(names)}) cannot be "
            f"taken over ({type(error).__name__}: {error}); load the base model again, and add "
            "them with peft: peft.get_peft_model, or PeftModel.from_pretrained(..., "
            "is_trainable=True)"
        ) from error


def _rebuilt(model: Any, called: Mapping[str, str]) -> Any:
    """Return peft's wrapper around adapters built anew under other names, with the old weights."""
    configs, active = dict(model.peft_config), model.active_adapters()
    layers = dict(model.named_modules(remove_duplicate=False))
    is_off = any(getattr(layer, "disable_adapters", False) is True for layer in layers.values())
    weights, trained = _tensors(model), [p for p in model.parameters() if p.requires_grad]
    containers = adapter_containers(model)
    remove_adapters(model)
    wrapped = None
    for name, config in configs.items():
        wrapped = _with_fresh_adapter(model, wrapped, called[name], config)
    assert wrapped is not None  # there is at least one
    wrapped.base_model.set_adapter([called[name] for name in active])
    if is_off:
        wrapped.base_model.disable_adapter_layers()
    new = {_renamed(name, called, containers): tensor for name, tensor in weights.items()}
    if new.keys() != _tensors(model).keys():
        odd = min(new.keys() ^ _tensors(model).keys())
        raise ValueError(f"the weights are not those of peft.get_peft_model, the first is {odd}")
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, tensor in new.items():
        owner, _, leaf = name.rpartition(".")
        kind = "_parameters" if isinstance(tensor, nn.Parameter) else "_buffers"
        getattr(modules[owner], kind)[leaf] = tensor
    for name, layer in layers.items():
        if isinstance(scaling := getattr(layer, "scaling", None), dict):
            modules[name].scaling.update({called[key]: value for key, value in scaling.items()})
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    return wrapped.train(model.training)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, tied ones under each of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _with_fresh_adapter(model: Any, wrapped: Any, name: str, config: Any) -> Any:
    """Return a model with one more adapter, whose start does not change the base model's weights.

    Args:
        model: The model.
        wrapped: The same in peft's wrapper; None for the first adapter.
        name: Of the adapter.
        config: Of the adapter.
    """
    import peft

    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str):  # PiSSA and others take what they begin with from the base
        config.init_lora_weights = True
    try:
        with warnings.catch_warnings():
            # That the base model is called otherwise than where the adapter was saved.
            warnings.filterwarnings("ignore", "The PEFT config's `base_model_name_or_path`")
            if wrapped is None:
                return peft.get_peft_model(model, config, name)
            wrapped.add_adapter(name, config)
    finally:
        if isinstance(start, str):
            config.init_lora_weights = start
    return wrapped


def _renamed(name: str, called: Mapping[str, str], containers: set[str]) -> str:
    """Return the name of a weight when its adapter is called otherwise."""
    parts = name.split(".")
    place = place_of_adapter(parts, called, containers)
    if place is not None:
        parts[place] = called[parts[place]]
    return ".".join(parts)


# What is trained ----------------------------------------------------------------------------------


def check_trained(model: Any, optimizer: Any = None) -> None:
    """Raise where training would change nothing; warn where it would change less than it says.

    Args:
        model: The policy, with its adapter.
        optimizer: The optimiser that was given; None for one that will be made.

    Raises:
        ValueError: If no parameter is trained that counts, the optimiser holds none, or an adapter
            is of a kind that is not trained.
    """
    trained = _trained(model)
    if not trained:
        raise ValueError(f"nothing would be trained: {_why_nothing(model)}")
    if is_peft(model) and any(getattr(part, "merged_adapters", ()) for part in model.modules()):
        raise ValueError(
            "nothing would be trained: the adapter is merged into the base model; call "
            "model.unmerge_adapter() to train it, or model.merge_and_unload() to train the result"
        )
    if is_peft(model):
        check_kinds(model)
    if optimizer is None:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, parameter in trained.items() if id(parameter) not in held]
    made = "load the model first, then add its adapter, then make the optimiser"
    if len(missing) == len(trained):
        raise ValueError(
            f"the optimiser in `optimizers` holds none of the {len(trained)} parameters that are "
            f"trained, the first is {missing[0]}; {made}, or leave the optimiser out"
        )
    if missing:
        warnings.warn(
            f"the optimiser in `optimizers` lacks {len(missing)} of the {len(trained)} parameters "
            f"that require gradients, the first is {missing[0]}: they stay as they are",
            stacklevel=3,
        )


def _trained(model: Any) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, but for those of adapters that are not active."""
    idle = set(getattr(model, "peft_config", ())) - set(active_adapters(model))
    containers = adapter_containers(model) if idle else set()
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and place_of_adapter(name.split("."), idle, containers) is None
    }


def _why_nothing(model: Any) -> str:
    """Return why no parameter of a model is trained, and what to do."""
    names = ", ".join(active_adapters(model))
    if not is_peft(model):
        return (
            "all parameters of the model are frozen (requires_grad=False); call "
            "model.requires_grad_(True), or pass a peft_config for an adapter on the frozen model"
        )
    if any(parameter.requires_grad for parameter in model.parameters()):
        return (
            f"the adapter that is active ({names}) is frozen, and others that are not active "
            "require gradients; choose the one to train with model.set_adapter(name)"
        )
    return (
        f"the adapter {names} is frozen, as it is when loaded for inference; load it with "
        "PeftModel.from_pretrained(base, folder, is_trainable=True), or pass its folder as model"
    )


def rate_advice(model: Any, args: PreferenceConfig) -> str | None:
    """Return what to say of an adapter that is trained at the default rate of whole models.

    Args:
        model: What is trained.
        args: Those of the run.
    """
    default = PreferenceConfig.__dataclass_fields__["learning_rate"].default
    if not is_peft(model) or args.learning_rate != default:
        return None
    return (
        f"prefopt: learning_rate is {default:g}, the default, which suits the training of all "
        "weights; an adapter learns little at it: take about ten times as much or more (1e-5, up "
        "to 1e-4)"
    )
