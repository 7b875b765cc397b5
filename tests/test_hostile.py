"""Files of each kind as an enemy would make them: one clear line each, no code run, nothing
outside touched, little memory.

All are read in one process that may take 3 GiB above what its imports take, see
`strangers.outcomes`.
"""

import gzip
import io
import json
import os
import pickle
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from dkuxnet.core.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "measurements"))
from fuzz_dicom import ITEM, parsed, segmentations, structure_sets
from fuzz_dicom import written as written_elements
from fuzz_targets import (
    DECATHLON,
    INFO,
    MANIFEST,
    PREPARED,
    SETTINGS,
    SOURCE,
    arrays,
    checkpoints,
    ct,
    scans,
    slices,
    write_prepared,
    zipped,
)

READINGS: dict[str, tuple[Callable[[Path], None], str | None, int]] = {}
LARGE = 2**40
MEBIBYTE = 2**20
SECRET = b"TOPSECRET"


def stranger(says: str | None, mebibytes: int = 1024, **variants):
    """Register `read(folder, variant)`, which makes a file and reads it.

    The UserError has `says` in it. None: what is hostile is passed over, and the scan is read.
    mebibytes: what reading may take; less than the gibibyte that is promised where a smaller file
    shows the same in less time.
    """

    def register(read):
        for name, variant in (variants or {"": None}).items():
            READINGS[f"{read.__name__} {name}".strip()] = (
                read if not variants else partial(read, variant=variant),
                says,
                mebibytes,
            )
        return read

    return register


def readings(root: Path) -> dict[str, Callable[[], None]]:
    import h5py

    secrets(root).mkdir()
    for name in ("secret.raw", "secret0.raw", "secret1.raw", "secret2.raw"):
        (secrets(root) / name).write_bytes(SECRET * 200)
    with h5py.File(secrets(root) / "secret.h5", "w") as file:
        file["image"] = np.zeros((4, 5, 3), np.float32)
    made = {}
    for name, (read, *_) in READINGS.items():
        folder = root / name.replace(" ", "_")
        folder.mkdir()
        made[name] = partial(read, folder)
    return made


def secrets(root: Path) -> Path:
    """A folder beside `root`, of whose files no byte may be read."""
    return root.with_name(f"{root.name}-secrets")


def secret(folder: Path, name: str = "secret.raw") -> Path:
    """A file that is somebody else's: enough bytes for the voxels of any small scan."""
    return secrets(folder.parent) / name


class Harm:
    """What unpickles this writes a file beside the root of all folders."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (self.mark.write_text, ("done",))


def mark(folder: Path) -> Path:
    return folder.parent / "HARM"


def with_(tree: dict, **changes) -> bytes:
    """JSON of `tree`, changed at the places that the keys name: cases__0__name."""
    tree = json.loads(json.dumps(tree))
    for key, value in changes.items():
        node, *path = tree, *key.split("__")
        for part in path[:-1]:
            node = node[int(part) if part.isdigit() else part]
        node[int(path[-1]) if path[-1].isdigit() else path[-1]] = value
    return json.dumps(tree).encode()


def sparse(path: Path, size: int, head: bytes = b"") -> None:
    """A file that takes no room on the disk, however large it says it is."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


# --- checkpoints and weights ---


OVERLAP = json.dumps(
    {
        name: {"dtype": "F32", "shape": [4], "data_offsets": [start, start + 16]}
        for name, start in (("a", 0), ("b", 8))
    }
).encode()


def run_folder(folder: Path, manifest: bytes | None = None, settings: bytes | None = None) -> Path:
    (folder / "manifest.json").write_bytes(manifest or with_(MANIFEST))
    (folder / "settings.json").write_bytes(settings or with_(SETTINGS))
    return folder


@stranger("damaged or not a checkpoint")
def checkpoint_pickle(folder: Path) -> None:
    from dkuxnet.runs import checkpoints

    path = folder / "x"
    path.write_bytes(pickle.dumps({"version": 2, "x": Harm(mark(folder))}))
    checkpoints.read(path.rename(folder / f"{1:08d}-{checkpoints.checksum(path)}.safetensors"))


@stranger(
    "damaged or not a safetensors file",
    pickle="pickle",
    header="header",
    overlap="overlap",
    endless="endless",
)
def weights(folder: Path, variant: str) -> None:
    from dkuxnet.prediction.segment import Segmenter

    path = run_folder(folder) / "final.safetensors"
    if variant == "endless":  # a header and a tensor of a terabyte, in a file with holes
        text = json.dumps(
            {"x": {"dtype": "U8", "shape": [LARGE], "data_offsets": [0, LARGE]}}
        ).encode()
        sparse(path, 8 + len(text) + LARGE, len(text).to_bytes(8, "little") + text)
    else:
        path.write_bytes(
            {
                "pickle": pickle.dumps(Harm(mark(folder))),
                "header": (2**63).to_bytes(8, "little") + b"{}",
                "overlap": len(OVERLAP).to_bytes(8, "little") + OVERLAP + bytes(24),
            }[variant]
        )
    Segmenter(folder, device="cpu")


# --- run folders ---


@stranger(
    "manifest.json:",
    patch={"patch": [2**20] * 3},
    negative={"patch": [-16, 16, 16]},
    word={"patch": "16"},
    classes={"network_shape__classes": 10**9},
    channels={"network_shape__in_channels": 10**9},
    queries={"network_shape__groups__0__queries": 10**9},
    spacing={"plan__spacing_mm": [1e-30] * 3},
    zero={"plan__spacing_mm": [0, 1, 1]},
    labels={"labels": {"a": -1, "b": 10**12}},
    list={"labels": [1, 2]},
    normalisation={"plan__normalisation": [{"kind": "exec"}]},
    leaves={"split__test": ["../../x"]},
    absolute={"split__test": ["/etc/x"]},
    hidden={"split__test": [".x"]},
    number={"split__test": [3]},
    null={"split": None},
    no_network={
        "plan": {key: MANIFEST["plan"][key] for key in ("spacing_mm", "normalisation", "patch")}
    },
    more_channels={"channels": ["a", "b"]},
    fewer_labels={"labels": {"a": 0, "b": 1}},
    measured={"fingerprint": {"shape_median": 3}},
)
def manifest(folder: Path, variant: dict) -> None:
    from dkuxnet.prediction.segment import Segmenter

    run_folder(folder, with_(MANIFEST, **variant))
    (folder / "final.safetensors").write_bytes(checkpoints()[0])
    Segmenter(folder, device="cpu")


def load_with(folder: Path, settings: bytes) -> None:
    from dkuxnet.prediction.segment import Segmenter

    run_folder(folder, settings=settings)
    (folder / "final.safetensors").write_bytes(checkpoints()[0])
    Segmenter(folder, device="cpu")


@stranger(
    "settings.json: missing or not JSON",
    deep=b"[" * 10**6,
    pairs=b'{"a":' * 10**6,
    nan=b'{"train": NaN}',
    infinite=b'{"train": {"lr": 1e999}}',
    digits=b'{"train": {"seed": ' + b"9" * 10**5 + b"}}",
    half=b'{"\\ud800": 1}',
    byte=b"\xff\xfe",
)
def settings_text(folder: Path, variant: bytes) -> None:
    load_with(folder, variant)


@stranger(
    "settings.json: expected a JSON object", list=b"[]", long=b"[" + b"[]," * 5_000_000 + b"[]]"
)
def settings_list(folder: Path, variant: bytes) -> None:
    load_with(folder, variant)


@stranger(
    "Input should be",
    wide=with_(SETTINGS, network__widths=[10**9] * 4),
    many=with_(SETTINGS, network__queries=10**9),
    depths=with_(SETTINGS, network__depths=[10**9] * 4),
    heads=with_(SETTINGS, network__heads=0),
)
def settings_absurd(folder: Path, variant: bytes) -> None:
    load_with(folder, variant)


@stranger("in state_dict")
def settings_wider_than_the_weights(folder: Path) -> None:
    """Within all bounds, and 100 GB all the same: only a look at the weights' own shapes saves the
    memory.
    """
    from dkuxnet.prediction.segment import Segmenter

    run_folder(folder, settings=with_(SETTINGS, network__widths=[8192] * 4, network__queries=30))
    (folder / "final.safetensors").write_bytes(checkpoints()[0])
    Segmenter(folder, device="cpu")


@stranger("manifest.json: missing or not JSON (it is", zero="zero", pipe="pipe", large="large")
def manifest_file(folder: Path, variant: str) -> None:
    from dkuxnet.runs.folder import RunFolder

    path = run_folder(folder) / "manifest.json"
    path.unlink()
    {
        "zero": lambda: path.symlink_to("/dev/zero"),
        "pipe": lambda: os.mkfifo(path),
        "large": lambda: sparse(path, LARGE),
    }[variant]()
    RunFolder.open(folder).manifest  # noqa: B018


@stranger("line 1 is damaged")
def metrics(folder: Path) -> None:
    from dkuxnet.runs.folder import RunFolder

    (folder / "metrics.jsonl").write_text("[" * 100_000 + '\n{"step": 1}\n')
    RunFolder(folder).metrics()


@stranger(
    "damaged, or not what dkuxnet writes", above="../../../x.nii.gz", absolute="/etc/x.nii.gz"
)
def summary(folder: Path, variant: str) -> None:
    from dkuxnet.evaluation.evaluate import Evaluation, Score
    from dkuxnet.report.results import read_results

    row = Score("a", "organ", 1, *[1] * 12)
    Evaluation([row], {"a": (Path("predictions/a.nii.gz"), Path("x"))}).write_json(
        folder / "summary.json"
    )
    assert read_results(folder).cases[0].name == "a"
    (folder / "summary.json").write_text(
        (folder / "summary.json").read_text().replace("predictions/a.nii.gz", variant)
    )
    read_results(folder)


@stranger(
    "is a link",
    evaluation="evaluation",
    metrics="metrics.jsonl",
    lock=".lock",
    deep="evaluation/predictions",
)
def resume_through_a_link(folder: Path, variant: str) -> None:
    from dkuxnet.core.config import Settings
    from dkuxnet.training.experiment import run_training

    prepared, run, outside = folder / "prepared", folder / "run", folder / "outside"
    for each in (prepared, run, outside):
        each.mkdir()
    write_prepared(prepared, *(with_(tree) for tree in (PREPARED, INFO)), arrays()[0])
    (outside / "kept").write_text("kept")
    (run_folder(run) / variant).parent.mkdir(exist_ok=True)
    (run / variant).symlink_to(outside / "kept" if "." in variant else outside)
    try:
        run_training(prepared, run, Settings(), resume=True)
    finally:
        assert [path.name for path in outside.iterdir()] == ["kept"] and (
            outside / "kept"
        ).read_text() == "kept"


