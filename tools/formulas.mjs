// Formulas as HTML with MathML: reads JSON [[tex, display], ...] and writes JSON [html, ...]; tools/pages.py runs this.
import { readFileSync } from "node:fs";
import katex from "katex";

const formulas = JSON.parse(readFileSync(0, "utf8"));
const rendered = formulas.map(([tex, displayMode]) => katex.renderToString(tex, { displayMode, throwOnError: true }));
process.stdout.write(JSON.stringify(rendered));
