r"""LiPO-lambda: logistic loss on every pair of a ranking, weighted by what a swap would cost.

Source: Liu et al. 2024, arXiv:2402.01878, the lambda-loss. Departures from it: the scores are those
of the data, where the paper's lie between 0 and 1 (mean win rates by a reward model); bring others
there with ``score_scale``.
Use it when: completions have scores, and the top of the ranking matters most.
Not when: scores are large numbers, since 2 is raised to their power: set ``score_scale``.

.. math::
    \ell = -\sum_{s_i > s_j} \Delta_{ij} \log \sigma\bigl(\beta (\rho_i - \rho_j)\bigr),
    \quad \Delta_{ij} = \bigl|2^{s_i} - 2^{s_j}\bigr| \,
        \Bigl|\frac{1}{\log(1 + \tau_i)} - \frac{1}{\log(1 + \tau_j)}\Bigr|,
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

The place of a completion among those of its prompt by the policy's reward is tau, 1 for the
largest; the weights carry no gradient. For K = 2 they depend on the scores only, and this is
``dpo`` times a constant of the pair. The default of beta is that of ``dpo``; the paper's could not
be checked.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("lipo", family="ranked", aliases=["lipo_lambda"])
def lipo_loss(
    ranked_logps: Tensor,
    ref_ranked_logps: Tensor,
    ranked_scores: Tensor,
    *,
    beta: float = 0.1,
    score_scale: float = 1.0,
) -> LossOutput:
    """Return the LiPO-lambda loss of each ranking, unreduced: a sum over its pairs.

    Args:
        ranked_logps: Policy log-probs of the completions, best first; (B, K), nats.
        ref_ranked_logps: Reference counterpart of ``ranked_logps``; (B, K), nats.
        ranked_scores: Their scores; (B, K). The gain of a completion is 2 to the power of its score
            times ``score_scale``: in float32, a product of 128 is too large.
        beta: Reward per nat of log-ratio; greater than 0.
        score_scale: What the scores are multiplied by; greater than 0.

    Returns:
        Losses (B,) and detached rewards (beta times log-ratio) (B, K).

    Raises:
        ValueError: If ``beta`` or ``score_scale`` is not greater than 0.
    """
    check_positive(beta=beta, score_scale=score_scale)
    rewards = beta * (ranked_logps - ref_ranked_logps)
    gains = torch.exp2(score_scale * ranked_scores.to(rewards.dtype))
    weights = _differences(gains).clamp(min=0) * _differences(_inverse_discounts(rewards)).abs()
    losses = -(weights * logsigmoid(_differences(rewards))).sum((1, 2))
    return LossOutput(losses, rewards=rewards.detach())


def _inverse_discounts(rewards: Tensor) -> Tensor:
    """Return 1 / log(1 + place) of each reward among those of its row; (B, K)."""
    # The place in a sorted row, of equal rewards by column: argsort of argsort.
    order = rewards.detach().argsort(dim=1, descending=True, stable=True)
    places = order.argsort(dim=1) + 1
    return 1 / torch.log1p(places.to(rewards.dtype))


def _differences(values: Tensor) -> Tensor:
    """Return value i minus value j at [b, i, j]; (B, K, K)."""
    return values[:, :, None] - values[:, None, :]
