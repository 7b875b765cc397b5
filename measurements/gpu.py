"""Where a GPU is at hand: what nothing on a CPU can tell, in nine minutes and one JSON file.

    python measurements/gpu.py OUT.json [--prepared PREPARED] [--device cuda] [--minutes 9]
    python measurements/gpu.py OUT.json --toy       # every part at a toy size on a CPU: figures mean nothing

A step of `dk-uxnet` at 96 cubed in bfloat16 and float32 against its plain composition in float32,
with peak memory; the share of its time by kernel; the step compiled; the la-full training on
PREPARED (the left atrium at 0.625 mm) with 8 labels for as many steps as fit; and the prediction of
a scan against MONAI's inferer with the same network, that of the training where it is done.

Every part is a process of its own with a share of the minutes. One that fails or takes longer is
told in OUT.json, which is written after each, and the others go on.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
TOP = 15  # kernels that are named


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--prepared", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.device = "cpu" if chosen.toy else chosen.device
    if chosen.part:
        PARTS[chosen.part][1](chosen)
        return
    found: dict[str, Any] = {"revision": revision(), "toy": chosen.toy, "parts": {}}
    with tempfile.TemporaryDirectory() as work:
        chosen.run = Path(work) / "run"
        for name, (share, _) in PARTS.items():
            parts = found["parts"]
            parts[name] = alone(chosen, name, 60 * chosen.minutes * share)
            found["machine"] = found.get("machine") or parts[name].pop("machine", None)
            chosen.out.write_text(json.dumps(found, indent=1))
            print(f"{name}: {json.dumps(parts[name])[:300]}", flush=True)


def alone(chosen: argparse.Namespace, name: str, seconds: float) -> dict[str, Any]:
    """What a part found in `seconds` in a process of its own, and what went wrong."""
    options = ["--device", chosen.device, "--minutes", str(seconds / 60), "--run", str(chosen.run)]
    options += ["--toy"] * chosen.toy + ["--prepared", str(chosen.prepared)] * bool(chosen.prepared)
    order = [sys.executable, __file__, str(chosen.out), "--part", name, *options]
    found: dict[str, Any] = {}
    # at a toy size a thread does as much as two, also beside other work
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if chosen.toy else {})
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as wrong:
        try:
            code = subprocess.run(
                order, stdout=told, stderr=wrong, timeout=seconds, env=environment
            ).returncode
        except subprocess.TimeoutExpired:
            found["error"] = f"stopped after its {seconds:.0f} s"
        else:
            wrong.seek(0)
            lines = wrong.read().splitlines() or [""]
            found |= {"error": lines[-1] or f"ended with {code}"} if code else {}
        told.seek(0)
        for line in told:
            found |= json.loads(line) if line.startswith("{") else {}
    return found | {"part_seconds": round(time.monotonic() - started, 1)}


def tell(**figures: Any) -> None:
    """Hand figures to the file; those of the same name replace earlier ones."""
    print(json.dumps(figures), flush=True)


def revision() -> str:
    order = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(order, capture_output=True, text=True).stdout.strip()


def machine(chosen: argparse.Namespace) -> None:
    import torch

    from dkuxnet.machine.devices import choose_device
    from dkuxnet.runs import folder

    known = folder.machine(choose_device(chosen.device)).model_dump(mode="json")
    tell(machine=known | {"cuda": torch.version.cuda})


def step_settings(chosen: argparse.Namespace, **more: Any) -> SimpleNamespace:
    """The options of training_step.py."""
    network, patch, steps = ("dk-uxnet-tiny", 32, 2) if chosen.toy else ("dk-uxnet", 96, 10)
    usual = {
        "only": "ours",
        "precision": "float32",
        "recompute": False,
        "compiled": False,
        "threads": 0,
        "batch": 2,
    }
    size = {"network": network, "patch": [patch] * 3, "steps": steps, "device": chosen.device}
    return SimpleNamespace(**usual | size | more)


def step(**more: Any) -> Callable[[argparse.Namespace], None]:
    def measure(chosen: argparse.Namespace) -> None:
        if chosen.toy and more.get("compiled"):
            sys.exit("left out: compiling takes minutes on a CPU")
        import training_step

        tell(**training_step.measured(step_settings(chosen, **more)))

    return measure


def kernels(chosen: argparse.Namespace) -> None:
    """The share of a step's time by kernel, and in which the device does any."""
    from torch.profiler import profile

    import training_step

    settings = step_settings(chosen, precision="bfloat16")
    one_step = training_step.make_step(settings)
    steps = 1 if chosen.toy else 3
    for _ in range(steps):
        one_step(settings.patch)
    with profile() as seen:
        for _ in range(steps):
            one_step(settings.patch)
    device = chosen.device.partition(":")[0]
    of_cpu = device == "cpu"
    times = {
        each.key: (each.self_cpu_time_total if of_cpu else each.self_device_time_total, each.count)
        for each in seen.key_averages()
        if not each.is_user_annotation and each.device_type.name == device.upper()
    }
    whole = sum(taken for taken, _ in times.values())
    largest = sorted(times.items(), key=lambda item: -item[1][0])[:TOP]
    tell(
        busy=training_step.busy_share(seen.events(), device),
        kernels=[[name[:120], round(taken / whole, 4), count] for name, (taken, count) in largest],
    )


