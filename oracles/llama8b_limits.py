#!/usr/bin/env python3
"""A model of Llama-3-8B's shape under a limit of memory: bf16 under 20 GiB, `--quantize q4` under 7 GiB, and how near prefill and one
stream come to what the machine gives.

Each form is `aloe bench FOLDER --runs 3` (each run between probes of its own; medians) in a memory group (cgroup version 1 or 2, so root)
of that size without swap, its page cache included, on a terminal of its own, because there a row is shown as soon as it is measured: it
is ended when one stream was, as the rest takes many minutes. What is wanted of it: it ends by no signal of the kernel's, one stream takes
at least 80 % of the rate at which memory gives the bytes that are read, and (bf16 alone) prefill of 512 tokens 60 % of the processor's
rate of products.
FOLDER is what llama8b_shape.py writes. With a file that was never read the load waits for the disk.

Python 3.9 or newer, standard library only, Linux. About seven and ten minutes on two cores. Ends with 1 where something wanted is missed.

    python3 oracles/llama8b_limits.py ALOE FOLDER [--only bf16|q4] [--gib N] [--runs 3]
"""

import argparse
import contextlib
import fcntl
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import termios
import time

RUNS = {"bf16": (20, []), "q4": (7, ["--quantize", "q4"])}
ROW = re.compile(r"((?:prefill|decode)[^:\x1b\r\n]*): ([\d.]+) tokens/s, (\d+) % of the limit")


@contextlib.contextmanager
def memory_group(name, gib):
    version_1 = pathlib.Path("/sys/fs/cgroup/memory")
    old = version_1.is_dir()
    group = (version_1 if old else pathlib.Path("/sys/fs/cgroup")) / f"aloe-8b-{name}-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(gib << 30))
        (group / ("memory.swappiness" if old else "memory.swap.max")).write_text("0")
        yield group, group / ("memory.max_usage_in_bytes" if old else "memory.peak")
    finally:
        # A process that has just ended is still counted for a moment.
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def resident_gib(pid):
    """The most that was resident, of a process that is still there."""
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / (1 << 20)
    return 0.0


def rows_of(command, group):
    """Rows as they come, the last of them one stream's: {work: (tokens/s, per cent of the limit)}, the peak in GiB and the exit code."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    process = subprocess.Popen(command, stdout=slave, stderr=slave, preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())))
    os.close(slave)
    text, rows, peak = "", {}, 0.0
    while not any(work.startswith("decode, one") for work in rows):
        try:
            text += os.read(master, 1 << 16).decode(errors="replace")
        except OSError:  # it has ended
            break
        peak = max(peak, resident_gib(process.pid))
        for work, rate, share in ROW.findall(text):
            if work not in rows:
                rows[work] = (float(rate), int(share))
                print(f"  {work}: {rate} tokens/s, {share} % of the limit", flush=True)
    is_whole = any(work.startswith("decode, one") for work in rows)
    if is_whole:
        process.kill()
    code = process.wait()
    os.close(master)
    if not is_whole:
        print(text[-2000:])
    return rows, peak, 0 if is_whole else code


def check(aloe, folder, name, gib, runs):
    print(f"{name} under {gib} GiB", flush=True)
    start = time.monotonic()
    with memory_group(name, gib) as (group, used):
        rows, peak, code = rows_of([aloe, "bench", folder, "--runs", str(runs), *RUNS[name][1]], group)
        charged = int(used.read_text()) / (1 << 30)
    print(f"  {time.monotonic() - start:.0f} s, at most {peak:.2f} GiB resident, {charged:.2f} GiB charged with the page cache", flush=True)
    missed = []
    if code:
        missed.append(f"ended with {code}")
    wanted = {"decode, one": 80} | ({"prefill, 512": 60} if name == "bf16" else {})
    for start_of_work, least in wanted.items():
        share = next((share for work, (_, share) in rows.items() if work.startswith(start_of_work)), 0)
        if share < least:
            missed.append(f"{start_of_work}: {share} % of the limit, {least} wanted")
    print("  " + ("; ".join(missed) if missed else "all that is wanted"), flush=True)
    return not missed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("aloe")
    parser.add_argument("folder")
    parser.add_argument("--only", choices=list(RUNS))
    parser.add_argument("--gib", type=int, help="another limit")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    names = [options.only] if options.only else list(RUNS)
    found = [check(options.aloe, options.folder, name, options.gib or RUNS[name][0], options.runs) for name in names]
    sys.exit(0 if all(found) else 1)


if __name__ == "__main__":
    main()