@stranger(
    "its split does not fit",
    unknown={"split__test": ["c"]},
    twice={"split__validation": ["a"]},
    unlabelled={"split__test": ["b"]},
    none={"split__labelled": []},
)
def resume_with_a_split(folder: Path, variant: dict) -> None:
    from dkuxnet.core.config import Settings
    from dkuxnet.training.experiment import run_training

    prepared, run = folder / "prepared", folder / "run"
    prepared.mkdir()
    run.mkdir()
    write_prepared(prepared, *(with_(tree) for tree in (PREPARED, INFO)), arrays()[0])
    run_folder(run, with_(MANIFEST, **variant))
    run_training(prepared, run, Settings(), resume=True)


# --- prepared sets ---


@stranger(
    "dataset.json: ",
    above={"cases__0__name": "../../x"},
    absolute={"cases__0__name": "/etc/x"},
    drive={"cases__0__name": "C:x"},
    twice={"cases__0__name": "b"},
    escape={"cases__0__name": "a\x1b[2J"},
    number={"cases__0__name": 3},
    shape={"cases__0__shape": [2**15] * 3},
    negative={"cases__0__shape": [-4, 5, 3]},
    two={"cases__0__shape": [4, 5]},
    labelled={"cases__0__labelled": "no"},
    plan={"plan": None},
    spacing={"plan__spacing_mm": [1e-9] * 3},
    patch={"plan__patch": [2**20, 16, 16]},
    channels={"channels": ["x"] * 1000},
    labels={"labels": {"a": 0}},
)
def prepared(folder: Path, variant: dict) -> None:
    from dkuxnet.data.prepared_set import PreparedSet

    write_prepared(folder, with_(PREPARED, **variant), with_(INFO), arrays()[0])
    PreparedSet(folder)


@stranger(
    "case", affine={"affine": [[1e400] * 4] * 4}, shape={"shape": [2**16] * 3}, path={"images": 3}
)
def prepared_case(folder: Path, variant: dict) -> None:
    from dkuxnet.data.prepared_set import PreparedSet

    write_prepared(
        folder, with_(PREPARED), with_(INFO, **variant).replace(b"Infinity", b"1e400"), arrays()[0]
    )
    PreparedSet(folder).array("a", "truth")


@stranger(
    "missing or damaged",
    terabytes="terabytes",
    chunk="chunk",
    shape="shape",
    type="type",
    recipe="recipe",
    cut="cut",
    folder="folder",
)
def array(folder: Path, variant: str) -> None:
    import blosc2

    from dkuxnet.data.prepared_set import PreparedSet

    shape = [4, 5, 3]
    write_prepared(folder, with_(PREPARED), with_(INFO), arrays()[0])
    path = folder / "cases" / "a.image.b2nd"
    path.unlink()
    if variant == "terabytes":
        blosc2.zeros(
            (1, 2**14, 2**14, 2**10),
            dtype=np.float32,
            urlpath=str(path),
            mode="w",
            chunks=(1, 64, 64, 64),
        )
    elif variant == "chunk":
        shape = [1024, 1024, 512]
        blosc2.zeros(
            (1, *shape),
            dtype=np.float32,
            urlpath=str(path),
            mode="w",
            chunks=(1, *shape[:2], 128),
            blocks=(1, 64, 64, 64),
        )
    elif variant == "recipe":  # a lazy expression of this very shape: blosc2.open would rebuild it
        operand = blosc2.asarray(
            np.zeros((1, *shape), np.float32), urlpath=str(folder / "operand.b2nd"), mode="w"
        )
        (operand + 1).save(urlpath=str(path))
    elif variant == "folder":
        path.mkdir()
    else:
        made = {
            "shape": np.zeros((1, 5, 5, 5), np.float32),
            "type": np.zeros((1, *shape), np.float64),
        }.get(variant)
        path.write_bytes(arrays()[0][:100])
        if made is not None:
            blosc2.asarray(made, urlpath=str(path), mode="w")
    (folder / "dataset.json").write_bytes(with_(PREPARED, cases__0__shape=shape))
    PreparedSet(folder).array("a", "image")


# --- sources, splits, settings, grids ---


@stranger(
    "dataset.json",
    above={"dataset__a__images": ["../../../etc/passwd"]},
    absolute={"dataset__a__images": ["/etc/passwd"]},
    label={"dataset__a__label": "/etc/passwd"},
    nul={"dataset__a__label": "a\0.nii.gz"},
    value={"labels__organ": 2**60},
    digits={"labels": {"9" * 5000: "x", "0": "b"}},
    channel={"channel_names": {"1000000000": "x"}},
)
def source(folder: Path, variant: dict) -> None:
    from dkuxnet.data.layouts import find_source

    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (folder / name).parent.mkdir()
        (folder / name).touch()
    (folder / "dataset.json").write_bytes(with_(SOURCE, **variant))
    find_source(folder)


@stranger("expected a case name", above="../x", slash="a/b", dot=".x", line="a\nb")
def source_name(folder: Path, variant: str) -> None:
    source(folder, {"dataset": {variant: SOURCE["dataset"]["a"]}})


@stranger("expected a file that ends with", long="x" * 300, zip="x" * 300 + ".zip")
def decathlon_name(folder: Path, variant: str) -> None:
    from dkuxnet.data.layouts import find_source

    (folder / "dataset.json").write_bytes(with_(DECATHLON, training__0__image=variant))
    find_source(folder)


@stranger("expected names of folders", above="../../x", absolute="/etc")
def train_list(folder: Path, variant: str) -> None:
    from dkuxnet.data.layouts import find_source

    (folder / "a").mkdir()
    (folder / "a" / "mri_norm2.h5").write_bytes(scans(".h5")[0])
    (folder / "train.list").write_text(f"a\n{variant}\n")
    find_source(folder)


@stranger(
    "split",
    deep=b"[" * 10**6,
    number=b'{"train": [3]}',
    other=b'{"train": ["../../x"]}',
    key=b'{"a": []}',
)
def split(folder: Path, variant: bytes) -> None:
    from dkuxnet.data.splits import make_split

    (folder / "split.json").write_bytes(variant)
    make_split(["a", "b"], ["a"], file=folder / "split.json")


@stranger(
    "x.toml: not a TOML file",
    deep=b"a = " + b"[" * 10**5,
    dotted=b".".join([b"a"] * 80_000) + b" = 1",
    table=b"[" + b".".join([b"'a'"] * 50_000) + b"]",
    digits=b"train.seed = " + b"9" * 10**4,
    nan=b"train.lr = nan",
)
def toml(folder: Path, variant: bytes) -> None:
    from dkuxnet.core.config import load_settings

    (folder / "x.toml").write_bytes(variant)
    load_settings("default", folder / "x.toml")


@stranger("x.toml: cannot read the settings: it is larger")
def toml_large(folder: Path) -> None:
    toml(folder, b"#" * MEBIBYTE)


@stranger(
    "Input should be",
    batch=b"train.labelled_batch = 9223372036854775807",
    queries=b"network.queries = 1000000000",
    patch=b"train.patch = [1048576, 1048576, 1048576]",
)
def toml_absurd(folder: Path, variant: bytes) -> None:
    toml(folder, variant)


@stranger("x.toml", arm=b"[methods.'../../x']\nmethod = 'bcp'", runs=b"[methods.bcp]")
def grid(folder: Path, variant: bytes) -> None:
    from dkuxnet.benchmark.grid import read_grid, wanted_runs

    many = f"labelled = {list(range(1, 10_001))}\nseeds = {list(range(10_000))}\n".encode()
    lists = many if b"bcp]" in variant else b"labelled = [1]\nseeds = [0]\n"
    (folder / "x.toml").write_bytes(b"prepared = 'p'\noutput = 'o'\n" + lists + variant)
    wanted_runs(read_grid(folder / "x.toml"), "vnet")


# --- scans ---


@stranger("x.nii", terabytes="terabytes", endless="endless", negative="negative", offset="offset")
def nifti(folder: Path, variant: str) -> None:
    from dkuxnet.data import formats

    data, path = (
        bytearray(scans(".nii")[0]),
        folder / ("x.nii.gz" if variant == "endless" else "x.nii"),
    )
    if variant in ("terabytes", "negative"):
        data[42:48] = np.array(
            [32767] * 3 if variant == "terabytes" else [-4, 5, 3], "<i2"
        ).tobytes()
    if variant == "offset":
        data[108:112] = np.array([1e30], "<f4").tobytes()
    path.write_bytes(bytes(data))
    if variant == "endless":
        path.write_bytes(gzip.compress(bytes(data)) + gzip.compress(bytes(64 * MEBIBYTE), 1) * 64)
    formats.read(path)


@stranger(
    "x.nrrd",
    terabytes=(b"sizes: 4 5 3", b"sizes: 60000 60000 60000"),
    other=(b"encoding: ", b"data file: /etc/passwd\nencoding: "),
    list=(b"encoding: ", b"data file: LIST\nencoding: "),
    axes=(b"dimension: 3", b"dimension: 300"),
)
def nrrd(folder: Path, variant: tuple[bytes, bytes]) -> None:
    changed(folder, ".nrrd", *variant)


@stranger("bytes of voxels by its header")
def nrrd_channels(folder: Path) -> None:
    """A billion channels: no pixel of them may be made to see their type."""
    from dkuxnet.data import formats

    (folder / "x.nrrd").write_bytes(
        b"NRRD0004\ntype: float\ndimension: 4\nsizes: 1000000000 4 5 3\n"
        b"kinds: vector domain domain domain\nendian: little\nencoding: raw\n\n" + bytes(480)
    )
    formats.read(folder / "x.nrrd")


@stranger(
    "x.mha",
    terabytes=(b"DimSize = 4 5 3", b"DimSize = 60000 60000 60000"),
    other=(b"ElementDataFile = LOCAL", b"ElementDataFile = /etc/passwd"),
    axes=(b"NDims = 3", b"NDims = 3000"),
    again=(b"NDims = 3", b"NDims = 2147483648\nNDims = 3"),
    colon=(b"NDims = 3", b"NDims : 2147483648\nNDims = 3"),
    first=(b"ElementDataFile = LOCAL", b"ElementDataFile : /etc/passwd\nElementDataFile = LOCAL"),
)
def mha(folder: Path, variant: tuple[bytes, bytes]) -> None:
    changed(folder, ".mha", *variant)


