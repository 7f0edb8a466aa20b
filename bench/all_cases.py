"""All cases, in the order of the report."""

from bench import cases, seeing

CASES = (*cases.CASES, *seeing.CASES)
