"""Open every page of the site in a browser and say what is wrong: `python tools/check_site.py`.

Needs the site (`make docs`), Chromium and Node.js with npm. At a phone's width and a laptop's,
light and dark: no page may ask another host, scroll sideways, cut a figure or an equation off,
show a formula's source or a picture without an alternative text, or break a rule that axe-core
calls serious or critical."""

import argparse
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import node

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_docs"
PHONE = dict(name="390", width=390, height=844, scheme="light")
LAPTOP = dict(name="1366", width=1366, height=768, scheme="light")
VIEWS = [PHONE, LAPTOP, LAPTOP | dict(name="1366-dark", scheme="dark")]
GRAVE = ("serious", "critical")


def chromium():
    "The path of a Chromium or Chrome, or None."
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def serve(folder):
    "A server of the folder's files on this computer: (server, address)."
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/"


def browse(pages, views=VIEWS, site=SITE, shots=None, axe=True, whole=False):
    "What the browser found: a dict for each page and view, as they come."
    packages = node.packages("playwright-core", "axe-core")
    server, base = serve(site)
    job = dict(
        chromium=chromium(),
        base=base,
        axe=str(packages / "axe-core" / "axe.min.js") if axe else None,
        shots=str(shots) if shots else None,
        whole=whole,
        pages=pages,
        views=views,
    )
    run = subprocess.Popen(
        ["node", str(ROOT / "tools" / "check_site.mjs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    run.stdin.write(json.dumps(job))
    run.stdin.close()
    for line in run.stdout:
        yield json.loads(line)
    server.shutdown()
    if run.wait():
        raise RuntimeError(f"the browser stopped with {run.returncode}")


def faults(found):
    "The sentences that say what is wrong with one page in one view."
    if found["outside"]:
        yield f"asks the network: {found['outside'][0]}"
    if found["errors"]:
        yield f"script error: {found['errors'][0]}"
    if found["page_overflows"]:
        yield "the page scrolls sideways"
    if found["sideways"]:
        yield f"{found['sideways']} of {found['code']} code blocks scroll sideways"
    if found["unreachable"]:
        yield f"{found['unreachable']} boxes scroll that the keyboard does not reach"
    if found["cut"]:
        yield f"{len(found['cut'])} cut off: {found['cut'][0]}"
    if found["raw_formulas"] or found["formula_errors"]:
        yield f"{found['raw_formulas'] + found['formula_errors']} formulas show their source"
    if found["no_alt"]:
        yield f"{found['no_alt']} pictures without an alternative text"
    for rule in found.get("axe", []):
        if rule["impact"] in GRAVE:
            yield f"axe {rule['id']} ({rule['impact']}, {rule['nodes']}): {rule['first']}"


def report(results):
    "The figures over all pages, in lines."
    for view in dict.fromkeys(r["view"] for r in results):
        here = [r for r in results if r["view"] == view]
        rules = Counter()
        pages = Counter()
        for r in here:
            for rule in r.get("axe", []):
                rules[rule["impact"], rule["id"]] += rule["nodes"]
                pages[rule["impact"], rule["id"]] += 1
        total = {key: sum(r[key] for r in here) for key in here[0] if isinstance(here[0][key], int)}
        yield (
            f"{view}: {len(here)} pages, {total['formulas']} formulas"
            f" ({total['raw_formulas'] + total['formula_errors']} not rendered),"
            f" {total['sideways']} of {total['code']} code blocks scroll,"
            f" {total['outputs_sideways']} of {total['outputs']} outputs scroll,"
            f" {total['equations_scroll']} of {total['equations']} equations scroll,"
            f" {sum(len(r['cut']) for r in here)} cut off,"
            f" {total['page_overflows']} pages scroll sideways,"
            f" {total['no_alt']} pictures without alt,"
            f" {sum(len(r['outside']) for r in here)} requests to other hosts"
        )
        for (impact, rule), count in sorted(rules.items(), key=str):
            yield f"  axe {impact}: {rule}, {count} on {pages[impact, rule]} pages"


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("pages", nargs="*", help="such as 03_dit.html; all without")
    options.add_argument("--site", type=Path, default=SITE, help="the folder (default: _docs)")
    options.add_argument("--shots", type=Path, help="save a picture of each page in this folder")
    options.add_argument("--whole", action="store_true", help="pictures of whole pages")
    options.add_argument("--no-axe", action="store_true", help="skip axe-core's rules")
    given = options.parse_args()
    missing = node.missing() or ("Chromium is not installed" if not chromium() else None)
    if missing or not (given.site / "index.html").exists():
        print(missing or f"no site in {given.site}: run make docs first")
        return 2
    if given.shots:
        given.shots.mkdir(parents=True, exist_ok=True)
    pages = given.pages or sorted(
        p.relative_to(given.site).as_posix() for p in given.site.rglob("*.html")
    )
    results = []
    bad = 0
    for found in browse(pages, VIEWS, given.site, given.shots, not given.no_axe, given.whole):
        results.append(found)
        for sentence in faults(found):
            bad += 1
            print(f"{found['page']} at {found['view']}: {sentence}", flush=True)
    print("\n".join(report(results)))
    print(f"{bad} faults" if bad else "No faults.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