def changed(folder: Path, suffix: str, old: bytes, new: bytes) -> None:
    from dkuxnet.data import formats

    data = scans(suffix)[0]
    assert old in data
    (folder / f"x{suffix}").write_bytes(data.replace(old, new, 1))
    formats.read(folder / f"x{suffix}")


@stranger(
    "x.h5", link="link", external="external", virtual="virtual", filters="filters", affine="affine"
)
def h5(folder: Path, variant: str) -> None:

    import h5py

    from dkuxnet.data import formats

    path, secret = folder / "x.h5", folder / "secret.bin"
    secret.write_bytes(bytes(4 * 60))
    with h5py.File(folder / "other.h5", "w") as file:
        file["image"] = np.zeros((4, 5, 3), np.float32)
    with h5py.File(path, "w") as file:
        if variant == "link":
            file["image"] = h5py.ExternalLink(folder / "other.h5", "image")
        elif variant == "external":
            file.create_dataset("image", (4, 5, 3), np.float32, external=[(str(secret), 0, 240)])
        elif variant == "virtual":
            layout = h5py.VirtualLayout((4, 5, 3), np.float32)
            layout[:] = h5py.VirtualSource(folder / "other.h5", "image", (4, 5, 3))
            file.create_virtual_dataset("image", layout)
        elif variant == "filters":
            file.create_dataset(
                "image", data=np.zeros((4, 5, 3), np.int32), chunks=(4, 5, 3), scaleoffset=0
            )
        else:
            file["image"] = np.zeros((4, 5, 3), np.float32)
            file.attrs["affine"] = "x"
    formats.read(path)


@stranger("expected 17592186044416 bytes of voxels by its header")
def h5_terabytes(folder: Path) -> None:
    import h5py

    from dkuxnet.data import formats

    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset(
            "image", (2**14, 2**14, 2**14), np.float32, chunks=(64, 64, 64), compression="gzip"
        )
    formats.read(folder / "x.h5")


