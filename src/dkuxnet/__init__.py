"""A few labelled 3D scans and many unlabelled ones become a segmentation model.

The jobs of the command line, for Python. Importing this is instant: each name is loaded when it is
first used.
"""

from typing import TYPE_CHECKING

from dkuxnet.core.lookup import lookup

__all__ = [
    "UserError",
    "evaluate_folders",
    "load_predictor",
    "load_settings",
    "predict_scans",
    "prepare_scans",
    "run_benchmark",
    "run_training",
    "write_report",
]
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

if TYPE_CHECKING:  # the same for type checkers and editors, which do not run __getattr__
    from dkuxnet.benchmark.benchmark import run_benchmark
    from dkuxnet.core.config import load_settings
    from dkuxnet.core.errors import UserError
    from dkuxnet.data.prepare import prepare_scans
    from dkuxnet.evaluation.evaluate import evaluate_folders
    from dkuxnet.prediction.predict import predict_scans
    from dkuxnet.prediction.predictor import load_predictor
    from dkuxnet.report.page import write_report
    from dkuxnet.training.experiment import run_training

    __version__: str
else:

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("dkuxnet")
        if name not in PUBLIC:
            raise AttributeError(f"module 'dkuxnet' has no attribute '{name}'")
        return lookup(PUBLIC, name, "name")

    def __dir__() -> list[str]:
        return sorted({*globals(), *PUBLIC, "__version__"})
