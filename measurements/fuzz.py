"""Coverage-guided fuzzing of whatever reads a stranger's file.

After pip install -e '.[fuzz]':

    python measurements/fuzz.py --runs 10000 --output fuzz            all targets, one after another
    python measurements/fuzz.py nifti h5 --runs 100000 --output fuzz  some of them

Only a UserError may come out of a reader. All else is a finding: its input is kept in
OUTPUT/TARGET/, with the traceback. What ends the process (a crash in foreign code, 25 s, or 4 GiB
of memory) is kept too, and the target is started again. OUTPUT/summary.json holds the figures.
Prints; it is no part of the package.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random

from fuzz_targets import TARGETS, Target, spoilt

MAX_BYTES = 65536
MAX_STARTS = 50
SECONDS, MEBIBYTES = 25, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=10_000, help="inputs a target")
    parser.add_argument("--output", type=Path, default=Path("fuzz"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.child:
        fuzz_here(chosen.targets[0], chosen.runs, chosen.output, chosen.seed)
        return
    summary = chosen.output / "summary.json"
    figures = json.loads(summary.read_text()) if summary.exists() else {}
    for name in chosen.targets or TARGETS:
        figures[name] = fuzz(name, chosen.runs, chosen.output / name)
        summary.write_text(json.dumps(figures, indent=1))
        print(name, figures[name], flush=True)


def fuzz(name: str, runs: int, output: Path) -> dict[str, float]:
    """Run one target; returns the number of inputs, seconds, findings and ends of the process."""
    output.mkdir(parents=True, exist_ok=True)
    done, ends, started = 0, 0, time.monotonic()
    for start in range(1, MAX_STARTS + 1):
        command = [
            sys.executable,
            __file__,
            name,
            "--child",
            f"--output={output}",
            f"--runs={runs - done}",
            f"--seed={start}",
        ]
        log = output / f"log{start}.txt"
        with log.open("w") as file:
            code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
        done += executed(log.read_text(errors="replace"))
        ends += code != 0
        if done >= runs or not done:
            break
    return {
        "inputs": done,
        "seconds": round(time.monotonic() - started),
        "findings": len(list(output.glob("*.traceback"))),
        "ends": ends,
    }


def executed(log: str) -> int:
    """The number of inputs that a child process ran, according to its log."""
    numbers = re.findall(
        r"^#(\d+)\s|^Done (\d+) runs|^stat::number_of_executed_units: *(\d+)", log, re.MULTILINE
    )
    return max((int(text) for found in numbers for text in found if text), default=0)


def fuzz_here(name: str, runs: int, output: Path, seed: int) -> None:
    import atheris

    target = TARGETS[name]
    corpus = output / f"corpus{seed}"
    corpus.mkdir(exist_ok=True)
    with atheris.instrument_imports(
        include=["dkuxnet", "nibabel", "pydicom"]
    ):  # of these what the valid files reach
        for index, each in enumerate(target.seeds()):
            (corpus / str(index)).write_bytes(each)
            judge(target, each, output)

    def mutated(data: bytes, most: int, state: int) -> bytes:
        random = Random(state)
        if random.random() < 0.3:
            try:
                return target.pack(atheris.Mutate(target.unpack(data), most))[:most]
            except Exception:  # what does not unpack is mutated as it is
                return atheris.Mutate(data, most)
        return spoilt(target, data, random)[:most]

    options = [
        f"-runs={runs}",
        f"-seed={seed}",
        f"-timeout={SECONDS}",
        f"-rss_limit_mb={MEBIBYTES}",
        f"-max_len={MAX_BYTES}",
        f"-artifact_prefix={output}/",
        "-print_final_stats=1",
        "-report_slow_units=20",
        str(corpus),
    ]
    atheris.Setup(
        [sys.argv[0], *options], lambda data: judge(target, data, output), custom_mutator=mutated
    )
    atheris.Fuzz()


def judge(target: Target, data: bytes, output: Path) -> None:
    """Read the input; keep it, once for each place, where anything but a UserError comes out."""
    from dkuxnet.core.errors import UserError

    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(data, folder)
    except UserError:
        pass
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        way = hashlib.sha256(
            str([(frame.name, frame.lineno) for frame in frames]).encode()
        ).hexdigest()[:8]
        place = f"{type(error).__name__}-{frames[-1].name}-{way}"
        if not (output / f"{place}.traceback").exists():
            (output / f"{place}.input").write_bytes(data)
            (output / f"{place}.traceback").write_text(traceback.format_exc())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
