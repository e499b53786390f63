r"""RRHF: a hinge without margin on the log-probs per token of every pair of a ranking.

Source: Yuan et al. 2023, arXiv:2304.05302, the ranking loss. Departures from it: the paper adds the
likelihood of the best completion; here that is a term of its own, ``rrhf + sft``.
Use it when: you have no reference and nothing to tune; add ``sft`` as the paper does.
Not when: you want a margin: pairs in the right order have no gradient.

.. math::
    \ell = \sum_{s_i > s_j} \max(0,\, p_j - p_i),
    \quad p_i = \frac{\log \pi(y_i \mid x)}{|y_i|}

Completions with equal scores are not compared. The weight of the ranking loss in the authors' code
(``rrhf_weight``) is a weight of the sum, ``100*rrhf + sft``.
"""

from torch import Tensor
from torch.nn.functional import relu

from prefopt.losses.common import average_logps
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("rrhf", family="ranked")
def rrhf_loss(ranked_logps: Tensor, ranked_lengths: Tensor, ranked_scores: Tensor) -> LossOutput:
    """Return the RRHF ranking loss of each ranking, unreduced: a sum over its pairs.

    Args:
        ranked_logps: Policy log-probs of the completions, best first; (B, K), nats.
        ranked_lengths: Their lengths; (B, K), tokens.
        ranked_scores: Their scores, of which only the order counts; (B, K).

    Returns:
        Losses (B,), and as detached rewards the log-probs per token, there being neither reference
        nor beta; (B, K).
    """
    mean_logps = average_logps(ranked_logps, ranked_lengths)
    shortfalls = relu(mean_logps[:, None, :] - mean_logps[:, :, None])  # [b, i, j]: j before i
    better = ranked_scores[:, :, None] > ranked_scores[:, None, :]
    losses = (shortfalls * better).sum((1, 2))
    return LossOutput(losses, rewards=mean_logps.detach())
