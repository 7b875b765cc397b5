"""DICOM series for the tests, written with pydicom: what a scanner, or a careless export, leaves
behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

AXIAL = (1.0, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1.0, 0, 0, 0, -1)
CORONAL = (1.0, 0, 0, 0, 0, -1)


@dataclass
class Scan:
    """voxels: (slices, rows, columns) as stored; slices advance along the cross product of the
    directions.
    """

    voxels: np.ndarray
    orientation: Sequence[float] = AXIAL
    spacing_mm: tuple[float, float, float] = (3.0, 2.0, 1.5)  # slices, rows, columns
    position: Sequence[float] = (-20.0, 30.0, 100.5)
    modality: str = "MR"
    series_uid: str = field(default_factory=generate_uid)
    study_uid: str = field(default_factory=generate_uid)
    frame_uid: str = field(default_factory=generate_uid)
    patient: str = "P1"
    description: str = "scan"

    @property
    def lps(self) -> np.ndarray:
        """(4, 4): column, row, slice -> LPS mm, by the standard's equation."""
        along, down = np.array(self.orientation[:3], float), np.array(self.orientation[3:], float)
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1] = along * self.spacing_mm[2], down * self.spacing_mm[1]
        matrix[:3, 2] = np.cross(along, down) * self.spacing_mm[0]
        matrix[:3, 3] = self.position
        return matrix

    def place(self, index: int) -> list[float]:
        return [float(f"{value:.10g}") for value in (self.lps @ (0, 0, index, 1))[:3]]

    def slices(self, **changes) -> list[FileDataset]:
        """One data set a slice; changes: attributes of every slice, None removes one."""
        made = []
        for index, plane in enumerate(self.voxels):
            ds = self._common(CTImageStorage if self.modality == "CT" else MRImageStorage, plane)
            ds.ImagePositionPatient, ds.ImageOrientationPatient = (
                self.place(index),
                decimals(self.orientation),
            )
            ds.PixelSpacing, ds.SliceThickness = list(self.spacing_mm[1:]), self.spacing_mm[0]
            ds.InstanceNumber = index + 1
            for name, value in changes.items():
                if value is None:
                    delattr(ds, name)
                else:
                    setattr(ds, name, value)
            made.append(ds)
        return made

    def enhanced(
        self,
        order: Sequence[int] | None = None,
        rescale: Sequence[tuple[float, float]] | None = None,
    ) -> FileDataset:
        """All slices as frames of one file, in `order`; rescale: (slope, intercept) of each."""
        order = list(range(len(self.voxels))) if order is None else list(order)
        ds = self._common(EnhancedMRImageStorage, self.voxels[order])
        ds.NumberOfFrames, ds.InstanceNumber = len(order), 1
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
        ds.ContentDate, ds.ContentTime = "20260101", "120000"
        ds.SharedFunctionalGroupsSequence = Items(
            [
                items(
                    PlaneOrientationSequence=items(
                        ImageOrientationPatient=decimals(self.orientation)
                    ),
                    PixelMeasuresSequence=items(
                        PixelSpacing=list(self.spacing_mm[1:]), SliceThickness=self.spacing_mm[0]
                    ),
                )
            ]
        )
        frames = []
        for number, index in enumerate(order):
            content = items(
                StackID="1", InStackPositionNumber=index + 1, DimensionIndexValues=[1, number + 1]
            )
            frame = items(
                PlanePositionSequence=items(ImagePositionPatient=self.place(index)),
                FrameContentSequence=content,
            )
            if rescale:
                slope, intercept = rescale[index]
                frame.PixelValueTransformationSequence = Items(
                    [items(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")]
                )
            frames.append(frame)
        ds.PerFrameFunctionalGroupsSequence = Items(frames)
        return ds

    def write(self, folder: Path, seed: int | None = None, **changes) -> Path:
        """The slices as files; with a seed, in random order under random names without suffix."""
        return save(self.slices(**changes), folder, seed)

    def _common(self, sop_class: UID, voxels: np.ndarray) -> FileDataset:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = (
            f"Test^{self.patient}",
            self.patient,
            "19700101",
            "O",
        )
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (
            self.study_uid,
            self.series_uid,
            self.frame_uid,
        )
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260101", "120000", "1", ""
        ds.ReferringPhysicianName, ds.Manufacturer, ds.PositionReferenceIndicator = "", "nobody", ""
        ds.SeriesNumber, ds.SeriesDescription, ds.Modality = 1, self.description, self.modality
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        stored = np.ascontiguousarray(voxels)
        ds.Rows, ds.Columns = stored.shape[-2:]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated = ds.BitsStored = 8 * stored.dtype.itemsize
        ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(stored.dtype.kind == "i")
        ds.PixelData = stored.tobytes()
        return ds


def items(**attributes) -> Dataset:
    """A data set of the attributes; a data set among them becomes a sequence of one."""
    ds = Dataset()
    for name, value in attributes.items():
        setattr(ds, name, Items([value]) if isinstance(value, Dataset) else value)
    return ds


def decimals(values: Sequence[float]) -> list[float]:
    """As DICOM's decimal strings hold them, 16 characters each."""
    return [float(f"{value:.10f}") for value in values]


def save(datasets: Sequence[Dataset], folder: Path, seed: int | None = None) -> Path:
    """Write data sets into `folder`, in order, or in random order and under random names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = None if seed is None else np.random.default_rng(seed)
    order = range(len(datasets)) if rng is None else rng.permutation(len(datasets))
    for number, index in enumerate(order):
        name = f"IM{number:04d}.dcm" if rng is None else f"{rng.integers(1 << 40):011x}"
        datasets[index].save_as(folder / name, enforce_file_format=True)
    return folder


def noise(
    shape: tuple[int, int, int] = (6, 9, 11), dtype: type = np.int16, seed: int = 0
) -> np.ndarray:
    """Random stored values over the whole range of the type: no symmetry that could hide a flip."""
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max, shape, dtype, endpoint=True)
