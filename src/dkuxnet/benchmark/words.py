"""A comparison in words: which arm is best, by how much, how sure; what was compared, and what the
figures mean.
"""

import json

from dkuxnet.benchmark.figures import Comparison, Row, Table
from dkuxnet.report.words import by, count, join

UNSURE = "†"  # beside a share whose gap is not clear
NOTES = (
    "Dice, Jaccard, 95HD and ASD: mean over the test cases and their foreground classes, final "
    "weights, on the scans' own "
    "voxels; mean ± standard deviation over seeds. Dice and Jaccard measure overlap, 1 is perfect; "
    "95HD and ASD are distances "
    "between the surfaces, lower is better.",
    "Gain in Dice: over supervised with as many labels, same network and seeds. Share of the gap: "
    "this gain divided by what "
    "supervised gains when it gets all labels of the pool. 100 % says that the missing labels were "
    "not missed.",
    "Ranges are 95 % intervals by bootstrap over test cases and seeds (10,000 resamples of both, "
    "fixed generator). A few seeds "
    "make them too narrow. A share with a wide interval says little, and where the interval of the "
    "gap itself includes 0 "
    f"({UNSURE}) it says nothing. The best of several arms is called clearly better only where its "
    "interval stays above 0 with "
    "the 5 % outside it divided by the number of arms (Bonferroni).",
    "p: Wilcoxon's signed-rank test over the test cases (Dice averaged over seeds) against "
    "{reference}, with Holm's correction "
    "over the arms of the table. It speaks of other cases of this kind, not of other trainings.",
    "All arms train for equal steps under one recipe. That is not equal time: see the minutes "
    "(median of a training).",
    "The test cases chose nothing here. Whoever picks the best of many arms by this table has "
    "chosen by them, and should "
    "expect a little less on new cases.",
)


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know of the figures."""
    return [note.format(reference=comparison.reference) for note in NOTES]


def title(table: Table) -> str:
    return f"{table.network}, {count(table.labelled, 'labelled case')}"


def label(row: Row) -> str:
    """The arm as a table calls it."""
    return f"{row.arm}, all labels" if row.labelled is None else row.arm


def headlines(comparison: Comparison) -> list[str]:
    """The answer, a few sentences a table; first of all whether it is one yet."""
    several = len({table.network for table in comparison.tables}) > 1
    told = [_headline(table, several) for table in comparison.tables]
    if missing := comparison.wanted - comparison.done:
        told.insert(
            0,
            f"Preliminary: {count(missing, 'run')} of {comparison.wanted} "
            f"{'is' if missing == 1 else 'are'} missing, so that arms may differ in seeds.",
        )
    return told


def _headline(table: Table, several: bool) -> str:
    where = f"With {count(table.labelled, 'labelled case')}" + (
        f" and {table.network}" if several else ""
    )
    ranked = sorted(
        (row for row in table.rows if row.metrics), key=lambda row: -row.metrics["dice"][0]
    )
    if not ranked:
        return f"{where}: no finished run yet."
    best = ranked[0]
    told = [
        f"{where}, {best.arm} has the highest Dice of {count(len(ranked), 'arm')}, "
        f"{best.metrics['dice'][0]:.3f}"
    ]
    if len(ranked) == 1:
        return f"{told[0]}; no other arm is finished."
    told[0] += f" (next: {ranked[1].arm}, {ranked[1].metrics['dice'][0]:.3f})."
    if best.gain is None:
        return " ".join(
            [*told, "None is above supervised." if best.arm == table.bound.arm else ""]
        ).strip()
    told.append(_sure(best, sum(row.gain is not None for row in table.rows)))
    if best.share is not None:
        told.append(_share(best))
    return " ".join(told)


def _sure(best: Row, arms: int) -> str:
    """arms: how many have a gain; the best of many is lucky too, so that its corrected interval
    says whether it is clear.
    """
    gain, corrected, seeds = best.gain, best.gain_corrected, len(best.dice_by_seed)
    text = f"That is {abs(gain.value):.3f} {'above' if gain.value >= 0 else 'below'} supervised with as many labels"
    if gain.low is None:
        return f"{text}; with one test case nobody can say how sure that is."
    widened = (
        f"; corrected for the best of {arms} arms {corrected.low:+.3f} to {corrected.high:+.3f}"
        if arms > 1
        else ""
    )
    text += f" (95 % interval {gain.low:+.3f} to {gain.high:+.3f}{widened})"
    if gain.high < 0:
        return f"{text}."
    if not corrected.above_zero:
        return f"{text}, which may be chance: the {'corrected ' if gain.above_zero else ''}interval includes 0."
    if seeds == 1:
        return f"{text}: clear over these test cases, but with one seed another training may say otherwise."
    return f"{text}: clear over these test cases and {seeds} seeds."


def _share(row: Row) -> str:
    found = row.share
    if not found.clear or found.share is None:
        return (
            f"With all labels supervised differs by {found.gap.value:+.3f}, which is not clearly "
            "above 0: there is no gap "
            "whose share could be told."
        )
    interval = (
        ""
        if found.share.low is None
        else f" (95 % interval {percent(found.share.low)} to {percent(found.share.high)})"
    )
    return f"It closes {percent(found.share.value)} of the gap to supervised with all labels{interval}."


def percent(share: float) -> str:
    """No digits where a share is beyond all sense."""
    if abs(share) >= 10:
        return "< -999 %" if share < 0 else "> 999 %"
    return f"{round(100 * share)} %"


def facts(comparison: Comparison) -> list[str]:
    """What was compared, on what, a sentence each."""
    found = comparison.facts
    recipe = [
        f"{key} = {json.dumps(value, default=str)}"
        for key, value in comparison.recipe.items()
        if key != "train.steps"
    ]
    told = [
        f"{comparison.done} of {count(comparison.wanted, 'run')} finished"
        + (f", {len(comparison.failed)} failed" if comparison.failed else "")
        + ".",
        f"Prepared set: {comparison.prepared}.",
        f"Recipe: preset {comparison.preset}, {comparison.steps:,} steps"
        + "".join(f", {each}" for each in recipe)
        + f"; seeds {join(comparison.seeds)}.",
    ]
    if not found:
        return told
    told.insert(
        2,
        f"Split: {count(found['pool'], 'case')} in the training pool, "
        f"{count(found['test'], 'test case')}; "
        f"classes: {join(found['classes'])}.",
    )
    for table in {table.network: table for table in comparison.tables}.values():
        sizes = [
            row.parameters
            for row in (table.bound, *table.rows)
            if row.arm == table.bound.arm and row.parameters
        ]
        told.append(
            f"Network {table.network}"
            + (f" ({sizes[0] / 1e6:.2f} million parameters)" if sizes else "")
            + f", patches of {by(found['patch'])} voxels of about {by(found['spacing_mm'], 3)} mm."
        )
    told += [f"Machine: {machine}." for machine in found["machines"]]
    told += [f"Versions: {version}." for version in found["versions"]]
    return [
        *told,
        f"Training took {found['train_hours']:.2f} hours in all, testing "
        f"{found['evaluate_hours']:.2f}.",
    ]
