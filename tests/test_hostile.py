"""Files of each kind as an enemy would make them: one clear line each, no code run, nothing
outside touched, little memory.

All are read in one process that may take 3 GiB above what its imports take, see
`strangers.outcomes`.
"""

import gzip
import json
import os
import pickle
import sys
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "measurements"))
from fuzz_targets import (
    DECATHLON,
    INFO,
    MANIFEST,
    PREPARED,
    SETTINGS,
    SOURCE,
    arrays,
    checkpoints,
    scans,
    slices,
    write_prepared,
)

READINGS: dict[str, tuple[Callable[[Path], None], str]] = {}
LARGE = 2**40
MEBIBYTE = 2**20
SECRET = b"TOPSECRET"


def stranger(says: str, **variants):
    """Register `read(folder, variant)`, which makes a file and reads it; the UserError has `says`
    in it.
    """

    def register(read):
        for name, variant in (variants or {"": None}).items():
            READINGS[f"{read.__name__} {name}".strip()] = (
                read if not variants else partial(read, variant=variant),
                says,
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
    for name, (read, _) in READINGS.items():
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
    from dkuxnet.evaluation.evaluate import COUNTS, METRICS, Evaluation
    from dkuxnet.report.results import read_results

    row = dict.fromkeys([*METRICS, *COUNTS], 1.0) | {"case": "a", "class": "organ", "value": 1}
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
    assert outcome.kind == "USER-ERROR", outcome.message
    assert READINGS[name][1] in outcome.message
    assert outcome.message.isprintable() and len(outcome.message) < 2100
    assert SECRET.decode() not in outcome.message and "not enough memory" not in outcome.message
    assert outcome.opened == "", "it opened a file of somebody else's"
    assert outcome.mebibytes <= 1024
