"""Writes the tables of docs/claims.md from studies/results/*.json: no number is typed by hand.

A statement of a paper stands on one claim of a study or on several; each has an effect, an interval and a verdict.

    python studies/claims.py            # rewrites the tables between the marks <!-- claims: ... --> and <!-- end -->
    python studies/claims.py --check    # exit status 1 if a table is not what the results say
"""

import argparse
import re
import sys

from common import ROOT, read_json, table

VERDICTS = ("holds", "undecided", "does not hold")
RESULTS = ROOT / "studies" / "results"
STUDIES = {  # paper and section, minutes on two cores, what n counts
    "reweighting": ("A 4.2", 135, "seeds"),
    "direction": ("A 3.1, 3.3", 3, "pairs"),
    "replacement": ("A 3.2", 6, "pairs"),
    "extrapolation": ("A 4.1", 14, "pairs or seeds"),
    "negative_only": ("B 2, 4", 70, "seeds"),
    "bandit": ("B 3", 3, "200 runs a setting"),
}
# Statement -> the claims that it stands on, as a pattern; what its groups match tells them apart in the table.
# "(ours)": no statement of a paper.
STATEMENTS = {
    "reweighting": {
        "weighing unlikely tokens more beats DAPO": r"low-prob is more accurate than none",
        "... and the other weightings": r"low-prob is more accurate than (dominate|ppl)",
        "Dominate's entropy falls below DAPO's": r"Dominate's entropy is below DAPO's",
        "low-prob keeps more entropy than DAPO": r"low-prob's entropy is above DAPO's",
        "low-prob's responses are longer than DAPO's": r"low-prob's responses are longer than DAPO's",
        "filtering unlikely tokens from rollouts hurts": r"rollouts at (top-p .+) hurt",
        "... more with a smaller top-p": r"top-p (.+) hurts more than (.+)",
    },
    "direction": {
        "dlogp tells RLVR's tokens from the base's, entropy and KL less": r"dlogp .* than the (.+): tokens, AUC",
        "... by the overlap of the histograms": r"dlogp .* than the (.+): tokens, overlap",
        "... and whole responses": r"dlogp .* than the (.+): responses, AUC",
        "entropy and KL hardly tell tokens apart": r"(.+) hardly tells tokens apart",
        "... nor whole responses": r"(.+) hardly tells responses apart",
        "changes are sparse": r"most tokens of (.+) responses hardly changed",
        "... a fifth of the tokens holds over 0.8 of the change": r"a fifth of the tokens of (.+) responses .*",
        "most gradient mass sits on tokens below probability 0.5": r"most gradient mass .* tokens: (.+)",
        "tokens of high dlogp were unlikely": r"tokens of (dlogp .+) were unlikely",
        "... and rose": r"\.\.\. and rose \((.+)\)",
    },
    "replacement": {
        "dlogp finds the tokens to replace better than KL and entropy": r"dlogp beats (.+)",
        "KL finds them better than entropy": r"kl beats entropy",
        "entropy finds them better than random": r"entropy beats random",
        "dlogp needs the fewest": r"dlogp needs fewer replacements than (.+)",
        "a third of the tokens is enough": r"a third of the tokens is enough, by (.+)",
    },
    "extrapolation": {
        "selective extrapolation beats RLVR": r"selective extrapolation, (y from .+), beats RLVR",
        "... because of gamma, not of the second draw (ours)": r"\.\.\. because of gamma \((.+)\)",
        "selective beats global": r"selective beats global at (gamma .+)",
        "gains flatten as more positions are touched": r"gains flatten as more positions are touched",
        "selective extrapolation beats an early checkpoint (ours)": r"extrapolating .* beats them: selective, (.+)",
        "... that, too, because of gamma (ours)": r"\.\.\. because of gamma: selective, (.+)",
        "... by so many training steps (ours)": r"\.\.\. worth of selective, (.+)",
        "global extrapolation beats an early checkpoint (ours)": r"extrapolating .* beats them: global, (.+)",
        "... by so many training steps, globally (ours)": r"\.\.\. worth of global, (.+)",
    },
    "negative_only": {
        "GRPO-N ends with more entropy than GRPO": r"grpo-n ends with more entropy (than .+)",
        "... GSPO and GSPO-N do": r"(gspo|gspo-n) ends with more entropy than (.+)",
        "... also at equal accuracy (ours)": r"(.+) has more entropy than (.+) at equal accuracy",
        "entropy rises again by the end (in the paper, not GRPO's)": r"(.+) regains entropy",
        "GRPO-N's accuracy at k = 1 is competitive with GRPO's": r"grpo-n is competitive (with .+) at k = 1",
        "... GSPO's and GSPO-N's are": r"(gspo|gspo-n) is competitive with (.+) at k = 1",
        "at k = 256 GRPO is at or below the base": r"(.+) is at or below the base at k = 256",
        "... the others are at or above it": r"(.+) is at or above the base at k = 256",
        "... and above GRPO": r"(.+) has more than (.+) at k = 256",
        "the leap of one grows first (expected without exploitation)": r"leaps of one come first under (.+)",
        "early training shrinks pass@256": r"early training with (.+) shrinks what the base can",
        "prolonged training expands it": r"more training with (.+) expands it",
    },
    "bandit": {
        "two stages whenever the best arm starts rare": r"two stages whenever .*",
        "larger groups and higher temperature keep them": r"(.+) keeps the two stages",
        "... and make them smoother": r"(.+) makes it smoother",
        "negative-only updates keep the best arm alive more often": r"negative-only updates .* than (.+)",
    },
}


