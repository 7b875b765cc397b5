"""`dkuxnet prepare` against nnU-Net's preprocessing: the same NIfTI scans, the same spacing, the
same number of processes.

    python measurements/preparing.py [--nnunet VENV/bin] [--scans FOLDER] [--rounds 5] [--processes 2] [--spacing-mm 2]

Without --scans: 16 synthetic scans of about 140 voxels an edge, 1 mm. --scans: a folder in
nnU-Net's layout, of one spacing. Each program checks or measures all scans and stores them
(nnU-Net: fingerprint, planning, 3d_fullres), at the scans' own spacing (nothing to resample) and at
--spacing-mm, twice their own by default; nnU-Net is told by -overwrite_target_spacing. By turns,
each in processes of its own, one thread a process. Prints medians of

clock   seconds by the clock
cpu     processor seconds of all processes
a scan  both, of what comes with each further scan: of all scans, less those of two scans alone, which hold the start-up

and the ratios, each the median over the rounds with the lowest and the highest. The floor is what
has to happen to a scan, once and in one process: unpacked, resampled, scaled, packed.
"""

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

INSTALL = (
    "nnU-Net is not measured: python -m venv VENV && VENV/bin/pip install nnunetv2==2.8.1 "
    "torch==2.13.0, "
    "then --nnunet VENV/bin"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nnunet", type=Path)
    parser.add_argument("--scans", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--spacing-mm", type=float)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        scans = chosen.scans or write_scans(work / "scans")
        count, own_mm = lay_out(scans, work)
        programs = {"dkuxnet": None} | ({"nnU-Net": chosen.nnunet} if chosen.nnunet else {})
        for spacing_mm in (own_mm, chosen.spacing_mm or 2 * own_mm):
            print(
                f"\n{count} scans of {own_mm:g} mm at {spacing_mm:g} mm, {chosen.processes} "
                "processes; "
                f"floor {floor(work, spacing_mm):.3f} s a scan\n",
                flush=True,
            )
            rounds = [
                {
                    name: figures(work, where, spacing_mm, chosen.processes, count)
                    for name, where in programs.items()
                }
                for _ in range(chosen.rounds)
            ]
            show(rounds)
    if not chosen.nnunet:
        print(f"\n{INSTALL}")


def write_scans(folder: Path, count: int = 16) -> Path:
    """Synthetic scans, all of 1 mm."""
    from dkuxnet.core.types import Volume
    from dkuxnet.data import formats, phantom

    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        image, label = phantom.make_case(np.random.default_rng((0, i)), size=140)
        formats.write(
            Volume(image.array, np.eye(4)), folder / "imagesTr" / f"scan_{i:03d}_0000.nii.gz"
        )
        formats.write(Volume(label.array, np.eye(4)), folder / "labelsTr" / f"scan_{i:03d}.nii.gz")
    about = {
        "channel_names": {"0": "MRI"},
        "labels": phantom.LABELS,
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def lay_out(scans: Path, work: Path) -> tuple[int, float]:
    """Dataset001_all and Dataset002_two under WORK/raw, which both programs read; how many scans,
    and their spacing.
    """
    from dkuxnet.data import formats

    images, about = (
        sorted((scans / "imagesTr").iterdir()),
        json.loads((scans / "dataset.json").read_text()),
    )
    for name, chosen in (("Dataset001_all", images), ("Dataset002_two", images[:2])):
        for sub in ("imagesTr", "labelsTr"):
            (work / "raw" / name / sub).mkdir(parents=True)
        for image in chosen:
            label = image.name.replace("_0000", "")
            (work / "raw" / name / "imagesTr" / image.name).symlink_to(image.resolve())
            (work / "raw" / name / "labelsTr" / label).symlink_to(
                (scans / "labelsTr" / label).resolve()
            )
        (work / "raw" / name / "dataset.json").write_text(
            json.dumps(about | {"numTraining": len(chosen)})
        )
    return len(images), round(formats.read(images[0]).spacing_mm[0], 4)


def figures(
    work: Path, nnunet: Path | None, spacing_mm: float, processes: int, count: int
) -> dict[str, float]:
    """What one program takes for all scans, and for each beyond the first two."""
    taken = {}
    for number, name in ((1, "all"), (2, "two")):
        source, made = work / "raw" / f"Dataset{number:03d}_{name}", work / "made"
        if nnunet is None:
            command = [
                sys.executable,
                "-m",
                "dkuxnet",
                "prepare",
                source,
                made,
                "--spacing-mm",
                spacing_mm,
                "--processes",
                processes,
            ]
        else:
            command = [
                nnunet / "nnUNetv2_plan_and_preprocess",
                "-d",
                number,
                "-c",
                "3d_fullres",
                "-npfp",
                processes,
                "-np",
                processes,
                "-overwrite_target_spacing",
                *[spacing_mm] * 3,
                "-overwrite_plans_name",
                "same",
                "--no_pbar",
            ]
        taken[name] = timed([str(word) for word in command], work)
        shutil.rmtree(made)
    clock, cpu = taken["all"]
    return {
        "clock": clock,
        "cpu": cpu,
        "clock a scan": (clock - taken["two"][0]) / (count - 2),
        "cpu a scan": (cpu - taken["two"][1]) / (count - 2),
    }


def timed(command: list[str], work: Path) -> tuple[float, float]:
    """Seconds by the clock, and of processors by the command and all that it started."""
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "nnUNet_raw": str(work / "raw"),
        "nnUNet_preprocessed": str(work / "made"),
        "nnUNet_results": str(work / "results"),
    }
    started, before = time.perf_counter(), os.times()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = os.times()
    return (
        time.perf_counter() - started,
        after.children_user + after.children_system - before.children_user - before.children_system,
    )


def floor(work: Path, spacing_mm: float) -> float:
    """Processor seconds for what cannot be left out, a scan: unpack image and label, resample,
    scale, pack; a median.
    """
    import blosc2
    import nibabel

    from dkuxnet.data.geometry import resample, resampled_shape

    seconds = []
    for image in sorted((work / "raw" / "Dataset001_all" / "imagesTr").iterdir()):
        header = nibabel.load(image).header
        started = time.process_time()
        gzip.decompress(
            (image.parents[1] / "labelsTr" / image.name.replace("_0000", "")).read_bytes()
        )
        raw = gzip.decompress(image.read_bytes())
        shape, kind = header.get_data_shape()[::-1], header.get_data_dtype()
        array = np.frombuffer(raw, kind, offset=len(raw) - np.prod(shape) * kind.itemsize).reshape(
            shape
        )
        array = resample(
            array, resampled_shape(array.shape, header.get_zooms()[::-1], [spacing_mm] * 3)
        )
        blosc2.asarray(
            (array - array.mean()) / array.std(),
            cparams={"codec": blosc2.Codec.LZ4, "clevel": 1, "nthreads": 1},
        )
        seconds.append(time.process_time() - started)
    return median(seconds)


def show(rounds: list[dict[str, dict[str, float]]]) -> None:
    names, keys = list(rounds[0]), list(rounds[0]["dkuxnet"])
    print(
        f"| | {' | '.join(names)} | "
        f"{'ratio |' if len(names) > 1 else ''}\n|---|{'---|' * (len(names) + (len(names) > 1))}"
    )
    for key in keys:
        cells = [f"{median(each[name][key] for each in rounds):.3f} s" for name in names]
        if len(names) > 1:
            ratios = sorted(each["nnU-Net"][key] / each["dkuxnet"][key] for each in rounds)
            cells.append(f"{median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})")
        print(f"| {key} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
