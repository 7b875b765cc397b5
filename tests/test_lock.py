"""One program at a time in a folder, and the lock ends with its holder, however that ends."""

import subprocess
import sys

import pytest

from dkuxnet.core.errors import UserError
from dkuxnet.machine.lock import locked

HOLD = (
    "import sys, time; from pathlib import Path; from dkuxnet.machine.lock import locked\n"
    "with locked(Path(sys.argv[1]), 'training'): print('held', flush=True); time.sleep(60)"
)


def test_a_second_is_kept_out_until_the_first_is_dead(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match="another training is at work"),
        locked(tmp_path, "training"),
    ):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path, "training"):
        pass
