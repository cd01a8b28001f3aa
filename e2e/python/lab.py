# SPDX-License-Identifier: Apache-2.0
"""What the scripts that drive a gateway have in common. The Go test that runs them sets:

GATEWAY_URL, GATEWAY_KEY  where the gateway is, and a key that it accepts
GATEWAY_CLIENT            a name of its own
GATEWAY_STATE             the folder in which the agent testdata/lab.sh notes its runs
GATEWAY_SILENCE           for how many seconds the agent is silent in the case "silence"

and writes the names of cases to their standard input, a line each. A script answers with "== ok CASE" or, after what
went wrong, "== failed CASE".
"""

import itertools
import os
import pathlib
import sys
import time
import traceback

URL = os.environ["GATEWAY_URL"] + "/v1"
KEY = os.environ["GATEWAY_KEY"]
CLIENT = os.environ["GATEWAY_CLIENT"]
OWN = "one/" + CLIENT  # a worker that no other client uses: one whose agent fails often rests
PAIR = "pair/" + CLIENT  # it and another one
STATE = pathlib.Path(os.environ["GATEWAY_STATE"])
SILENCE = float(os.environ["GATEWAY_SILENCE"])
WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"

_numbers = itertools.count(1)


def lab(case, command, *words):
    """Returns a prompt for the lab agent, and the file of its runs."""
    token = f"{case}-{CLIENT}-{next(_numbers)}"
    return " ".join(["lab:", command, token, *map(str, words)]), STATE / token


def say(prompt):
    return [{"role": "user", "content": prompt}]


def runs(file):
    return file.read_text().splitlines() if file.exists() else []


def running(file):
    """Reports whether the agent of the only run in the file is there."""
    (run,) = runs(file)
    try:
        os.kill(int(run.split()[0]), 0)
    except ProcessLookupError:
        return False
    return True


def until(what, holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def raises(kind, call, **want):
    """Calls, and wants an error of this kind with these fields. Returns it."""
    try:
        call()
    except Exception as error:
        assert isinstance(error, kind), repr(error)
        got = {name: getattr(error, name) for name in want}
        assert got == want, (got, want, error)
        return error
    raise AssertionError(f"no {kind.__name__}")


def serve(*cases):
    """Runs the cases that are asked for."""
    by_name = {case.__name__: case for case in cases}
    for name in sys.stdin:
        name = name.strip()
        try:
            by_name[name]()
        except Exception:
            traceback.print_exc(file=sys.stdout)
            print("== failed", name, flush=True)
        else:
            print("== ok", name, flush=True)
