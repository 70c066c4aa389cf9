#!/bin/bash
# Bases from the very start, one after the other, on one core; started again, it goes on where it was stopped.
cd "$(dirname "$0")"; export OMP_NUM_THREADS=1; mkdir -p finals
for s in 2 3 1 4 5; do
  grep -q "^| go on at half" finals/$s.report.txt 2>/dev/null && continue
  date > finals/$s.time
  ${PYTHON:-python} make_tiny.py --seed $s --out finals/$s > finals/$s.report.txt 2> finals/$s.log
  date >> finals/$s.time
done
