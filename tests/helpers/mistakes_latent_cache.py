"""Plausible mistakes in the exercises of lesson 02: a wrong answer, and words of its hint."""

import json
import os
import zlib

import numpy as np
import torch

# ---------------------------------------------------------------- a writer that resumes


def whole_lines(data, journal, torn=False, check=True, stop=True):
    "The journal's lines that count."
    found = []
    lines = journal.split(b"\n") if torn else journal.split(b"\n")[:-1]
    for line in lines:
        try:
            line = json.loads(line)
        except ValueError:
            break
        piece = data[line["start"] : line["start"] + line["bytes"]]
        right = len(piece) == line["bytes"] and zlib.crc32(piece) == line["crc"]
        if right or not check:
            found.append(line)
        elif stop:
            break
    return found


def writer(
    cut_data=True,
    cut_journal=True,
    flush=True,
    journal_flush=True,
    start=lambda end: end,
    crc=zlib.crc32,
    newline="\n",
    total=False,
    size=len,
    cast=None,
    skip=0,
    line_first=False,
    **reading,
):
    "Ways to write batches, and to resume."

    def answer(folder, batches, encode):
        paths = [folder / "latents.bin", folder / "journal.txt"]
        for path in paths:
            path.touch()
        data, journal = (path.read_bytes() for path in paths)
        lines = whole_lines(data, journal, **reading)
        end = sum(line["bytes"] for line in lines)
        if cut_data:
            os.truncate(paths[0], end)
        if cut_journal:
            kept = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            paths[1].write_bytes(kept)
        with open(paths[0], "ab") as data, open(paths[1], "a") as journal:
            for batch in batches[max(len(lines) - skip, 0) :]:
                z = encode(batch)
                raw = (z if cast is None else z.astype(cast)).tobytes()
                line = dict(start=start(end), bytes=size(raw), crc=crc(raw))
                writes = [(data, raw, flush), (journal, json.dumps(line) + newline, journal_flush)]
                for file, content, now in writes[::-1] if line_first else writes:
                    file.write(content)
                    if now:
                        file.flush()
                end += len(raw)
        return len(batches) if total else len(batches) - len(lines)

    return answer


def anew(folder, batches, encode):
    "Without a look at what is there."
    for name in ("latents.bin", "journal.txt"):
        (folder / name).unlink(missing_ok=True)
    return writer()(folder, batches, encode)


def all_then_written(folder, batches, encode):
    latents = [encode(batch) for batch in batches]
    return writer()(folder, batches, lambda batch: latents[batches.index(batch)])


def overwriting(folder, batches, encode):
    "Opened with 'wb': what was there is lost."
    journal = folder / "journal.txt"
    data = folder / "latents.bin"
    lines = []
    if journal.exists():
        lines = whole_lines(data.read_bytes(), journal.read_bytes())
    with open(data, "wb") as file, open(journal, "w") as text:
        for batch in batches[len(lines) :]:
            raw = encode(batch).tobytes()
            file.write(raw)
            file.flush()
            line = dict(start=file.tell() - len(raw), bytes=len(raw), crc=zlib.crc32(raw))
            print(json.dumps(line), file=text, flush=True)
    return len(batches) - len(lines)


def not_cut(folder, batches, encode):
    "Goes to the right place and overwrites, and leaves what is longer."
    paths = [folder / "latents.bin", folder / "journal.txt"]
    for path in paths:
        path.touch()
    lines = whole_lines(*(path.read_bytes() for path in paths))
    end = sum(line["bytes"] for line in lines)
    os.truncate(paths[1], sum(len(json.dumps(line)) + 1 for line in lines))
    with open(paths[0], "r+b") as data, open(paths[1], "a") as journal:
        data.seek(end)
        for batch in batches[len(lines) :]:
            raw = encode(batch).tobytes()
            data.write(raw)
            data.flush()
            line = dict(start=data.tell() - len(raw), bytes=len(raw), crc=zlib.crc32(raw))
            print(json.dumps(line), file=journal, flush=True)
    return len(batches) - len(lines)


def sum_over_file(folder, batches, encode):
    "The checksum of all that is in the file so far."
    seen = []

    def crc(raw):
        seen.append(raw)
        return zlib.crc32(b"".join(seen))

    return writer(crc=crc)(folder, batches, encode)


def journal_rewritten(folder, batches, encode):
    "Tidies the journal up in the end."
    done = writer()(folder, batches, encode)
    path = folder / "journal.txt"
    path.write_bytes(path.read_bytes())
    return done


DONE = {}


