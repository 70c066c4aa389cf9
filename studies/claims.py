"""Fill docs/claims.md, between `<!-- claims: NAME -->` and `<!-- end -->`, from studies/results/NAME.json.

The last column, what the first world said and why that changed, comes from studies/first_world.json, {NAME: {how the
claim begins: text}}. A study without a result says "not run yet".

    python studies/claims.py            # --check: change nothing, exit status 1 if a table is out of date
"""

import argparse
import re
import sys

from common import ROOT, read_json, table

STUDIES = ("dapo", "grpo_n", "boundary", "direction", "replacement", "extrapolation", "bandit")


def study_table(name):
    """The table of a study as markdown."""
    path = ROOT / "studies" / "results" / f"{name}.json"
    first = read_json(ROOT / "studies" / "first_world.json")[name]
    if path.exists():
        return table(read_json(path)["claims"], first)
    lines = ["| claim | verdict | first world |", "|---|---|---|"]
    for claim, text in first.items():
        lines.append(f"| {claim} | not run yet | {text} |")
    return "\n".join(lines)


def filled(page):
    """The text of the page with every table made anew."""

    def section(match):
        name = match[1]
        return f"<!-- claims: {name} -->\n{study_table(name)}\n<!-- end -->"

    return re.sub(r"<!-- claims: (\w+) -->.*?<!-- end -->", section, page, flags=re.DOTALL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a table is out of date")
    args = parser.parse_args()
    path = ROOT / "docs" / "claims.md"
    old = path.read_text()
    new = filled(old)
    if new == old:
        print("nothing to rewrite")
        return 0
    if args.check:
        print("out of date")
        return 1
    path.write_text(new)
    print("rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
