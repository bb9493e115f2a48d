"""Runs the checks of one file, each by itself, and prints a line for each."""

import asyncio
import inspect
import os
import traceback


def run(checks):
    failed, left_out = 0, os.environ.get("LEFT_OUT", "").split()
    for check in checks:
        name = check.__name__
        if name in left_out:
            print(f"left out: {name}", flush=True)
            continue
        try:
            outcome = check()
            if inspect.iscoroutine(outcome):
                asyncio.run(asyncio.wait_for(outcome, 60))
            print(f"ok {name}", flush=True)
        except Exception as error:
            failed += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{type(error).__name__} {error}".replace("\n", " ")
            print(f"FAILED {name}: {why} ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})", flush=True)
    return 1 if failed else 0
