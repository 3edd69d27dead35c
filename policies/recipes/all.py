"""Every recipe by its published name. Installed packages add theirs in the entry point group
`ulna.recipes`."""

from __future__ import annotations

from collections.abc import Callable

from ...datasets.features import Features
from ..plugins import everything, lookup, offers
from ..recipe import Recipe
from .act import act, act_plain
from .ada import ada
from .aura_mem import aura_mem
from .bc_rnn import bc_rnn
from .beso import beso
from .decision import decision_mamba, decision_s4
from .decision_diffuser import decision_diffuser
from .dichotomy_of_control import dichotomy_of_control
from .diffusion import diffusion_transformer, diffusion_unet
from .ebt import ebt
from .fdp import fdp
from .flow import flow
from .flow_map import flow_map
from .generators import g_pt, make_an_agent
from .gr00t import gr00t, gr00t_small
from .grif import grif
from .harmodt import harmodt
from .hyperppo import hyperppo
from .hyperzero import hyperzero
from .icrt import icrt
from .imc import imc
from .language_conditioned import language_conditioned
from .lbp import lbp
from .lid import lid
from .litevlp import litevlp, litevlp_small
from .mip import mip, regression_mlp
from .moh import moh
from .ndp import ndp
from .openha import openha
from .openvla import openvla, openvla_small
from .openvla_oft import openvla_oft, openvla_oft_small
from .pi0 import pi0, pi0_small
from .pi0_fast import pi0_fast, pi0_fast_small
from .pi05 import pi05, pi05_ki, pi05_ki_small, pi05_small
from .ptp import ptp
from .retrieval import retrieval
from .robodual import robodual
from .rtc_flow import rtc_flow
from .seedpolicy import seedpolicy
from .smolvla import smolvla, smolvla_small
from .sparse_dp import sparse_dp
from .user_conditioned import user_conditioned
from .uvd import uvd
from .vla_small import vla_small
from .vq_bet import vq_bet

GROUP = "ulna.recipes"
RECIPES: dict[str, Callable[[Features], Recipe]] = {
    "flow": flow,
    "diffusion_unet": diffusion_unet,
    "diffusion_transformer": diffusion_transformer,
    "act": act,
    "act_plain": act_plain,
    "mip": mip,
    "regression_mlp": regression_mlp,
    "flow_map": flow_map,
    "ebt": ebt,
    "imc": imc,
    "openha": openha,
    "ptp": ptp,
    "beso": beso,
    "decision_diffuser": decision_diffuser,
    "fdp": fdp,
    "dichotomy_of_control": dichotomy_of_control,
    "grif": grif,
    "lbp": lbp,
    "icrt": icrt,
    "retrieval": retrieval,
    "robodual": robodual,
    "uvd": uvd,
    "language_conditioned": language_conditioned,
    "lid": lid,
    "user_conditioned": user_conditioned,
    "hyperzero": hyperzero,
    "hyperppo": hyperppo,
    "make_an_agent": make_an_agent,
    "g_pt": g_pt,
    "sparse_dp": sparse_dp,
    "harmodt": harmodt,
    "moh": moh,
    "ndp": ndp,
    "rtc_flow": rtc_flow,
    "vq_bet": vq_bet,
    "bc_rnn": bc_rnn,
    "seedpolicy": seedpolicy,
    "aura_mem": aura_mem,
    "decision_s4": decision_s4,
    "ada": ada,
    "decision_mamba": decision_mamba,
    "pi0": pi0,
    "pi0_small": pi0_small,
    "pi05": pi05,
    "pi05_small": pi05_small,
    "pi05_ki": pi05_ki,
    "pi05_ki_small": pi05_ki_small,
    "pi0_fast": pi0_fast,
    "pi0_fast_small": pi0_fast_small,
    "smolvla": smolvla,
    "smolvla_small": smolvla_small,
    "openvla": openvla,
    "openvla_small": openvla_small,
    "openvla_oft": openvla_oft,
    "openvla_oft_small": openvla_oft_small,
    "gr00t": gr00t,
    "gr00t_small": gr00t_small,
    "litevlp": litevlp,
    "litevlp_small": litevlp_small,
    "vla_small": vla_small,
}


def recipe_names() -> list[str]:
    """Ours and those of installed packages, of which nothing is imported."""
    return [*RECIPES, *offers(GROUP, RECIPES)[0]]


def recipe_function(name: str) -> Callable[[Features], Recipe] | None:
    """The recipe `name`, which may be `package.module:function`; None when there is no such name. PluginError
    when a package offers it and its import fails."""
    return lookup(GROUP, RECIPES, name)


def all_recipes() -> tuple[dict[str, Callable[[Features], Recipe]], list[str]]:
    """(every recipe by name, a sentence on each of an installed package that cannot be used)."""
    return everything(GROUP, RECIPES)
