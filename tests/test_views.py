"""Weak and strong views: one geometry for image and label, each view its own intensities."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dkuxnet.core.config import AugmentSettings, ViewSettings
from dkuxnet.models.methods.blur import gaussian_blur
from dkuxnet.training import views as augment
from dkuxnet.training.views import apply_view, draw_view, make_views

PLAIN = ViewSettings()
GEOMETRY = AugmentSettings(
    rotation=40, scale=1.3, shift=2, elastic=2, flip="xyz", weak=PLAIN, strong=PLAIN
)
STILL = AugmentSettings(rotation=0, scale=1, weak=PLAIN, strong=PLAIN)
SIZE = (16, 20, 28)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_(settings: AugmentSettings, **changes) -> AugmentSettings:
    return settings.model_copy(update=changes)


def patches(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """An off-centre L in two classes, and an image that is smooth noise."""
    label = torch.zeros(batch, *SIZE, dtype=torch.int64)
    label[:, 3:7, 4:14, 5:12] = 1
    label[:, 3:13, 11:15, 7:20] = 2
    noise = np.random.default_rng(0).normal(size=(batch, 1, *SIZE))
    return torch.from_numpy(gaussian_filter(noise, (0, 0, 2, 2, 2))).float() * 10, label


def one_hot(label: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(label, 3).movedim(-1, 1).float()


@pytest.mark.parametrize("seed", range(6))
def test_both_views_and_the_label_are_the_same_places(seed):
    _, label = patches()
    views = make_views(one_hot(label), label, GEOMETRY, generator(seed))
    torch.testing.assert_close(views.weak, views.strong)
    agree = views.weak.argmax(dim=1) == views.label
    assert (
        agree.float().mean() > 0.97
    )  # the border runs between voxels: nearest and linear may differ there
    assert agree[views.weak.amax(dim=1) > 0.75].all()
    assert (views.label != label).any(), "the geometry has done nothing"


def test_views_differ_in_intensity_alone_and_places_stay():
    image, label = patches()
    strong = ViewSettings(noise=0.2, brightness=0.5, contrast=1.5, gamma=1.5, bias_field=0.3)
    views = make_views(image, label, with_(GEOMETRY, strong=strong), generator())
    reference = make_views(image, label, GEOMETRY, generator())
    torch.testing.assert_close(views.weak, reference.weak)
    torch.testing.assert_close(views.label, reference.label)
    for weak, changed in zip(views.weak, views.strong, strict=True):
        assert not torch.allclose(weak, changed, atol=0.05)
        assert torch.corrcoef(torch.stack([weak.flatten(), changed.flatten()]))[0, 1] > 0.8


def test_unlabelled_patches_move_as_labelled_ones_do():
    image, label = patches()
    assert make_views(image, None, GEOMETRY, generator()).label is None
    torch.testing.assert_close(
        make_views(image, None, GEOMETRY, generator()).weak,
        make_views(image, label, GEOMETRY, generator()).weak,
    )


def test_settings_of_zero_change_nothing():
    image, label = patches()
    views = make_views(image, label, STILL, generator())
    torch.testing.assert_close(views.weak, image, atol=1e-4, rtol=0)
    torch.testing.assert_close(views.strong, image, atol=1e-4, rtol=0)
    torch.testing.assert_close(views.label, label)


def test_the_inputs_stay_as_they_are():
    image, label = patches()
    before = image.clone(), label.clone()
    strong = ViewSettings(
        noise=1, brightness=1, contrast=2, gamma=2, blur=2, bias_field=1, cutout=0.5
    )
    make_views(image, label, with_(GEOMETRY, strong=strong, weak=strong), generator())
    apply_view(image, draw_view(image, strong, generator()))
    assert torch.equal(image, before[0]) and torch.equal(label, before[1])


def test_the_same_seed_draws_the_same_views_and_another_seed_others():
    image, label = patches()
    settings = AugmentSettings(
        elastic=2, shift=1, flip="x", strong=ViewSettings(noise=1, blur=1, cutout=0.3)
    )
    first, again, other = (
        make_views(image, label, settings, generator(seed)) for seed in (5, 5, 6)
    )
    for name in ("weak", "strong", "label"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    assert not torch.equal(first.weak[0] - image[0], first.weak[1] - image[1]), (
        "each patch draws its own"
    )


def centre_of_mass(image: torch.Tensor) -> np.ndarray:
    """Voxels from the patch's centre."""
    weight = image.double().numpy()
    places = np.stack(
        np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in weight.shape], indexing="ij"), -1
    )
    return (places * weight[..., None]).sum((0, 1, 2)) / weight.sum()


