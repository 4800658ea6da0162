"""Mistakes in the exercises of lesson 17, by checker: see `mistakes.py`."""

import hashlib
import json
import math


def spans(rule=round, each=False, first=0, gap=0, ends=None):
    def made(seconds, fps):
        edges = [first]
        for i in range(len(seconds)):
            if each:
                edges.append(edges[-1] + rule(seconds[i] * fps))
            else:
                edges.append(first + rule(sum(seconds[: i + 1]) * fps))
        return [(a, b - gap) for a, b in zip(edges, edges[1:])]

    return made


def times(weight=len, use=True, last=None):
    def made(words, known, seconds):
        known = known if use else {}
        anchors = sorted(({0: 0.0} | known).items()) + [(len(words), seconds)]
        starts = []
        for (first, begin), (after, end) in zip(anchors, anchors[1:]):
            sizes = [weight(w) for w in words[first:after]]
            starts += [
                begin + (end - begin) * sum(sizes[:i]) / sum(sizes) for i in range(len(sizes))
            ]
        return list(zip(starts, starts[1:] + [seconds if last is None else last]))

    return made


def unsorted(words, known, seconds):
    "Takes the first known beginning for the beginning of all."
    begin = min(known.values(), default=0.0)
    letters = [len(w) for w in words]
    starts = [
        begin + (seconds - begin) * sum(letters[:i]) / sum(letters) for i in range(len(words))
    ]
    return list(zip(starts, starts[1:] + [seconds]))


def name(text=lambda fields: json.dumps(fields, sort_keys=True), short=32):
    def made(fields):
        return f"speech-{hashlib.sha256(text(fields).encode()).hexdigest()[:short]}.npz"

    return made


def gain(absolute=True, relative=True, mean=None, factor=10, offset=-0.691, sign=1, empty=0.0):
    def made(powers, target):
        def lufs(p):
            return offset + factor * math.log10(p)

        loud = [p for p in powers if p > 0 and (lufs(p) > -70 or not absolute)]
        if not loud:
            return empty
        middle = sum(loud) / len(loud)
        loud = [p for p in loud if not relative or lufs(p) >= lufs(middle) - 10]
        if mean == "decibels":
            return sign * (target - sum(map(lufs, loud)) / len(loud))
        return sign * (target - lufs(sum(loud) / len(loud)))

    return made


def ungated(powers, target):
    mean = sum(powers) / max(1, len(powers))
    return target - (-0.691 + 10 * math.log10(mean)) if mean else 0.0


MISTAKES = {
    "story_spans": [
        (spans(each=True), "rounded by itself"),
        (spans(math.ceil, each=True), "rounded up by itself"),
        (spans(math.floor, each=True), "cut off by itself"),
        (spans(math.floor), "a whole frame off"),
        (spans(math.ceil), "a whole frame off"),
        (spans(gap=1), "no longer belongs"),
        (spans(first=1), "begins with frame 0"),
        (lambda seconds, fps: [(0, round(s * fps)) for s in seconds], "where the one before"),
        (lambda seconds, fps: [round(s * fps) for s in seconds], "pairs"),
        (lambda seconds, fps: spans()(seconds, fps)[:-1], "one pair for each"),
        (spans(rule=lambda x: x), "whole number"),
    ],
    "story_word_times": [
        (times(lambda w: 1), "a long one takes longer"),
        (times(use=False), "left out"),
        (times(lambda w: len(w) + 1), "one letter too much"),
        (times(last=0.0), "ends with the sound"),
        (unsorted, "begins when"),
        (lambda w, k, s: [start for start, _ in times()(w, k, s)], "pairs"),
        (lambda w, k, s: [(a, a + 0.1) for a, _ in times()(w, k, s)], "ends where"),
        (lambda w, k, s: dict(enumerate(times()(w, k, s))), "a list of pairs"),
    ],
    "story_item_name": [
        (lambda fields: "speech-0.npz", "gives the same name"),
        (lambda fields: name(lambda f: f["text"])(fields), "gives the same name"),
        (name(lambda f: str(f)), "order of the fields"),
        (name(lambda f: "".join(f"{k}{f[k]}" for k in sorted(f))), "give the same name"),
        (name(lambda f: json.dumps(f, sort_keys=True).lower()), "give the same name"),
        (lambda f: f"speech-{hash(json.dumps(f, sort_keys=True))}.npz", "another number"),
        (lambda f: json.dumps(f, sort_keys=True), "letters"),
        (lambda f: name()(f).replace("-", "_"), "only letters"),
        (lambda f: 7, "must be a text"),
        (
            name(lambda f: json.dumps({k: v for k, v in f.items() if v}, sort_keys=True)[:60]),
            "same",
        ),
    ],
    "story_gain": [
        (gain(sign=-1), "the other way"),
        (ungated, "silence counts"),
        (gain(relative=False), "only the first gate"),
        (gain(absolute=False), "−70 LUFS"),
        (gain(mean="decibels"), "not their decibels"),
        (gain(factor=20), "not 20"),
        (gain(offset=0.0), "0.691"),
        (lambda p, t: 10 ** (gain()(p, t) / 20), "a factor"),
        (lambda p, t: t, "gain"),
        (gain(empty=math.nan), "gain"),
    ],
}


def spans_by_accumulate(seconds, fps):
    from itertools import accumulate

    edges = [round(s * fps) for s in accumulate(seconds, initial=0.0)]
    return [[a, b] for a, b in zip(edges, edges[1:])]


def half_up(seconds, fps):
    edges = [math.floor(sum(seconds[:i]) * fps + 0.5) for i in range(len(seconds) + 1)]
    return list(zip(edges, edges[1:]))


def name_by_repr(fields):
    text = repr(sorted(fields.items()))
    return hashlib.md5(text.encode()).hexdigest()


RIGHT = [
    ("story_spans", spans_by_accumulate),
    ("story_spans", half_up),
    ("story_word_times", times()),
    ("story_item_name", name_by_repr),
    ("story_gain", gain()),
]
