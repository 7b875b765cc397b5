"""Labels in every way that files hold them: other axes, nearly whole numbers, named segments."""

import json
import shutil
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from dicom_series import Scan, items, noise
from dkuxnet.core.errors import DataWarning, UserError, data_warnings
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.affines import on_grid, part_on_grid
from dkuxnet.data.dicom.structures import RT_STRUCTURE_SET
from dkuxnet.data.inputs import find_cases
from dkuxnet.data.labels import read_label, with_classes
from dkuxnet.data.layouts import find_source
from dkuxnet.data.prepare import prepare_scans
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.evaluation.evaluate import evaluate_folders

AFFINE = np.array([[-0.8, 0.1, 0, 30], [0.1, 0.8, 0, -20], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])
SHAPE = (9, 8, 7)


def label(shape=SHAPE) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[2:5, 1:6, 3:6] = 1
    array[5, 2:4, 1:6] = 2
    return array


def turned(volume: Volume, flips, axes) -> Volume:
    """The same voxels in another order of the axes, by the affine's own algebra."""
    array, affine = volume.array, volume.affine.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
        array = np.flip(array, axis)
    return Volume(array.transpose(axes), affine[:, [*axes, 3]])


def folder_of(root: Path, scan: Volume, truth: Volume, ending: str = ".nii.gz") -> Path:
    for part, volume in (("images", scan), ("labels", truth)):
        (root / part).mkdir(parents=True, exist_ok=True)
        formats.write(volume, root / part / f"c{ending if part == 'labels' else '.nii.gz'}")
    return root


def a_scan() -> Volume:
    return Volume(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), AFFINE)


def truth_of(prepared: Path) -> np.ndarray:
    data = PreparedSet(prepared)
    return data.array(data.names[0], "truth")


@pytest.mark.parametrize("flips", [(0,), (0, 1), (2,)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_the_same_voxels_in_another_order_are_put_in_order(tmp_path, flips, axes):
    truth = Volume(label(), AFFINE)
    source = folder_of(tmp_path / "source", a_scan(), turned(truth, flips, axes))
    prepare_scans(source, tmp_path / "prepared", processes=1)
    assert np.array_equal(truth_of(tmp_path / "prepared"), label())
    folder_of(tmp_path / "other", a_scan(), truth)
    found = evaluate_folders(tmp_path / "other" / "labels", source / "labels")
    assert [row.dice for row in found.rows] == [1.0, 1.0]


@pytest.mark.parametrize("wrong", ["shift", "spacing", "shape"])
def test_other_grids_stay_refused_after_the_axes_are_in_order(wrong):
    other = turned(Volume(label(), AFFINE), (0, 1), (2, 0, 1))
    affine = other.affine.copy()
    if wrong == "shift":
        affine[:3, 3] += 3
    if wrong == "spacing":
        affine[:3, 0] *= 1.1
    array = other.array[:-1] if wrong == "shape" else other.array
    with pytest.raises(UserError, match=r"case 'c': image (and label lie|has shape)"):
        on_grid("case 'c'", "image", a_scan(), "label", Volume(array, affine))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".h5"])
def test_nearly_whole_labels_are_rounded_and_told(tmp_path, ending):
    stored = Volume(label().astype(np.float32) * np.float32(0.9961), AFFINE)
    path = tmp_path / f"c{ending}"
    if ending == ".h5":
        import h5py

        with h5py.File(path, "w") as file:
            file["label"], file.attrs["affine"] = stored.array, stored.affine
    else:
        formats.write(stored, path)
    with pytest.warns(DataWarning, match=r"0\.0078 off whole numbers"):
        found = read_label("c", path, ("the scan", a_scan()), None)
    assert found.array.dtype.kind in "iu"
    assert np.array_equal(found.array, label())


def test_scaled_labels_of_nifti_are_rounded_and_predictions_too(tmp_path):
    truth = folder_of(tmp_path, a_scan(), Volume(label(), AFFINE)) / "labels"
    (tmp_path / "predicted").mkdir()
    raw = nibabel.Nifti1Image(label().astype(np.int16) * 255, AFFINE)
    nibabel.save(raw, tmp_path / "predicted" / "c.nii")
    content = bytearray((tmp_path / "predicted" / "c.nii").read_bytes())
    content[112:116] = np.float32(1.000015 / 255).tobytes()  # scl_slope
    (tmp_path / "predicted" / "c.nii").write_bytes(content)
    with pytest.warns(DataWarning, match="off whole numbers"):
        found = evaluate_folders(tmp_path / "predicted", truth)
    assert [row.dice for row in found.rows] == [1.0, 1.0]


