// Captions to word ids, and the words of a refusal: `Vocabulary.encode(caption, strict=True)` of
// minisora/data/vocabulary.py, with the same messages.

import { splitWords, splitWordsEarlier } from './words.js';

export class Vocabulary {
  // `about`: what `Vocabulary.to_dict()` wrote. Id 0 is "no word here".
  constructor(about) {
    this.words = about.words;
    this.slots = about.slots;
    this.drop = about.drop;
    this.idsBySlot = about.places;
    this.split = about.split ?? 1; // how its captions were split: 1 as in version 0.1
    this.ids = new Map(about.words.map((word, i) => [word, i + 1]));
  }

  // The id that means "no caption".
  get nullId() {
    return this.words.length + 1;
  }

  // A caption's words, as the captions of the training were split.
  wordsOf(caption) {
    if (this.split === 1) {
      const words = this.tokenize(caption, splitWordsEarlier);
      if (words.length && words.every((word) => this.ids.has(word))) return words;
    }
    return this.tokenize(caption, splitWords);
  }

  // Its words without those that carry no meaning, unless all are.
  tokenize(caption, split) {
    const words = split(caption).map((word) => this.knownForm(word));
    const kept = words.filter((word) => !this.drop.includes(word));
    return kept.length ? kept : words;
  }

  // moving, move -> moves; the -> a, where 'a' is dropped
  knownForm(word) {
    const isKnown = (form) => this.drop.includes(form) || this.ids.has(form);
    let forms = [`${word}s`];
    if (word.endsWith('ing')) forms = [`${word.slice(0, -3)}s`, `${word.slice(0, -3)}es`];
    if (['an', 'the'].includes(word) && this.drop.includes('a')) forms = ['a'];
    return isKnown(word) ? word : forms.find(isKnown) ?? word;
  }

  // One id per slot; an Error says which word is unknown, misplaced, missing or too many.
  encode(caption) {
    const words = this.wordsOf(caption);
    for (const word of words) {
      if (!this.ids.has(word)) {
        throw new Error(`unknown word ${quote(word)} in prompt ${quote(caption)}; ${this.known(word)}`);
      }
    }
    if (words.length > this.slots) {
      throw new Error(
        `prompt ${quote(caption)} has ${words.length} words; the model knows up to ${this.slots}`);
    }
    if (!words.length) throw new Error(`prompt ${quote(caption)} has no words`);
    const ids = Array.from({ length: this.slots }, (_, i) => this.ids.get(words[i]) ?? 0);
    this.idsBySlot.forEach((seen, i) => {
      if (!seen.includes(ids[i])) {
        throw new Error(`prompt ${quote(caption)}: ${this.misplaced(ids[i], i + 1, seen)}`);
      }
    });
    return ids;
  }

  known(word) {
    const more = this.words.length - 30;
    const rest = more > 0 ? ` … and ${more} more` : '';
    return `known: ${this.words.slice(0, 30).join(', ')}${rest}${didYouMean(word, this.words)}`;
  }

  misplaced(id, slot, seen) {
    const words = seen.filter(Boolean).map((k) => this.words[k - 1]);
    const found = id
      ? `${quote(this.words[id - 1])} is never word ${slot} of a caption`
      : `word ${slot} is missing`;
    const more = words.length > 30 ? ' …' : '';
    return `${found}; there the model knows: ${words.slice(0, 30).join(', ')}${more}`;
  }
}

// A text in quotes as Python's `repr` writes it.
export function quote(text) {
  const mark = text.includes("'") && !text.includes('"') ? '"' : "'";
  const short = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t', [mark]: `\\${mark}` };
  const hex = (c, size) => c.codePointAt(0).toString(16).padStart(size, '0');
  const escape = (c) => {
    if (short[c]) return short[c];
    if (c === ' ' || !/[\p{C}\p{Z}]/u.test(c)) return c;
    const code = c.codePointAt(0);
    if (code < 0x100) return `\\x${hex(c, 2)}`;
    return code < 0x10000 ? `\\u${hex(c, 4)}` : `\\U${hex(c, 8)}`;
  };
  return mark + [...text].map(escape).join('') + mark;
}

// "; did you mean 'x' or 'y'?" for the three known words nearest to `word`, or ''.
function didYouMean(word, known) {
  const near = known.map((name) => [similarity(name, word), name])
    .filter(([score]) => score >= 0.6)
    .sort(([a, x], [b, y]) => b - a || (x < y ? 1 : -1))
    .slice(0, 3)
    .filter(([, name]) => isSlip(word, name));
  return near.length ? `; did you mean ${near.map(([, name]) => quote(name)).join(' or ')}?` : '';
}

// Could `word` be a slip for `name`, not merely a word with some of its letters?
function isSlip(word, name) {
  const sorted = (text) => [...text].sort().join('');
  return sorted(word) === sorted(name) || similarity(word, name) >= 0.7;
}

// Ratcliff and Obershelp's measure, as Python's difflib has it: twice the characters in common
// over all characters.
function similarity(a, b) {
  const left = [...a];
  const right = [...b];
  return (2 * inCommon(left, right)) / (left.length + right.length);
}

// Characters in the longest common run, and in those to the left and the right of it.
function inCommon(a, b) {
  let best = 0;
  let atA = 0;
  let atB = 0;
  for (let i = 0; i < a.length; i++) {
    for (let j = 0; j < b.length; j++) {
      let size = 0;
      while (i + size < a.length && j + size < b.length && a[i + size] === b[j + size]) size++;
      if (size > best) [best, atA, atB] = [size, i, j];
    }
  }
  if (!best) return 0;
  return best + inCommon(a.slice(0, atA), b.slice(0, atB))
    + inCommon(a.slice(atA + best), b.slice(atB + best));
}