@stranger("a chunk of its voxels unpacks to far more than it holds")
def h5_chunk(folder: Path) -> None:
    """4 MiB that inflate to 4 GiB."""
    import h5py

    from dkuxnet.data import formats

    packer = zlib.compressobj(9)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)  # what follows it can be repeated
    block = packer.compress(bytes(16 * MEBIBYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    with h5py.File(folder / "x.h5", "w") as file:
        made = file.create_dataset(
            "image", (128, 128, 64), np.float32, chunks=(128, 128, 64), compression="gzip"
        )
        made.id.write_direct_chunk((0, 0, 0), head + block * 250)
    formats.read(folder / "x.h5")


@stranger(
    "dicom",
    rows=(b"\x28\x00\x10\x00US\x02\x00\x04\x00", b"\x28\x00\x10\x00US\x02\x00\xff\xff"),
    spacing=(b"0.5\\0.5 ", b"1e400\\1 "),
)
def dicom(folder: Path, variant: tuple[bytes, bytes]) -> None:
    from dkuxnet.data import formats

    (folder / "dicom").mkdir()
    for index, data in enumerate(slices()):
        assert variant[0] in data
        (folder / "dicom" / f"{index}.dcm").write_bytes(data.replace(*variant))
    formats.read(folder / "dicom")


@stranger("x.zip", above="../x.dcm", absolute="/x.dcm", none="", bomb="bomb")
def dicom_zip(folder: Path, variant: str) -> None:
    from dkuxnet.data import formats

    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        if variant == "bomb":
            with archive.open("x.dcm", "w", force_zip64=True) as file:
                for _ in range(40):
                    file.write(bytes(16 * MEBIBYTE))
        else:
            archive.writestr(zipfile.ZipInfo(variant), slices()[0])
    formats.read(folder / "x.zip")


# --- scans whose headers name other files ---

VOXELS = bytes(60)
META = "ObjectType = Image\nNDims = 3\nDimSize = 4 5 3\nElementType = MET_UCHAR\n"
NEAR = "../../{folder}-secrets/secret.raw"  # of the scan's folder


def texts(folder: Path, path: str, text: str, data: bytes = VOXELS) -> None:
    """Read a file of `text` and `data`; {secret}, {secrets} and {near} in the text lead outside."""
    from dkuxnet.data import formats

    near = NEAR.format(folder=folder.parent.name)
    names = {"secret": secret(folder), "secrets": secrets(folder.parent), "near": near}
    for name, value in names.items():
        text = text.replace("{" + name + "}", str(value))
    (folder / path).write_bytes(text.encode("latin-1") + data)
    formats.read(folder / path)


@stranger(
    "x.mha: ",
    return_alone="Comment = x\rElementDataFile = {secret}\nElementDataFile = LOCAL\n",
    return_local="Comment = x\rElementDataFile = LOCAL\nElementDataFile = {secret}\n",
    return_near="Comment = x\rElementDataFile = LOCAL\nElementDataFile = {near}\n",
    return_list="Comment = x\rElementDataFile = LOCAL\nElementDataFile = LIST\n" + "{secret}\n" * 3,
    return_pattern="Comment = x\rElementDataFile = LOCAL\n"
    "ElementDataFile = {secrets}/secret%d.raw 0 2 1\n",
    return_packed="Comment = x\rElementDataFile = LOCAL\nCompressedData = True\n"
    "ElementDataFile = {secret}\n",
    return_first="ElementDataFile = {secret}\rElementDataFile = LOCAL\n",
    returns="\r".join(META.splitlines())
    + "\rElementDataFile = {secret}\rx = \nElementDataFile = LOCAL\n",
    return_twice="Comment = x\r\r\nElementDataFile = LOCAL\n",
    feed="Comment = x\x0cElementDataFile = {secret}\nElementDataFile = LOCAL\n",
    tab="Comment = x\x0bElementDataFile = {secret}\nElementDataFile = LOCAL\n",
    nul="Comment = x\0\nElementDataFile = {secret}\nElementDataFile = LOCAL\n",
    nul_name="ElementDataFile = {secret}\0LOCAL\n",
    nul_local="ElementDataFile = LOCAL\0{secret}\n",
    second="ElementDataFile = {secret}\nElementDataFile = LOCAL\n",
    near="ElementDataFile = {near}\n",
    long="Comment = " + "x" * 70_000 + "\nElementDataFile = {secret}\nElementDataFile = LOCAL\n",
    longer="Comment = " + "x" * 2**21 + "\nElementDataFile = LOCAL\n",
    lines="a = b\n" * 20_000 + "ElementDataFile = {secret}\n",
    list="ElementDataFile = LIST\n{secret}\n{secret}\n{secret}\n",
    list_2d="ElementDataFile = LIST 2\n{secret}\n{secret}\n{secret}\n",
    pattern="ElementDataFile = {secrets}/secret%d.raw 0 2 1\n",
    colon="ElementDataFile : {secret}\nElementDataFile = LOCAL\n",
    lower="elementdatafile = {secret}\nElementDataFile = LOCAL\n",
    indented="  ElementDataFile = {secret}\nElementDataFile = LOCAL\n",
    tabbed="ElementDataFile\t=\t{secret}\nElementDataFile = LOCAL\n",
    words="ElementDataFile = LOCAL {secret}\n",
    behind="ElementDataFile = {secret} LOCAL\n",
    local="ElementDataFile = LOCALLY\n",
    quoted='ElementDataFile = "{secret}"\n',
    url="ElementDataFile = file://{secret}\n",
    empty="ElementDataFile =\n",
    absent="Name = x\n",
    unended="ElementDataFile = LOCAL",
    packed="CompressedData = True\nCompressedDataSize = 60\nElementDataFile = {secret}\n",
    spaces="Comment" + " " * 2**19 + "x\nElementDataFile = LOCAL\n",
    digits="Offset = " + "1" * 2**19 + "x\nElementDataFile = LOCAL\n",
    other_lines="ElementDataFile = {secret}\r\nElementDataFile = LOCAL\r\n",
)  # fmt: skip
def mha_name(folder: Path, variant: str) -> None:
    texts(folder, "x.mha", variant if variant.startswith("ObjectType") else META + variant)


@stranger(
    "x.mha: ",
    negative="DimSize = -4 5 3",
    none="DimSize = 0 5 3",
    half="DimSize = 4.5 5 3",
    hexadecimal="DimSize = 0x4 5 3",
    many="DimSize = " + "1 " * 100_000,
    few="DimSize = 4",
    power="DimSize = 1e18 1e18 1e18",
    wide="DimSize = 4\xb2 5 3",
    channels="DimSize = 4 5 3\nElementNumberOfChannels = -1",
    billions="DimSize = 4 5 3\nElementNumberOfChannels = 1000000000",
    spacing="DimSize = 4 5 3\nElementSpacing = 0 1 1",
    spacings="DimSize = 4 5 3\nElementSpacing = nan 1 1",
    huge="DimSize = 4 5 3\nElementSpacing = 1e999 1 1",
    flat="DimSize = 4 5 3\nTransformMatrix = 1 0 0 1 0 0 0 0 1",
    matrix="DimSize = 4 5 3\nTransformMatrix = " + "1 " * 90_000,
    offset="DimSize = 4 5 3\nOffset = 1 2 3\nPosition = 4 5 6",
    header="DimSize = 4 5 3\nHeaderSize = -1",
    headers="DimSize = 4 5 3\nHeaderSize = 1000000000000",
    tube="DimSize = 4 5 3\nObjectSubType = x\nBinaryData = False",
    order="DimSize = 4 5 3\nElementByteOrderMSB = True\nBinaryDataByteOrderMSB = False",
    line="DimSize = 4 5 3\nwhat is this",
    packed="DimSize = 4 5 3\nCompressedData = True\nCompressedDataSize = -1",
    size="DimSize = 4 5 3\nCompressedData = True\nCompressedDataSize = 999999999999999999",
)
def mha_number(folder: Path, variant: str) -> None:
    text = f"NDims = 3\n{variant}\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    packed = zlib.compress(VOXELS) if "CompressedData" in variant else VOXELS
    texts(folder, "x.mha", text, packed)


@stranger(
    "x.mha: ",
    string="MET_STRING",
    none="MET_NONE",
    other="MET_OTHER",
    array="MET_FLOAT_ARRAY",
    two="MET_UCHAR MET_FLOAT",
    empty="",
)
def mha_type(folder: Path, variant: str) -> None:
    text = META.replace("MET_UCHAR", variant)
    texts(folder, "x.mha", text + "ElementDataFile = LOCAL\n", bytes(4096))


NRRD_FIELDS = "NRRD0005\ntype: uchar\ndimension: 3\nsizes: 4 5 3\nencoding: raw\n"


@stranger(
    "x.nrrd: ",
    plain="data file: {secret}\n\n",
    detached="data file: {secret}\n",
    joined="datafile: {secret}\n\n",
    upper="DATA FILE: {secret}\n\n",
    spaces="data  file: {secret}\n\n",
    indented=" data file: {secret}\n\n",
    tab="data\tfile: {secret}\n\n",
    near="data file: {near}\n\n",
    return_alone="content: x\rdata file: {secret}\n\n",
    return_comment="# x\rdata file: {secret}\r\n\n",
    feed="content: x\x0cdata file: {secret}\n\n",
    nul="content: x\0\ndata file: {secret}\n\n",
    long="content: " + "x" * 70_000 + "\ndata file: {secret}\n\n",
    longer="# " + "x" * 2**21 + "\ndata file: {secret}\n\n",
    comments="# x\n" * 30_000 + "data file: {secret}\n\n",
    list="data file: LIST\n{secret}\n{secret}\n{secret}\n\n",
    list_2d="data file: LIST 2\n{secret}\n{secret}\n{secret}\n\n",
    pattern="data file: {secrets}/secret%d.raw 0 2 1 2\n\n",
    returns="content: x\r\rdata file: {secret}\n\n",
    pair="content: x\rk:=v\rdata file: {secret}\n\n",
    unknown="data files: {secret}\n\n",
    line="what is this\n\n",
    cut="content: x\n",
)
def nrrd_name(folder: Path, variant: str) -> None:
    texts(folder, "x.nrrd", NRRD_FIELDS + variant, b"" if variant == "content: x\n" else VOXELS)


@stranger(
    "x.nrrd: ",
    magic=("NRRD0005", "NRRD0005 data file: /etc/passwd"),
    version=("NRRD0005", "NRRD9999"),
    axes=("dimension: 3", "dimension: 0"),
    no_axes=("dimension: 3\n", ""),
    again=("dimension: 3", "dimension: 3\ndimension: 3"),
    again_upper=("dimension: 3", "dimension: 3\nDimension: 4"),
    encoding_again=("encoding: raw", "encoding: raw\nencoding: gzip"),
    bzip=("encoding: raw", "encoding: bzip2"),
    zrl=("encoding: raw", "encoding: zrl"),
    words=("encoding: raw", "encoding: ascii"),
    hex=("encoding: raw", "encoding: hex"),
    block=("type: uchar", "type: block\nblock size: 1000000000000"),
    long=("type: uchar", "type: long double"),
    endian=("type: uchar", "type: float"),
    line_skip=("encoding: raw", "line skip: 1000000000\nencoding: raw"),
    byte_skip=("encoding: raw", "byte skip: -1\nencoding: raw"),
    negative=("sizes: 4 5 3", "sizes: -4 -5 3"),
    sizes=("sizes: 4 5 3", "sizes: " + "4 " * 100_000),
    product=("sizes: 4 5 3", "sizes: 999999999 999999999 999999999"),
    kinds=("encoding: raw", "kinds: vector vector domain\nencoding: raw"),
    matrix=("encoding: raw", "kinds: 3d-masked-symmetric-matrix domain domain\nencoding: raw"),
    vectors=("encoding: raw", "space directions: (1,0,0) (0,1,0)\nencoding: raw"),
    uneven=("encoding: raw", "space directions: (1,0,0) (0,1) (0,0,1)\nencoding: raw"),
    text=("encoding: raw", "space directions: (1,0,0) (a,b,c) (0,0,1)\nencoding: raw"),
    numbers=("encoding: raw", "space directions: (1,0,0) (nan,1,0) (0,0,1)\nencoding: raw"),
    flat=("encoding: raw", "space directions: (1,0,0) (1,0,0) (0,0,1)\nencoding: raw"),
    spaces=(
        "encoding: raw",
        "space directions: none" + " " * 2**19 + "x (0,1,0) (0,0,1)\nencoding: raw",
    ),
    digits=("encoding: raw", "spacings: " + "1" * 2**19 + "x 1 1\nencoding: raw"),
    brackets=("encoding: raw", "space directions: " + "(" * 50_000 + "\nencoding: raw"),
    spacings=("encoding: raw", "spacings: 1 0 1\nencoding: raw"),
    origin=(
        "encoding: raw",
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (1,2,inf)\nencoding: raw",
    ),
)  # fmt: skip
def nrrd_field(folder: Path, variant: tuple[str, str]) -> None:
    texts(folder, "x.nrrd", NRRD_FIELDS.replace(*variant) + "\n", b"x" * 60)


BLOCK_MIB = 16


@cache
def zeros(mebibytes: int, wbits: int = zlib.MAX_WBITS, ended: bool = True) -> bytes:
    """What unpacks to that many mebibytes of zeros, made from a block that is repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(BLOCK_MIB * MEBIBYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (mebibytes // BLOCK_MIB) + (packer.flush() if ended else b"")


@cache
def gzip_of(count: int) -> bytes:
    return gzip.compress(bytes(count), 1)


@stranger("it unpacks to far more", mha=".mha", nrrd=".nrrd")
def unpacks_to_more(folder: Path, variant: str) -> None:
    """4 MiB that unpack to 4 GiB, where the header promises 60 bytes."""
    packed = zeros(4096, 31 if variant == ".nrrd" else 15)
    packed_meta(folder, variant, "4 5 3", packed)


# Bytes that deflate does not pack: so many that a file could hold what its header promises.
STORED = (b"\0\xff\xff\0\0" + bytes(65535)) * 8


@stranger("cut short", 64, mha=".mha", nrrd=".nrrd")
def unpacks_to_less(folder: Path, variant: str) -> None:
    """A header that promises 512 MiB, of which the file holds 320."""
    packed = zeros(320, 31 if variant == ".nrrd" else 15, False) + STORED
    packed_meta(folder, variant, "1024 1024 512", packed)


def packed_meta(folder: Path, variant: str, size: str, packed: bytes) -> None:
    if variant == ".nrrd":
        text = NRRD_FIELDS.replace("raw", "gzip").replace("4 5 3", size) + "\n"
    else:
        text = META.replace("4 5 3", size)
        text += (
            f"CompressedData = True\nCompressedDataSize = {len(packed)}\nElementDataFile = LOCAL\n"
        )
    texts(folder, f"x{variant}", text, packed)


@stranger("expected a file that ends with", nhdr="nhdr", img="img", raw="raw", xml="xml")
def other_format(folder: Path, variant: str) -> None:
    texts(folder, f"x.{variant}", META + "ElementDataFile = {secret}\n")


@stranger(
    "x.mhd: ",
    absolute="ElementDataFile = {secret}\n",
    near="ElementDataFile = {near}\n",
    backslash="ElementDataFile = ..\\x\n",
    drive="ElementDataFile = C:x\n",
    hidden="ElementDataFile = .x\n",
    above="ElementDataFile = ..\n",
    link="ElementDataFile = link\n",
    link_of_a_link="ElementDataFile = links\n",
    folder="ElementDataFile = folder\n",
    through="ElementDataFile = folder/link\n",
    pipe="ElementDataFile = pipe\n",
    device="ElementDataFile = zero\n",
    absent="ElementDataFile = x.raw\n",
    list="ElementDataFile = LIST\n{secret}\n{secret}\n{secret}\n",
    pattern="ElementDataFile = x%d.raw 0 2 1\n",
    second="ElementDataFile = {secret}\nElementDataFile = LOCAL\n",
    return_alone="Comment = x\rElementDataFile = {secret}\nElementDataFile = LOCAL\n",
    packed="CompressedData = True\nCompressedDataSize = 60\nElementDataFile = link\n",
    skipped="HeaderSize = 4\nElementDataFile = exact\n",
    terabytes="DimSize = 60000 60000 60000\nElementDataFile = exact\n",
)
def mhd(folder: Path, variant: str) -> None:
    """The voxels of an .mhd lie beside it, in a file that nothing can move elsewhere."""
    (folder / "exact").write_bytes(VOXELS)
    (folder / "link").symlink_to(secret(folder))
    (folder / "links").symlink_to("link")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    (folder / "folder" / "link").symlink_to(secret(folder))
    os.mkfifo(folder / "pipe")
    text = META.replace("DimSize = 4 5 3\n", "") if "DimSize" in variant else META
    texts(folder, "x.mhd", text + variant, b"")


@stranger("but it has", longer=61, shorter=59, packed=60)
def voxels_beside_of_another_length(folder: Path, variant: int) -> None:
    (folder / "x.raw").write_bytes(bytes(variant))
    packed = "CompressedData = True\nCompressedDataSize = 9\n" if variant == 60 else ""
    texts(folder, "x.mhd", META + packed + "ElementDataFile = x.raw\n", b"")


@stranger("it unpacks to far more")
def zraw_unpacks_to_more(folder: Path) -> None:
    packed = zeros(4096, 15)
    (folder / "x.zraw").write_bytes(packed)
    text = f"CompressedData = True\nCompressedDataSize = {len(packed)}\n"
    texts(folder, "x.mhd", META + text + "ElementDataFile = x.zraw\n", b"")


@stranger(
    "x",
    absent="absent",
    link="link",
    pipe="pipe",
    longer="longer",
    far="far",
    terabytes="terabytes",
    analyze="analyze",
    single="single",
    text="text",
)
def nifti_pair(folder: Path, variant: str) -> None:
    from dkuxnet.data import formats

    changes = {
        "far": {"vox_offset": 2e9},
        "terabytes": {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]},
        "analyze": {"magic": b"\0\0\0\0"},
        "single": {"magic": b"n+1\0"},
    }
    data = nifti_of(**{"magic": b"ni1\0", "vox_offset": 0} | changes.get(variant, {}))[:348]
    (folder / "x.hdr").write_bytes(b"text" * 99 if variant == "text" else bytes(data))
    image = folder / "x.img"
    if variant == "link":
        image.symlink_to(secret(folder))
    elif variant == "pipe":
        os.mkfifo(image)
    elif variant != "absent":
        image.write_bytes(VOXELS + b"x" * (variant == "longer"))
    formats.read(folder / "x.hdr")


@stranger(None)
def nifti_pair_whole(folder: Path) -> None:
    from dkuxnet.data import formats

    (folder / "x.hdr").write_bytes(nifti_of(magic=b"ni1\0", vox_offset=0)[:348])
    (folder / "x.img").write_bytes(VOXELS)
    formats.read(folder / "x.hdr")


@stranger(
    "x.mgz: ",
    text="text",
    short="short",
    version="version",
    type="type",
    negative="negative",
    terabytes="terabytes",
    gigabytes="gigabytes",
    endless="endless",
    nan="nan",
)
def mgz(folder: Path, variant: str) -> None:
    from dkuxnet.data import formats
    from dkuxnet.data.formats.mgh import FIELDS

    fields = np.zeros(1, FIELDS)
    fields["version"], fields["shape"], fields["placed"] = 1, (4, 5, 3, 1), 1
    fields["spacing_mm"], fields["axes"] = 1, np.eye(3)
    for name, (field, value) in {
        "version": ("version", 2),
        "type": ("type", 7),
        "negative": ("shape", (-4, 5, 3, 1)),
        "terabytes": ("shape", (60000, 60000, 60000, 1)),
        "gigabytes": ("shape", (1280, 1280, 1250, 1)),
        "nan": ("centre_mm", np.nan),
    }.items():
        if name == variant:
            fields[field] = value
    data = fields.tobytes().ljust(284, b"\0") + VOXELS
    data = {"text": b"text" * 99, "short": data[:200]}.get(variant, data)
    more = zeros(2048, 31) if variant == "endless" else b""
    more = zeros(1536, 31, False) if variant == "gigabytes" else more
    (folder / "x.mgz").write_bytes(gzip.compress(data) + more)
    formats.read(folder / "x.mgz")


@stranger(None, pair="k:=v\ndata file:={secret}\n\n", comment="# data file: {secret}\n\n")
def nrrd_harmless(folder: Path, variant: str) -> None:
    texts(folder, "x.nrrd", NRRD_FIELDS + variant)


@stranger(
    None,
    comment="Comment = ElementDataFile = {secret}\nElementDataFile = LOCAL\n",
    key="DataFile = {secret}\nElementDataFile = LOCAL\n",
)
def mha_harmless(folder: Path, variant: str) -> None:
    (folder / "LOCAL").symlink_to(secret(folder))
    texts(folder, "x.mha", META + variant)


# --- NIfTI ---


def nifti_of(**fields) -> bytearray:
    """A file of 4 x 5 x 3 bytes, with changed fields: (place, type, values)."""
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_shape((4, 5, 3))
    header.set_data_dtype(np.uint8)
    header.set_sform(np.eye(4), code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    data = bytearray(header.binaryblock + bytes(4) + VOXELS)
    for name, value in fields.items():
        dtype, place = header.template_dtype.fields[name][:2]
        raw = np.array(value, dtype.base).tobytes() if not isinstance(value, bytes) else value
        data[place : place + len(raw)] = raw
    return data


@stranger(
    "x.nii: ",
    rgb={"datatype": 128, "bitpix": 24},
    complex={"datatype": 32, "bitpix": 64},
    long_complex={"datatype": 2048, "bitpix": 256},
    bits={"datatype": 1, "bitpix": 1},
    unknown={"datatype": 77},
    axes={"dim": [8, 4, 5, 3, 1, 1, 1, 1]},
    no_axes={"dim": [0, 4, 5, 3, 1, 1, 1, 1]},
    negative_axes={"dim": [-3, 4, 5, 3, 1, 1, 1, 1]},
    two={"dim": [2, 4, 5, 1, 1, 1, 1, 1]},
    seven={"dim": [7, 4, 5, 3, 2, 2, 2, 2]},
    empty={"dim": [3, 4, 0, 3, 1, 1, 1, 1]},
    product={"dim": [7, 32767, 32767, 32767, 32767, 32767, 32767, 32767]},
    offset={"vox_offset": -1e9},
    before={"vox_offset": 16},
    far={"vox_offset": 2e9},
    no_offset={"vox_offset": np.nan},
    no_place={"srow_x": [np.nan] * 4},
    flat={"srow_x": [0, 0, 0, 0]},
    pair={"magic": b"ni1\0"},
    size={"sizeof_hdr": 347, "magic": b"n+3\0"},
    intercept={"scl_slope": 2, "scl_inter": np.inf},
)
def nifti_field(folder: Path, variant: dict) -> None:
    from dkuxnet.data import formats

    (folder / "x.nii").write_bytes(nifti_of(**variant))
    formats.read(folder / "x.nii")


@stranger("x.nii.gz: expected voxels near", far={"vox_offset": 2e9})
@stranger("x.nii.gz: ", pair={"magic": b"ni1\0"}, rgb={"datatype": 128, "bitpix": 24})
def nifti_packed(folder: Path, variant: dict) -> None:
    from dkuxnet.data import formats

    (folder / "x.nii.gz").write_bytes(gzip.compress(bytes(nifti_of(**variant))) + zeros(1024, 31))
    formats.read(folder / "x.nii.gz")


@stranger("the file is cut short", 64)
def nifti_gzip_short(folder: Path) -> None:
    """A header that promises 512 MiB, of which the file holds 320."""
    from dkuxnet.data import formats

    head = gzip.compress(bytes(nifti_of(dim=[3, 1024, 1024, 512, 1, 1, 1, 1])))
    (folder / "x.nii.gz").write_bytes(head + gzip.compress(STORED, 0) + zeros(320, 31, False))
    formats.read(folder / "x.nii.gz")


@stranger("x.nii.gz: ", twice="twice", checksum="checksum", tail="tail")
def nifti_gzip(folder: Path, variant: str) -> None:
    from dkuxnet.data import formats

    data = nifti_of()
    packed = {
        "twice": gzip.compress(gzip.compress(bytes(data))),
        "checksum": gzip.compress(bytes(data))[:-8] + bytes(8),
        "tail": gzip.compress(bytes(data)) + b"\x1f\x8b" + b"x" * 100,
    }[variant]
    (folder / "x.nii.gz").write_bytes(packed)
    formats.read(folder / "x.nii.gz")


@stranger("parts or more", before="before", between="between", behind="behind")
@stranger(None, name="name")
def nifti_gzip_work(folder: Path, variant: str) -> None:
    """A header and empty parts, of which Python's own reader reads 4 and 2 MB in a second."""
    from dkuxnet.data import formats

    data, empty = bytes(nifti_of()), gzip.compress(b"") * 100_000
    head, rest = gzip.compress(data[:352]), gzip.compress(data[352:])
    packed = {
        "before": empty + head + rest,
        "between": head + empty + rest,
        "behind": head + rest + empty,
        "name": head[:3] + b"\x08" + head[4:10] + b"x" * (32 * MEBIBYTE) + b"\0" + head[10:] + rest,
    }[variant]
    (folder / "x.nii.gz").write_bytes(packed)
    started = time.process_time()
    try:
        formats.read(folder / "x.nii.gz")
    finally:
        assert time.process_time() - started < 2


@stranger("x.nii: ", negative=[-4, 5, 3], many=[2**62, 2**62, 2**62], empty=[4, 0, 3])
def nifti_2(folder: Path, variant: list[int]) -> None:
    import nibabel

    from dkuxnet.data import formats

    nibabel.save(nibabel.Nifti2Image(np.zeros((4, 5, 3), np.uint8), np.eye(4)), folder / "x.nii")
    data = bytearray((folder / "x.nii").read_bytes())
    data[24:48] = np.array(variant, "<i8").tobytes()
    (folder / "x.nii").write_bytes(data)
    formats.read(folder / "x.nii")


@stranger(None, seven=7, none=0, eight=8, negative=-16, most=2**31 - 1, odd=17)
def nifti_extension(folder: Path, variant: int) -> None:
    """Of an extension of 7 bytes nibabel reads 7 - 8: all that follows, here 4 GiB."""
    from dkuxnet.data import formats

    data = nifti_of(vox_offset=368)
    data[348:352] = b"\1\0\0\0"
    data[352:352] = np.array([variant, 4, 0, 0], "<i4").tobytes()
    packed = gzip.compress(bytes(data[:352])) + gzip.compress(bytes(data[352:]))
    (folder / "bomb.nii.gz").write_bytes(packed + zeros(4096, 31))
    try:
        formats.read(folder / "bomb.nii.gz")
    except UserError as error:
        assert "goes on" in str(error), error
    (folder / "x.nii").write_bytes(data)
    (folder / "x.nii.gz").write_bytes(packed + gzip_of(64 * MEBIBYTE))
    assert formats.read(folder / "x.nii").array.shape == (4, 5, 3)
    assert formats.read(folder / "x.nii.gz").array.shape == (4, 5, 3)


# --- HDF5 ---


@stranger(
    "x.h5: ",
    soft="soft",
    chain="chain",
    pipe="pipe",
    label="label",
    group="group",
    type="type",
    unlimited="unlimited",
    named="named",
    list="list",
)
def h5_link(folder: Path, variant: str) -> None:
    import h5py

    from dkuxnet.data import formats

    outside = secret(folder, "secret.h5")
    with h5py.File(folder / "x.h5", "w") as file:
        if variant == "soft":
            file["voxels"] = np.zeros((4, 5, 3), np.float32)
            file["image"] = h5py.SoftLink("/voxels")
        elif variant == "chain":
            file["other"] = h5py.ExternalLink(outside, "/")
            file["image"] = h5py.SoftLink("/other/image")
        elif variant == "pipe":
            os.mkfifo(folder / "pipe")
            file["image"] = h5py.ExternalLink(folder / "pipe", "/image")
        elif variant == "label":
            file["image"] = np.zeros((4, 5, 3), np.float32)
            file["label"] = h5py.ExternalLink(outside, "/image")
        elif variant == "group":
            file.create_group("image")
        elif variant == "type":
            file["image"] = np.dtype("f4")
        elif variant == "list":
            for index in range(5000):
                file[f"image{index}" + "\x1b[2J" * 9] = h5py.SoftLink("/x")
        elif variant == "unlimited":
            layout = h5py.VirtualLayout((4, 5, 3), np.float32, maxshape=(None, 5, 3))
            source = h5py.VirtualSource(str(outside), "image", (4, 5, 3), maxshape=(None, 5, 3))
            layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
            file.create_virtual_dataset("image", layout)
        else:
            names = [(f"{secrets(folder.parent)}/secret{i}.raw", 0, 80) for i in range(3)]
            file.create_dataset("image", (4, 5, 3), np.float32, external=names)
    assert formats.has_own_label(folder / "x.h5") == (variant == "label")
    formats.read(folder / "x.h5", "label" if variant == "label" else "image")


@stranger(
    "one real number a voxel",
    words="words",
    one="one",
    references="references",
    regions="regions",
    compound="compound",
    text="text",
    rows="rows",
    opaque="opaque",
    enumeration="enumeration",
    complex="complex",
    affine="affine",
)
def h5_type(folder: Path, variant: str) -> None:
    """Elements that are no numbers: 1.2 MB of references to one element of 1 MiB are 8 GiB."""
    import h5py

    from dkuxnet.data import formats

    names = {f"a{index}": index for index in range(5000)}
    kind = {
        "words": h5py.vlen_dtype(np.uint8),
        "one": h5py.vlen_dtype(np.uint8),
        "affine": h5py.vlen_dtype(np.uint8),
        "references": h5py.ref_dtype,
        "regions": h5py.regionref_dtype,
        "compound": np.dtype([(name, "f4") for name in "abc"]),
        "text": h5py.string_dtype(),
        "rows": np.dtype("(65536,)f4"),
        "opaque": np.dtype("V1000"),
        "enumeration": h5py.enum_dtype(names, np.int16),
        "complex": np.dtype("c8"),
    }[variant]
    if variant == "one":
        one_object(folder / "x.h5", kind)
    else:
        with h5py.File(folder / "x.h5", "w") as file:
            image = np.zeros((4, 5, 3), np.float32)
            if variant == "affine":
                file["image"] = image
                space = h5py.h5s.create_simple((4, 4))
                h5py.h5a.create(file.id, b"affine", h5py.h5t.py_create(kind), space)
            else:
                file.create_dataset("image", (4, 5, 3), kind)
    formats.read(folder / "x.h5")


def one_object(path: Path, kind: np.dtype) -> None:
    """8,192 elements of variable length, each 1 MiB, which all refer to the same object."""
    import h5py

    count = 8192
    with h5py.File(path, "w", libver="earliest") as file:
        made = file.create_dataset("image", (32, 16, 16), kind)
        made[0, 0, 0] = np.zeros(MEBIBYTE, np.uint8)
        made[0, 0, 1] = np.zeros(1, np.uint8)  # HDF5 writes what stands in the dataset
        place = made.id.get_offset()
    data = bytearray(path.read_bytes())
    data[place : place + 16 * count] = bytes(data[place : place + 16]) * count
    path.write_bytes(data)


@stranger(
    "x.h5: ",
    mask="mask",
    order="order",
    both="both",
    lzf="lzf",
    chunk="chunk",
    shared="shared",
    beyond="beyond",
    nbit="nbit",
    unknown="unknown",
)
def h5_chunks(folder: Path, variant: str) -> None:
    """Chunks that unpack to gigabytes, by other ways than a plain bomb."""
    import h5py
    from h5py import h5d, h5p, h5s, h5t

    from dkuxnet.data import formats

    shape = (256, 256, 256)
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((8192, 1024, 128) if variant == "chunk" else shape)
    if variant == "mask":
        plist.set_shuffle()
    if variant in ("both", "lzf"):
        plist.set_filter(h5py.h5z.FILTER_LZF, 0, ())
    if variant == "unknown":
        plist.set_filter(31999, h5py.h5z.FLAG_OPTIONAL, ())
    elif variant == "nbit":
        plist.set_scaleoffset(2, 0)
    elif variant != "lzf":
        plist.set_deflate(9)
    if variant == "order":
        plist.set_shuffle()
    with h5py.File(folder / "x.h5", "w") as file:
        most = (h5s.UNLIMITED,) * 3 if variant == "chunk" else shape
        space = h5s.create_simple(shape, most)
        kind = h5t.NATIVE_INT32 if variant == "nbit" else h5t.NATIVE_FLOAT
        made = h5d.create(file.id, b"image", kind, space, plist)
        packed = b"\0\0" + b"\xe0\xff\0" * (10 * MEBIBYTE) if variant == "lzf" else zeros(4096)
        made.write_direct_chunk((0, 0, 0), packed, 1 if variant == "mask" else 0)
    if variant in ("shared", "beyond"):
        share(folder / "x.h5", variant)
    formats.read(folder / "x.h5")


def share(path: Path, variant: str) -> None:
    """Chunks that are said to lie in one place, or voxels beyond the end of the file."""
    import h5py

    if variant == "beyond":
        with h5py.File(path, "w") as file:
            made = file.create_dataset("image", (64, 64, 64), np.float32)
            made[...] = 1
            place = made.id.get_offset()
        os.truncate(path, place + 1000)
        return
    packed = zlib.compress(bytes(4 * MEBIBYTE), 9)
    with h5py.File(path, "w") as file:
        made = file.create_dataset(
            "image", (256, 1024, 1024), np.float32, chunks=(1, 1024, 1024), compression="gzip"
        )
        for index in range(256):
            made.id.write_direct_chunk((index, 0, 0), packed)
        places = [made.id.get_chunk_info(index).byte_offset for index in range(256)]
    size = len(packed)
    data = path.read_bytes()
    for place in places[1:]:
        data = data.replace(place.to_bytes(8, "little"), places[0].to_bytes(8, "little"))
    data = data.replace(
        size.to_bytes(4, "little") + bytes(4), (10**6).to_bytes(4, "little") + bytes(4)
    )
    path.write_bytes(data)


@stranger("in more than 524288 chunks", 512)
def h5_more_chunks(folder: Path) -> None:
    """A chunk for each voxel, of which objects would be made: 15 MB of them became 4 GB."""
    import h5py
    from h5py import h5d, h5p, h5s, h5t

    from dkuxnet.data import formats

    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((1, 1, 1))
    plist.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    with h5py.File(folder / "x.h5", "w", libver="latest") as file:
        h5d.create(file.id, b"image", h5t.NATIVE_INT8, h5s.create_simple((81, 81, 81)), plist)
    formats.read(folder / "x.h5")


@stranger(
    "x.h5: ",
    scalar="scalar",
    null="null",
    two="two",
    five="five",
    empty="empty",
    attribute="attribute",
    text="text",
    numbers="numbers",
    cut="cut",
    start="start",
)
def h5_shape(folder: Path, variant: str) -> None:
    import h5py

    from dkuxnet.data import formats

    path = folder / "x.h5"
    shape = {"scalar": (), "two": (4, 5), "five": (2,) * 5, "empty": (4, 0, 3)}.get(
        variant, (4, 5, 3)
    )
    with h5py.File(path, "w") as file:
        file["image"] = h5py.Empty("f4") if variant == "null" else np.zeros(shape, np.float32)
        if variant == "attribute":
            file.attrs.create("affine", np.zeros((100, 40)))
        elif variant == "text":
            file.attrs.create("affine", np.full((4, 4), b"1"))
        elif variant == "numbers":
            file.attrs.create("affine", np.full((4, 4), np.nan))
    if variant == "cut":
        os.truncate(path, path.stat().st_size - 100)
    elif variant == "start":
        path.write_bytes(path.read_bytes()[:8] + b"\xff" * 500)
    formats.read(path)


@stranger(None)
def h5_many_chunks(folder: Path) -> None:
    """27,000 chunks took minutes, since each was looked for from the first one on."""
    import h5py

    from dkuxnet.data import formats

    with h5py.File(folder / "x.h5", "w") as file:
        file.create_dataset(
            "image", data=np.zeros((30, 30, 30), np.uint8), chunks=(1, 1, 1), compression="gzip"
        )
    assert formats.read(folder / "x.h5").array.size == 27_000


# --- DICOM ---


def written(folder: Path, change: Callable[[object, int], None]) -> Path:
    """Read three slices, each changed by `change(data set, index)`."""
    from pydicom import dcmread

    from dkuxnet.data import formats

    (folder / "dicom").mkdir()
    for index, data in enumerate(slices()):
        ds = dcmread(io.BytesIO(data))
        change(ds, index)
        ds.save_as(folder / "dicom" / f"{index}.dcm", enforce_file_format=True)
    formats.read(folder / "dicom")


def segment(marker: int, content: bytes) -> bytes:
    """A segment of JPEG."""
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def frame_header(rows: int, columns: int, bits: int = 8, components: int = 1) -> bytes:
    content = bytes([bits]) + rows.to_bytes(2, "big") + columns.to_bytes(2, "big")
    return content + bytes([components]) + b"\1\x11\0" * components


def jpeg_ls(rows: int, columns: int, before: bytes = b"", sof: bytes | None = None) -> bytes:
    scan = segment(0xDA, b"\1\1\0\0\0\0") + bytes(4000) + b"\xff\xd9"
    head = segment(0xF7, frame_header(rows, columns)) if sof is None else sof
    return b"\xff\xd8" + before + head + scan


def jpeg(side: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def jpeg_2000(side: int, tile: int | None = None) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    options = {} if tile is None else {"tile_size": (tile, tile), "num_resolutions": 1}
    image = Image.fromarray(np.zeros((side, side), np.uint8))
    image.save(file, "JPEG2000", no_jp2=True, **options)
    return file.getvalue()


LARGE_FRAME = frame_header(30_000, 30_000)
OVERSIZE = b"\4\4" + (30_000).to_bytes(4, "big") * 2
LS, J2K, BASELINE, RLE = (f"1.2.840.10008.1.2.{end}" for end in ("4.80", "4.90", "4.50", "5"))


@stranger(
    "dicom",
    ls=lambda: (LS, jpeg_ls(30_000, 30_000)),
    ls_twice=lambda: (LS, jpeg_ls(4, 5, segment(0xF7, LARGE_FRAME))),
    ls_oversize=lambda: (LS, jpeg_ls(4, 5, segment(0xF8, OVERSIZE))),
    ls_no_rows=lambda: (LS, jpeg_ls(0, 5) + segment(0xDC, b"\x75\x30")),
    ls_as_jpeg=lambda: (LS, jpeg(4)),
    ls_components=lambda: (LS, jpeg_ls(4, 5, sof=segment(0xF7, frame_header(4, 5, 8, 255)))),
    ls_behind_noise=lambda: (LS, b"\xff\xd8" + b"xx" + jpeg_ls(30_000, 30_000)[2:]),
    ls_cut=lambda: (LS, jpeg_ls(4, 5)[:9]),
    ls_endless=lambda: (LS, b"\xff\xd8" + b"\xff" * 500),
    ls_empty=lambda: (LS, b"\xff\xd8\xff\xd9"),
    jpeg=lambda: (BASELINE, jpeg(12_000)),
    jpeg_hierarchy=lambda: (BASELINE, b"\xff\xd8" + segment(0xDE, LARGE_FRAME) + jpeg(4)[2:]),
    jpeg_as_2000=lambda: (BASELINE, jpeg_2000(64)),
    jpeg_again=lambda: (BASELINE, b"\xff\xd8" + jpeg(4)),
    jpeg_extension=lambda: (BASELINE, b"\xff\xd8" + segment(0xEB, b"JP" + bytes(60)) + jpeg(4)[2:]),
    j2k=lambda: (J2K, jpeg_2000(6000)),
    j2k_boxed=lambda: (J2K, b"\0\0\0\x0cjP  \r\n\x87\n" + jpeg_2000(4)),
    j2k_components=lambda: (J2K, jpeg_2000(4).replace(b"\0\1\7\1\1", b"\x40\0\7\1\1", 1)),
    j2k_coarse=lambda: (J2K, jpeg_2000(4).replace(b"\0\1\7\1\1", b"\0\1\7\xff\xff", 1)),
    j2k_precincts=lambda: (J2K, precincts()),
    j2k_cut=lambda: (J2K, jpeg_2000(4)[:30]),
    rle=lambda: (RLE, rle(24 * MEBIBYTE)),
    rle_backward=lambda: (RLE, rle(24 * MEBIBYTE, (64, 3 * 10**9))),
    rle_segments=lambda: (RLE, rle(100, (64,) * 15)),
    rle_short=lambda: (RLE, b"\1\0\0\0"),
)  # fmt: skip
@stranger("a frame has 62500 tiles", 450, j2k_tiles=lambda: (J2K, jpeg_2000(1000, 4)))
def dicom_frame(folder: Path, variant: Callable[[], tuple[str, bytes]]) -> None:
    """Frames whose own header says another size than the data set: decoders believe it."""
    from pydicom.encaps import encapsulate

    syntax, packed = variant()

    def change(ds, index: int) -> None:
        ds.file_meta.TransferSyntaxUID = syntax
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
        ds.Columns = 4 if b"JFIF" in packed or packed[:4] == b"\xff\x4f\xff\x51" else 5
        ds.PixelData = encapsulate([packed])
        ds["PixelData"].VR = "OB"
        if b"\x11" * 6 in packed:
            ds.Rows = ds.Columns = 2000
        if len(packed) > MEBIBYTE:
            ds.Rows = ds.Columns = 1000

    written(folder, change)


def precincts() -> bytes:
    """A JPEG 2000 whose pieces are 2 x 2 pixels: for each a decoder takes 500 bytes."""
    data = bytearray(jpeg_2000(2000))
    at = data.index(b"\xff\x52")
    length, levels = int.from_bytes(data[at + 2 : at + 4], "big"), data[at + 9]
    data[at + 4] |= 1
    data[at + 2 + length : at + 2 + length] = b"\x11" * (levels + 1)
    data[at + 2 : at + 4] = (length + levels + 1).to_bytes(2, "big")
    return bytes(data)


def rle(size: int, offsets: tuple[int, ...] = (64,)) -> bytes:
    """A frame of one byte repeated 64 times as often as it is long."""
    head = len(offsets).to_bytes(4, "little")
    head += b"".join(offset.to_bytes(4, "little") for offset in offsets)
    return head.ljust(64, b"\0") + b"\x81\0" * (size // 2)


@stranger("which no scan does", honest="honest")
@stranger(
    "dicom",
    frames="frames",
    allocated="allocated",
    samples="samples",
    rows="rows",
    short="short",
    slope="slope",
    position="position",
    place="place",
    table="table",
    referenced="referenced",
    syntax="syntax",
    nested="nested",
)
def dicom_field(folder: Path, variant: str) -> None:
    from pydicom import Dataset
    from pydicom.encaps import encapsulate

    def change(ds, index: int) -> None:
        if variant == "honest":  # 1.2 GB of voxels, as both headers say, in 12 KB
            ds.file_meta.TransferSyntaxUID, ds.Rows, ds.Columns = LS, 10_000, 10_000
            ds.PixelData = encapsulate([jpeg_ls(10_000, 10_000)])
            ds["PixelData"].VR = "OB"
        elif variant == "frames":
            ds.NumberOfFrames = 2**31 - 1
        elif variant == "allocated":
            ds.BitsAllocated = 65528
        elif variant == "samples":
            ds.SamplesPerPixel = 65535
        elif variant == "rows":
            ds.Rows = ds.Columns = 0
        elif variant == "short":
            ds.PixelData = b"\0\0"
        elif variant == "slope":
            ds["RescaleSlope"]._value = "1e999"
            ds.RescaleIntercept, ds.ImagePositionPatient = 0, ["nan", 0, 0]
        elif variant == "position":
            ds.ImagePositionPatient = [0, 0, 1e300 * (index + 1)]
        elif variant == "place":
            ds.ImagePositionPatient = [0, 0]
        elif variant == "table":
            table = Dataset()
            table.LUTDescriptor, table.LUTData = [0, 0, 16], b"\0\0"
            table["LUTDescriptor"].VR, ds.ModalityLUTSequence = "US", [table]
        elif variant == "referenced":  # voxels that lie at an address
            ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.94"
            del ds.PixelData
            ds.PixelDataProviderURL = f"file://{secret(folder)}"
        elif variant == "syntax":
            ds.file_meta.TransferSyntaxUID = "1.2.3.4.5"
            ds._is_implicit_VR = False
        elif variant == "nested":
            for _ in range(600):
                outer = Dataset()
                outer.SharedFunctionalGroupsSequence = [ds if _ == 0 else inner]  # noqa: F821
                inner = outer  # noqa: F841
            ds.Rows = 0

    written(folder, change)


@stranger("deflated as a whole", plain=b"", behind=b"x" * 4000, space=b" ")
def dicom_deflated(folder: Path, variant: bytes) -> None:
    """4 MiB that are a data set of 4 GiB, whichever way it says so."""
    from dkuxnet.data import formats

    uid = b"1.2.840.10008.1.2.1.99" + (b" \0" if variant == b" " else b"")
    meta = b"\2\0\x01\0OB\0\0\2\0\0\0\0\1"
    if len(variant) > 1:
        meta += b"\2\0\x02\x01OB\0\0" + len(variant).to_bytes(4, "little") + variant
    meta += b"\2\0\x10\0UI" + len(uid).to_bytes(2, "little") + uid
    (folder / "x.dcm").write_bytes(bytes(128) + b"DICM" + meta + zeros(4096, -15)[5:])
    formats.read(folder / "x.dcm")


@stranger("in 1500000 pieces", pieces="pieces")
@stranger("x.zip/a.dcm", elements="elements", items="items", raw="raw", fragments="fragments")
def dicom_elements(folder: Path, variant: str) -> None:
    """A small zip of a data set of millions of elements, of which objects would be made."""
    from dkuxnet.data import formats

    data = slices()[0]
    at = data.index(b"\x28\x00\x02\x00US")
    count = 1_500_000
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * count
    extra = {
        "elements": b"\x09\0\1\0UN\0\0\0\0\0\0" * count,
        "items": b"\x00\x52\x29\x92SQ\0\0\xff\xff\xff\xff" + items + b"\xfe\xff\xdd\xe0\0\0\0\0",
        "fragments": b"",
        "pieces": b"",
        "raw": b"\x00\x52\x29\x92SQ\0\0" + len(items).to_bytes(4, "little") + items,
    }[variant]
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if variant in ("fragments", "pieces"):  # a frame in millions of pieces of no bytes
            data = data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0")
            size = b"\xff" * 4 if variant == "fragments" else len(items).to_bytes(4, "little")
            data, at = data[:-48] + b"OB\0\0" + size + items, len(data[:-48]) + 8
            data += b"\xfe\xff\xdd\xe0\0\0\0\0" * (variant == "fragments")
        archive.writestr("a.dcm", data[:at] + extra + data[at:])
        archive.writestr("b.dcm", slices()[1])
    formats.read(folder / "x.zip")


@stranger("header is far larger")
def dicom_many_headers(folder: Path) -> None:
    """Ten files whose headers are each just within what one may have, which takes seconds."""
    from dkuxnet.data import formats

    data = slices()[0]
    at = data.index(b"\x28\x00\x02\x00US")
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in "abcdefghij":
            extra = b"\x09\0\1\0UN\0\0\0\0\0\0" * 120_000
            archive.writestr(f"{name}.dcm", data[:at] + extra + data[at:])
    started = time.process_time()
    try:
        formats.read(folder / "x.zip")
    finally:
        assert time.process_time() - started < 10


@stranger(None, 24)
def dicom_other_elements(folder: Path) -> None:
    """100,000 elements that no scan needs, fewer than are refused, are not kept either."""
    from dkuxnet.data import formats

    data = slices()[0]
    at = data.index(b"\x28\x00\x02\x00US")
    places = (
        (9 + 2 * (index >> 16)).to_bytes(2, "little") + (index & 0xFFFF).to_bytes(2, "little")
        for index in range(4096, 104_096)
    )
    extra = b"".join(place + b"UN\0\0\0\0\0\0" for place in places)
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a.dcm", data[:at] + extra + data[at:])
        archive.writestr("b.dcm", slices()[1])
    formats.read(folder / "x.zip")


@stranger("header is far larger")
def dicom_meta(folder: Path) -> None:
    """An element of 400 MiB in what stands before the data set, where all is read."""
    from dkuxnet.data import formats

    data, count = slices()[0], 400 * MEBIBYTE
    with (
        zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.dcm", "w") as file,
    ):
        file.write(data[:132] + b"\2\0\2\1OB\0\0" + count.to_bytes(4, "little"))
        for _ in range(25):
            file.write(bytes(16 * MEBIBYTE))
        file.write(data[144:])  # behind the length of all that
    formats.read(folder / "x.zip")


@stranger("a way that is not read", 300, bzip2=zipfile.ZIP_BZIP2, lzma=zipfile.ZIP_LZMA)
@stranger(
    "x.zip",
    encrypted="encrypted",
    text="text",
    nested="nested",
    directory="directory",
    many="many",
    link="link",
)
def zip_of(folder: Path, variant: int | str) -> None:
    from dkuxnet.data import formats

    path = folder / "x.zip"
    if isinstance(variant, int):  # zipfile unpacks these without a limit
        data, count = slices()[0], 96 * MEBIBYTE
        with zipfile.ZipFile(path, "w", variant) as archive:
            archive.writestr("x.dcm", data[:-44] + count.to_bytes(4, "little") + bytes(count))
            archive.writestr("y.dcm", slices()[1])
    else:
        with zipfile.ZipFile(path, "w") as archive:
            if variant == "link":  # an entry that an unpacker would make a link of
                info = zipfile.ZipInfo("x.dcm")
                info.create_system, info.external_attr = 3, 0o120777 << 16
                archive.writestr(info, str(secret(folder)))
            elif variant == "nested":
                archive.writestr("y.zip", zipped(zipfile.ZIP_STORED))
            elif variant == "directory":
                archive.writestr("DICOMDIR", dicomdir(folder))
            elif variant == "many":
                for index in range(2000):
                    archive.writestr(f"{index}", b"")
            else:
                archive.writestr("x.txt", b"x")
    if variant == "encrypted":
        path.write_bytes(
            path.read_bytes().replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0")
        )
    formats.read(path)


def dicomdir(folder: Path) -> bytes:
    """A DICOMDIR whose records name a file elsewhere."""
    from pydicom import Dataset, FileDataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = "1.2.3", ExplicitVRLittleEndian
    record = Dataset()
    record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", [str(secret(folder))]
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.DirectoryRecordSequence = [record]
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


@stranger("dicom", piped="piped", device="device", pipe="pipe", directory="directory", self="self")
def dicom_link(folder: Path, variant: str) -> None:
    """What is no file is passed over, linked or not, so that nothing remains."""
    from dkuxnet.data import formats

    inside = folder / "dicom"
    inside.mkdir()
    if variant == "piped":
        os.mkfifo(folder / "pipe")
        (inside / "x.dcm").symlink_to(folder / "pipe")
    elif variant == "device":
        (inside / "x.dcm").symlink_to("/dev/zero")
    elif variant == "pipe":
        os.mkfifo(inside / "x.dcm")
    elif variant == "directory":
        (inside / "DICOMDIR").write_bytes(dicomdir(folder))
    else:
        (inside / "x").symlink_to(inside)
    formats.read(inside)


@stranger(
    "x",
    nii="x.nii",
    nii_gz="x.nii.gz",
    nrrd="x.nrrd",
    mha="x.mha",
    h5="x.h5",
    dcm="x.dcm",
    zip="x.zip",
)
def pipe(folder: Path, variant: str) -> None:
    """A pipe in the place of a scan would be waited for."""
    from dkuxnet.data import formats

    os.mkfifo(folder / variant)
    formats.read(folder / variant)


# --- labels of DICOM ---


def nested(depth: int = 2000) -> bytes:
    """A sequence in a sequence in a sequence, as the value of an element."""
    value = b""
    for _ in range(depth):
        inner = ITEM + len(value).to_bytes(4, "little") + value
        value = b"\x08\0\x15\x11SQ\0\0" + len(inner).to_bytes(4, "little") + inner
    return ITEM + len(value).to_bytes(4, "little") + value


def tiny(count: int) -> bytes:
    """Elements of no bytes, each with a tag of its own."""
    index = np.arange(count, dtype=np.uint32)
    made = np.zeros((count, 4), "<u2")
    made[:, 0], made[:, 1] = 0x3011 + 2 * (index >> 16), index & 0xFFFF
    made[:, 2] = int.from_bytes(b"LO", "little")
    return made.tobytes()


def element(elements: list, tag: int) -> list:
    """The first element of this tag, wherever it lies."""
    wanted = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    for each in elements:
        if each[0] == wanted:
            return each
        for inner in each[2] if isinstance(each[2], list) else []:
            if found := element(inner, tag):
                return found
    return []


def spoilt_element(data: bytes, tag: int, vr: bytes, value) -> bytes:
    elements = parsed(data[132:])
    element(elements, tag)[1:] = vr, value
    return data[:132] + written_elements(elements)


def read_labels(folder: Path, data: bytes) -> None:
    from dkuxnet.data.labels import read_label

    path = folder / "x.dcm"
    path.write_bytes(data)
    read_label("c", path, ("the scan", ct()), None)


DESCRIPTION, REPRESENTATION = 0x0008103E, 0x00280103


@stranger("sequence", description=DESCRIPTION, representation=REPRESENTATION, meta=None)
def dicom_text(folder: Path, variant: int | None) -> None:
    """pydicom's text of sequences that lie in each other grows with a power of their depth."""
    from dkuxnet.data import formats

    for index, data in enumerate(slices()):
        elements = parsed(data[132:])
        number = 0x00020000 if variant is None else variant
        old = element(elements, number)
        tag = (number >> 16).to_bytes(2, "little") + (number & 0xFFFF).to_bytes(2, "little")
        new = [tag, b"SQ", nested()]
        elements = [new if each is old else each for each in elements]
        if not old:
            at = next(i for i, each in enumerate(elements) if each[0][:2] > tag[:2])
            elements.insert(at, new)
        (folder / f"{index}.dcm").write_bytes(data[:132] + written_elements(elements))
    formats.read(folder)


@stranger("far larger", 128)
def dicom_voxels(folder: Path) -> None:
    """1.5 GiB of voxels under a header of 20."""
    from dkuxnet.data import formats

    for index, data in enumerate(slices()):
        size = 3 * 2**29
        head = data[:-44] + size.to_bytes(4, "little")
        assert data[-52:-44] == b"\xe0\x7f\x10\x00OW\0\0"
        sparse(folder / f"{index}.dcm", len(head) + size, head)
    formats.read(folder)


NUMBERS = {
    "far": (b"1e300\\0\\0\\1\\0\\0\\0\\1\\0", "far outside"),
    "no_number": (b"1.7e308\\-1.7e308\\0\\-1.7e308\\1.7e308\\0", "far outside"),
    "nan": (b"nan\\0\\0", "three finite numbers"),
    "empty": (b"", "no points"),
    "words": (b"a\\b\\c", "contour"),
    "many": (b"1\\" * (3 * 2**23) + b"1", "far longer"),
    "crossings": (b"1\\-90000\\0\\2\\90000\\0\\" * 600_000 + b"0\\0\\0", "far more"),
}


@stranger("", **{name: name for name in NUMBERS})
def contour_numbers(folder: Path, variant: str) -> None:
    """Points that are no place, and millions of edges across all rows."""
    numbers, says = NUMBERS[variant]
    vr = b"UN" if len(numbers) > 2**16 else b"DS"
    try:
        read_labels(folder, spoilt_element(structure_sets()[0], 0x30060050, vr, numbers))
    except UserError as error:
        assert says in str(error), error
        raise


@stranger("is a sequence", structure=0x30060026, segment=0x00620005)
def label_name_nested(folder: Path, variant: int) -> None:
    data = (structure_sets() if variant >> 16 == 0x3006 else segmentations())[0]
    read_labels(folder, spoilt_element(data, variant, b"SQ", nested()))


@stranger("header is far larger", 128)
def contour_elements(folder: Path) -> None:
    """Tiny elements in an item, which become objects of gigabytes where all are kept."""
    from dkuxnet.data.dicom import structures

    data = spoilt_element(structure_sets()[0], 0x30060039, b"SQ", item_of(100_000))
    with mock.patch.object(structures, "MAX_READS", 2**16):  # 30 times as many take seconds
        read_labels(folder, data)


@stranger("larger than that of a scan", 900)
def dicom_sequences(folder: Path) -> None:
    """Two sequences, each just within what all may take."""
    from dkuxnet.data import formats

    data = slices()[0]
    elements = parsed(data[132:])
    for tag in (b"\x00\x52\x29\x92", b"\x00\x52\x30\x92"):
        elements.insert(-1, [tag, b"SQ", item_of(1_900_000)])
    (folder / "a.dcm").write_bytes(data[:132] + written_elements(elements))
    formats.read(folder)


def item_of(count: int) -> bytes:
    content = tiny(count)
    return ITEM + len(content).to_bytes(4, "little") + content


@stranger("one number", structures=0x30060020, segments=0x00620002)
def label_many_of_one_number(folder: Path, variant: int) -> None:
    """Each would be drawn anew."""
    data = (structure_sets() if variant >> 16 == 0x3006 else segmentations())[0]
    elements = parsed(data[132:])
    sequence = element(elements, variant)
    sequence[2] = sequence[2] * 1000
    read_labels(folder, data[:132] + written_elements(elements))


@stranger("at most 1024")
def label_many_of_one_name(folder: Path) -> None:
    """Each of the structures would be as large as the scan."""
    elements = parsed(structure_sets()[0][132:])
    for tag, number in ((0x30060020, 0x30060022), (0x30060039, 0x30060084)):
        sequence = element(elements, tag)
        items = []
        for index in range(1100):
            first = parsed(written_elements(sequence[2][0]))
            element(first, number)[2] = str(index).encode()
            items.append(first)
        sequence[2] = items
    read_labels(folder, structure_sets()[0][:132] + written_elements(elements))


@stranger("far larger", 128)
def segmentation_voxels(folder: Path) -> None:
    """3 GiB of voxels under a header of 40."""
    from dkuxnet.data.labels import read_label

    data, size = segmentations()[1], 3 * 2**30
    head = data[:-44] + size.to_bytes(4, "little")
    assert data[-52:-44] == b"\xe0\x7f\x10\x00OB\0\0"
    sparse(folder / "x.dcm", len(head) + size, head)
    read_label("c", folder / "x.dcm", ("the scan", ct()), None)


@stranger("expected one label")
def label_headers(folder: Path) -> None:
    """Twenty structure sets in a patient's folder, whose headers are each just within the limit."""
    from dkuxnet.data.layouts import find_source

    (folder / "a").mkdir()
    (folder / "b").mkdir()
    for index, data in enumerate(slices()):
        (folder / "a" / f"{index}.dcm").write_bytes(data)
    data = structure_sets()[0]
    at = data.index(b"\x06\x30\x10\x00SQ") if b"\x06\x30\x10\x00SQ" in data else len(data)
    for index in range(20):
        (folder / "a" / f"r{index}.dcm").write_bytes(data[:at] + tiny(120_000) + data[at:])
    started = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            find_source(folder)
    finally:
        assert time.process_time() - started < 6


@stranger("there is none")
def label_pipe(folder: Path) -> None:
    from dkuxnet.data.labels import read_label

    os.mkfifo(folder / "x.dcm")
    read_label("c", folder / "x.dcm", ("the scan", ct()), None)


# --- the tests ---


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    from strangers import outcomes

    root = tmp_path_factory.mktemp("hostile")
    told = outcomes(root)
    assert sorted(path.name for path in root.iterdir()) == sorted(
        name.replace(" ", "_") for name in READINGS
    )  # no HARM, no x
    return told


@pytest.mark.parametrize("name", READINGS)
def test_a_hostile_file_is_one_clear_line(told, name):
    outcome = told[name]
    _, says, mebibytes = READINGS[name]
    assert outcome.kind == ("NOTHING" if says is None else "USER-ERROR"), outcome.message
    assert (says or "") in outcome.message.replace(f"/{name.replace(' ', '_')}/", "/")
    assert outcome.message.isprintable() and len(outcome.message) < 2100
    assert SECRET.decode() not in outcome.message and "not enough memory" not in outcome.message
    assert outcome.opened == "", "it opened a file of somebody else's"
    assert outcome.mebibytes <= mebibytes
