"""Which texts a model may compute together: those whose log-probs do not depend on each other.

Some models compute a text differently beside others. Rotary embeddings of the types ``dynamic`` and
``longrope`` take their frequencies from the longest text of a forward pass; 8-bit layers on a GPU
compute those columns exactly in which any token of the batch is an outlier; layers that quantise
their inputs turn a difference in the last bit into one of a step; experts with a capacity drop
tokens when others came first. Policy and reference see a text in different company, and so do
evaluations with other batch sizes: such a model computes each text by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from prefopt.engine.guard import is_8bit
from prefopt.engine.quantised import rounds_inputs

# Rotary embeddings whose frequencies do not depend on the texts.
_FIXED_ROPE = {"default", "linear", "yarn", "llama3", "proportional", "mrope", "none"}


@dataclass(frozen=True)
class Company:
    """Which texts may be computed in one forward pass.

    Attributes:
        beyond: With what a text of more than ``window`` tokens may be computed: ``"any"`` other,
            ``"equal"``: others of its length, or ``"none"``.
        window: Tokens up to which all texts may be computed together.
        reason: Why, for people.
    """

    beyond: Literal["any", "equal", "none"] = "any"
    window: int = 0
    reason: str = ""

    def may_separate(self, longest: int | None) -> bool:
        """Whether texts of up to ``longest`` tokens, None for any, may have to be kept apart."""
        return self.beyond != "any" and (longest is None or longest > self.window)

    def groups(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return which texts, by number, go together, from their lengths in tokens."""
        groups: dict[Any, list[int]] = {}
        for number, length in enumerate(lengths):
            groups.setdefault(self._key(number, length), []).append(number)
        return list(groups.values())

    def _key(self, number: int, length: int) -> Any:
        if self.beyond == "any" or length <= self.window:
            return None
        return length if self.beyond == "equal" else (number, length)

    def __str__(self) -> str:
        if self.beyond == "any":
            return "all texts together"
        which = f"texts of more than {self.window} tokens" if self.window else "texts"
        return f"{which} each by itself, since {self.reason}"


ANY = Company()


def known_company(model: Any) -> Company:
    """Return what is known of a transformers model by its parts, without a forward pass."""
    eights = [module for module in model.modules() if is_8bit(module)]
    if model.device.type == "cuda" and any(module.state.threshold for module in eights):
        return Company("none", 0, "its 8-bit layers treat the outliers of a whole batch alike")
    if any(rounds_inputs(module, model.device.type) for module in model.modules()):
        # A number between two steps falls to either side by what its batch does to the last bit.
        return Company("none", 0, "its quantised layers round what they are given too")
    config = model.config.get_text_config()
    types = sorted(rope_types(config) - _FIXED_ROPE)
    if not types:
        return ANY
    reason = f"its positions ({types[0]}) change with the longest text of a batch"
    return Company("equal", original_window(config) or 0, reason)


def rope_types(config: Any) -> set[str]:
    """Return the types of a configuration's rotary embeddings."""
    found = set()
    for field in ("rope_parameters", "rope_scaling"):
        value = getattr(config, field, None)
        by_layer = value.values() if isinstance(value, dict) else ()
        for part in (value, *by_layer):
            if isinstance(part, dict):
                found.add(str(part.get("rope_type") or part.get("type") or "default"))
    return found


def original_window(config: Any) -> int | None:
    """Return how many tokens a model was first made for; None if its configuration does not say."""
    windows = [getattr(config, "max_position_embeddings", None)]
    windows.append(getattr(config, "original_max_position_embeddings", None))
    rope = getattr(config, "rope_parameters", None)
    for part in (rope, *rope.values()) if isinstance(rope, dict) else ():
        if isinstance(part, dict):
            windows.append(part.get("original_max_position_embeddings"))
    return min((int(window) for window in windows if window), default=None)


def reset_positions(model: nn.Module) -> None:
    """Make dynamic rotary embeddings forget the longest text that they have seen."""
    for module in model.modules():
        if not hasattr(module, "original_max_seq_len"):
            continue
        named = dict(module._buffers) | vars(module)  # transformers 4 kept it as an attribute
        for name in [name for name in named if name.endswith("original_inv_freq")]:
            prefix = name.removesuffix("original_inv_freq")
            module._buffers[f"{prefix}inv_freq"] = named[name].clone()
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
