r"""Plackett-Luce: listwise DPO, the likelihood of a whole ranking, chosen best first.

Source: Rafailov et al. 2023, arXiv:2305.18290, Appendix A.3 (Plackett-Luce). Departures from it:
none.
Use it when: you trust the whole order, and there are no scores.
Not when: you trust only the top: the order of the worst counts just as much.

.. math::
    \ell = -\sum_{k=1}^{K} \log \frac{e^{\beta \rho_k}}{\sum_{j=k}^{K} e^{\beta \rho_j}},
    \quad \rho_k = \log \frac{\pi(y_k \mid x)}{\pi_{\mathrm{ref}}(y_k \mid x)},
    \quad y_1 \text{ best}

For K = 2 this is ``dpo``, whose beta is the default: the paper trains with pairs only. Completions
with equal scores count as ranked in the order of the data.
"""

import torch
from torch import Tensor

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("plackett_luce", family="ranked", aliases=["listwise_dpo"])
def plackett_luce_loss(
    ranked_logps: Tensor, ref_ranked_logps: Tensor, *, beta: float = 0.1
) -> LossOutput:
    """Return the negative log-likelihood of each ranking, unreduced.

    Args:
        ranked_logps: Policy log-probs of the completions, best first; (B, K), nats.
        ref_ranked_logps: Reference counterpart of ``ranked_logps``; (B, K), nats.
        beta: Reward per nat of log-ratio; greater than 0.

    Returns:
        Losses (B,) and detached rewards (beta times log-ratio) (B, K).

    Raises:
        ValueError: If ``beta`` is not greater than 0.
    """
    check_positive(beta=beta)
    rewards = beta * (ranked_logps - ref_ranked_logps)
    # Row k of the square holds the completions that are left at place k: those from k on. (The
    # gradient of logcumsumexp, which needs no square, is off by 1e-4 at rewards of a thousand.)
    placed = torch.ones(rewards.shape[1], rewards.shape[1], device=rewards.device).tril(-1).bool()
    log_normalizers = rewards[:, None, :].masked_fill(placed, -torch.inf).logsumexp(2)
    return LossOutput((log_normalizers - rewards).sum(1), rewards=rewards.detach())
