// The noise of the library, number by number: `indexed_noise` of minisora/core/noise.py, which is
// NumPy's default_rng((seed, step, index)) and its normal numbers in single precision.
//
// Three parts, as in NumPy: SeedSequence stirs the whole numbers into a state of 256 bits (after
// O'Neill's seed_seq), PCG64 turns the state into random bits (O'Neill 2014), and the ziggurat
// (Marsaglia & Tsang 2000) turns the bits into normal numbers.

const MASK_64 = (1n << 64n) - 1n;
const MASK_128 = (1n << 128n) - 1n;
const STEP = (2549297995355413924n << 64n) | 4865540595714422341n;

// Whole numbers from 0 -> four stirred words of 32 bits each.
function stir(numbers) {
  let factor = 0x43b0d7e5;
  const hash = (value) => {
    value = (value ^ factor) >>> 0;
    factor = Math.imul(factor, 0x931e8875) >>> 0;
    value = Math.imul(value, factor) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mix = (x, y) => {
    const mixed = (Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y)) >>> 0;
    return (mixed ^ (mixed >>> 16)) >>> 0;
  };
  const words = numbers.flatMap(wordsOf);
  const pool = [0, 1, 2, 3].map((i) => hash(words[i] ?? 0));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) {
      if (from !== to) pool[to] = mix(pool[to], hash(pool[from]));
    }
  }
  for (const word of words.slice(4)) {
    for (let to = 0; to < 4; to++) pool[to] = mix(pool[to], hash(word));
  }
  return pool;
}

// A whole number as words of 32 bits, the lowest first.
function wordsOf(number) {
  const words = [];
  let rest = BigInt(number);
  do {
    words.push(Number(rest & 0xffffffffn));
    rest >>= 32n;
  } while (rest);
  return words;
}

// The stirred words -> four numbers of 64 bits, with which PCG64 begins.
function beginningOf(pool) {
  let factor = 0x8b51f9dd;
  const words = [];
  for (let i = 0; i < 8; i++) {
    let value = (pool[i % 4] ^ factor) >>> 0;
    factor = Math.imul(factor, 0x58f38ded) >>> 0;
    value = Math.imul(value, factor) >>> 0;
    words.push(BigInt((value ^ (value >>> 16)) >>> 0));
  }
  return [0, 2, 4, 6].map((i) => words[i] | (words[i + 1] << 32n));
}

// Random bits, 32 at a time: `bits()`.
function pcg64(numbers) {
  const [high, low, stream, stream_low] = beginningOf(stir(numbers));
  const add = ((((stream << 64n) | stream_low) << 1n) | 1n) & MASK_128;
  const start = (add + ((high << 64n) | low)) & MASK_128;
  let state = (start * STEP + add) & MASK_128;
  let kept = null; // the upper half of 64 bits waits for its turn
  return () => {
    if (kept !== null) {
      const half = kept;
      kept = null;
      return half;
    }
    state = (state * STEP + add) & MASK_128;
    const folded = (state >> 64n) ^ (state & MASK_64);
    const turn = state >> 122n;
    const word = ((folded >> turn) | (folded << (64n - turn))) & MASK_64;
    kept = Number(word >> 32n);
    return Number(word & 0xffffffffn);
  };
}

// Layers of equal area under exp(−x²/2): the widths `x` as steps of 2⁻²³, the share of each layer
// that lies wholly under the curve, and the heights.
const EDGE = 3.6541528853610088; // where the lowest layer ends and the tail begins
const AREA = 0.00492867323399;
const SCALE = 2 ** 23;

function ziggurat() {
  const curve = (x) => Math.exp(-0.5 * x * x);
  const x = new Float64Array(257);
  x[255] = EDGE;
  for (let i = 254; i > 0; i--) x[i] = Math.sqrt(-2 * Math.log(AREA / x[i + 1] + curve(x[i + 1])));
  const base = AREA / curve(EDGE); // the lowest layer with its tail, as wide as its area asks
  const layer = { width: new Float32Array(256), inside: new Uint32Array(256), height: new Float32Array(256) };
  for (let i = 1; i < 256; i++) {
    layer.width[i] = x[i] / SCALE;
    layer.inside[i] = Math.floor((x[i - 1] / x[i]) * SCALE);
    layer.height[i] = curve(x[i]);
  }
  layer.width[0] = base / SCALE;
  layer.inside[0] = Math.floor((EDGE / base) * SCALE);
  layer.height[0] = 1;
  return layer;
}

export const LAYER = ziggurat();
const round = Math.fround;

// Normal numbers in single precision from random bits: `normal()`.
function normals(bits) {
  const uniform = () => round((bits() >>> 8) / 16777216);
  const beyond = () => {
    for (;;) {
      const x = round(round(-1 / EDGE) * round(Math.log1p(-uniform())));
      const y = round(-Math.log1p(-uniform()));
      if (round(y + y) > round(x * x)) return round(round(EDGE) + x);
    }
  };
  return () => {
    for (;;) {
      const word = bits();
      const i = word & 0xff;
      const where = (word >>> 9) & 0x7fffff;
      const x = round(where * LAYER.width[i]) * (word & 0x100 ? -1 : 1);
      if (where < LAYER.inside[i]) return x;
      if (i === 0) return where & 0x100 ? -beyond() : beyond();
      const height = round(round(round(LAYER.height[i - 1] - LAYER.height[i]) * uniform()) + LAYER.height[i]);
      if (height < Math.exp(-0.5 * x * x)) return x;
    }
  };
}

// `count` normal numbers, Float32Array: a pure function of (seed, step, index).
export function indexedNoise(seed, step, index, count) {
  const bits = pcg64([seed, step, index]);
  bits(); // the library draws two uniforms first
  bits();
  const normal = normals(bits);
  return Float32Array.from({ length: count }, normal);
}
