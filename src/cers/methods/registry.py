"""Every method by name. A new method is one file and one line here."""

from collections.abc import Mapping
from typing import Any

import torch

from cers.config import validate_settings
from cers.errors import CersError, nearest
from cers.methods.base import Method, Settings, Setup
from cers.methods.cers import CERS
from cers.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
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
