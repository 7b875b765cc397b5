"""dkuxnet: a few labelled 3D scans and many unlabelled ones become a segmentation model that
people can trust.

The jobs of the command line, for Python. Importing this is instant: each name is loaded when it is
first used.
"""

from typing import Any

from dkuxnet.core.lookup import lookup

PUBLIC = {
    "prepare_scans": "dkuxnet.data.prepare:prepare_scans",
    "load_settings": "dkuxnet.core.config:load_settings",
    "run_training": "dkuxnet.training.experiment:run_training",
    "load_predictor": "dkuxnet.prediction.predictor:load_predictor",
    "predict_scans": "dkuxnet.prediction.predict:predict_scans",
    "evaluate_folders": "dkuxnet.evaluation.evaluate:evaluate_folders",
    "write_report": "dkuxnet.report.page:write_report",
    "run_benchmark": "dkuxnet.benchmark.benchmark:run_benchmark",
    "UserError": "dkuxnet.core.errors:UserError",
}
__all__ = list(PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'dkuxnet' has no attribute '{name}'")
    return lookup(PUBLIC, name, "name")


def __dir__() -> list[str]:
    return __all__