def marker(offset) -> torch.Tensor:
    """(1, 1, X, Y, Z): a soft ball `offset` voxels from the patch's centre."""
    places = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in SIZE], indexing="ij"), -1)
    return torch.from_numpy(np.exp(-((places - offset) ** 2).sum(-1) / 2)).float()[None, None]


def fixed_draws(monkeypatch, *draws: list[float]) -> None:
    """Make the uniform draws, in order, the given ones."""
    queue = list(draws)
    monkeypatch.setattr(
        augment,
        "_uniform",
        lambda generator, device: lambda *shape: torch.tensor(queue.pop(0)).reshape(shape),
    )


def turned(
    monkeypatch,
    settings,
    angles=(0.0, 0.0, 0.0),
    scale=0.0,
    shift=(0.0, 0.0, 0.0),
    offset=(3, 5, -6),
    spacing_mm=(1, 1, 1),
):
    """Where the marker goes, by shares of the settings' largest angles (about x, y, z), scale and
    shift.
    """
    fixed_draws(monkeypatch, angles, [scale], shift)
    image = marker(offset)
    edges = [float(s / min(spacing_mm)) for s in spacing_mm]
    grid = augment.draw_grid(image, settings, generator(), edges)
    moved = torch.nn.functional.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
    return centre_of_mass(moved[0, 0]), moved.sum() / image.sum()


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("share", [1.0, -0.5])
def test_a_rotation_turns_voxels_without_shear_on_a_patch_that_is_no_cube(monkeypatch, axis, share):
    offset = np.array([3.0, 5.0, -4.0])
    place, mass = turned(
        monkeypatch, with_(STILL, rotation=30), (share * np.eye(3)[axis]).tolist(), offset=offset
    )
    angle = np.radians(30 * share)
    # the grid turns by +angle about the axis, so what it samples turns by -angle
    after = offset.copy()
    u, v = (axis + 1) % 3, (axis + 2) % 3
    after[u] = np.cos(angle) * offset[u] + np.sin(angle) * offset[v]
    after[v] = -np.sin(angle) * offset[u] + np.cos(angle) * offset[v]
    np.testing.assert_allclose(place, after, atol=0.1)
    assert mass == pytest.approx(1, abs=0.03)


def test_a_rotation_is_of_the_body_where_voxels_are_no_cubes(monkeypatch):
    spacing, offset = np.array([1.0, 2.0, 4.0]), np.array([6.0, 4.0, 1.0])
    place, _ = turned(
        monkeypatch, with_(STILL, rotation=30), [1.0, 0.0, 0.0], offset=offset, spacing_mm=spacing
    )
    before, after = offset * spacing, place * spacing
    assert np.linalg.norm(after) == pytest.approx(
        np.linalg.norm(before), abs=0.3
    )  # a shear would change the length
    turn = np.arctan2(after[2], after[1]) - np.arctan2(before[2], before[1])
    assert abs(turn) == pytest.approx(np.radians(30), abs=0.05)


def test_views_of_thick_slices_are_blurred_and_deformed_by_their_edges():
    image, label = patches()
    cubes, slices = (
        make_views(image, label, with_(STILL, outline=0.3), generator(), (2.0, 2.0, z))
        for z in (2.0, 8.0)
    )
    assert cubes.edges == (1.0, 1.0, 1.0) and slices.edges == (1.0, 1.0, 4.0)
    assert not torch.equal(cubes.label, slices.label)
    strong = with_(STILL, strong=ViewSettings(blur=4.0))
    cubes, slices = (
        make_views(image, None, strong, generator(), (2.0, 2.0, z)).strong for z in (2.0, 8.0)
    )
    along_z = [(each - image).diff(dim=4).abs().mean() for each in (cubes, slices)]
    assert along_z[1] < 0.8 * along_z[0], "less is lost of what changes from slice to slice"


