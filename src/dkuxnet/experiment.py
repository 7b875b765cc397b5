"""READ FIRST. Settings -> data -> networks -> method -> train -> evaluate: the whole job from top to bottom.

The only module that knows both networks and methods. Everything that has a mechanism is somewhere else; here is only
what follows what.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dkuxnet.config import Settings, validate
from dkuxnet.data.augment import make_views
from dkuxnet.data.dataset import PreparedSet
from dkuxnet.data.loader import PatchStream, read_ahead
from dkuxnet.data.splits import Split, make_split
from dkuxnet.errors import UserError
from dkuxnet.evaluate import Evaluation, evaluate_pair
from dkuxnet.infer import GridPrediction, label_on_scan, label_volume, sliding_window
from dkuxnet.lookup import lookup, parse_options
from dkuxnet.methods import METHODS
from dkuxnet.methods.base import Method
from dkuxnet.metrics import dice
from dkuxnet.networks import NETWORKS
from dkuxnet.networks.grouping import default_groups
from dkuxnet.run import RunFolder, machine
from dkuxnet.train import make_state, step_seed, train
from dkuxnet.types import Batch, Group, NetworkShape, Volume
