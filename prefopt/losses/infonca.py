r"""InfoNCA: cross-entropy between scores and rewards of K completions; DPO for explicit rewards.

Source: Chen et al. 2024, arXiv:2402.05369, InfoNCA for reward datasets. Departures from it: none.
Use it when: completions have scores whose differences mean something.
Not when: good completions must not become less likely: see ``nca_ranked``.
Differs from: none: ``dpo-rw`` of EXO's authors is this loss. On pairs it is ``dpo``, as InfoNCA of
the authors' code.

.. math::
    \ell = -\sum_{i=1}^{K} q_i \log p_i,
    \quad p = \mathrm{softmax}(\beta \rho),
    \quad q = \mathrm{softmax}(s / \alpha),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

As alpha falls to 0 the best completion is all that counts, and for K = 2 this becomes ``dpo``. The
authors' configuration has beta 0.01; their ``temperature_alpha`` is alpha, 0.001 in their trainer
and 0.0001 in the configuration, both nearly that limit.
"""

from torch import Tensor

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("infonca", family="ranked", published={"beta": (0.01, 0.01)})
def infonca_loss(
    ranked_logps: Tensor,
    ref_ranked_logps: Tensor,
    ranked_scores: Tensor,
    *,
    beta: float = 0.01,
    alpha: float = 0.001,
) -> LossOutput:
    """Return the cross-entropy of each set of completions, unreduced.

    Args:
        ranked_logps: Policy log-probs of the completions; (B, K), nats. Their order is immaterial.
        ref_ranked_logps: Reference counterpart of ``ranked_logps``; (B, K), nats.
        ranked_scores: Their scores, the rewards of the paper; (B, K).
        beta: Reward per nat of log-ratio; greater than 0.
        alpha: Temperature of the scores; greater than 0.

    Returns:
        Losses (B,) and detached rewards (beta times log-ratio) (B, K).

    Raises:
        ValueError: If ``beta`` or ``alpha`` is not greater than 0.
    """
    check_positive(beta=beta, alpha=alpha)
    rewards = beta * (ranked_logps - ref_ranked_logps)
    target = (ranked_scores.to(rewards.dtype) / alpha).softmax(1)
    return LossOutput(-(target * rewards.log_softmax(1)).sum(1), rewards=rewards.detach())
