r"""IPO: squared distance of the log-ratio margin from 1/(2 tau), which bounds the drift.

Source: Azar et al. 2023, arXiv:2310.12036, Eq. 17. Departures from it: with the default
``normalize="mean"`` the log-ratios are averaged over tokens, as in TRL and HALOs;
``normalize="sum"`` is Eq. 17 as printed.
Use it when: DPO overfits: here the margin has a finite target, so the policy stays near.
Not when: lengths vary and ``normalize`` was not chosen on purpose: it sets the unit of beta.
Differs from: TRL and HALOs take the mean of log-ratios over tokens; the code of DPO's authors,
torchtune, OpenRLHF and DiscoPOP the sum, Eq. 17 as printed. Both are here, as ``normalize``.
Differs from: HALOs (4831988) divides by the number of tokens whose log-ratio is not 0, so that a
policy equal to the reference gives 0/0; earlier HALOs and we do not.
Differs from: TRL's CPOTrainer has an ``ipo`` without reference: ``cpo_ipo``.

.. math::
    \ell = \Bigl(\frac{\rho_c}{n_c} - \frac{\rho_r}{n_r} - \frac{1}{2 \beta}\Bigr)^2,
    \quad \rho_y = \log \frac{\pi(y \mid x)}{\pi_{\mathrm{ref}}(y \mid x)},
    \quad n_y = |y| \text{ (mean) or } 1 \text{ (sum)}

The paper's tau is called ``beta`` here, as everywhere in practice: it is the strength of the pull
towards the reference, and the target margin is 1 / (2 beta). The default is TRL's: the paper trains
no language model.
"""

from torch import Tensor

from prefopt.losses.common import average_logps, check_choice, check_positive
from prefopt.losses.registry import LossOutput, register_loss


@register_loss("ipo", family="margin")
def ipo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 0.1,
    normalize: str = "mean",
) -> LossOutput:
    """Return the IPO loss of each pair, unreduced.

    The unit of the margin decides what ``beta`` means: with ``"sum"`` the target 1 / (2 beta) is in
    nats per completion, with ``"mean"`` in nats per token, so a ``beta`` fit for one is too small
    or too large for the other by about the length of a completion.

    Args:
        chosen_logps: Policy log-prob of the chosen completion, summed over tokens; (B,), nats.
        rejected_logps: The same of the rejected completion; (B,), nats.
        ref_chosen_logps: Reference counterpart of ``chosen_logps``; (B,), nats.
        ref_rejected_logps: Reference counterpart of ``rejected_logps``; (B,), nats.
        chosen_lengths: Length of the chosen completion; (B,), tokens.
        rejected_lengths: Length of the rejected completion; (B,), tokens.
        beta: The paper's tau; greater than 0.
        normalize: ``"mean"`` divides each log-ratio by its length; ``"sum"`` does not.

    Returns:
        Losses, and as detached rewards ``beta`` times the summed log-ratio, whatever ``normalize``
        is, which is what TRL logs; each (B,).

    Raises:
        ValueError: If ``beta`` is not greater than 0 or ``normalize`` is neither word.
    """
    check_positive(beta=beta)
    check_choice("normalize", normalize, ("mean", "sum"))
    chosen_log_ratios = chosen_logps - ref_chosen_logps
    rejected_log_ratios = rejected_logps - ref_rejected_logps
    if normalize == "mean":
        margins = average_logps(chosen_log_ratios, chosen_lengths) - average_logps(
            rejected_log_ratios, rejected_lengths
        )
    else:
        margins = chosen_log_ratios - rejected_log_ratios
    losses = (margins - 1 / (2 * beta)) ** 2
    return LossOutput(
        losses, beta * chosen_log_ratios.detach(), beta * rejected_log_ratios.detach()
    )
