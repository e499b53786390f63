r"""NCA on K scored completions: raises good ones in themselves, not just above the others.

Source: Chen et al. 2024, arXiv:2402.05369, NCA for reward datasets. Departures from it: none.
Use it when: completions have scores, and good ones should become likelier, not just lead.
Not when: even the best completions are worse than what the policy writes.
Differs from: the authors' code for reward data was not run; on pairs see ``nca``.

.. math::
    \ell = -\sum_{i=1}^{K} \Bigl(q_i \log \sigma(\beta \rho_i)
        + \frac{1}{K} \log \sigma(-\beta \rho_i)\Bigr),
    \quad q = \mathrm{softmax}(s / \alpha),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

The optimum has :math:`\beta \rho_i = \log K q_i`: absolute, where ``infonca`` fixes differences.
For K = 2 and alpha falling to 0 this becomes NCA on pairs. The authors' configuration has beta
0.01; their ``temperature_alpha`` is alpha, 0.001 in their trainer, 0.0001 in the configuration.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("nca_ranked", family="ranked", published={"beta": (0.01, 0.01)})
def nca_ranked_loss(
    ranked_logps: Tensor,
    ref_ranked_logps: Tensor,
    ranked_scores: Tensor,
    *,
    beta: float = 0.01,
    alpha: float = 0.001,
) -> LossOutput:
    """Return the NCA loss of each set of completions, unreduced.

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
    losses = -(target * logsigmoid(rewards)).sum(1) - logsigmoid(-rewards).mean(1)
    return LossOutput(losses, rewards=rewards.detach())
