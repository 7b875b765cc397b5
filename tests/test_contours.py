"""RT Structure Sets out: the label map comes back, by our reader and by another one's rule."""

import shutil

import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from pydicom import dcmread

from dicom_series import AXIAL, Scan, noise, save
from dkuxnet.core.errors import UserError
from dkuxnet.core.types import Volume
from dkuxnet.data import formats
from dkuxnet.data.dicom.contours import outlines, write_contours
from dkuxnet.data.dicom.series import one_series
from dkuxnet.data.dicom.structures import read_structures
from dkuxnet.data.dicom.study import Origin
from dkuxnet.prediction.predict import predict_scans
from test_dicom_seg import LABELS, ORIENTATIONS, check_valid, label_map, source
from test_predict import fake_run


@pytest.mark.parametrize("enhanced", [False, True], ids=["slices", "multi-frame"])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_label_map_comes_back_voxel_for_voxel(tmp_path, name, enhanced):
    folder = source(tmp_path, name, enhanced)
    scan = formats.read(folder)
    label = Volume(label_map(scan.shape), scan.affine)
    path = tmp_path / "structures.dcm"
    write_contours(label, LABELS, one_series(folder), path, Origin("net", "1", ("look at it",)))
    found = read_structures(path)
    assert [each.name for each in found] == list(LABELS)[1:]
    for each in found:
        assert np.array_equal(each.mask(path, scan), label.array == LABELS[each.name])
    check_valid(path, "RTStructureSet")
    written = dcmread(path)
    assert written.PatientID == "P1" and "to be checked" in written.SeriesDescription
    assert written.StructureSetDescription == "look at it"


def test_each_contour_names_the_image_that_it_lies_on(tmp_path):
    folder = save(Scan(noise((5, 8, 8)), AXIAL).slices(), tmp_path / "scan", seed=3)
    scan = formats.read(folder)
    array = np.zeros(scan.shape, np.uint8)
    array[2:5, 2:5, 3] = 1
    path = tmp_path / "structures.dcm"
    write_contours(
        Volume(array, scan.affine), {"air": 0, "a": 1, "none": 2}, one_series(folder), path
    )
    drawn, empty = dcmread(path).ROIContourSequence
    (contour,) = drawn.ContourSequence
    (cited,) = contour.ContourImageSequence
    images = {image.SOPInstanceUID: image for image in map(dcmread, folder.iterdir())}
    height = images[cited.ReferencedSOPInstanceUID].ImagePositionPatient[2]
    assert contour.ContourData[2::3] == [height] * contour.NumberOfContourPoints
    assert "ContourSequence" not in empty


def test_outlines_by_another_rule_have_the_same_voxels_inside():
    """A disc with two holes and an island in one of them: an outline with keyholes, and another."""
    mask = np.zeros((30, 24), bool)
    mask[2:28, 3:21] = True
    mask[5:14, 6:18] = mask[17:25, 6:18] = False
    mask[8:11, 9:12] = True
    drawn = outlines(mask)
    assert len(drawn) == 2
    centres = np.argwhere(np.ones_like(mask))
    inside = np.add.reduce([Polygon(each).contains_points(centres) for each in drawn])
    assert np.array_equal(inside.reshape(mask.shape), mask)


def test_a_plain_edge_has_no_point_that_it_could_do_without():
    mask = np.zeros((40, 40), bool)
    mask[5:35, 5:35] = True
    (outline,) = outlines(mask)
    assert len(outline) == 8  # each corner is cut off


def test_predict_writes_structures(tmp_path, monkeypatch):
    run, folder = fake_run(monkeypatch), source(tmp_path, "oblique", enhanced=False)
    (path,) = predict_scans(run, [folder], tmp_path / "out", form="rtstruct")
    assert dcmread(path).Modality == "RTSTRUCT"
    predict_scans(run, [folder], tmp_path / "out", form="rtstruct")  # its own may be replaced
    with pytest.raises(UserError, match="has outlines alone, no uncertainty; leave out"):
        predict_scans(run, [folder], tmp_path / "o", form="rtstruct", save_uncertainty=True)
    shutil.copy(next(folder.iterdir()), path)
    with pytest.raises(UserError, match="is no RT Structure Set"):
        predict_scans(run, [folder], tmp_path / "out", form="rtstruct")


def test_a_series_without_a_frame_of_reference_is_refused_before_the_work(tmp_path, monkeypatch):
    slices = Scan(noise((5, 8, 8)), AXIAL).slices(FrameOfReferenceUID=None)
    folder = save(slices, tmp_path / "scan", seed=3)
    with pytest.raises(UserError, match="without which no RT Structure Set can say"):
        predict_scans(fake_run(monkeypatch), [folder], tmp_path / "out", form="rtstruct")
