"""A training that begins with the weights of an earlier run."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from dkuxnet.core.config import load_settings
from dkuxnet.core.errors import DataWarning, UserError
from dkuxnet.core.types import NEVER_FLAT, NetworkShape
from dkuxnet.models.build import misfits_of, take_weights
from dkuxnet.models.networks.grouping import default_groups
from dkuxnet.models.networks.plain import uxnet_tiny
from dkuxnet.training.begin import for_classes
from dkuxnet.training.experiment import run_training
from tiny import UXNET, dotted, prepared_phantoms

STILL = {"train.steps": 1, "train.lr": 1e-9, "train.weight_decay": 0.0}


def settings(base=UXNET, **overrides):
    return load_settings(overrides=base | STILL | dotted(overrides))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begin")
    prepared = prepared_phantoms(folder, cases=3, labelled=3)
    run_training(prepared, folder / "old", settings(train__seed=7, train__lr=0.01))
    return folder


def weights(run):
    return load_file(run / "final.safetensors")


def test_the_networks_begin_with_the_weights_of_the_earlier_run(trained, tmp_path):
    run_training(
        trained / "prepared", tmp_path / "new", settings(train__pretrained=str(trained / "old"))
    )
    run_training(trained / "prepared", tmp_path / "anew", settings())
    old, new, anew = map(weights, (trained / "old", tmp_path / "new", tmp_path / "anew"))
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)
    assert not all(torch.allclose(old[name], anew[name], atol=1e-6) for name in old)


def test_of_two_branches_the_second_begins_anew_so_that_they_differ(trained, tmp_path):
    run = tmp_path / "run"
    run_training(
        trained / "prepared",
        run,
        settings(method__name="cps", train__pretrained=str(trained / "old")),
    )
    old, new = weights(trained / "old"), weights(run)
    for name, tensor in old.items():
        assert torch.allclose(new[name], tensor, atol=1e-6)
    one = "networks.1." + next(iter(old)).removeprefix("networks.0.")
    assert not torch.equal(new[one], new[next(iter(old))])


def test_classes_keep_their_rows_by_name_and_a_new_one_begins_with_zeros():
    weights = {"head.weight": torch.arange(6.0).reshape(3, 2), "encoder.x": torch.ones(3, 2)}
    moved = for_classes(weights, ["background", "organ", "tumour"], ["background", "cyst", "organ"])
    assert moved["head.weight"].tolist() == [[0, 1], [0, 0], [2, 3]]
    assert moved["encoder.x"] is weights["encoder.x"]


def test_what_does_not_fit_is_told_and_where_nothing_fits_it_is_an_error(trained, tmp_path):
    old = str(trained / "old")
    wider = settings(network__widths=[4, 4, 4, 8], train__pretrained=old)
    with pytest.warns(DataWarning, match=r"\d+ of \d+ weights do not fit those of .*begin anew"):
        run_training(trained / "prepared", tmp_path / "wider", wider)
    with pytest.raises(UserError, match="is not a run folder"):
        run_training(
            trained / "prepared", tmp_path / "none", settings(train__pretrained=str(tmp_path))
        )
    assert not (tmp_path / "none").exists()


def test_a_run_of_other_classes_is_refused(trained, tmp_path):
    foreign = shutil.copytree(trained / "old", tmp_path / "foreign")
    manifest = foreign / "manifest.json"
    text = manifest.read_text().replace('"organ"', '"a"').replace('"tumour"', '"b"')
    manifest.write_text(text)
    with pytest.raises(UserError, match="has no class of this data set; its classes are a, b"):
        run_training(
            trained / "prepared", tmp_path / "run", settings(train__pretrained=str(foreign))
        )


def test_a_kernel_that_stays_in_the_plane_takes_the_sum_across_it_and_gives_its_middle():
    """On a scan that is alike in all slices the network with fewer of them gives the same."""
    groups = default_groups(["background", "organ"], 4)
    strides = ((2, 2, 1),) * 4
    flat = ((False, False, True), *NEVER_FLAT[1:])
    options = {"widths": (4, 4, 4, 4), "depths": (1, 0, 0, 0)}
    torch.manual_seed(0)
    whole = uxnet_tiny(NetworkShape(1, 2, groups, strides), options)
    thin = uxnet_tiny(NetworkShape(1, 2, groups, strides, flat), options)
    assert not misfits_of(thin, whole.state_dict())
    take_weights(thin, whole.state_dict())
    image = torch.randn(1, 1, 32, 32, 1).expand(-1, -1, -1, -1, 41).contiguous()
    with torch.no_grad():
        stem = [net.encoder.reduce[0][0](image)[..., 20] for net in (whole, thin)]
    assert torch.allclose(*stem, atol=1e-5)
    back = uxnet_tiny(NetworkShape(1, 2, groups, strides), options)
    take_weights(back, thin.state_dict())
    middle = back.encoder.reduce[0][0].weight[..., 3:4]
    assert torch.equal(middle, thin.encoder.reduce[0][0].weight)
    assert back.encoder.reduce[0][0].weight.count_nonzero() == middle.count_nonzero()
