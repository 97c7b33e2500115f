"""Every method by name. A new method is one file and one line here."""

from collections.abc import Mapping
from typing import Any

import torch

from cers.config import validate_settings
from cers.errors import CersError, nearest
from cers.methods.base import Method, Settings, Setup
from cers.methods.bcp import BCP
from cers.methods.cers import CERS
from cers.methods.cps import CPS
from cers.methods.ducisc import DuCiSC
from cers.methods.lefed import LeFeD
from cers.methods.lvit import LViT
from cers.methods.mean_teacher import MeanTeacher
from cers.methods.supervised import Supervised
from cers.methods.ua_mt import UAMT
from cers.methods.ucmt import UCMT
from cers.methods.unet_text import UNetText
from cers.methods.unimatch_v2 import UniMatchV2

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "unet-text": UNetText,
    "mean-teacher": MeanTeacher,
    "ua-mt": UAMT,
    "cps": CPS,
    "ucmt": UCMT,
    "bcp": BCP,
    "ducisc": DuCiSC,
    "lefed": LeFeD,
    "lvit": LViT,
    "unimatch-v2": UniMatchV2,
    "cers": CERS,
}


def method_settings(name: str, settings: Mapping[str, Any]) -> Settings:
    """The checked settings of method `name`, defaults filled in.

    Raises:
        CersError: unknown method or setting, or a value of the wrong type.
    """
    if name not in METHODS:
        raise CersError(f"no method '{name}'; {nearest(name, METHODS)}")
    return validate_settings(METHODS[name].Settings, settings, where=f"method.settings of '{name}'")


def create_method(name: str, settings: Mapping[str, Any], setup: Setup) -> Method:
    """A fresh method, its networks initialised from `setup.seed`.

    Raises:
        CersError: unknown method or setting, or a value of the wrong type.
    """
    checked = method_settings(name, settings)
    torch.manual_seed(setup.seed)
    return METHODS[name](setup, checked)
