"""The load-balancing loss of mixture-of-experts models, from the router logits of a forward pass.

The formula is that of the model's own class (Fedus et al. 2021, arXiv:2101.03961, Eqs. 4-6, in
transformers): experts times the sum, over experts, of the share of tokens an expert gets times the
mean probability its router gives it. It is a statistic of the tokens that are computed: padding
does not count, and a token of a shared prefix counts once, however many completions
continue it.
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefopt.engine.guard import undisturbed
from prefopt.engine.layout import Layout
from prefopt.engine.probe import causal_lm_of

logger = logging.getLogger("prefopt")

# Names under which configurations say how many experts a layer has.
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class LoadBalancingLoss:
    """The load-balancing loss of one model.

    Attributes:
        weight: Its coefficient beside the preference loss; greater than 0.
        formula: The function of the model's module that computes it.
        experts: How many experts a router chooses among.
        chosen: How many of them each token gets.
    """

    weight: float
    formula: Callable[..., Tensor]
    experts: int
    chosen: int

    @classmethod
    def of(cls, model: Any, weight: float | None = None) -> "LoadBalancingLoss | None":
        """Return the load-balancing loss of a model, probed to equal what the model computes.

        Without a weight, that of the model's configuration is taken. None where nothing is to be
        added.

        Raises:
            ValueError: If a weight is given that is negative, or for a model without such a loss.
        """
        if weight is not None and weight < 0:
            raise ValueError(f"router_aux_loss_coef must not be negative, got {weight}")
        inner = causal_lm_of(model)
        config = inner.config.get_text_config()
        problem = "it is not a mixture of experts that returns its router logits"
        if hasattr(config, "output_router_logits"):
            own = getattr(config, "router_aux_loss_coef", None)
            found = cls._unprobed(inner, config, float((own or 0.0) if weight is None else weight))
            if found.weight == 0:
                return None
            if found._probe(inner):
                return found
            problem = "its class computes the loss in a way that prefopt does not support"
        if weight:
            raise ValueError(
                f"router_aux_loss_coef={weight}, but {type(inner).__name__} cannot have a "
                f"load-balancing loss: {problem}; leave it out"
            )
        if hasattr(config, "output_router_logits"):
            logger.warning(
                "prefopt: %s gets no load-balancing loss: %s", type(inner).__name__, problem
            )
        return None

    @classmethod
    def _unprobed(cls, model: Any, config: Any, weight: float) -> "LoadBalancingLoss":
        counts = [count for name in EXPERT_COUNTS if (count := getattr(config, name, None))]
        formula = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
        chosen = getattr(config, "num_experts_per_tok", None)
        return cls(weight, formula or _unknown, counts[0] if counts else 0, chosen or 0)

    @torch.no_grad()
    def _probe(self, model: Any) -> bool:
        """Whether the model itself returns the same for two rows of a few tokens."""
        tokens = torch.arange(12, device=model.device).reshape(2, 6)
        tokens = tokens % int(model.config.get_text_config().vocab_size)
        mask = (torch.arange(6, device=model.device) < 4).expand(2, 6)
        inputs = {"input_ids": tokens, "attention_mask": mask.long(), "use_cache": False}
        try:
            with undisturbed(model):
                own = model(**inputs, output_router_logits=True).aux_loss
                output = model.base_model(**inputs, output_router_logits=True)
            ours = self(output.router_logits, mask)
            return bool(torch.isclose(ours.float(), own.float(), rtol=1e-3))
        except (AttributeError, TypeError, NotImplementedError, IndexError, RuntimeError):
            return False

    def __call__(self, router_logits: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
        """Return the loss without its weight, scalar; ``chosen`` where experts are chosen evenly.

        Router logits are (R * T, experts) for each layer that has them; the mask of tokens is (R,
        T).
        """
        mask = None if mask is None else mask.long()
        return self.formula(router_logits, self.experts, self.chosen, mask)


def _unknown(*args: Any) -> Tensor:
    raise NotImplementedError("the module of the model has no load_balancing_loss_func")


def routed_tokens(batch: Layout) -> Tensor:
    """Return how many tokens of a laid-out batch are routed; scalar."""
    if batch.attention_mask is not None:
        return batch.attention_mask.sum()
    return batch.input_ids.new_tensor(batch.input_ids.numel())
