"""Class names -> DICOM codes of segments: SNOMED CT for well-known ones, private for all others."""

import hashlib
import re
from dataclasses import dataclass

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

PRIVATE_SCHEME = "99DKUXNET"
SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}
# Keywords of DICOM's own dictionary of SNOMED CT
ORGAN_KEYWORDS = (
    *("LeftAtrium", "RightAtrium", "LeftVentricle", "RightVentricle", "LeftVentricleMyocardium"),
    *("Heart", "Aorta", "InferiorVenaCava", "PortalVein", "HepaticVein", "Liver", "Spleen"),
    *("Kidney", "Pancreas", "Gallbladder", "Stomach", "Duodenum", "Esophagus", "Colon", "Bladder"),
    *("AdrenalGland", "Prostate", "Uterus", "Lung", "Thyroid", "Brain", "Hippocampus", "Bone"),
    *("Vertebra", "Femur", "Organ"),
)
FINDING_KEYWORDS = ("Tumor", "Neoplasm", "Lesion", "Mass", "Cyst", "Edema", "Necrosis")
# Class names as data sets of the field have them, in lower case and letters alone -> keyword
ORGANS = {keyword.lower(): keyword for keyword in ORGAN_KEYWORDS} | {
    "la": "LeftAtrium",
    "laendo": "LeftAtrium",
    "leftatrialcavity": "LeftAtrium",
    "ra": "RightAtrium",
    "lv": "LeftVentricle",
    "rv": "RightVentricle",
    "lvmyocardium": "LeftVentricleMyocardium",
    "ivc": "InferiorVenaCava",
    "postcava": "InferiorVenaCava",
    "oesophagus": "Esophagus",
    "urinarybladder": "Bladder",
}
FINDINGS = {keyword.lower(): keyword for keyword in FINDING_KEYWORDS} | {
    "tumour": "Tumor",
    "cancer": "Neoplasm",
    "oedema": "Edema",
    "necroticcore": "Necrosis",
}


@dataclass(frozen=True)
class Codes:
    """What a segment is.

    category, property: of DICOM's context group 7150 and of those it refers to. side: left or
    right, where the code of the property does not say so. region: the organ of a finding, if named.
    """

    category: Code
    property: Code
    side: Code | None = None
    region: Code | None = None


def codes_of(name: str) -> Codes:
    """The codes of a class by its name: "LA", "left_kidney", "kidneys", "liver tumour".

    An unknown name is a tissue with a private code (scheme PRIVATE_SCHEME), always the same one.
    """
    letters = re.sub(r"[^a-z]", "", name.lower())
    if organ := _organ(letters):
        return Codes(codes.SCT.AnatomicalStructure, organ)
    for side, code in SIDES.items():
        if organ := _organ(letters.removeprefix(side)) or _organ(letters.removesuffix(side)):
            return Codes(codes.SCT.AnatomicalStructure, organ, side=code)
    single = letters if letters in FINDINGS else letters.removesuffix("s")
    for ending, keyword in FINDINGS.items():
        organ = _organ(single.removesuffix(ending))
        if single == ending or (single.endswith(ending) and organ):
            return Codes(
                codes.SCT.MorphologicallyAbnormalStructure,
                getattr(codes.SCT, keyword),
                region=organ,
            )
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return Codes(codes.SCT.Tissue, Code(digest, PRIVATE_SCHEME, text_of(name)))


def _organ(letters: str) -> Code | None:
    keyword = ORGANS.get(letters) or ORGANS.get(letters.removesuffix("s"))
    return getattr(codes.SCT, keyword) if keyword else None


def text_of(name: str) -> str:
    """A name as DICOM allows it: at most 64 characters, no backslash or control character."""
    return re.sub(r"[\\\x00-\x1f\x7f]", " ", name).strip()[:64] or "unnamed"