def test_other_fractions_are_one_line_with_case_value_and_number(tmp_path):
    array = label().astype(np.float32)
    array[0, 0, :4] = 0.5
    source = folder_of(tmp_path / "source", a_scan(), Volume(array, AFFINE))
    with pytest.raises(UserError, match=r"case 'c': .*4 voxels are not, the first is 0\.5"):
        prepare_scans(source, tmp_path / "prepared", processes=1)
    array[0, 0, 0] = np.nan
    shutil.rmtree(source)
    folder_of(source, a_scan(), Volume(array, AFFINE))
    with pytest.raises(UserError, match=r"case 'c': .*4 voxels are not"):
        evaluate_folders(source / "labels", source / "labels")


def test_a_scan_among_the_labels_is_named(tmp_path):
    array = np.arange(504, dtype=np.int16).reshape(SHAPE)
    source = folder_of(tmp_path / "source", a_scan(), Volume(array, AFFINE))
    with pytest.raises(UserError, match=r"504 different label values.*case 'c'"):
        prepare_scans(source, tmp_path / "prepared", processes=1)
    with pytest.raises(UserError, match="case 'c': 504 different label values"):
        evaluate_folders(source / "labels", source / "labels")


def slicer(path: Path, array: np.ndarray, affine: np.ndarray, segments: list[dict]) -> Path:
    """As 3D Slicer writes it: array (X, Y, Z), or (layers, X, Y, Z)."""
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    vectors = [f"({','.join(map(str, lps[:3, axis]))})" for axis in range(3)]
    layered = array.ndim == 4
    lines = [
        "NRRD0004",
        "# Complete NRRD file format specification at:",
        "type: unsigned char",
        f"dimension: {array.ndim}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, array.shape))}",
        f"space directions: {' '.join((['none'] if layered else []) + vectors)}",
        f"kinds: {'list ' if layered else ''}domain domain domain",
        "encoding: raw",
        f"space origin: ({','.join(map(str, lps[:3, 3]))})",
        "Segmentation_MasterRepresentation:=Binary labelmap",
    ]
    for number, segment in enumerate(segments):
        lines += [f"Segment{number}_{key}:={value}" for key, value in segment.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([*lines, "", ""]).encode() + array.tobytes(order="F"))
    return path


def test_segments_of_slicer_are_classes_by_name_cropped_and_layered(tmp_path):
    source = folder_of(tmp_path / "source", a_scan(), Volume(label(), AFFINE))
    (source / "labels" / "c.nii.gz").unlink()
    layers = np.stack([label() == 1, label() == 2]).astype(np.uint8)
    layers[1, 4, 2, 4] = 1  # on 'Niere' too
    affine = AFFINE.copy()
    affine[:3, 3] = (AFFINE @ (2, 1, 1, 1))[:3]
    slicer(
        source / "images" / "c.seg.nrrd",  # beside the scan
        np.ascontiguousarray(layers[:, 2:6, 1:6, 1:6]),
        affine,
        [
            {"ID": "S1", "Name": "Größe", "LabelValue": 1, "Layer": 0},
            {"ID": "S2", "Name": "Niere", "LabelValue": 1, "Layer": 1},
        ],
    )
    found = prepare_scans(source, tmp_path / "prepared", processes=1)
    assert found.labels == {"background": 0, "Größe": 1, "Niere": 2}
    expected = label()
    expected[4, 2, 4] = 2
    assert np.array_equal(truth_of(tmp_path / "prepared"), expected)
    assert any("'Niere' and 'Größe' in 1 voxels" in note for note in found.notes)


def test_segments_of_the_first_slicer_have_a_layer_each_and_names_alike_are_told(tmp_path):
    source = folder_of(tmp_path / "source", a_scan(), Volume(label(), AFFINE))
    (source / "labels" / "c.nii.gz").unlink()
    layers = np.stack([label() == 1, label() == 2]).astype(np.uint8)
    file = source / "labels" / "c.seg.nrrd"
    slicer(file, layers, AFFINE, [{"ID": "S1", "Name": "a"}, {"ID": "S2", "Name": "b"}])
    prepare_scans(source, tmp_path / "prepared", processes=1)
    assert np.array_equal(truth_of(tmp_path / "prepared"), label())
    slicer(file, layers, AFFINE, [{"ID": "S1", "Name": "GTV-1"}, {"ID": "S2", "Name": "gtv_1"}])
    with pytest.warns(DataWarning, match="'GTV-1' and 'gtv_1' are taken for different classes"):
        with_classes(find_source(source))


