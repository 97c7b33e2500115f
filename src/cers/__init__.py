"""CERS: segmentation of medical images that recalls past cases by image and by diagnostic reasoning."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cers.config import load_config
    from cers.data.layouts import load_cases
    from cers.evaluation import evaluate
    from cers.predict.outlines import predict
    from cers.predict.predictor import Predictor
    from cers.reporting import report
    from cers.retrieval.pool import KnowledgePool
    from cers.run import load_run, resume, train

__version__ = "0.1.0"

__all__ = [
    "KnowledgePool",
    "Predictor",
    "evaluate",
    "load_cases",
    "load_config",
    "load_run",
    "predict",
    "report",
    "resume",
    "train",
]

# Where each name is found when it is first asked for: `import cers` itself must be instant.
_HOMES = {
    "KnowledgePool": "cers.retrieval.pool",
    "Predictor": "cers.predict.predictor",
    "evaluate": "cers.evaluation",
    "load_cases": "cers.data.layouts",
    "load_config": "cers.config",
    "load_run": "cers.run",
    "predict": "cers.predict.outlines",
    "report": "cers.reporting",
    "resume": "cers.run",
    "train": "cers.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cers' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing the rooms cers.evaluate, cers.predict and cers.report must not hide the functions of the same names."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
