"""TensorBoard's own writer and reader against crates/aloe-train/src/tensorboard.rs.

Pinned: tensorboard 2.20.0. No randomness. Without arguments writes crates/aloe-train/tests/golden/events.out.tfevents: the bytes that
TensorBoard's EventFileWriter gives to the events of the unit test (the version event, then scalars at steps 1 and 300).
With a stage folder (`python oracles/tensorboard_events.py runs/x/sft`) reads its `tensorboard/` with TensorBoard's EventAccumulator and
checks that every number of metrics.jsonl is there once, in order, to f32.
"""

import json
import math
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c


def record(event):
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def scalars(wall_time, step, values):
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values])
    return Event(wall_time=wall_time, step=step, summary=summary)


def write_golden():
    events = [
        Event(wall_time=1_700_000_000.25, file_version="brain.Event:2"),
        scalars(1_700_000_001.5, 1, [("loss", 2.5), ("lr", 2e-5)]),
        scalars(1_700_000_002.5, 300, [("loss_by_source/a", -1.25)]),
    ]
    target = pathlib.Path(__file__).parent.parent / "crates/aloe-train/tests/golden/events.out.tfevents"
    target.write_bytes(b"".join(record(event) for event in events))
    print(target, target.stat().st_size)


def numbers(line):
    for key, value in line.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{inner}", number) for inner, number in value.items() if isinstance(number, (int, float)))
        elif key != "step" and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield key, value


def check(stage):
    read = EventAccumulator(str(stage / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    expected = {}
    for line in (stage / "metrics.jsonl").read_text().splitlines():
        line = json.loads(line)
        for key, value in numbers(line):
            expected.setdefault(key, []).append((line["step"], value))
    times = [json.loads(line) for line in (stage / "timing.jsonl").read_text().splitlines()]
    for key in ("tokens_per_s", "step_s", "share_of_limit"):
        expected[key] = [(time["step"], time[key]) for time in times if key in time]
    tags = set(read.Tags()["scalars"])
    assert tags == {key for key, values in expected.items() if values}, tags ^ set(expected)
    for key in tags:
        found = [(event.step, event.value) for event in read.Scalars(key)]
        assert [step for step, _ in found] == [step for step, _ in expected[key]], key
        assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(found, expected[key])), key
    print(f"{len(tags)} tags, {sum(len(values) for values in expected.values())} values: as metrics.jsonl and timing.jsonl")


if len(sys.argv) > 1:
    check(pathlib.Path(sys.argv[1]))
else:
    write_golden()
