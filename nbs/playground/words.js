// A caption in any writing to its words: `split_words` of minisora/data/words.py, and
// `split_words_earlier`, how version 0.1 split it.

// Chinese and Japanese characters, each a word of its own.
const CHARACTERS = [[0x3005, 0x3007], [0x3040, 0x30ff], [0x3100, 0x312f], [0x31a0, 0x31bf],
  [0x31f0, 0x31ff], [0x3400, 0x4dbf], [0x4e00, 0x9fff], [0xf900, 0xfaff], [0x20000, 0x3ffff]];
const JOINERS = ['\u200c', '\u200d']; // join letters in Persian and Hindi, emoji to one picture

// What a sign is to a word: letter, character, mark, emoji, joiner, or null.
function kindOf(c) {
  const code = c.codePointAt(0);
  if (code < 128) return /[a-z0-9]/i.test(c) ? 'letter' : null;
  if (JOINERS.includes(c)) return 'joiner';
  if (/\p{M}/u.test(c) || (code >= 0x1f3fb && code <= 0x1f3ff)) return 'mark';
  if (/[\p{L}\p{N}]/u.test(c)) {
    return CHARACTERS.some(([from, to]) => from <= code && code <= to) ? 'character' : 'letter';
  }
  return /\p{So}/u.test(c) && code >= 0x2190 ? 'emoji' : null;
}

// Half of a flag: two of these signs make one.
const isFlag = (text) => /^[\u{1f1e6}-\u{1f1ff}]$/u.test(text);

// Does a sign belong to the last word? `before`: the kind of the sign in front of it, or null.
function goesOn(last, before, kind, c) {
  if (before === null || last === undefined) return false;
  if (kind === 'mark' || kind === 'joiner') return true;
  if (kind === 'letter') return ['letter', 'joiner', 'apostrophe'].includes(before);
  return (kind === 'emoji' && last.endsWith('\u200d')) || (isFlag(c) && isFlag(last));
}

// A caption's words, lower-cased, in one spelling.
export function splitWords(caption) {
  const text = caption.normalize('NFKC').toLowerCase().normalize('NFKC').replaceAll('\ufe0f', '');
  const signs = [...text];
  const words = [];
  let before = null;
  signs.forEach((c, i) => {
    const kind = kindOf(c);
    const end = words.length - 1;
    if ("'\u2019".includes(c) && before === 'letter' && kindOf(signs[i + 1] ?? ' ') === 'letter') {
      words[end] += "'";
      before = 'apostrophe';
    } else if (goesOn(words[end], before, kind, c)) {
      words[end] += c;
      if (kind !== 'mark') before = kind;
    } else if (['letter', 'character', 'emoji'].includes(kind)) {
      words.push(c);
      before = kind;
    } else {
      before = null;
    }
  });
  return words.map((word) => word.replace(/[\u200c\u200d]+$/, ''));
}

export function splitWordsEarlier(caption) {
  return caption.toLowerCase().match(/[\p{L}\p{N}]+(?:'[\p{L}\p{N}]+)*/gu) ?? [];
}
