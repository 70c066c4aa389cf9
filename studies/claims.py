"""Fill docs/claims.md, between `<!-- claims: NAME -->` and `<!-- end -->`, from studies/results/NAME.json.

The last column, what the first world said and why that changed, comes from studies/first_world.json, {NAME: {how the
claim begins: text}}. A study without a result says "not run yet".

    python studies/claims.py            # --check: change nothing, exit status 1 if a table is out of date
"""

import re
import sys

from common import ROOT, read_json, table

STUDIES = ("dapo", "grpo_n", "boundary", "direction", "replacement", "extrapolation", "bandit")


def made(name):
    """The table of a study as markdown."""
    path, first = ROOT / f"studies/results/{name}.json", read_json(ROOT / "studies/first_world.json")[name]
    if path.exists():
        return table(read_json(path)["claims"], first)
    rows = [f"| {claim} | not run yet | {text} |" for claim, text in first.items()]
    return "\n".join(["| claim | verdict | first world |", "|---|---|---|", *rows])


def main():
    path, pattern = ROOT / "docs" / "claims.md", r"(<!-- claims: (\w+) -->).*?<!-- end -->"
    old, check = path.read_text(), "--check" in sys.argv
    new = re.sub(pattern, lambda m: f"{m[1]}\n{made(m[2])}\n<!-- end -->", old, flags=re.DOTALL)
    if not check:
        path.write_text(new)
    print("nothing to rewrite" if new == old else "out of date" if check else "rewritten")
    return int(check and new != old)


if __name__ == "__main__":
    sys.exit(main())
