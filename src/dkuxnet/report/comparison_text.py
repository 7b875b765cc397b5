"""A comparison as text: the cells of its tables, benchmark.md and benchmark.json."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import median

from dkuxnet.comparison import Comparison, Estimate, Row, Share, Table
from dkuxnet.report.words import by, count, join
from dkuxnet.run import atomically

HEADINGS = ("arm", "labelled", "seeds", "Dice", "Jaccard", "95HD (mm)", "ASD (mm)", "gain in Dice", "share of the gap",
            "p (Holm)", "minutes")
DIGITS = {"dice": 4, "jaccard": 4, "hd95_mm": 2, "asd_mm": 2}
UNSURE = "†"  # beside a share whose gap is not clear
NOTES = (
    "Dice, Jaccard, 95HD and ASD: mean over the test cases and their foreground classes, final weights, on the scans' own "
    "voxels; mean ± standard deviation over seeds.",
    "Gain in Dice: over supervised with as many labels, same network and seeds. Share of the gap: the gain divided by what "
    "supervised gains when it gets all labels of the pool; 100 % says that the missing labels were not missed.",
    "In brackets: 95 % intervals by bootstrap over test cases and seeds (10,000 resamples of both, fixed generator). Few seeds "
    f"make them too narrow. {UNSURE}: the interval of the gap itself includes 0, so that the share says nothing; a wide "
    "interval says little.",
    "p: Wilcoxon's signed-rank test over the test cases (Dice averaged over seeds) against {reference}, Holm's correction over "
    "the arms of the table. It speaks of other cases of the same kind, not of other trainings.",
    "All arms: equal steps under one recipe. That is not equal time: see the minutes (median of a training).",
)


def write_text(comparison: Comparison, output: Path) -> None:
    """Write `output`/benchmark.md and benchmark.json, each whole or not at all."""
    content = json.dumps(asdict(comparison), indent=1, allow_nan=False, ensure_ascii=False, default=str)
    atomically(output / "benchmark.json", lambda part: part.write_text(content, "utf-8"))
    atomically(output / "benchmark.md", lambda part: part.write_text(markdown(comparison), "utf-8"))


def markdown(comparison: Comparison) -> str:
    """The whole of benchmark.md."""
    lines = ["# Benchmark", "", *(f"- {fact}" for fact in facts(comparison))]
    for table in comparison.tables:
        lines += ["", f"## {title(table)}", "", *markdown_table(table, len(comparison.seeds)), "", *seed_lines(table)]
    lines += ["", "## What the figures mean", "", *(f"- {note}" for note in notes(comparison))]
    if comparison.failed:
        lines += ["", "## Failed", "", *(f"- {name}: {line}" for name, line in comparison.failed.items())]
    return "\n".join(lines) + "\n"


def facts(comparison: Comparison) -> list[str]:
    """What was compared, on what, a sentence each."""
    found = comparison.facts
    told = [f"{comparison.done} of {count(comparison.wanted, 'run')} finished"
            + (f", {len(comparison.failed)} failed" if comparison.failed else "") + ".",
            f"Prepared set: {comparison.prepared}.",
            f"Preset {comparison.preset}, {comparison.steps} steps"
            + "".join(f", {key} = {json.dumps(value)}" for key, value in comparison.recipe.items() if key != "train.steps")
            + f"; seeds {join(comparison.seeds)}."]
    if not found:
        return told
    told.insert(2, f"Split: {count(found['pool'], 'case')} in the training pool, {count(found['test'], 'test case')}; "
                   f"classes: {join(found['classes'])}.")
    for table in {table.network: table for table in comparison.tables}.values():
        sizes = {row.parameters for row in (table.bound, *table.rows) if row.arm == table.bound.arm and row.parameters}
        told.append(f"Network {table.network}" + (f" ({max(sizes) / 1e6:.2f} million parameters)" if sizes else "")
                    + f", patches of {by(found['patch'])} voxels of about {by(found['spacing_mm'], 3)} mm.")
    told += [f"Machine: {machine}." for machine in found["machines"]]
    told += [f"Versions: {version}." for version in found["versions"]]
    return [*told, f"Training took {found['train_hours']:.2f} hours in all, testing {found['evaluate_hours']:.2f}."]


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know of the figures, a sentence or two each."""
    return [note.format(reference=comparison.reference) for note in NOTES]


def title(table: Table) -> str:
    return f"{table.network}, {count(table.labelled, 'labelled case')}"


def rows_of(table: Table) -> list[Row]:
    """The arms, then the bound with all labels."""
    return [*table.rows, table.bound]


def cells(row: Row, seeds: int) -> list[str]:
    """A row's texts under HEADINGS. seeds: how many there are to be."""
    labelled = "all" if row.labelled is None else str(row.labelled)
    done = f"{len(row.dice_by_seed)} of {seeds}" + (f", {len(row.failed)} failed" if row.failed else "")
    if not row.metrics:
        return [row.arm, labelled, done, "failed" if row.failed else "–", *["–"] * (len(HEADINGS) - 4)]
    return [
        row.arm, labelled, done,
        *(show_spread(row.metrics[metric], digits) for metric, digits in DIGITS.items()),
        show_estimate(row.gain), show_share(row.share),
        "–" if row.test is None else show_p(row.test.p_holm),
        f"{median(row.minutes_by_seed.values()):.1f}",
    ]


def show_spread(spread: tuple[float, float | None], digits: int) -> str:
    mean, std = spread
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def show_estimate(estimate: Estimate | None, digits: int = 4) -> str:
    """"+0.0123 (0.0010 to 0.0240)"."""
    if estimate is None:
        return "–"
    interval = "" if estimate.low is None else f" ({estimate.low:+.{digits}f} to {estimate.high:+.{digits}f})"
    return f"{estimate.value:+.{digits}f}{interval}"


def show_share(share: Share | None) -> str:
    """"62 % (20 % to 110 %)", with a mark where the gap is not clear."""
    if share is None or share.share is None:
        return "–"
    found, mark = share.share, "" if share.clear else f" {UNSURE}"
    interval = "" if found.low is None else f" ({_percent(found.low)} to {_percent(found.high)})"
    return f"{_percent(found.value)}{interval}{mark}"


def _percent(share: float) -> str:
    if abs(share) >= 10:
        return "< -999 %" if share < 0 else "> 999 %"
    return f"{100 * share:.0f} %"


def show_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def markdown_table(table: Table, seeds: int) -> list[str]:
    return ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS),
            *("| " + " | ".join(cells(row, seeds)) + " |" for row in rows_of(table))]


def seed_lines(table: Table) -> list[str]:
    """Dice of every seed, and why there is none."""
    lines = ["Dice by seed:", ""]
    for row in rows_of(table):
        found = {seed: f"{dice:.4f}" for seed, dice in row.dice_by_seed.items()} | dict.fromkeys(row.failed, "failed")
        lines.append(f"- {row.arm}{' with all' if row.labelled is None else ''}: "
                     + (", ".join(f"{seed}: {text}" for seed, text in sorted(found.items())) or "none yet"))
    return lines
