"""Files spoiled at random, the same each time: bytes, JSON, tables; and a guard around what reads
them."""

import copy
import json
import os
import random
import signal
import struct
import threading
from contextlib import contextmanager

try:
    import resource
except ImportError:  # Windows
    resource = None

WEIRD = [
    None,
    True,
    False,
    "12",
    "",
    "x" * 300,
    "\u0000\u202e",
    "../../etc/passwd",
    -1,
    0,
    1,
    7,
    10**9,
    10**30,
    -(10**9),
    0.5,
    -0.0,
    1e300,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    ["x"],
    [1, 2, 3],
    [10**9] * 3,
    {"kind": "x"},
    {"kind": ["x"]},
    {"a": {"b": 1}},
]


def places(value, path=()):
    "Every place in nested dicts and lists, as a tuple of keys."
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(len(value)):
            yield from places(value[i], (*path, i))


def spoil_json(value, rng):
    "A copy with one to three places replaced, removed, added or renamed."
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(list(places(value)))
        if not path:
            if rng.random() < 0.1:
                return rng.choice(WEIRD)
            continue
        inside = value
        for key in path[:-1]:
            inside = inside[key]
        how = rng.random()
        if how < 0.65:
            inside[path[-1]] = copy.deepcopy(rng.choice(WEIRD))
        elif how < 0.8:
            del inside[path[-1]]
        elif isinstance(inside, dict):
            inside["x" if how < 0.9 else f"{path[-1]}s"] = inside[path[-1]]
        else:
            inside.append(rng.choice(WEIRD))
    return value


def spoil_bytes(data, rng):
    "Bytes with one to four of them or runs of them changed."
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(data) + 1)
        if rng.random() < 0.5:  # the front says what all else means
            at = rng.randrange(min(len(data), 400) + 1)
        how = rng.randrange(8)
        run = rng.choice([1, 2, 4, 8, 64, 500])
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del data[at:]
        elif how == 2:
            del data[at : at + run]
        elif how == 3:
            data[at:at] = rng.randbytes(run)
        elif how == 4:
            data[at : at + run] = bytes(len(data[at : at + run]))
        elif how == 5:
            data[at : at + 4] = struct.pack(">I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 10**9]))
        elif how == 6:
            data[at : at + 8] = struct.pack("<Q", rng.choice([0, 2**40, 2**63, 2**64 - 1]))
        else:
            data[at:at] = data[at : at + run] * rng.choice([1, 3, 50])
    return bytes(data)


def spoil_json_file(data, rng):
    "The bytes of a JSON file, its values or, one time in four, its bytes spoiled."
    if rng.random() < 0.25:
        return spoil_bytes(data, rng)
    return json.dumps(spoil_json(json.loads(data), rng)).encode()


def spoil_safetensors(data, rng):
    "A safetensors file, its header or its bytes spoiled."
    if rng.random() < 0.4:
        return spoil_bytes(data, rng)
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(spoil_json(json.loads(data[8 : 8 + size]), rng)).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def spoil_table(data, rng):
    "A table, its bytes spoiled, or its signs exchanged."
    if rng.random() < 0.5:
        return spoil_bytes(data, rng)
    text = data.decode()
    old = rng.choice([",", "\n", '"', "caption", "file", ".mp4", "a ", "{", ":"])
    new = rng.choice([";", "", '"', "\t", "\0", ",,", "\r", "é", "[", "caption", "1", "\ud83d"])
    count = rng.choice([1, 2, -1])
    return text.replace(old, new, count).encode("utf-8", "surrogatepass")


class TooLong(BaseException):
    "A case that does not end: no `except Exception` may keep it."


@contextmanager
def limits(seconds=10, more=3 * 2**30):
    """An end after so many seconds, and no more than so many bytes beyond what is there; both only
    where the system can."""
    alarms = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()

    def ring(*_):
        raise TooLong(f"longer than {seconds} s")

    old = resource and resource.getrlimit(resource.RLIMIT_AS)
    try:
        with open("/proc/self/statm") as f:
            now = int(f.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + more, old[1]))
    except (OSError, ValueError, AttributeError):
        old = None
    before = signal.signal(signal.SIGALRM, ring) if alarms else None
    if alarms:
        signal.alarm(seconds)
    try:
        yield
    finally:
        if alarms:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        if old:
            resource.setrlimit(resource.RLIMIT_AS, old)


def complaint(read, names):
    """What is wrong with how `read()` answers a spoiled file, or '': it may return, or raise a
    ValueError or OSError that names one of `names` in one line of moderate length."""
    try:
        with limits():
            read()
    except (ValueError, OSError) as e:
        text = str(e)
        if "\n" in text.strip():
            return f"more than a line: {text[:300]!r}"
        if len(text) > 1500:
            return f"{len(text)} letters: {text[:200]!r}"
        if not any(name in text for name in names):
            return f"names none of {names}: {type(e).__name__}: {text[:300]!r}"
    except TooLong as e:
        return str(e)
    except Exception as e:
        return f"{type(e).__name__}: {str(e)[:300]!r}"
    return ""


def fuzz(count, seed, original, spoil, file, read, names):
    """Spoil `original`, bytes, `count` times into `file` and read it; the complaints. `file` is
    whole again at the end. FUZZ=10 in the environment: ten times as many."""
    found = []
    for n in range(count * int(os.environ.get("FUZZ", 1))):
        data = spoil(original, random.Random(f"{seed}-{n}"))
        file.write_bytes(data)
        said = complaint(read, names)
        if said:
            found.append(f"{seed}-{n}: {said}")
    file.write_bytes(original)
    return found
