"""Comparisons in words: who is best, how sure that is, what was compared, what figures mean."""

import json
from collections.abc import Callable, Sequence
from functools import partial

from dkuxnet.benchmark.compare_runs import Arm, RunsCompared
from dkuxnet.benchmark.figures import Comparison, Row, Table
from dkuxnet.benchmark.significance import ALPHA, LEAST_CASES, Estimate, Share
from dkuxnet.evaluation.found import show_found
from dkuxnet.evaluation.metrics import DICE
from dkuxnet.evaluation.statistics import FEWEST_CASES
from dkuxnet.report.words import by, count, join

UNSURE = "†"  # beside a share whose gap is not clear
FIGURES = (
    "Dice, Jaccard, 95HD and ASD: mean over the test cases and their foreground classes, final "
    "weights (with validation cases those that were best on them), on the scans' own voxels; "
    "{spread}."
)
COUNTS = (
    "A class counts in a scan where its label or the prediction has it; a scan with neither says "
    "nothing about it. Missed: in the label alone. False alarm: in the prediction alone. Both have "
    "Dice 0 and no distance, so that a distance goes over the scans in which both have the class; "
    "they are counted over the scans of all seeds."
)
INTERVAL = (
    "95 % intervals of the mean over test cases and seeds (Student's t, corrected for skewness; "
    f"none with fewer than {FEWEST_CASES} cases). With one seed they say nothing of other trainings"
)
NOTES = (
    FIGURES.format(spread="mean ± standard deviation over seeds")
    + " Dice and Jaccard measure overlap, 1 is perfect; 95HD and ASD are distances between the "
    "surfaces, lower is better.",
    "Gain in Dice: over supervised with as many labels, same network and seeds. Share of the gap: "
    "this gain divided by what supervised gains when it gets all labels of the pool. 100 % says "
    "that the missing labels were not missed.",
    f"Ranges are {INTERVAL}. A share with a wide interval says little, and where the gap itself "
    f"may be chance ({UNSURE}) it says nothing and has none. A difference is called "
    f"clear only where its interval leaves out 0, there are at least {LEAST_CASES} test cases, and "
    f"Wilcoxon's p is at most {ALPHA}; for the best of several arms the 5 % outside the interval "
    "are divided by the number of arms, and p is multiplied by it (Bonferroni).",
    "p: Wilcoxon's signed-rank test over the test cases (Dice averaged over seeds) against "
    "{reference}, with Holm's correction over the arms of the table. It speaks of other cases of "
    "this kind, not of other trainings.",
    "All arms train for equal steps under one recipe. That is not equal time: see the minutes "
    "(median of a training).",
    COUNTS,
    "The test cases chose nothing here. Whoever picks the best of many arms by this table has "
    "chosen by them, and should expect a little less on new cases.",
)


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know of the figures of a benchmark."""
    return [note.format(reference=comparison.reference) for note in NOTES]


def runs_notes(compared: RunsCompared) -> list[str]:
    """What a reader must know of the figures of several runs."""
    paired = " and over the seeds that both have" if compared.same_seeds else ""
    return [
        FIGURES.format(spread="± the standard deviation over cases")
        + " Runs that differ in nothing but their seed are one row, the mean of them.",
        f"Difference in Dice: over the run named first, case by case{paired}. Ranges are "
        f"{INTERVAL}."
        + (
            ""
            if compared.same_seeds
            else " The runs have no seed in common, so their means over seeds are compared."
        ),
        "p: Wilcoxon's signed-rank test over the test cases against the run named first, with "
        "Holm's correction for the number of runs. It speaks of other cases of this kind, not of "
        f"other trainings. A difference is called clear only with at least {LEAST_CASES} cases and "
        f"p at most {ALPHA}.",
        COUNTS,
    ]


def counted(rows: Sequence[Row]) -> list[str]:
    """How often each arm missed a class, or found it where it is not; a line for those that did."""
    told = []
    for row in rows:
        if not row.classes:
            continue
        _, missed, alarms = show_found(row.found)
        parts = [f"missed {missed}"] if row.found.missed else []
        parts += [f"false alarms {alarms}"] if row.found.false_alarms else []
        of = "" if len(row.classes) == 1 else ", of scans and classes"
        if parts:
            told.append(f"{label(row)}: {', '.join(parts)}{of}.")
    return told


def title(table: Table) -> str:
    """What the table is about."""
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
    where = f"With {count(table.labelled, 'labelled case')}"
    where += f" and {table.network}" if several else ""
    if not (ranked := _ranked(table.rows)):
        return f"{where}: no finished run yet."
    best, *others = ranked
    told = (
        f"{where}, {best.arm} has the highest Dice of {count(1 + len(others), 'arm')}, "
        f"{DICE.show(best.mean_dice)}"
    )
    if not others:
        return f"{told}; no other arm is finished."
    told += f" (next: {others[0].arm}, {DICE.show(others[0].mean_dice)})."
    if best.mean_dice == 0:
        return f"{where}, no difference: no arm found anything that is right, Dice is 0 for all."
    if best.arm == table.bound.arm:
        return f"{told} None is above supervised."
    told += _sure(best, sum(row.gain is not None for row in table.rows))
    return told if best.share is None else f"{told} {_share(best.share)}"


def _ranked(rows: Sequence[Row]) -> list[Row]:
    return sorted((row for row in rows if row.ranked), key=lambda row: -row.mean_dice)


def _sure(best: Row, arms: int) -> str:
    """arms: how many have a gain.

    The best of many is lucky too, so that its corrected interval says whether it is clear.
    """
    gain, corrected = best.gain, best.gain_corrected
    if gain is None or corrected is None:
        return ""
    text = f" That is {_apart(gain.value)} supervised with as many labels"
    if gain.interval is None or corrected.interval is None:
        return text + _no_interval(gain)
    several = f"; corrected for the best of {arms} arms {_signed(corrected.interval)}"
    text += f" (95 % interval {_signed(gain.interval)}{several if arms > 1 else ''})"
    if gain.interval[1] < 0:
        return f"{text}."
    if not corrected.clear:
        which = "" if arms == 1 or not gain.above_zero else "corrected "
        return f"{text}, which {_why_not(corrected, which)}."
    if len(best.dice_by_seed) == 1:
        return (
            f"{text}: clear over these test cases, but with one seed another training may say "
            "otherwise."
        )
    return f"{text}: clear over these test cases and {len(best.dice_by_seed)} seeds."


def _no_interval(found: Estimate) -> str:
    if found.cases < FEWEST_CASES:
        return f"; with {count(found.cases, 'test case')} nobody can say how sure that is."
    return ", the same in every test case."


def _why_not(found: Estimate, which: str = "") -> str:
    """Why a difference may not be called clear."""
    if not found.interval or found.interval[0] <= 0 <= found.interval[1]:
        return f"may be chance: the {which}interval includes 0"
    if found.cases < LEAST_CASES:
        return f"cannot be told from chance with {count(found.cases, 'test case')}"
    return f"may be chance: the {which}p is {p_value(found.p)}"


def p_value(p: float) -> str:
    """As in "0.031", "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _share(found: Share) -> str:
    share = found.share
    if not found.clear or share is None:
        return (
            f"With all labels supervised differs by {DICE.show(found.gap.value, sign='+')}, which "
            "may be chance: there is no gap whose share could be told."
        )
    sure = f" (95 % interval {between(share.interval, percent)})" if share.interval else ""
    return f"It closes {percent(share.value)} of the gap to supervised with all labels{sure}."