def test_segments_outside_between_or_unnamed_are_one_line(tmp_path):
    scan = ("the scan", a_scan())
    named = [{"ID": "S1", "Name": "a", "LabelValue": 1, "Layer": 0}]
    beyond = AFFINE.copy()
    beyond[:3, 3] = (AFFINE @ (7, 0, 0, 1))[:3]
    path = slicer(tmp_path / "a.seg.nrrd", np.ones((4, 4, 4), np.uint8), beyond, named)
    with pytest.raises(UserError, match=r"case 'c': 32 labelled voxels .* lie outside the scan"):
        read_label("c", path, scan, None)
    beyond[:3, 3] = (AFFINE @ (1.4, 0, 0, 1))[:3]
    slicer(path, np.ones((4, 4, 4), np.uint8), beyond, named)
    with pytest.raises(UserError, match="lie between those of the scan"):
        read_label("c", path, scan, None)
    slicer(path, np.ones((1, *SHAPE), np.uint8), AFFINE, [named[0] | {"Layer": 3}])
    with pytest.raises(UserError, match="is in layer 3"):
        read_label("c", path, scan, None)
    slicer(path, np.ones(SHAPE, np.uint8), AFFINE, [named[0] | {"LabelValue": "1e3"}])
    with pytest.raises(UserError, match="LabelValue"):
        read_label("c", path, scan, None)
    # by its values where no name is a class, as other programs read it
    slicer(path, label(), AFFINE, named)
    assert np.array_equal(read_label("c", path, scan, {"background": 0, "LA": 1}).array, label())
    beyond[:3, 3] = 1e300
    with pytest.raises(UserError, match="lie"):
        part_on_grid("case 'c'", "scan", a_scan(), "label", Volume(label()[1:], beyond))


def nnunet_v1(folder: Path) -> Path:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    listed = []
    for case in ("b", "a"):
        for channel in range(2):
            formats.write(a_scan(), folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        formats.write(Volume(label(), AFFINE), folder / "labelsTr" / f"{case}.nii.gz")
        listed.append({"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"})
    described = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "numTraining": 2,
        "training": listed,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def test_nnunet_v1_is_read_and_a_missing_file_named(tmp_path):
    folder = nnunet_v1(tmp_path / "Task001_X")
    source = find_source(folder)
    assert (source.layout, source.channels) == ("nnunet-v1", ("T1", "T2"))
    assert [(case.name, len(case.images)) for case in source.cases] == [("a", 2), ("b", 2)]
    assert prepare_scans(folder, tmp_path / "prepared", processes=1).labels["b"] == 2
    (folder / "labelsTr" / "a.nii.gz").unlink()
    with pytest.raises(UserError, match="case 'a' in 'training'"):
        find_source(folder)


def structures(scan: Scan, rois: dict[str, list[np.ndarray]]) -> Dataset:
    """An RT Structure Set; rois: name -> contours (n, 3) in columns, rows, slices."""
    made = scan.slices()[0]
    ds = Dataset()
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(ds, keyword, made[keyword].value)
    ds.SOPClassUID, ds.SOPInstanceUID = RT_STRUCTURE_SET, generate_uid()
    ds.SeriesInstanceUID, ds.Modality = generate_uid(), "RTSTRUCT"
    ds.file_meta = made.file_meta
    ds.file_meta.MediaStorageSOPClassUID = RT_STRUCTURE_SET
    ds.ReferencedFrameOfReferenceSequence = [
        items(
            FrameOfReferenceUID=scan.frame_uid,
            RTReferencedStudySequence=items(
                RTReferencedSeriesSequence=items(SeriesInstanceUID=scan.series_uid)
            ),
        )
    ]
    ds.StructureSetROISequence, ds.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois.items(), 1):
        ds.StructureSetROISequence.append(items(ROINumber=number, ROIName=name))
        contour_items = []
        for points in contours:
            world = np.c_[points, np.ones(len(points))] @ scan.lps.T
            values = [f"{value:.8g}"[:16] for value in world[:, :3].ravel()]
            contour_items.append(
                items(
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(points),
                    ContourData=values,
                )
            )
        roi = items(ReferencedROINumber=number)
        roi.ContourSequence = contour_items
        ds.ROIContourSequence.append(roi)
    return ds


