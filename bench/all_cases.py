"""All cases, in the order of the report."""

from bench import cases, faults, links, seeing

CASES = (*cases.CASES, *seeing.CASES, *faults.CASES, *links.CASES)
