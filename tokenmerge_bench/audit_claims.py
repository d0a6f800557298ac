"""The paper's tables and text held against each other: a verdict for every statement, computed from the numbers.

`published/claims.csv` says what is stated. What a statement's `kind` means is one function here, and so is each
property that any correct table has. Nothing in this module knows a published number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from tokenmerge_bench import published
from tokenmerge_bench.audit_flops import DESCRIBED, ROUNDING, growing_savings, network, rank_readings, savings
from tokenmerge_bench.errors import InputError

Row = dict[Any, Any]
Verdict = Literal["holds", "does not hold", "cannot be checked"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "does not hold"
OPEN: Verdict = "cannot be checked"


@dataclass(frozen=True, eq=False)
class Paper:
    """Everything published, as `published` loads it."""

    table1: pd.DataFrame
    table2: pd.DataFrame
    quoted: pd.DataFrame
    claims: pd.DataFrame

    @classmethod
    def load(cls) -> Paper:
        """The tables that ship with the package."""
        return cls(published.table1(), published.table2(), published.quoted(), published.claims())

    @property
    def models(self) -> list[str]:
        """The models of Table 1, in its order."""
        return list(self.table1["model"].unique())

    def at(self, model: str, k: int) -> Row:
        """A row of Table 1."""
        return _only(self.table1, "Table 1", model=model, k=k)

    def beside(self, model: str, method: str, trained: str = "no") -> Row:
        """A row of Table 2."""
        return _only(self.table2, "Table 2", model=model, method=method, trained=trained)


@dataclass(frozen=True)
class Finding:
    """One statement with what the numbers say about it."""

    id: str
    kind: str
    where: str
    claim: str
    recomputed: str
    verdict: Verdict


def check_claims(paper: Paper, compared: pd.DataFrame) -> pd.DataFrame:
    """A row per statement and per property of the tables: columns id, kind, where, claim, recomputed, verdict.

    Args:
        paper: the published tables and statements.
        compared: the readings of Table 1's GFLOPs (`audit_flops.compare_gflops`).

    Raises:
        InputError: for a statement about rows that the tables do not have, or of a kind that nobody can check.
    """
    findings = [_check(claim, paper) for claim in paper.claims.to_dict("records")]
    for properties in (_one_accuracy, _quoted, _steady_savings, _equal_reductions, _unreduced_gflops, _one_reading):
        findings += properties(paper, compared)
    return pd.DataFrame([vars(finding) for finding in findings])


def _check(claim: Row, paper: Paper) -> Finding:
    check = _KINDS.get(claim["kind"])
    if check is None:
        raise InputError(
            f"statement '{claim['id']}' of claims.csv is of kind '{claim['kind']}', which cannot be checked; "
            f"choose one of {', '.join(_KINDS)}."
        )
    text, recomputed, verdict = check(claim, paper)
    return Finding(claim["id"], claim["kind"], claim["where"], text, recomputed, verdict)


# --- statements of the text -------------------------------------------------------------------------------------------

Answer = tuple[str, str, Verdict]


def _row(claim: Row, paper: Paper) -> Answer:
    """A row of Table 2 is the row of Table 1 at this k."""
    model, method, k = claim["model"], claim["method"], claim["k"]
    one, two = paper.at(model, k), paper.beside(model, method)
    same = [row["k"] for row in _of(paper.table1, model) if _cell(row) == _cell(two)]
    recomputed = f"Table 1, k={k}: {_cell(one)}; Table 2: {_cell(two)}"
    if k not in same:
        recomputed += f", which is {_list(f'k={other}' for other in same) or 'no row'} of Table 1"
    return f"{short(model)}: {method} in Table 2 is at k={k}", recomputed, _verdict(k in same)


def _reduction(claim: Row, paper: Paper) -> Answer:
    """The FLOPs saved at this k."""
    model, k = claim["model"], claim["k"]
    one, two, full = (
        row["gflops"] for row in (paper.at(model, k), paper.beside(model, claim["method"]), paper.at(model, 0))
    )
    saved = 100 * (1 - one / full)
    recomputed = f"{saved:.1f} % ({full:.2f} to {one:.2f} G in Table 1)"
    if two != one:
        recomputed += f"; {100 * (1 - two / full):.1f} % with the {two:.2f} G of Table 2"
    return f"{short(model)}: k={k} saves {_wanted(claim)} % of the FLOPs", recomputed, _meets(saved, claim)


def _margin(claim: Row, paper: Paper) -> Answer:
    """The points by which a method is ahead of another in Table 2; also by Table 1 if that differs."""
    margins = _margins(claim, paper)
    recomputed = "; ".join(f"{margin:+.2f} with {top1:.2f} ({origin})" for origin, top1, margin in margins)
    text = f"{short(claim['model'])}: {claim['method']} minus {_other(claim)} is {_wanted(claim, '+')} points"
    return text, recomputed, _meets(margins[0][2], claim)


def _width(claim: Row, paper: Paper) -> Answer:
    width = network(claim["model"]).shape.width
    return f"{short(claim['model'])}: width {claim['value']:g}", str(width), _meets(float(width), claim)


def _width_ratio(claim: Row, paper: Paper) -> Answer:
    wide, narrow = (network(claim[name]).shape.width for name in ("model", "other"))
    text = f"{short(claim['model'])} is {claim['value']:g} times as wide as {short(claim['other'])}"
    return text, f"{wide} / {narrow} = {wide / narrow:g}", _meets(wide / narrow, claim)


def _least_drop(claim: Row, paper: Paper) -> Answer:
    """At every k, this model loses less accuracy than the others."""
    cells, holds_at = [], []
    for k in sorted(set(paper.table1["k"]) - {0}):
        drops = {m: round(paper.at(m, 0)["top1"] - paper.at(m, k)["top1"], 2) for m in paper.models}
        least = all(drops[claim["model"]] < drop for model, drop in drops.items() if model != claim["model"])
        cells.append(f"k={k}: {' / '.join(f'{drop:.2f}' for drop in drops.values())}{' (holds)' if least else ''}")
        holds_at.append(least)
    others = " / ".join(map(short, paper.models))
    text = f"{short(claim['model'])} loses fewer points than the other models"
    return text, f"points lost, {others}: {'; '.join(cells)}", _verdict(all(holds_at))


def _surpasses(claim: Row, paper: Paper) -> Answer:
    """A method is ahead of all the others named, on every model of Table 2."""
    ahead = []
    for row in paper.table2[paper.table2["method"].isin(claim["other"].split())].to_dict("records"):
        own, other = paper.beside(row["model"], claim["method"])["top1"], row["top1"]
        if other >= own:
            name = _named(row["method"], row["trained"])
            ahead.append(f"{name} on {short(row['model'])} ({other:.2f} against {own:.2f})")
    text = f"{claim['method']} surpasses {_list(claim['other'].split())}"
    return text, f"not surpassed: {_list(ahead)}" if ahead else "ahead of each on every model", _verdict(not ahead)


def _budget(claim: Row, paper: Paper) -> Answer:
    """All methods of Table 2 run at one budget; all that can be seen is what is printed."""
    printed = [
        f"{_list(f'{g:.2f}' for g in rows['gflops'].unique())} G"
        for _, rows in paper.table2.groupby("model", sort=False)
    ]
    models = " / ".join(short(model) for model in paper.table2["model"].unique())
    recomputed = (
        f"printed for {models}: {' / '.join(printed)}, whatever the method; whether each was tuned to it is not said"
    )
    return "every method of Table 2 runs at the same FLOPs", recomputed, OPEN


def _text(claim: Row, paper: Paper) -> Answer:
    return claim["statement"], claim["check"], OPEN


_KINDS: dict[str, Callable[[Row, Paper], Answer]] = {
    "row": _row,
    "reduction": _reduction,
    "margin": _margin,
    "width": _width,
    "width_ratio": _width_ratio,
    "least_drop": _least_drop,
    "surpasses": _surpasses,
    "budget": _budget,
    "text": _text,
}


# --- properties of the tables -----------------------------------------------------------------------------------------


def _one_accuracy(paper: Paper, compared: pd.DataFrame) -> list[Finding]:
    """Where the two tables give a method two accuracies, the margins of the text should at least follow one of them."""
    findings = []
    claims = paper.claims[paper.claims["kind"] == "margin"]
    for model, group in claims.groupby("model", sort=False):
        stated = [(claim, _margins(claim, paper)) for claim in group.to_dict("records")]
        readings = list(dict.fromkeys((origin, top1) for _, margins in stated for origin, top1, _ in margins))
        if len(readings) == 1:
            continue
        broken = {
            reading: [
                f"{_other(claim)} {margin:+.2f}"
                for claim, margins in stated
                for origin, top1, margin in margins
                if (origin, top1) == reading and _meets(margin, claim) == FAILS
            ]
            for reading in readings
        }
        recomputed = "; ".join(
            f"with {top1:.2f} ({origin}) {len(stated) - len(wrong)} of {len(stated)} margins hold"
            + (f", not those over {_list(wrong)}" if wrong else "")
            for (origin, top1), wrong in broken.items()
        )
        text = f"{short(str(model))}: one accuracy stands behind all margins of the text"
        verdict = _verdict(not all(broken.values()))
        findings.append(Finding(f"one-accuracy-{short(str(model))}", "consistency", "text", text, recomputed, verdict))
    return findings


def _quoted(paper: Paper, compared: pd.DataFrame) -> list[Finding]:
    """Numbers of the text stand at the FLOPs of Table 1, and at its accuracy where they are of the same method."""
    findings = []
    for row in paper.quoted.to_dict("records"):
        one = paper.at(row["model"], row["k"])
        same = row["gflops"] == one["gflops"] and (
            row["method"] != published.TABLE1_METHOD or row["top1"] == one["top1"]
        )
        text = f"{short(row['model'])}: {row['method']} at k={row['k']} has {_cell(row)}"
        difference = f"; difference {row['top1'] - one['top1']:+.2f} points"
        identity = f"quoted-{row['figure']}-{row['method']}"
        recomputed = f"Table 1, k={one['k']}: {_cell(one)}{difference}"
        findings.append(Finding(identity, "consistency", row["where"], text, recomputed, _verdict(same)))
    return findings


def _steady_savings(paper: Paper, compared: pd.DataFrame) -> list[Finding]:
    findings = []
    for model in paper.models:
        column = paper.table1[paper.table1["model"] == model]
        grows = growing_savings(column)
        recomputed = f"G saved per 10 merges: {', '.join(f'{saved:.2f}' for saved in savings(column))}"
        if grows:
            recomputed += f"; grows up to {_list(f'k={k}' for k in grows)}"
        text = f"{short(model)}: each merge saves no more FLOPs than the one before"
        findings.append(
            Finding(f"savings-{short(model)}", "consistency", "Table 1", text, recomputed, _verdict(not grows))
        )
    return findings


def _equal_reductions(paper: Paper, compared: pd.DataFrame) -> list[Finding]:
    """At equal k, models of equal depth save nearly the same fraction: as nearly as under any reading, and rounding."""
    findings = []
    for k, allowed in _widest_spread(compared).items():
        full = [paper.at(model, 0)["gflops"] for model in paper.models]
        kept = [paper.at(model, k)["gflops"] for model in paper.models]
        saved = [100 * (1 - part / whole) for part, whole in zip(kept, full, strict=True)]
        least = [100 * (1 - (part + ROUNDING) / (whole - ROUNDING)) for part, whole in zip(kept, full, strict=True)]
        most = [100 * (1 - (part - ROUNDING) / (whole + ROUNDING)) for part, whole in zip(kept, full, strict=True)]
        recomputed = (
            f"{' / '.join(f'{value:.1f}' for value in saved)} %; under every reading at most {allowed:.1f} points apart"
        )
        text = f"k={k} saves nearly the same fraction of {' / '.join(map(short, paper.models))}"
        verdict = _verdict(max(least) - min(most) <= allowed)
        findings.append(Finding(f"reductions-k{k}", "consistency", "Table 1", text, recomputed, verdict))
    return findings


def _widest_spread(compared: pd.DataFrame) -> dict[int, float]:
    """For each k, the most that models can differ in the percentage of MACs saved, over all readings."""
    applies = compared[compared["note"] == ""]
    cells = applies.pivot_table(index=["layers", "position", "k"], columns="model", values="computed")
    unreduced = cells[cells.index.get_level_values("k") == 0].iloc[0]
    saved = 100 * (1 - cells / unreduced)
    widest = (saved.max(axis=1) - saved.min(axis=1)).groupby(level="k").max()
    return {int(k): float(spread) for k, spread in zip(widest.index, widest, strict=True) if k > 0}


def _unreduced_gflops(paper: Paper, compared: pd.DataFrame) -> list[Finding]:
    findings = []
    for model in paper.models:
        reported, computed = paper.at(model, 0)["gflops"], network(model).gflops(DESCRIBED, 0)
        text = f"{short(model)}: the unreduced model takes {reported:.2f} G"
        verdict = _verdict(abs(reported - computed) <= ROUNDING)
        findings.append(
            Finding(f"unreduced-{short(model)}", "consistency", "Table 1", text, f"{computed:.4f} G", verdict)
        )
    return findings


def _one_reading(paper: Paper, compared: pd.DataFrame) -> list[Finding]:
    """One choice of blocks and position explains the GFLOPs of all models."""
    ranked = rank_readings(compared)
    totals = ranked.groupby(["layers", "position"], sort=False, as_index=False)[["explained", "rows"]].sum()
    best = totals.sort_values("explained", ascending=False, kind="stable").to_dict("records")[0]
    described = compared[(compared["layers"] == DESCRIBED.blocks) & (compared["position"] == DESCRIBED.position)]
    ks = paper.claims.loc[paper.claims["kind"] == "reduction", "k"].unique()
    at = [f"{' / '.join(f'{g:.2f}' for g in described.loc[described['k'] == k, 'computed'])} G at k={k}" for k in ks]
    recomputed = (
        f"the best one, {best['layers']} {best['position']}, explains {best['explained']} of {best['rows']} "
        f"rows; the one described, {DESCRIBED.blocks} {DESCRIBED.position}, gives {_list(at)}"
    )
    text = "one choice of blocks and position gives the GFLOPs of all models (blocks counted from 0)"
    verdict = _verdict(best["explained"] == best["rows"])
    return [Finding("one-reading", "consistency", "Table 1", text, recomputed, verdict)]


# --- words and numbers ------------------------------------------------------------------------------------------------


def short(model: str) -> str:
    """A model's name without patch and image size: `deit_tiny`."""
    return model.partition("_patch")[0]


