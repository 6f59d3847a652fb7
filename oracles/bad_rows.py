#!/usr/bin/env python3
"""Sixty kinds of broken rows in a million good ones: `aloe data run` must name each by its line, in bounded memory (row R13).

Python 3.11, no packages. Run: python oracles/bad_rows.py ALOE [--rows 1000000] [--seed 1]
Three files of chat rows, each with twenty broken ones at random lines (a strict run shows twenty), and one of all rows, of which the last alone
is broken: nothing tells until then that the rows before it are not wanted. For each file it runs the stage, which must
refuse it with exactly these lines, and prints seconds, MB/s of the whole command and its peak resident memory (VmHWM by wait4). Exit 1 where
a line is missing, a good one is named, or the memory is above 256 MiB.
"""

import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

GOOD = '{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "%s"}]}'
TURN = '{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}'


def chat(turns):
    return '{"messages": %s}' % turns


KINDS = {
    # Not JSON.
    "no closing brace": chat(f"[{TURN}]")[:-1],
    "no closing bracket": chat(f"[{TURN}"),
    "no closing quote": '{"messages: [' + TURN + "]}",
    "trailing comma in an object": chat(f"[{TURN}]")[:-1] + ",}",
    "trailing comma in a list": chat(f"[{TURN},]"),
    "no comma between turns": chat(f"[{TURN.replace('}, {', '} {')}]"),
    "no colon": '{"messages" [' + TURN + "]}",
    "no value": '{"messages": }',
    "single quotes": chat(f"[{TURN}]").replace('"', "'"),
    "a key without quotes": '{messages: [' + TURN + "]}",
    "NaN": '{"score": NaN, "messages": [' + TURN + "]}",
    "Infinity": '{"score": Infinity, "messages": [' + TURN + "]}",
    "a number beyond f64": '{"score": 1e999, "messages": [' + TURN + "]}",
    "a hexadecimal number": '{"score": 0x1F, "messages": [' + TURN + "]}",
    "a leading zero": '{"score": 01, "messages": [' + TURN + "]}",
    "a plus sign": '{"score": +1, "messages": [' + TURN + "]}",
    "a number that ends in a point": '{"score": 1., "messages": [' + TURN + "]}",
    "Python's True": '{"seen": True, "messages": [' + TURN + "]}",
    "Python's None": '{"seen": None, "messages": [' + TURN + "]}",
    "a comment": chat(f"[{TURN}]") + " // seen",
    "a block comment": '{/* seen */ "messages": [' + TURN + "]}",
    "text after the object": chat(f"[{TURN}]") + " etc",
    "two objects on a line": chat(f"[{TURN}]") + chat(f"[{TURN}]"),
    "a bare tab in a text": chat('[{"role": "user", "content": "a\tb"}, {"role": "assistant", "content": "c"}]'),
    "a bare control character": chat('[{"role": "user", "content": "a\x01b"}, {"role": "assistant", "content": "c"}]'),
    "an unknown escape": chat('[{"role": "user", "content": "a\\qb"}, {"role": "assistant", "content": "c"}]'),
    "a short escape": chat('[{"role": "user", "content": "a\\u12"}, {"role": "assistant", "content": "c"}]'),
    "a lone high surrogate": chat('[{"role": "user", "content": "a\\ud800"}, {"role": "assistant", "content": "c"}]'),
    "a lone low surrogate": chat('[{"role": "user", "content": "a\\udc00"}, {"role": "assistant", "content": "c"}]'),
    "U+0000 by its escape": chat('[{"role": "user", "content": "a\\u0000"}, {"role": "assistant", "content": "c"}]'),
    "a key twice": '{"messages": [], "messages": [' + TURN + "]}",
    "a key twice in a turn": chat('[{"role": "user", "role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]'),
    "a hundred thousand brackets": "[" * 100_000,
    "words": "see the other file",
    "a byte order mark inside the file": "\ufeff" + chat(f"[{TURN}]"),
    # Not UTF-8.
    "Latin-1": chat('[{"role": "user", "content": "na\xefve"}, {"role": "assistant", "content": "c"}]').encode("latin-1"),
    "a cut sequence": chat('[{"role": "user", "content": "X"}, {"role": "assistant", "content": "c"}]').encode().replace(b"X", b"\xe2\x82"),
    "an overlong sequence": chat('[{"role": "user", "content": "X"}, {"role": "assistant", "content": "c"}]').encode().replace(b"X", b"\xc0\xaf"),
    "a surrogate as UTF-8": chat('[{"role": "user", "content": "X"}, {"role": "assistant", "content": "c"}]').encode().replace(b"X", b"\xed\xa0\x80"),
    "beyond U+10FFFF": chat('[{"role": "user", "content": "X"}, {"role": "assistant", "content": "c"}]').encode().replace(b"X", b"\xf5\x80\x80\x80"),
    "a byte of UTF-16": chat('[{"role": "user", "content": "X"}, {"role": "assistant", "content": "c"}]').encode().replace(b"X", b"\xff\xfe"),
    "a bare byte zero": chat('[{"role": "user", "content": "X"}, {"role": "assistant", "content": "c"}]').encode().replace(b"X", b"\x00"),
    # JSON, and no row.
    "a list": f"[{TURN}]",
    "a number": "17",
    "a text": '"a row"',
    "null": "null",
    "true": "true",
    "an empty object": "{}",
    "other columns": '{"question": "Why?", "reply": "So."}',
    "a row longer than 1 MiB": chat('[{"role": "user", "content": "%s"}, {"role": "assistant", "content": "c"}]' % ("long " * 220_000)),
    # A row, and no conversation.
    "messages is null": '{"messages": null}',
    "messages is a text": '{"messages": "Why? So."}',
    "messages is an object": '{"messages": {"role": "user", "content": "Why?"}}',
    "no messages": '{"messages": []}',
    "a turn that is a text": chat('["Why?", "So."]'),
    "a turn without a role": chat('[{"content": "Why?"}, {"role": "assistant", "content": "So."}]'),
    "an unknown role": chat('[{"role": "doctor", "content": "Why?"}, {"role": "assistant", "content": "So."}]'),
    "a turn without content": chat('[{"role": "user"}, {"role": "assistant", "content": "So."}]'),
    "content is a number": chat('[{"role": "user", "content": 7}, {"role": "assistant", "content": "So."}]'),
    "content is null": chat('[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": null}]'),
}


