"""The chosen test cases as the page shows them: pictures, layers for the viewer, maps, surfaces."""

from typing import Any

from dkuxnet.core.errors import UserError
from dkuxnet.core.schemas import Manifest
from dkuxnet.data.prepared_set import PreparedSet
from dkuxnet.evaluation.metrics import DICE
from dkuxnet.report.case import ShownCase, load_case
from dkuxnet.report.results import CaseResult, Results
from dkuxnet.report.slices import draw_groups, draw_slices, draw_uncertainty
from dkuxnet.report.surfaces import draw_surfaces, packed, surfaces_of
from dkuxnet.report.volumes import layers_of_cases


def show_cases(
    results: Results | None, data: PreparedSet | None, manifest: Manifest
) -> dict[str, Any]:
    """What the page's part about cases needs, worst case first in each list.

    pictures: an entry for each chosen case, whose `missing` says why one has no picture. The other
    lists are of those that could be loaded, and empty where there is nothing to show. viewer:
    `volumes.layers_of`; surfaces: `surfaces.packed`, None where nothing is outlined.
    """
    pictures, loaded = [], []
    for title, result in [] if results is None else results.chosen():
        entry = {"title": title, "name": result.name, "dice": DICE.show(result.dice)}
        case, missing = _load(result, data, manifest)
        if case is not None:
            loaded.append((entry, case))
        pictures.append(
            entry
            | {
                "missing": missing,
                "image": "" if case is None else draw_slices(case),
                "note": "" if case is None else case.note,
                "oriented": case is None or case.oriented,
            }
        )
    names, cases = list(manifest.labels), [case for _, case in loaded]
    surfaces = [surfaces_of(case, len(names) - 1) for case in cases]
    some = next(filter(None, surfaces), None)
    return {
        "pictures": pictures,
        "viewer": [
            entry | layers
            for (entry, _), layers in zip(loaded, layers_of_cases(cases, names), strict=True)
        ],
        "has_maps": any(case.uncertainty is not None or case.groups for case in cases),
        "maps": [
            entry | {"images": draw_uncertainty(case), "groups": draw_groups(case)}
            for entry, case in loaded
        ],
        "has_groups": any(case.groups for case in cases),
        "surfaces": [None if each is None else packed(each) for each in surfaces],
        "surface_pictures": [
            entry | {"image": None if each is None else draw_surfaces(each)}
            for (entry, _), each in zip(loaded, surfaces, strict=True)
        ],
        "surface_classes": []
        if some is None
        else list(zip(names[1:], some.colours[0], strict=True)),
        "oriented": all(case.oriented for case in cases),
    }


def _load(
    result: CaseResult, data: PreparedSet | None, manifest: Manifest
) -> tuple[ShownCase | None, str]:
    """(the case, "") or (None, why it cannot be shown)."""
    try:
        if data is None:
            raise UserError("the prepared data set of this run is not where it was")
        return load_case(data, result.name, result.file, manifest), ""
    except UserError as error:
        return None, str(error)
    except (KeyError, IndexError) as error:
        return None, f"the prepared data do not describe this case as they should ({error})"
