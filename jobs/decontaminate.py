"""Entry point for spark-submit: `jobs/STAGE.py --recipe RECIPE`."""

from __future__ import annotations

import sys

from _run import run_job

if __name__ == "__main__":
    sys.exit(run_job("decontaminate"))
