r"""SLiC-HF: hinge on the log-probs of the pair, plus a likelihood term that holds the policy back.

Source: Zhao et al. 2023, arXiv:2305.10425 (SLiC-HF-direct: calibration plus regularisation).
Departures from it: the target of the regulariser is the chosen completion, where the paper takes
the completion of the supervised data set, which preference data does not hold.
Use it when: a margin in nats and a likelihood term are all you want to set.
Not when: lengths differ a lot: summed log-probs favour the shorter completion.
Differs from: none in HALOs of December 2023, whose ``beta`` is delta.
Differs from: HALOs (4831988) adds a term of shape (B, T) to one of shape (B,): an error unless B is
1, and then the result depends on the padding.
Differs from: what TRL and torchtune list as SLiC or RSO is ``hinge``; TRL CPO's hinge is
``cpo_hinge``, beta times this calibration term with ``delta=1/beta``.

.. math::
    \ell = \max\bigl(0,\, \delta - \log \pi(y_c \mid x) + \log \pi(y_r \mid x)\bigr)
        - \lambda \log \pi(y_c \mid x)
"""

from torch import Tensor
from torch.nn.functional import relu

from prefopt.losses.common import check_not_negative
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("slic", family="no_reference")
def slic_loss(
    chosen_logps: Tensor, rejected_logps: Tensor, *, delta: float = 1.0, lambda_: float = 0.1
) -> LossOutput:
    """Return the SLiC-HF loss of each pair, unreduced.

    The defaults are those of HALOs' configuration.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        delta: Margin by which the chosen log-prob should be the larger; at least 0, nats.
        lambda_: Weight of the negative log-likelihood of the chosen completion; at least 0.

    Returns:
        Losses, and as detached rewards the log-probs themselves, there being neither reference nor
        beta; each (B,).

    Raises:
        ValueError: If a hyper-parameter is negative.
    """
    check_not_negative(delta=delta, lambda_=lambda_)
    losses = relu(delta - chosen_logps + rejected_logps) - lambda_ * chosen_logps
    return LossOutput(losses, chosen_logps.detach(), rejected_logps.detach())