def rows_for(claims, pattern):
    """[(label, row)] of the claims that a pattern matches as a whole."""
    found = [(re.fullmatch(pattern, row["claim"]), row) for row in claims]
    rows = [(" vs ".join(match.groups()).replace(", ", " "), row) for match, row in found if match]
    twice = {label for label, _ in rows if sum(label == other for other, _ in rows) > 1}
    return [(f"{label} ({row['measure']})" if label in twice else label, row) for label, row in rows]


def verdict_of(rows):
    """One word where all agree, else the labels under each verdict."""
    by = {verdict: [label for label, row in rows if row["verdict"] == verdict] for verdict in VERDICTS}
    found = {verdict: labels for verdict, labels in by.items() if labels}
    return next(iter(found)) if len(found) == 1 else "; ".join(f"{v}: {', '.join(x)}" for v, x in found.items())


def effect_of(row):
    """An effect with its interval; the bandit's are sentences already."""
    return row["effect"] if isinstance(row["effect"], str) else f"{row['effect']:+.3f} ± {row['half']:.3f}"


def unit_of(rows):
    """What the effects of a statement are measured in, where it is one thing."""
    measures = {row.get("measure") for _, row in rows} - {None}
    return f" ({measures.pop()})" if len(measures) == 1 else ""


def tables():
    """{mark: markdown table}: "all", and one for each study."""
    made = {}
    lines = ["| paper | statement | study, minutes, n | effect, 95% interval | verdict |", "|---|---|---|---|---|"]
    for study, (paper, minutes, what) in STUDIES.items():
        claims = read_json(RESULTS / f"{study}.json")["claims"]
        for text, pattern in STATEMENTS[study].items():
            rows = rows_for(claims, pattern)
            if not rows:
                raise SystemExit(f"studies/claims.py: {pattern!r} matches no claim of {study}.json")
            n = sorted({len(row["values"]) for _, row in rows if "values" in row})
            how = f"[{study}](#{study.replace('_', '-')}), {minutes} min, "
            how += " ".join([" or ".join(map(str, n)), what]).strip()
            effects = "<br>".join(f"{label}: {effect_of(row)}" if label else effect_of(row) for label, row in rows)
            effects += unit_of(rows)
            lines.append(f"| {paper} | {text} | {how} | {effects} | {verdict_of(rows)} |")
        if "measure" in claims[0]:
            made[study] = table(claims).strip()
    return made | {"all": "\n".join(lines)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a table is out of date")
    args = parser.parse_args()
    made, path = tables(), ROOT / "docs" / "claims.md"
    old = path.read_text()

    def fill(match):
        return f"{match[1]}\n\n{made[match[2]]}\n\n<!-- end -->"

    new = re.sub(r"(<!-- claims: (\w+) -->).*?<!-- end -->", fill, old, flags=re.DOTALL)
    if not args.check:
        path.write_text(new)
    print("nothing to rewrite" if new == old else "out of date" if args.check else "rewritten")
    return int(args.check and new != old)


if __name__ == "__main__":
    sys.exit(main())
