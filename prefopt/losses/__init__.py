"""Losses: pure functions on log-probs, selected by name.

Importing this package registers the built-in losses; those of other packages are imported when a
loss is first looked up.
"""

from prefopt.losses.alphapo import alphapo_loss as alphapo_loss
from prefopt.losses.aot import aot_loss as aot_loss
from prefopt.losses.aot import aot_unpaired_loss as aot_unpaired_loss
from prefopt.losses.apo import apo_down_loss as apo_down_loss
from prefopt.losses.apo import apo_zero_loss as apo_zero_loss
from prefopt.losses.apo_zero_unpaired import apo_zero_unpaired_loss as apo_zero_unpaired_loss
from prefopt.losses.arpo import arpo_loss as arpo_loss
from prefopt.losses.bco import bco_loss as bco_loss
from prefopt.losses.bco_pair import bco_pair_loss as bco_pair_loss
from prefopt.losses.beta_dpo import beta_dpo_loss as beta_dpo_loss
from prefopt.losses.cal_dpo import cal_dpo_loss as cal_dpo_loss
from prefopt.losses.chi_po import chi_po_loss as chi_po_loss
from prefopt.losses.contract import ContractError, broken_checks
from prefopt.losses.cpo import cpo_hinge_loss as cpo_hinge_loss
from prefopt.losses.cpo import cpo_ipo_loss as cpo_ipo_loss
from prefopt.losses.cpo import cpo_loss as cpo_loss
from prefopt.losses.discopop import discopop_loss as discopop_loss
from prefopt.losses.discopop_siblings import aqfl_loss as aqfl_loss
from prefopt.losses.discopop_siblings import aql_loss as aql_loss
from prefopt.losses.discopop_siblings import cell_loss as cell_loss
from prefopt.losses.discopop_siblings import dbaql_loss as dbaql_loss
from prefopt.losses.discopop_siblings import padll_loss as padll_loss
from prefopt.losses.discopop_siblings import pfl_loss as pfl_loss
from prefopt.losses.dpo import dpo_loss as dpo_loss
from prefopt.losses.dpop import dpop_loss as dpop_loss
from prefopt.losses.exo import exo_loss as exo_loss
from prefopt.losses.exo_ranked import exo_ranked_loss as exo_ranked_loss
from prefopt.losses.gpo import gpo_loss as gpo_loss
from prefopt.losses.hinge import hinge_loss as hinge_loss
from prefopt.losses.infonca import infonca_loss as infonca_loss
from prefopt.losses.ipo import ipo_loss as ipo_loss
from prefopt.losses.kto import kto_loss as kto_loss
from prefopt.losses.ld_dpo import ld_dpo_loss as ld_dpo_loss
from prefopt.losses.lipo import lipo_loss as lipo_loss
from prefopt.losses.ln_dpo import ln_dpo_loss as ln_dpo_loss
from prefopt.losses.nca import nca_loss as nca_loss
from prefopt.losses.nca_ranked import nca_ranked_loss as nca_ranked_loss
from prefopt.losses.odpo import odpo_loss as odpo_loss
from prefopt.losses.orpo import orpo_loss as orpo_loss
from prefopt.losses.plackett_luce import plackett_luce_loss as plackett_luce_loss
from prefopt.losses.r_dpo import r_dpo_loss as r_dpo_loss
from prefopt.losses.registry import (
    Loss,
    LossOutput,
    get_loss,
    list_losses,
    register_loss,
    registered_losses,
    unregister_loss,
)
from prefopt.losses.robust import robust_loss as robust_loss
from prefopt.losses.rpo import rpo_loss as rpo_loss
from prefopt.losses.rrhf import rrhf_loss as rrhf_loss
from prefopt.losses.sft import sft_loss as sft_loss
from prefopt.losses.simpo import simpo_hinge_loss as simpo_hinge_loss
from prefopt.losses.simpo import simpo_loss as simpo_loss
from prefopt.losses.slic import slic_loss as slic_loss
from prefopt.losses.soft_dpo import geometric_dpo_loss as geometric_dpo_loss
from prefopt.losses.soft_dpo import soft_dpo_loss as soft_dpo_loss
from prefopt.losses.sppo import sppo_loss as sppo_loss
from prefopt.losses.squared_log_ratio import squared_log_ratio_loss as squared_log_ratio_loss
from prefopt.losses.tdpo import tdpo_loss as tdpo_loss
from prefopt.losses.vocabulary import VOCABULARY, InputSpec

__all__ = [
    "VOCABULARY",
    "ContractError",
    "InputSpec",
    "Loss",
    "LossOutput",
    "broken_checks",
    "get_loss",
    "list_losses",
    "register_loss",
    "unregister_loss",
    *(loss.function.__name__ for loss in registered_losses()),
]