@pytest.mark.parametrize("axis", range(3))
def test_thick_slices_are_turned_and_scaled_in_their_plane_alone(monkeypatch, axis):
    edges = np.array([1.0, 1.0, 6.0])
    offset = np.array([6.0, -4.0, 1.0])
    settings = with_(STILL, rotation=30, scale=1.25, shift=3)
    place, _ = turned(
        monkeypatch, settings, np.eye(3)[axis].tolist(), offset=offset, spacing_mm=edges
    )
    assert place[2] == pytest.approx(1, abs=1e-3)
    if axis < 2:
        np.testing.assert_allclose(place, offset, atol=0.1)
    else:
        assert np.linalg.norm(place - offset) > 3
    place, mass = turned(
        monkeypatch, settings, scale=1.0, shift=[0, 0, 1.0], offset=offset, spacing_mm=edges
    )
    np.testing.assert_allclose(place, offset / (1.25, 1.25, 1) - (0, 0, 0.5), atol=0.1)
    assert mass == pytest.approx(1.25**-2, rel=0.05)


def test_smooth_fields_and_blurs_count_along_the_shortest_edge():
    image, edges = patches()[0], (1.0, 1.0, 4.0)
    still = augment.draw_grid(image, STILL, generator(), edges)
    moved = augment.draw_grid(image, with_(STILL, elastic=3), generator(), edges)
    voxels = (moved - still) * torch.tensor([n / 2 for n in SIZE[::-1]])
    most = voxels.abs().amax(dim=(0, 1, 2, 3))  # along Z, Y, X
    assert most[0] <= 3 / 4 and most[0] > 0.2 and (most[1:] > 1).all()
    point = torch.zeros(1, 1, 17, 17, 17)
    point[..., 8, 8, 8] = 1
    blurred = gaussian_blur(point, torch.tensor([2.0]), 6, edges)[0, 0]
    expected = [np.exp(-(d**2) / 8) for d in (1, 1, 4)]
    neighbours = [blurred[9, 8, 8], blurred[8, 9, 8], blurred[8, 8, 9]]
    np.testing.assert_allclose([n / blurred[8, 8, 8] for n in neighbours], expected, rtol=1e-5)


def test_scale_and_shift_count_in_voxels(monkeypatch):
    offset = np.array([2.0, 4.0, -6.0])
    place, mass = turned(monkeypatch, with_(STILL, scale=1.25), scale=1.0, offset=offset)
    np.testing.assert_allclose(place, offset / 1.25, atol=0.1)
    assert mass == pytest.approx(1.25**-3, rel=0.05)
    place, _ = turned(monkeypatch, with_(STILL, shift=2), shift=[1.0, -0.5, 0.0], offset=offset)
    np.testing.assert_allclose(place, offset - (2, -1, 0), atol=0.1)


@pytest.mark.parametrize(("axes", "dims"), [("x", [2]), ("z", [4]), ("xy", [2, 3])])
def test_a_flip_mirrors_its_axes_and_no_other_for_about_half_of_the_patches(axes, dims):
    image = patches(1)[0].expand(24, -1, -1, -1, -1)
    views = make_views(image, None, with_(STILL, flip=axes), generator())
    kinds = [image[:1], *(image[:1].flip(d) for d in dims), image[:1].flip(dims)]
    distances = torch.stack([(views.weak - kind).abs().amax(dim=(1, 2, 3, 4)) for kind in kinds])
    assert (distances.amin(dim=0) < 1e-3).all()
    assert (distances < 1e-3).any(dim=1).all(), "every combination occurs"


def test_the_elastic_field_moves_by_at_most_its_setting():
    image = patches()[0]
    still = augment.draw_grid(image, STILL, generator(), (1, 1, 1))
    moved = augment.draw_grid(image, with_(STILL, elastic=3), generator(), (1, 1, 1))
    voxels = (moved - still) * torch.tensor([n / 2 for n in SIZE[::-1]])
    assert 1 < voxels.abs().max() <= 3
    assert (voxels.abs().amax(dim=(0, 1, 2, 3)) > 0.5).all(), "along each axis"


def test_the_organs_of_labelled_patches_grow_and_shrink_where_the_view_shows_them():
    """An off-centre ball in a turned view: image and label stay one, the ball keeps its middle,
    its size varies.
    """
    ball = (marker((3, 4, -6)) > 0.02).float().expand(16, -1, -1, -1, -1)
    turned = with_(STILL, rotation=30)
    plain = make_views(ball, ball[:, 0].long(), turned, generator())
    varied = make_views(ball, ball[:, 0].long(), with_(turned, outline=0.3), generator())
    sizes = [views.label.sum(dim=(1, 2, 3)).double() for views in (plain, varied)]
    assert (sizes[1] / sizes[0]).min() < 0.7 and (sizes[1] / sizes[0]).max() > 1.4
    for patch in range(16):
        shown, labelled = varied.weak[patch, 0] > 0.5, varied.label[patch].bool()
        assert (shown & labelled).sum() > 0.75 * (shown | labelled).sum()
        np.testing.assert_allclose(
            centre_of_mass(varied.label[patch]), centre_of_mass(plain.label[patch]), atol=0.5
        )
    unlabelled = [
        make_views(ball, None, settings, generator())
        for settings in (turned, with_(turned, outline=0.3))
    ]
    assert torch.equal(unlabelled[0].weak, unlabelled[1].weak), "what no label shows, nothing moves"