def _margins(claim: Row, paper: Paper) -> list[tuple[str, float, float]]:
    """Origin of the method's accuracy, that accuracy, and its margin: by Table 2, and by Table 1 if it differs."""
    model, method = claim["model"], claim["method"]
    own = {"Table 2": paper.beside(model, method)["top1"]}
    one = paper.at(model, claim["k"])["top1"]
    if one != own["Table 2"]:
        own[f"Table 1, k={claim['k']}"] = one
    other = paper.beside(model, claim["other"], claim["other_trained"])["top1"]
    return [(origin, top1, round(top1 - other, 2)) for origin, top1 in own.items()]


def _meets(number: float, claim: Row) -> Verdict:
    """`=` to the last digit printed, `about` to a whole number."""
    value = claim["value"]
    return _verdict(
        {
            "=": abs(number - value) <= ROUNDING,
            "about": abs(number - value) <= 0.5,
            ">": number > value,
            ">=": number >= value,
        }[claim["relation"]]
    )


def _wanted(claim: Row, sign: str = "") -> str:
    words = {"=": "", "about": "about ", ">": "more than ", ">=": "at least "}
    return f"{words[claim['relation']]}{claim['value']:{sign}g}"


def _verdict(holds: bool) -> Verdict:
    return HOLDS if holds else FAILS


def _other(claim: Row) -> str:
    return _named(claim["other"], claim["other_trained"])


def _named(method: str, trained: str) -> str:
    return f"{method} (trained)" if trained == "yes" else method


def _cell(row: Row) -> str:
    return f"{row['top1']:.2f} % / {row['gflops']:.2f} G"


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)


def _of(table: pd.DataFrame, model: str) -> list[Row]:
    return table[table["model"] == model].to_dict("records")


def _only(table: pd.DataFrame, name: str, **cell: Any) -> Row:
    """The one row with these values."""
    found = table.to_dict("records")
    rows = [row for row in found if all(row[column] == value for column, value in cell.items())]
    if len(rows) != 1:
        wanted = ", ".join(f"{column} {value}" for column, value in cell.items())
        raise InputError(
            f"{name} has {len(rows)} rows with {wanted}, where a statement needs one; correct the CSV file."
        )
    return rows[0]