def training(chosen: argparse.Namespace) -> None:
    """The la-full training with 8 labels, for as many steps as fit into two thirds of its time."""
    if not (chosen.toy or chosen.prepared):
        sys.exit("left out: no --prepared")
    from dkuxnet import load_settings, run_training
    from dkuxnet.training.minutes import settings_for

    prepared, more = chosen.prepared, {}
    if chosen.toy:
        from dkuxnet import prepare_scans
        from dkuxnet.data import phantom

        scans = phantom.write_dataset(chosen.run.parent / "scans", cases=6, labelled=5, size=24)
        prepared, patch = chosen.run.parent / "prepared", [16, 16, 16]
        prepare_scans(scans, prepared, processes=1)
        more = {"network.name": "dk-uxnet-tiny", "train.patch": patch, "data.test_cases": 2}
        more |= {"data.labelled": 2, "network.widths": [8] * 4, "network.depths": [1] * 4}
    usual = {"data.labelled": 8, "train.device": chosen.device, "train.log_every": 10}
    usual |= {"train.reference_cases": 0}  # no scan but the test list is predicted
    settings = load_settings("la-full", overrides=usual | more)
    minutes = 0.5 if chosen.toy else 0.66 * chosen.minutes
    settings, sentence = settings_for(minutes, prepared, chosen.run, settings)
    tell(plan=sentence)

    def progress(what: str, done: int, total: int, figures: dict[str, float]) -> None:
        tell(**{what: [done, total]}, **({"last": figures} if figures else {}))

    manifest = run_training(prepared, chosen.run, settings, progress=progress)
    tell(
        seconds_a_step=manifest.train_seconds / manifest.steps_done,
        peak_gib=manifest.peak_memory_gib,
        test={name: found["dice"].mean for name, found in (manifest.test or {}).items()},
    )


def prediction(chosen: argparse.Namespace) -> None:
    """A scan's seconds: ours, ours in bfloat16, MONAI's; and what share of labels bfloat16 moves."""
    import numpy as np
    import torch

    import prediction as peers
    from dkuxnet.core.config import InferSettings
    from dkuxnet.machine.memory import forget_peak_memory, peak_memory_gib
    from dkuxnet.prediction.windows import Windows, sliding_window

    device = torch.device(chosen.device)
    predictor, image, window, source = predictor_and_scan(chosen)
    classes = predictor(torch.zeros(1, len(image), *window, device=device)).logits.shape[1]
    settings = InferSettings()
    windows = Windows(window, classes, settings, device)
    bf16 = peers.InPrecision(predictor, device.type, "bf16")
    loops: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: sliding_window(predictor, image, windows).prob,
        "ours, bfloat16": lambda: sliding_window(bf16, image, windows).prob,
    }
    try:
        import monai.inferers  # noqa: F401
    except ImportError:
        tell(without="MONAI, which is not installed")
    else:
        for batch in (1, settings.batch):
            loops[f"MONAI, sw_batch_size {batch}"] = lambda batch=batch: peers.monai_loop(
                predictor, image, window, settings.overlap, batch, chosen.device
            )
    tell(weights=source, scan=image.shape, window=window)
    labels = {}
    for name, predict in loops.items():
        labels[name] = predict().argmax(axis=0)  # the first time kernels are chosen
        forget_peak_memory(device)
        taken = []
        for _ in range(1 if chosen.toy else 5):
            started = time.perf_counter()
            predict()
            taken.append(time.perf_counter() - started)
        moved = float((labels[name] != labels["ours"]).mean())
        tell(**{name: {"seconds": median(taken), "gib": peak_memory_gib(device), "moved": moved}})


def predictor_and_scan(chosen: argparse.Namespace) -> tuple[Any, Any, Any, str]:
    """Of the training where it is done, with its first test case; else fresh weights and noise."""
    import numpy as np

    import prediction as peers
    from dkuxnet.data.prepared_set import PreparedSet
    from dkuxnet.prediction.predictor import load_predictor
    from dkuxnet.runs.folder import RunFolder

    if RunFolder(chosen.run).is_finished:
        predictor, _, manifest = load_predictor(chosen.run, device=chosen.device)
        name = manifest.split.test[0]
        image = np.asarray(PreparedSet(Path(manifest.prepared)).array(name, "image"))
        return predictor, image, manifest.patch, "of the training"
    network = "dk-uxnet-tiny" if chosen.toy else "dk-uxnet"
    window = (32, 32, 32) if chosen.toy else (112, 112, 80)
    image = peers.scan_of(None)[:, :48, :40, :36] if chosen.toy else peers.scan_of(None)
    return peers.fresh(chosen.device, network), image, window, "fresh"


PARTS: dict[str, tuple[float, Callable[[argparse.Namespace], None]]] = {  # share of the minutes
    "machine": (0.05, machine),
    "step, bfloat16": (0.07, step(precision="bfloat16")),
    "step, float32": (0.07, step()),
    "step, plain composition, float32": (0.09, step(only="plain")),
    "step, bfloat16, compiled": (0.20, step(precision="bfloat16", compiled=True)),
    "kernels": (0.07, kernels),
    "training": (0.30, training),
    "prediction": (0.15, prediction),
}

if __name__ == "__main__":
    main()
