# SPDX-License-Identifier: Apache-2.0
"""What the scripts that compare the answers of two OpenAI-compatible servers have in common. Their command line is

    KEY URL MODEL URL MODEL

A case asks one server and returns what it answers. Each is run on both, and must return the same but for ids, dates and
how long it took. A script prints "== ok CASE" for each case or, after what went wrong, "== failed CASE".
"""

import json
import sys
import traceback

KEY = sys.argv[1]
SERVERS = [(sys.argv[2], sys.argv[3]), (sys.argv[4], sys.argv[5])]
PASSING = {"id", "item_id", "call_id", "created", "created_at", "completed_at", "timings"}

STORY = [{"role": "user", "content": "Tell me a story."}]
HI = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "note": {"type": "string", "maxLength": 12},
    },
    "required": ["city", "days", "note"],
    "additionalProperties": False,
}
ZONE = {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Of some days", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "time", "description": "Of a zone", "parameters": ZONE}},
]


def plain(value):
    """Returns an answer as plain data, without what is passing."""
    if hasattr(value, "model_dump"):
        value = value.model_dump(warnings=False)  # a text for numbers, say
    if isinstance(value, dict):
        return {key: "…" if key in PASSING else plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def check_call(name, arguments):
    """Wants a call of one of the tools."""
    if name == "weather":
        assert arguments["city"] in ("Rome", "Oslo") and 1 <= arguments["days"] <= 9, arguments
    else:
        assert name == "time" and arguments["zone"] in ("UTC", "CET"), (name, arguments)


def compare(*cases):
    """Runs the cases on both servers."""
    failed = False
    for case in cases:
        try:
            want, got = (json.dumps(plain(case(*server)), ensure_ascii=False) for server in SERVERS)
            assert got == want, f"got\n{got}\nwant\n{want}"
        except Exception:
            traceback.print_exc(file=sys.stdout)
            print("== failed", case.__name__)
            failed = True
        else:
            print("== ok", case.__name__)
    sys.exit(failed)
