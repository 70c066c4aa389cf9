"""Fill docs/tables.md, between `<!-- claims: NAME -->` and `<!-- end -->`, from studies/results/NAME.json.

python studies/claims.py            # --check: change nothing, exit status 1 if a table is out of date
"""

import argparse
import re
import sys

from common import ROOT, read_json, table

STUDIES = ("dapo", "grpo_n", "exact", "boundary", "direction", "replacement", "few", "extrapolation", "bandit")


def filled(page):
    """The text of the page with every table made anew."""

    def section(match):
        name = match[1]
        claims = read_json(ROOT / "studies" / "results" / f"{name}.json")["claims"]
        return f"<!-- claims: {name} -->\n{table(claims)}\n<!-- end -->"

    return re.sub(r"<!-- claims: (\w+) -->.*?<!-- end -->", section, page, flags=re.DOTALL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 if a table is out of date")
    args = parser.parse_args()
    path = ROOT / "docs" / "tables.md"
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