def test_blur_of_zero_is_exact_identity_for_its_patch_alone():
    image = torch.randn(2, 3, 8, 9, 10, generator=generator())
    result = gaussian_blur(image, torch.tensor([0.0, 1.0]), reach=3)
    assert torch.equal(result[0], image[0])
    assert not torch.allclose(result[1], image[1])


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
def test_blur_is_the_gaussian_of_scipy(sigma):
    image = torch.randn(2, 2, 16, 14, 18, generator=generator())
    result = gaussian_blur(image, torch.tensor([sigma, 0.3]), reach=8)
    for channel in range(2):
        expected = gaussian_filter(image[0, channel].numpy(), sigma, mode="nearest", radius=8)
        np.testing.assert_allclose(result[0, channel], expected, atol=1e-5)


def test_a_view_blurs_as_far_as_its_sigma_needs(monkeypatch):
    fixed_draws(monkeypatch, [0.0], [0.0], [1.0], [1.0])  # contrast, brightness, sigma, and yes
    image = torch.zeros(1, 1, 33, 33, 33)
    image[..., 16, 16, 16] = 1
    view = apply_view(image, draw_view(image, ViewSettings(blur=3), generator()))
    spread = (view[0, 0].sum((1, 2)) * (torch.arange(33) - 16.0) ** 2).sum().sqrt()
    assert spread == pytest.approx(3, rel=0.03)


def test_intensity_changes_do_what_they_say(monkeypatch):
    image = patches(1)[0]
    fixed_draws(monkeypatch, [1.0], [-0.5])
    view = apply_view(image, draw_view(image, ViewSettings(contrast=2, brightness=3), generator()))
    torch.testing.assert_close(view, (image - image.mean()) * 2 + image.mean() - 1.5)

    fixed_draws(monkeypatch, [0.0], [0.0], [1.0], [1.0])
    view = apply_view(image, draw_view(image, ViewSettings(gamma=2), generator()))
    low, span = image.min(), image.max() - image.min()
    torch.testing.assert_close(view, ((image - low) / span) ** 2 * span + low, atol=1e-4, rtol=0)


def test_noise_is_at_most_of_its_strength_and_new_in_every_voxel():
    image = torch.zeros(8, 1, *SIZE)
    stds = apply_view(image, draw_view(image, ViewSettings(noise=0.5), generator())).std(
        dim=(1, 2, 3, 4)
    )
    assert stds.max() < 0.52 and stds.max() > 0.3 and stds.min() < 0.2


def test_cutout_blanks_one_box_with_the_mean_in_about_half_of_the_patches():
    image = patches(1)[0].expand(24, -1, -1, -1, -1)
    changed = (
        apply_view(image, draw_view(image, ViewSettings(cutout=0.5), generator())) - image
    ).abs() > 1e-4
    hit = [c[0].nonzero() for c in changed if c.any()]
    assert 3 < len(hit) < 21
    for places in hit:
        edges = places.amax(dim=0) - places.amin(dim=0) + 1
        assert len(places) > 0.95 * edges.prod()  # a voxel may equal the mean by chance
        assert (edges <= torch.tensor(SIZE) * 0.5 + 1).all()


def test_a_turned_view_shows_what_lies_in_the_margin():
    image, label = patches()
    turned = with_(STILL, rotation=40, scale=1.5, outline=0.2)
    whole = make_views(image, label, turned, generator())
    middle = make_views(image, label, with_(turned, margin=4), generator())
    inner = np.s_[..., 4:-4, 4:-4, 4:-4]
    torch.testing.assert_close(middle.weak, whole.weak[inner], atol=1e-4, rtol=1e-4)
    assert (middle.label == whole.label[inner]).float().mean() > 0.999
    alone = make_views(image[inner], label[inner], turned, generator())
    assert not torch.allclose(middle.weak, alone.weak, atol=0.1), "the margin is not looked at"
