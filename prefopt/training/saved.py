"""What was saved, and the lines of Python that load it: a whole model, or an adapter on its base.

``transformers`` alone loads an adapter too, but not every kind as it was trained (5.23 drops the
magnitudes of DoRA), and knows nothing of how its base model was loaded; the lines use peft.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoModelForImageTextToText

from prefopt.engine.quantised import is_quantised
from prefopt.reference.adapters import active_adapters, place_loaded_from
from prefopt.reference.fingerprint import as_json
from prefopt.training.adapter import is_peft

# Options of `from_pretrained` that are not repeated: secrets, where weights are put, and what is
# read from the model itself.
_NOT_REPEATED = ("token", "device_map", "max_memory", "dtype", "torch_dtype", "quantization_config")


@dataclass(frozen=True)
class LoadingCode:
    """Lines of Python that load a model that was saved.

    Attributes:
        imports: What they need.
        lines: They leave the model in a variable ``model``.
    """

    imports: tuple[str, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        """Return all lines, to be printed or executed."""
        return "\n".join((*self.imports, *self.lines))


def loading_code(model: Any, folder: str, options: Mapping[str, Any]) -> LoadingCode:
    """Return the code that loads what was trained, from where it was saved.

    Args:
        model: What was trained, with its adapter if it has one.
        folder: Where it was saved.
        options: Of ``from_pretrained``, with which it, or its base model, was loaded.
    """
    if is_peft(model):
        return _code_of_adapter(model, folder, options)
    auto = _auto_class(model)
    # What was saved has neither a revision nor another format.
    trust = {name: options[name] for name in ("trust_remote_code",) if options.get(name)}
    return LoadingCode(
        (f"from transformers import {auto}",), (f"model = {_call(auto, folder, trust)}",)
    )


def _code_of_adapter(model: Any, folder: str, options: Mapping[str, Any]) -> LoadingCode:
    base, config = model.get_base_model(), _active_config(model)
    auto, name = _auto_class(base), config.base_model_name_or_path
    attach = _attaching(active_adapters(model), folder)
    by_hand = getattr(base.config, "quantization_config", None) is None and any(
        is_quantised(weight) for weight in base.parameters()
    )
    if not name or by_hand:
        how = "loaded as it was then" if not by_hand else "quantised as it was then"
        given = f"base = ...  # the {type(base).__name__} that was given, {how}"
        return LoadingCode(("from peft import PeftModel",), (given, *attach))
    places = _repeated(options, place_loaded_from(model) is not None)
    if config.revision:
        places["revision"] = config.revision
    saved = _config_of(name, places)
    dtype = str(base.dtype).removeprefix("torch.")
    call, imports = _call(auto, name, places | {"dtype": dtype}), auto
    quantisation = _quantisation(base, saved)
    if quantisation is not None:
        kind = type(quantisation).__name__
        imports = f"{auto}, {kind}"
        call = f"{call[:-1]}, quantization_config={kind}.from_dict({_fields(quantisation)!r}))"
    lines = [f"base = {call}"]
    size = base.config.get_text_config().vocab_size
    if saved is not None and saved.get_text_config().vocab_size != size:
        lines.append(f"base.resize_token_embeddings({size})")
    return LoadingCode(
        (f"from transformers import {imports}", "from peft import PeftModel"), (*lines, *attach)
    )


def _config_of(name: str, places: Mapping[str, Any]) -> Any:
    """Return the configuration of a saved model; None where it is gone: training is over then."""
    try:
        return AutoConfig.from_pretrained(name, **places)
    except (OSError, ValueError):
        return None


def _auto_class(base: Any) -> str:
    """Return the name of the class of transformers that loads a model with all its parts."""
    whole = type(base).__name__.endswith("ForConditionalGeneration")
    reads_images = whole and type(base.config) in AutoModelForImageTextToText._model_mapping
    return "AutoModelForImageTextToText" if reads_images else "AutoModelForCausalLM"


def _repeated(options: Mapping[str, Any], of_adapter: bool) -> dict[str, Any]:
    """Return the options that say which model a base is; ``of_adapter``: it was named by one."""
    own = (*_NOT_REPEATED, "revision", "subfolder") if of_adapter else _NOT_REPEATED
    return {
        name: value
        for name, value in options.items()
        if isinstance(value, str | int | float) and value is not False and name not in own
    }


def _call(auto: str, name: str, options: Mapping[str, Any]) -> str:
    given = "".join(f", {option}={value!r}" for option, value in options.items())
    return f"{auto}.from_pretrained({name!r}{given})"


def _active_config(model: Any) -> Any:
    names = active_adapters(model)
    return model.peft_config[names[0]] if names else next(iter(model.peft_config.values()))


def _attaching(names: Sequence[str], folder: str) -> list[str]:
    """Return the lines that put saved adapters on a base; their names are those of subfolders."""
    places = [str(Path(folder, name)) if name != "default" else folder for name in names or [""]]
    if len(places) == 1:
        return [f"model = PeftModel.from_pretrained(base, {places[0]!r})"]
    first = f"model = PeftModel.from_pretrained(base, {places[0]!r}, {names[0]!r})"
    pairs = zip(places[1:], names[1:], strict=True)
    others = [f"model.load_adapter({place!r}, {name!r})" for place, name in pairs]
    return [first, *others, f"model.base_model.set_adapter({list(names)!r})"]


def _quantisation(base: Any, saved: Any) -> Any:
    """Return how a base model was quantised when it was loaded; None if it was saved like that."""
    config = getattr(base.config, "quantization_config", None)
    if config is None or getattr(saved, "quantization_config", None) is not None:
        return None
    return config if hasattr(transformers, type(config).__name__) else None


def _fields(quantisation: Any) -> Any:
    """Return the fields of a quantisation that make it again, as few as do, in plain values."""
    every = json.loads(as_json(quantisation.to_dict()))  # names of types and kinds as texts
    if not hasattr(quantisation, "to_diff_dict"):
        return every
    few = json.loads(as_json(quantisation.to_diff_dict()))
    try:
        again = type(quantisation).from_dict(few)
    except (KeyError, TypeError, ValueError):  # HQQ wants them all
        return every
    return few if again.to_dict() == quantisation.to_dict() else every
