// Opens pages of the site in headless Chromium and says what is wrong with each: `tools/check_site.py` runs this.
// Standard input: JSON {chromium, base, axe, shots, pages, views: [{name, width, height, scheme}]}.
// Standard output: one line of JSON for each page and view.
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const job = JSON.parse(readFileSync(0, "utf8"));

// Runs in the page.
function look() {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const shown = (e) => e.getClientRects().length > 0;
  const wider = (e) => e.scrollWidth > e.clientWidth + 1;
  const code = all("main pre.sourceCode").filter(shown);
  const outputs = all("main pre:not(.sourceCode)").filter(shown);
  const right = document.documentElement.clientWidth;
  const cut = all("main :is(img, table, .katex-display, math[display=block])").filter((e) => {
    if (!shown(e) || e.getBoundingClientRect().right <= right + 1) return false;
    for (let box = e; box && box.tagName !== "MAIN"; box = box.parentElement) {
      if (/auto|scroll/.test(getComputedStyle(box).overflowX)) return false;
    }
    return true;
  });
  const formula = (e) => !e.closest("code, pre, script, style, annotation") && /\\[([]/.test(e.data);
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let raw = 0;
  while (texts.nextNode()) raw += formula(texts.currentNode.parentElement && {
    data: texts.currentNode.data,
    closest: (s) => texts.currentNode.parentElement.closest(s),
  }) ? 1 : 0;
  return {
    code: code.length,
    sideways: code.filter((e) => wider(e) || wider(e.closest(".sourceCode") || e)).length,
    outputs: outputs.length,
    outputs_sideways: outputs.filter(wider).length,
    unreachable: all("main *").filter((e) => e.tabIndex < 0 && wider(e) && shown(e)
      && /auto|scroll/.test(getComputedStyle(e).overflowX)).length,
    page_overflows: document.documentElement.scrollWidth > right + 1,
    cut: cut.map((e) => e.outerHTML.slice(0, 80)),
    equations: all("main :is(.katex-display, math[display=block])").length,
    equations_scroll: all("main .katex-display").filter(wider).length,
    formulas: all("main :is(.katex, math:not(.katex math))").length,
    raw_formulas: raw,
    formula_errors: all("main .katex-error").length,
    no_alt: all("img").filter((e) => !(e.getAttribute("alt") || "").trim() && e.getAttribute("role") !== "presentation").length,
  };
}

const browser = await chromium.launch({
  executablePath: job.chromium,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update"],
});
for (const view of job.views) {
  const context = await browser.newContext({
    viewport: { width: view.width, height: view.height },
    colorScheme: view.scheme,
    reducedMotion: "reduce",
  });
  for (const path of job.pages) {
    const page = await context.newPage();
    const outside = []; // requests to other hosts
    const errors = [];
    await page.route("**/*", (route) => {
      const url = route.request().url();
      if (url.startsWith(job.base) || url.startsWith("data:")) return route.continue();
      outside.push(url);
      return route.abort();
    });
    page.on("pageerror", (e) => errors.push(String(e)));
    page.on("console", (m) => { if (m.type() === "error" && !/ERR_FAILED/.test(m.text())) errors.push(m.text()); });
    await page.goto(job.base + path, { waitUntil: "load" });
    await page.waitForTimeout(150);
    const found = await page.evaluate(look);
    if (job.axe) {
      await page.addScriptTag({ path: job.axe });
      const report = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
      found.axe = report.violations.map((v) => ({
        id: v.id, impact: v.impact, nodes: v.nodes.length,
        first: v.nodes[0].html.slice(0, 160), why: (v.nodes[0].failureSummary || "").slice(0, 300),
      }));
    }
    if (job.shots) {
      const name = path.replace(/\.html$/, "").replaceAll("/", "-");
      await page.screenshot({ path: `${job.shots}/${name}-${view.name}.png`, fullPage: Boolean(job.whole) });
    }
    console.log(JSON.stringify({ page: path, view: view.name, outside, errors, ...found }));
    await page.close();
  }
  await context.close();
}
await browser.close();
