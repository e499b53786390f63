r"""EXO on K scored completions: the policy's choice among them is fitted to that of the scores.

Source: Ji et al. 2024, arXiv:2402.00856, the loss with a reward model (``exo-rw`` of the authors'
code). Departures from it: the completions and scores are those of the data, where the paper samples
completions from the reference.
Use it when: completions have scores, and the policy should settle on the best.
Not when: several completions are equally good and all should stay likely.
Differs from: none: the same as ``exo-rw`` of the authors' code.

.. math::
    \ell = \sum_{i=1}^{K} p_i \log \frac{p_i}{q_i},
    \quad p = \mathrm{softmax}(\beta \rho),
    \quad q = \mathrm{softmax}(s / \alpha),
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

The reverse KL divergence seeks a mode of q; ``infonca`` is the forward one, up to the entropy of
q. The paper's :math:`\beta_\pi` and :math:`\beta_r` are ``beta`` and ``alpha``, in the authors'
scripts 0.1 each on IMDB and 0.5 each on HH and TL;DR; ``alpha`` is in the unit of the scores. For
K = 2 this is EXO on pairs with the smoothing :math:`\epsilon = q_2`.
"""

from torch import Tensor

from prefopt.losses.common import check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("exo_ranked", family="ranked", published={"beta": (0.1, 0.5)})
def exo_ranked_loss(
    ranked_logps: Tensor,
    ref_ranked_logps: Tensor,
    ranked_scores: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.1,
) -> LossOutput:
    """Return the reverse KL divergence of each set of completions, unreduced.

    Args:
        ranked_logps: Policy log-probs of the completions; (B, K), nats. Their order is immaterial.
        ref_ranked_logps: Reference counterpart of ``ranked_logps``; (B, K), nats.
        ranked_scores: Their scores, the rewards of the paper; (B, K).
        beta: Reward per nat of log-ratio; greater than 0.
        alpha: Temperature of the scores; greater than 0. Small, next to their differences, means
            that the best completion is all that counts.

    Returns:
        Losses (B,) and detached rewards (beta times log-ratio) (B, K).

    Raises:
        ValueError: If ``beta`` or ``alpha`` is not greater than 0.
    """
    check_positive(beta=beta, alpha=alpha)
    rewards = beta * (ranked_logps - ref_ranked_logps)
    policy = rewards.log_softmax(1)
    target = (ranked_scores.to(rewards.dtype) / alpha).log_softmax(1)
    return LossOutput((policy.exp() * (policy - target)).sum(1), rewards=rewards.detach())