def in_memory(folder, batches, encode):
    "Knows what was done while the process lives."
    done = DONE.setdefault(str(folder), 0)
    with open(folder / "latents.bin", "ab") as data, open(folder / "journal.txt", "a") as journal:
        for batch in batches[done:]:
            raw = encode(batch).tobytes()
            line = dict(start=data.tell(), bytes=len(raw), crc=zlib.crc32(raw))
            data.write(raw)
            data.flush()
            print(json.dumps(line), file=journal, flush=True)
            DONE[str(folder)] += 1
    return len(batches) - done


def appended_whole(folder, batches, encode):
    "Rewrites both files after every batch: for a moment all is gone."
    data = (folder / "latents.bin").read_bytes() if (folder / "latents.bin").exists() else b""
    path = folder / "journal.txt"
    lines = whole_lines(data, path.read_bytes()) if path.exists() else []
    data = data[: sum(line["bytes"] for line in lines)]
    done = len(lines)
    for batch in batches[done:]:
        raw = np.ascontiguousarray(encode(batch)).data.tobytes()
        lines.append({"crc": zlib.crc32(raw), "start": len(data), "bytes": len(raw), "note": ""})
        data += raw
        (folder / "latents.bin").write_bytes(data)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "latents.bin").write_bytes(data)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return len(batches) - done


# ---------------------------------------------------------------- a reader


def reader(side="right", base="ends", put_back="order", half=False, after=None, seen=np.argsort):
    "Ways to read rows out of shards."

    def answer(shards, index, mean, std):
        ends = np.cumsum([len(s) for s in shards])
        order = seen(index) if put_back != "unique" else np.unique(index, return_index=True)[1]
        rows = []
        for i in index[order]:
            k = np.searchsorted(ends, i, side=side)
            first = {"ends": ends[k], "starts": ends[k] - len(shards[k]), "none": 0}[base]
            rows.append(shards[k][i - first])
        z = np.stack(rows)
        if not half:
            z = z.astype(np.float32)
        z = after(z, mean, std) if after else (z - mean) / std
        if put_back == "order":
            out = np.empty_like(z)
            out[order] = z
            return out
        return z[order] if put_back == "twice" else z

    return answer


def each(shards, index, mean, std):
    "Row by row, without a sort, in torch."
    starts = np.cumsum([0, *map(len, shards)])
    rows = []
    for i in index:
        k = np.searchsorted(starts, i, side="right") - 1
        rows.append(torch.tensor(shards[k][int(i - starts[k])]).float())
    return (torch.stack(rows) - mean) / std


def cast_late(shards, index, mean, std):
    return reader(half=True)(shards, index, mean, std).astype(np.float32)


def looked_up_unsorted(shards, index, mean, std):
    "Finds the shards of the indices as they came, and reads the sorted ones."
    ends = np.cumsum([len(s) for s in shards])
    which = np.searchsorted(ends, index, side="right")
    order = np.argsort(index)
    out = np.empty((len(index), *shards[0].shape[1:]), np.float32)
    for b, k in zip(order, which):
        out[b] = shards[k][(index[b] - ends[k]) % len(shards[k])]
    return (out - mean) / std


def in_place(shards, index, mean, std):
    ends = np.cumsum([len(s) for s in shards])
    rows = []
    for i in index:
        k = np.searchsorted(ends, i, side="right")
        row = shards[k][i - ends[k]]
        row -= np.float16(mean)
        rows.append(row / np.float32(std))
    return np.stack(rows)


def rounded_mean(shards, index, mean, std):
    return reader(after=lambda z, mean, std: (z - np.float16(mean)) / std)(shards, index, mean, std)


def in_float64(shards, index, mean, std):
    "One shard after the other, into its places."
    out = np.empty((len(index), *shards[0].shape[1:]))
    first = 0
    for s in shards:
        here = (index >= first) & (index < first + len(s))
        out[here] = s[index[here] - first]
        first += len(s)
    return (out - mean) / std


