r"""Squared log-ratio: a penalty that keeps preferred completions as likely as they were.

Source: the estimator k2 of Schulman's note on approximating KL divergence,
joschu.net/blog/kl-approx.html. Departures from it: the completions come from the data, not from the
policy, so its mean is no KL divergence.
Use it when: the policy should stay near the reference on preferred completions.
Not when: completions are long and the weight is large: it grows with the square of the sum.

.. math::
    \ell = \frac{1}{2} \rho_c^2,
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)}

It is a term for sums, such as ``dpo + 0.001*squared_log_ratio``. Where policy and reference are
close and the completions come from either, its mean is the KL divergence to second order. The
estimator k3, whose mean is KL(reference || policy) on completions of the reference, needs
:math:`e^{\rho}` of a whole completion: a few tens of nats make it useless.
"""

from torch import Tensor

from prefopt.losses.registry import LossOutput, register_loss


@register_loss("squared_log_ratio", family="term")
def squared_log_ratio_loss(chosen_logps: Tensor, ref_chosen_logps: Tensor) -> LossOutput:
    """Return half the squared log-ratio of each preferred completion, unreduced.

    Args:
        chosen_logps: Policy log-prob of the preferred completion, summed over tokens; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.

    Returns:
        Losses (B,), in square nats. No rewards.
    """
    return LossOutput((chosen_logps - ref_chosen_logps) ** 2 / 2)