def runs_headlines(compared: RunsCompared) -> list[str]:
    """The answer: which run is best, and how sure each difference to the first is."""
    cases, rows = count(len(compared.cases), "test case"), [arm.row for arm in compared.arms]
    first, *others = compared.arms
    if not (ranked := _ranked(rows)):
        return [f"On {cases}, no label and no prediction has any class: nothing to compare."]
    if not others:
        return [
            f"On {cases} the mean Dice is {DICE.show(rows[0].mean_dice)}. The runs differ in "
            "nothing but their seeds.",
            *counted(rows),
        ]
    best, *following = ranked
    if best.mean_dice == 0:
        return [
            f"On {cases}, no difference: no run found anything that is right, Dice is 0 for all.",
            *counted(rows),
        ]
    then = "; ".join(f"{row.arm}, {DICE.show(row.mean_dice)}" for row in following)
    dice = DICE.show(best.mean_dice)
    return [
        f"On {cases}, {best.arm} has the highest mean Dice, {dice}. Then: {then}.",
        *(_against(arm, first.row.arm, cases) for arm in others),
        *counted(rows),
    ]


def _against(arm: Arm, first: str, cases: str) -> str:
    gain = arm.row.gain
    if gain is None:
        return f"{arm.row.arm} and {first} have no test case with any class in common."
    if gain.value == 0 and gain.p == 1 and gain.interval is None:
        return f"{arm.row.arm} and {first}: no difference in any of {cases}."
    text = f"{arm.row.arm} is {_apart(gain.value)} {first} and better in {arm.better} of {cases}"
    if gain.interval is None:
        return text + _no_interval(gain)
    text += f" (95 % interval of the difference {_signed(gain.interval)})"
    return f"{text}: clear over these cases." if gain.clear else f"{text}: this {_why_not(gain)}."