def square(a: float, b: float, index: float) -> np.ndarray:
    return np.array([(a, a, index), (b, a, index), (b, b, index), (a, b, index)], float)


def tree(root: Path) -> tuple[Path, Scan]:
    scan = Scan(noise())
    scan.write(root / "anna" / "scan")
    return root, scan


def save(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def prepared_from(root: Path, to: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return prepare_scans(root, to, processes=1)


def test_contours_become_voxels_holes_by_xor_and_classes_by_name(tmp_path):
    root, scan = tree(tmp_path / "source")
    rois = {
        "GTV": [square(0.5, 6.5, 2), square(2.5, 4.5, 2), square(1.5, 3.5, 3)],
        "node": [square(5.5, 8.5, 2)],
    }
    save(structures(scan, rois), root / "anna" / "rs.dcm")
    found = prepared_from(root, tmp_path / "prepared")
    assert found.labels == {"background": 0, "GTV": 1, "node": 2}
    expected = np.zeros((11, 9, 6), np.uint8)
    expected[1:7, 1:7, 2] = 1
    expected[3:5, 3:5, 2] = 0
    expected[2:4, 2:4, 3] = 1
    expected[6:9, 6:9, 2] = 2
    assert np.array_equal(truth_of(tmp_path / "prepared"), expected)
    assert any("'node' and 'GTV' in 1 voxels" in note for note in found.notes)
    # a choice of structures, and a name that no case has
    (root / "dataset.json").write_text('{"labels": {"background": 0, "node": 5}}')
    assert prepared_from(root, tmp_path / "chosen").labels == {"background": 0, "node": 5}
    assert np.array_equal(truth_of(tmp_path / "chosen") > 0, expected == 2)
    (root / "dataset.json").write_text('{"labels": {"background": 0, "node": 5, "Node": 6}}')
    with pytest.raises(UserError, match="no case has a segment named 'Node', but GTV, node"):
        prepared_from(root, tmp_path / "wrong")


def test_a_keyhole_is_a_hole(tmp_path):
    root, scan = tree(tmp_path)
    outer, inner = square(0.5, 7.5, 1)[:, :2], square(2.5, 5.5, 1)[::-1, :2]
    path = np.r_[outer, outer[:1], inner, inner[:1], outer[:1]]
    points = np.c_[path, np.ones(len(path))]
    file = save(structures(scan, {"a": [points]}), root / "rs.dcm")
    volume = formats.read(root / "anna" / "scan")
    found = read_label("c", file, ("the scan", volume), None).array
    expected = np.zeros((11, 9), np.uint8)
    expected[1:8, 1:8] = 1
    expected[3:6, 3:6] = 0
    assert np.array_equal(found[:, :, 1], expected)


@pytest.mark.parametrize(
    ("contour", "line"),
    [
        (square(1, 3, 9), "lies on none of them"),
        (square(1, 3, 2.5), "lies on none of them"),
        (square(1, 3, 1) * (1, 1, np.nan), "finite"),
    ],
)
def test_contours_beside_the_slices_and_of_no_numbers_are_one_line(tmp_path, contour, line):
    root, scan = tree(tmp_path)
    file = save(structures(scan, {"a": [square(1, 3, 1), contour]}), root / "rs.dcm")
    volume = formats.read(root / "anna" / "scan")
    with pytest.raises(UserError, match=line) as caught:
        read_label("c", file, ("the scan", volume), None)
    assert "\n" not in str(caught.value)


def test_labels_of_another_series_are_told_and_not_used(tmp_path):
    root, _ = tree(tmp_path)
    other = Scan(noise())
    save(structures(other, {"a": [square(1, 3, 1)]}), root / "anna" / "rs.dcm")
    with pytest.warns(DataWarning, match="drawn on a series that is not here"):
        assert find_source(root).cases[0].label is None
    with data_warnings() as told:
        assert len(find_cases([root])) == 1  # a prediction needs no label
    assert not told
    (root / "anna" / "rs.dcm").write_bytes((root / "anna" / "rs.dcm").read_bytes()[:700])
    with pytest.warns(DataWarning, match="its labels are not used|not here"):
        assert find_source(root).cases[0].label is None


def seg(root: Path, array: np.ndarray, path: Path, kind: str = "binary") -> Path:
    from dkuxnet.data.dicom.segmentation import write_label
    from dkuxnet.data.dicom.series import one_series

    volume = formats.read(root / "anna" / "scan")
    labels = {"background": 0, "liver": 1, "tumour": 2}
    path.parent.mkdir(parents=True, exist_ok=True)
    series = one_series(root / "anna" / "scan")
    write_label(Volume(array, volume.affine), labels, series, path, kind)
    return path


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_a_seg_that_predict_wrote_comes_back_as_the_label_map(tmp_path, kind):
    root, _ = tree(tmp_path / "source")
    array = label((11, 9, 6))
    seg(root, array, root / "labels" / "source.dcm", kind)
    found = prepared_from(root, tmp_path / "prepared")
    assert found.labels == {"background": 0, "liver": 1, "tumour": 2}
    assert np.array_equal(truth_of(tmp_path / "prepared"), array)
    # on a grid whose axes are in another order, as a converter writes it
    volume = formats.read(root / "anna" / "scan")
    grid = turned(Volume(array, volume.affine), (0, 1), (2, 1, 0))
    again = read_label("c", root / "labels" / "source.dcm", ("the scan", grid), found.labels)
    assert np.array_equal(again.array, grid.array)
    # and as predictions that are evaluated
    (tmp_path / "true").mkdir()
    formats.write(grid, tmp_path / "true" / "source.nii.gz")
    rows = evaluate_folders(root / "labels", tmp_path / "true").rows
    assert [(row.class_name, row.dice) for row in rows] == [("liver", 1.0), ("tumour", 1.0)]


def test_a_seg_in_the_tree_is_found_unless_dkuxnet_predicted_it(tmp_path):
    from pydicom import dcmread

    root, scan = tree(tmp_path / "source")
    file = seg(root, label((11, 9, 6)), root / "anna" / "seg.dcm")
    with pytest.warns(DataWarning, match="dkuxnet predicted it"):
        assert find_source(root).cases[0].label is None
    ds = dcmread(file)
    ds.ManufacturerModelName = "a hand"
    ds.save_as(file)
    assert find_source(root).cases[0].label == file
    save(structures(scan, {"a": [square(1, 3, 1)]}), root / "anna" / "rs.dcm")
    with pytest.warns(DataWarning, match="seg.dcm, the DICOM SEG, is its label"):
        assert with_classes(find_source(root)).labels == {"background": 0, "liver": 1, "tumour": 2}
    shutil.copy(file, root / "anna" / "seg2.dcm")
    with pytest.raises(UserError, match="got 2 files"):
        find_source(root)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        ({"NumberOfFrames": 2**31 - 1}, "frames"),
        ({"Rows": 65535, "Columns": 65535}, "bytes of voxels"),
        ({"BitsAllocated": 64}, "bits"),
        ({"PixelData": b""}, "bytes of voxels"),
        ({"position": [1e300, 0, 0]}, "not those of the scan"),
        ({"position": [-20.0, 30.0, 400.5]}, "outside the scan"),
        ({"number": 77}, ""),
    ],
)
def test_a_hostile_seg_is_one_line(tmp_path, spoil, line):
    from pydicom import dcmread

    root, _ = tree(tmp_path / "source")
    file = seg(root, label((11, 9, 6)), tmp_path / "seg.dcm")
    ds = dcmread(file)
    first = ds.PerFrameFunctionalGroupsSequence[0]
    for name, value in spoil.items():
        if name == "position":
            first.PlanePositionSequence[0].ImagePositionPatient = value
        elif name == "number":
            first.SegmentIdentificationSequence[0].ReferencedSegmentNumber = value
        else:
            setattr(ds, name, value)
    ds.save_as(file)
    volume = formats.read(root / "anna" / "scan")
    if not line:  # a frame of a segment that is not described belongs to no class
        read_label("c", file, ("the scan", volume), None)
        return
    with pytest.raises(UserError, match=line) as caught:
        read_label("c", file, ("the scan", volume), None)
    assert "\n" not in str(caught.value)
