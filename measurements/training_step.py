"""A training step of DK-UXNet's branch against its plain composition from MONAI's blocks in
float32 (plain_network.py).

    python measurements/training_step.py [--network dk-uxnet] [--patch 64] [--batch 2] [--rounds 3] [--steps 3]
    python measurements/training_step.py --device cuda --precision bfloat16 --patch 96 --steps 10
    python measurements/training_step.py --profile       our operations by the time that they take, and the share of the steps
                                                       in which the device does any

A step: the network, both losses, their backward, clipping, AdamW. Every figure is of a process of
its own, the two in turn, after a step on a small patch; seconds are the median of --steps, peak
memory is the process's (on a GPU: torch's). Prints each round's ratio, their median and range, and
the floor: three times the operations of the network's forward pass (convolutions and matrix
products, of the plain composition) over the rate that this machine multiplies large matrices at.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

STEP = "training step"  # its name in a profile
SIZES = {
    "dk-uxnet": ((48, 96, 192, 384), 128),
    "dk-uxnet-small": ((24, 48, 96, 192), 64),
    "dk-uxnet-tiny": ((8, 16, 32, 64), 32),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="dk-uxnet", choices=SIZES)
    parser.add_argument("--patch", type=int, nargs="+", default=[64], help="one edge, or three")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["float32", "bfloat16"],
        help="ours; the peer's is float32",
    )
    parser.add_argument("--recompute", action="store_true", help="ours with network.recompute")
    parser.add_argument(
        "--compiled", action="store_true", help="ours by torch.compile, without our parts for a CPU"
    )
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", choices=["ours", "plain"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.patch = chosen.patch * 3 if len(chosen.patch) == 1 else chosen.patch
    if chosen.profile or chosen.only:
        print(profiled(chosen) if chosen.profile else json.dumps(measured(chosen)))
        return
    rounds = [[alone(which) for which in ("ours", "plain")] for _ in range(chosen.rounds)]
    print("        ours: s, GiB    plain: s, GiB    times as fast    of its memory")
    ratios = []
    for number, (ours, plain) in enumerate(rounds, 1):
        ratios.append((plain["seconds"] / ours["seconds"], ours["gib"] / plain["gib"]))
        print(
            f"round {number} {ours['seconds']:8.2f} {ours['gib']:6.2f} {plain['seconds']:9.2f} "
            f"{plain['gib']:6.2f} "
            f"{ratios[-1][0]:12.2f} {ratios[-1][1]:15.2f}"
        )
    for name, values in zip(
        ("times as fast", "of its memory"), zip(*ratios, strict=True), strict=True
    ):
        print(
            f"{name}: median {statistics.median(values):.2f}, {min(values):.2f} to "
            f"{max(values):.2f}"
        )
    print_floor(chosen, statistics.median(ours["seconds"] for ours, _ in rounds))


def alone(which: str) -> dict[str, float]:
    """What a process of its own measured."""
    command = [sys.executable, *sys.argv, "--only", which]
    return json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[
            -1
        ]
    )


def measured(chosen) -> dict[str, float]:
    import torch

    from dkuxnet.machine.memory import giving_back_large_blocks

    if chosen.only == "ours":
        giving_back_large_blocks().__enter__()  # as every training does
    step = make_step(chosen)
    first = step(chosen.patch if chosen.compiled else [32, 32, 32])
    seconds = [step(chosen.patch) for _ in range(chosen.steps)]
    on_gpu = torch.cuda.max_memory_allocated() / 2**30 if chosen.device != "cpu" else 0
    return {
        "seconds": statistics.median(seconds),
        "first": first,
        "gib": on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def make_network(chosen, groups):
    """Ours, prepared as for a training, or the plain composition."""
    import torch

    torch.manual_seed(0)
    widths, channels = SIZES[chosen.network]
    if chosen.only == "plain":
        from plain_network import PlainDKUXNet

        return PlainDKUXNet(1, 2, groups, widths, channels).to(chosen.device)
    from dkuxnet.core.types import NetworkShape
    from dkuxnet.machine.devices import to_device
    from dkuxnet.models.networks.dkuxnet import DKUXNet, DKUXNetOptions

    options = DKUXNetOptions(widths=widths, query_channels=channels, recompute=chosen.recompute)
    ours = to_device(DKUXNet(NetworkShape(1, 2, groups), options), torch.device(chosen.device))
    if chosen.compiled:
        from dkuxnet.models.networks.cpu import fused

        fused.applies = lambda x: False
        ours.compile()
    return ours


def make_step(chosen):
    """A function: patch size -> seconds of a step on it."""
    import torch

    from dkuxnet.core.config import TrainSettings
    from dkuxnet.core.types import Group
    from dkuxnet.models.methods.losses import query_loss_all, segmentation_loss
    from dkuxnet.training.loop import make_optimiser

    torch.set_num_threads(chosen.threads or torch.get_num_threads())
    groups = (Group("background", (0,), 8), Group("organ", (1,), 8))
    network, plain = make_network(chosen, groups), chosen.only == "plain"
    optimiser = (
        torch.optim.AdamW(network.parameters())
        if plain
        else make_optimiser(network, TrainSettings())
    )
    half = not plain and chosen.precision == "bfloat16"
    ready = torch.cuda.synchronize if chosen.device != "cpu" else lambda: None

    def step(patch):
        image = torch.randn(chosen.batch, 1, *patch, device=chosen.device)
        label = (image[:, 0] > 0).long()
        ready()
        started = time.perf_counter()
        with torch.profiler.record_function(STEP):
            with torch.autocast(image.device.type, torch.bfloat16, enabled=half):
                output = network(image)
            loss = segmentation_loss(output.logits, label) + 0.1 * query_loss_all(
                output, label, groups
            )
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            ready()
        return time.perf_counter() - started

    return step


def profiled(chosen) -> str:
    from torch.profiler import profile

    step = make_step(chosen)
    step(chosen.patch)
    with profile(record_shapes=True) as seen:
        for _ in range(chosen.steps):
            step(chosen.patch)
    device = chosen.device.partition(":")[0]
    table = seen.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=30)
    share = busy_share(seen.events(), device)
    return f"{table}\nof its steps the {device} was at work for {share:.1%}"


def busy_share(events, device: str) -> float:
    """Of the time of the steps, the share in which at least one operation runs on the device.
    Named stretches, as of an optimiser's step, are no operations: on a GPU they also cover the
    time between its kernels.
    """
    steps = [
        event.time_range
        for event in events
        if event.name == STEP and event.device_type.name == "CPU"
    ]
    work = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if not event.is_user_annotation and event.device_type.name == device.upper()
    )
    busy = 0.0
    for step in steps:
        reached = step.start
        for start, end in work:
            busy += max(min(end, step.end) - max(start, reached), 0)
            reached = max(reached, end)
    return busy / sum(step.end - step.start for step in steps)


def print_floor(chosen, seconds: float) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(chosen.threads or torch.get_num_threads())
    with torch.device("meta"):
        from dkuxnet.core.types import Group
        from plain_network import PlainDKUXNet

        widths, channels = SIZES[chosen.network]
        plain = PlainDKUXNet(
            1, 2, (Group("background", (0,), 8), Group("organ", (1,), 8)), widths, channels
        )
        with FlopCounterMode(display=False) as counter:
            plain(torch.empty(chosen.batch, 1, *chosen.patch))
    work = 3 * counter.get_total_flops() / 1e9
    rate = multiplication_rate(chosen)
    print(
        f"floor: {work:.0f} GFLOP a step at {rate:.0f} GFLOP/s (matrices of 2048, float32): "
        f"{work / rate:.2f} s; "
        f"ours takes {seconds * rate / work:.2f} times that"
    )


def multiplication_rate(chosen) -> float:
    """GFLOP/s of the machine, the best of several products."""
    import torch

    matrix = torch.randn(2048, 2048, device=chosen.device)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best / 1e9


if __name__ == "__main__":
    main()