def places_of(kinds, n_rows, random_):
    """The kinds of broken rows by their lines, counted from 1."""
    return dict(zip(sorted(random_.sample(range(3, n_rows - 3), len(kinds))), random_.sample(kinds, len(kinds))))


def write(path, places, n_rows, random_):
    with open(path, "wb") as file:
        for number in range(1, n_rows + 1):
            if number in places:
                row = KINDS[places[number]]
                file.write((row if isinstance(row, bytes) else row.encode("utf-8")) + b"\n")
                continue
            words = " ".join(random_.choices(WORDS, k=30))
            file.write((GOOD % (f"Case {number}: {words}?", f"{words[::-1]} {number}")).encode() + b"\n")


WORDS = "fever cough dose renal acute mild daily pain chest liver sodium tablet onset scan biopsy murmur edema rash nausea lesion".split()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("aloe")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    assert len(KINDS) == 60, len(KINDS)
    names = list(KINDS)
    is_wrong = False
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for part in range(4):
            path, random_ = folder / f"part{part}.jsonl", random.Random(args.seed + part)
            n_rows = args.rows // 3 if part < 3 else args.rows
            places = places_of(names[part::3], n_rows, random_) if part < 3 else {n_rows: "no closing brace"}
            write(path, places, n_rows, random_)
            command = [args.aloe, "data", "run", "--out", str(folder / "out"), "--set", f'sources=[{{name="made",path="{path}",licence="mit"}}]']
            start = time.monotonic()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            said = process.stderr.read().decode()
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - start
            reasons = {int(line): rest for line, rest in re.findall(rf"{re.escape(path.name)}:(\d+):? ?(.*)", said)}
            missing = [(line, kind) for line, kind in places.items() if line not in reasons]
            extra = [(line, rest) for line, rest in reasons.items() if line not in places]
            megabytes, peak = path.stat().st_size / 1e6, usage.ru_maxrss / 1024
            cpu = usage.ru_utime + usage.ru_stime
            print(f"file {part + 1}: {len(places) - len(missing)} of {len(places)} named, exit {os.waitstatus_to_exitcode(status)}, {megabytes:.0f} MB in {seconds:.2f} s "
                  f"({megabytes / seconds:.0f} MB/s, {megabytes / cpu:.0f} MB per processor second), peak {peak:.0f} MiB")
            for line, kind in sorted(places.items()):
                print(f"  {line} {kind}: {reasons.get(line, ' NOT NAMED')}")
            is_wrong |= bool(missing or extra or peak > 256 or os.waitstatus_to_exitcode(status) != 2)
            for line, rest in extra:
                print(f"  line {line} is good and was named:{rest}")
            path.unlink()
    sys.exit(is_wrong)


main()
