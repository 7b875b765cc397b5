"""The peers of prediction.py: the field's test loop and MONAI's inferer, over the network as one
would first write it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from dkuxnet.models.methods.base import Ensemble

STRIDE = (18, 18, 4)


def field_loop(
    predictor: nn.Module,
    image: np.ndarray,
    window: tuple[int, ...],
    device: str,
    stride=STRIDE,
    most: int | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> tuple[float, np.ndarray]:
    """The field's loop by `most` of its windows, evenly spread: seconds that all would take, and
    the mean softmax map.
    """
    image, back = padded(image, window)
    steps = [
        range(-(-(size - w) // s) + 1)
        for size, w, s in zip(image.shape[1:], window, stride, strict=True)
    ]
    places = [
        tuple(
            min(i * s, size - w)
            for i, s, size, w in zip(at, stride, image.shape[1:], window, strict=True)
        )
        for at in np.ndindex(*map(len, steps))
    ]
    chosen = [
        places[i]
        for i in np.linspace(0, len(places) - 1, min(most or len(places), len(places)))
        .round()
        .astype(int)
    ]
    score, count = (
        np.zeros((2, *image.shape[1:]), np.float32),
        np.zeros(image.shape[1:], np.float32),
    )
    started = clock()
    for place in chosen:
        box = tuple(slice(a, a + w) for a, w in zip(place, window, strict=True))
        patch = torch.from_numpy(image[(slice(None), *box)][None].astype(np.float32)).to(device)
        with torch.no_grad():
            prob = predictor(patch).logits.float().softmax(dim=1)
        score[(slice(None), *box)] += prob.cpu().numpy()[0]
        count[box] += 1
    score /= np.maximum(count, 1)
    return (clock() - started) * len(places) / len(chosen), score[(slice(None), *back)]


def monai_loop(
    predictor: nn.Module,
    image: np.ndarray,
    window: tuple[int, ...],
    overlap: float,
    batch: int,
    device: str,
):
    """Softmax map of MONAI's sliding window with its Gaussian weights."""
    from monai.inferers import sliding_window_inference

    image, back = padded(image, window)
    with torch.no_grad():
        prob = sliding_window_inference(
            torch.from_numpy(image)[None].to(device),
            window,
            batch,
            lambda x: predictor(x).logits.float().softmax(dim=1),
            overlap,
            mode="gaussian",
        )
    return prob[0].cpu().numpy()[(slice(None), *back)]


def padded(image: np.ndarray, window: tuple[int, ...]) -> tuple[np.ndarray, tuple[slice, ...]]:
    from dkuxnet.data.geometry import pad_to

    return pad_to(image, window, float(image.min()))


def plainly(networks: Ensemble) -> Ensemble:
    """The same networks and weights, composed of MONAI's blocks and torch's layers, in torch's
    usual memory order.
    """
    from plain_network import PlainDKUXNet

    plain = []
    for network in networks.networks:
        widths = [norm.weight.numel() for norm in network.encoder.norms]
        classes, channels = network.classify[-1].weight.shape
        plain.append(PlainDKUXNet(1, classes, network.groups, widths, channels))
        plain[-1].take_weights(network)
    device = next(networks.parameters()).device
    for parameter in (parameter for network in plain for parameter in network.parameters()):
        parameter.data = parameter.data.contiguous()
    return Ensemble(plain).to(device).eval()