def _apart(difference: float) -> str:
    """As in "0.042 above"."""
    return f"{DICE.show(abs(difference))} {'above' if difference >= 0 else 'below'}"


def _signed(interval: tuple[float, float]) -> str:
    """As in "-0.010 to +0.024"."""
    return between(interval, partial(DICE.show, sign="+"))


def between(interval: tuple[float, float], show: Callable[[float], str]) -> str:
    """The ends as `show` writes them."""
    return " to ".join(map(show, interval))


def percent(share: float) -> str:
    """No digits where a share is beyond all sense."""
    if abs(share) >= 10:
        return "< -999 %" if share < 0 else "> 999 %"
    return f"{round(100 * share)} %"


def facts(comparison: Comparison) -> list[str]:
    """What was compared, on what, a sentence each."""
    found, failed = comparison.facts, len(comparison.failed)
    recipe = [
        f", {key} = {json.dumps(value, default=str)}"
        for key, value in comparison.recipe.items()
        if key != "train.steps"
    ]
    done = (
        f"{comparison.done} of {count(comparison.wanted, 'run')} finished"
        f"{f', {failed} failed' if failed else ''}."
    )
    prepared = f"Prepared set: {comparison.prepared}."
    settings = (
        f"Recipe: preset {comparison.preset}, {comparison.steps:,} steps{''.join(recipe)}; seeds "
        f"{join(list(map(str, comparison.seeds)))}."
    )
    if found is None:
        return [done, prepared, settings]
    of_bound = {}  # network -> parameters of the bound's
    for table in comparison.tables:
        sizes = [row.parameters for row in table.all_rows if row.arm == table.bound.arm]
        of_bound[table.network] = next(filter(None, sizes), None)
    seen = f"patches of {by(found.patch)} voxels of about {by(found.spacing_mm, 3)} mm"
    return [
        done,
        prepared,
        f"Split: {count(found.pool, 'case')} in the training pool, "
        f"{count(found.test, 'test case')}; classes: {join(found.classes)}.",
        settings,
        *(
            f"Network {name}{f' ({size / 1e6:.2f} million parameters)' if size else ''}, {seen}."
            for name, size in of_bound.items()
        ),
        *(f"Machine: {machine}." for machine in found.machines),
        *(f"Versions: {version}." for version in found.versions),
        f"Training took {found.train_hours:.2f} hours in all, testing {found.evaluate_hours:.2f}.",
    ]