MISTAKES = {
    "latent_cache_resuming_writer": [
        (anew, "is encoded again"),
        (all_then_written, "bytes of latents are on disk and not 48"),
        (overwriting, "latents.bin has"),
        (writer(cut_data=False), "cut off what no line"),
        (writer(cut_journal=False), "line 3 of the journal is no JSON"),
        (writer(flush=False), "0 bytes of latents are on disk"),
        (writer(journal_flush=False), "the journal on the disk has 0 lines"),
        (writer(torn=True), "the batches [2, 3, 4] are missing, yours encodes [3, 4]"),
        (writer(check=False), "are missing, yours encodes"),
        (writer(stop=False), "continue behind the last that counts"),
        (writer(start=lambda end: 0), "line 1 of the journal must say"),
        (writer(crc=lambda raw: 0), "line 0 of the journal must say"),
        (writer(crc=zlib.adler32), "line 0 of the journal must say"),
        (writer(size=lambda raw: len(raw) // 2), "line 0 of the journal must say"),
        (writer(newline=""), "has 0 lines and not 1"),
        (writer(total=True), "0 batches were encoded, yours returns 5"),
        (writer(cast=np.float32), "latents.bin has 336 bytes and not 168"),
        (writer(skip=1), "was there, and it is encoded again"),
        (writer(line_first=True), "First the data, flushed, then the line"),
        (not_cut, "cut off what no line"),
        (sum_over_file, "line 1 of the journal must say"),
        (journal_rewritten, "what counts is not written again"),
        (in_memory, "cut off what no line"),
        (lambda f, b, encode: writer()(f, b, lambda x: encode(x).T.copy()), "is wrong from byte 2"),
        (lambda f, b, encode: writer()(f, b[::2], encode), "48 bytes of latents are on disk"),
        (lambda f, b, encode: writer()(f.parent, b, encode), "0 bytes of latents are on disk"),
        (appended_whole, "what counts is not written again"),
        (writer(start=lambda end: end // 2), "line 1 of the journal must say"),
        (lambda folder, batches, encode: None, "`return` missing"),
        (lambda folder, batches, encode: len(batches), "yours encodes []"),
        (lambda folder, batches, encode: [encode(k) for k in range(5)], "call encode(batch) with"),
        (lambda folder, batches, encode: writer()(folder, batches[::-1], encode), "0 bytes of"),
    ],
    "latent_cache_read_batch": [
        (reader(put_back=None, half=True), "too coarse"),
        (reader(put_back=None), "the order of the disk"),
        (reader(half=True), "too coarse"),
        (cast_late, "in half precision"),
        (
            lambda shards, index, mean, std: np.concatenate(
                [shard.astype(np.float32) for shard in shards]
            )[index],
            "reads whole shards",
        ),
        (lambda shards, index, mean, std: shards[0].mean(), "reads whole shards"),
        (reader(put_back="twice"), "put back the wrong way"),
        (reader(put_back="unique"), "the order of the disk"),
        (reader(side="left"), "row 1 of the batch is not sample 4"),
        (reader(base="none"), "raised IndexError"),
        (lambda shards, index, mean, std: shards[0][index], "raised IndexError"),
        (reader(after=lambda z, mean, std: z * std + mean), "the way back"),
        (reader(after=lambda z, mean, std: (z - mean) * std), "do not multiply"),
        (reader(after=lambda z, mean, std: z / std - mean), "first subtract the mean"),
        (reader(after=lambda z, mean, std: z), "what is stored"),
        (reader(after=lambda z, mean, std: (z - z.mean()) / z.std()), "is not sample"),
        (reader(after=lambda z, mean, std: (z - mean) / std**2), "is not sample"),
        (looked_up_unsorted, "is not sample"),
        (in_place, "raised ValueError"),
        (rounded_mean, "is not sample"),
        (lambda s, i, m, d: reader()(s, i % len(s[0]), m, d), "is not sample"),
        (lambda s, i, m, d: reader()(s, i, m, d**0.5), "is not sample"),
        (lambda s, i, m, d: reader()(s, i, m, d).round(2), "is not sample"),
        (lambda s, i, m, d: torch.tensor(reader()(s, i, m, d)).bfloat16().float(), "is not sample"),
        (lambda s, i, m, d: reader()(s[::-1], i, m, d), "is not sample"),
        (lambda s, i, m, d: reader()(s, i + 1 - (i > 0), m, d)[::-1], "is not sample"),
        (lambda s, i, m, d: reader()(s, i[::-1], m, d), "is not sample"),
        (lambda s, i, m, d: reader()(s, i, m, d).transpose(0, 2, 1, 3, 4), "must have the shape"),
        (lambda s, i, m, d: reader()(s, np.unique(i), m, d), "the order of the disk"),
        (lambda s, i, m, d: reader()(s, np.array(list(dict.fromkeys(i))), m, d), "may repeat"),
        (lambda s, i, m, d: (np.concatenate(s)[i] - m) / d, "whole shards"),
        (lambda s, i, m, d: (np.array(s[0])[i] - m) / d, "whole shards"),
        (lambda s, i, m, d: torch.tensor(reader()(s, i, m, d)).half(), "too coarse"),
        (lambda s, i, m, d: list(reader()(s, i, m, d))[0], "must have the shape"),
    ],
}
RIGHT = [
    ("latent_cache_resuming_writer", writer()),
    ("latent_cache_read_batch", reader()),
    ("latent_cache_read_batch", reader(seen=lambda index: np.arange(len(index)))),
    ("latent_cache_read_batch", reader(base="starts")),
    ("latent_cache_read_batch", each),
    ("latent_cache_read_batch", in_float64),
    ("latent_cache_read_batch", lambda s, i, m, d: reader()(s, i[::-1], m, d)[::-1]),
]
