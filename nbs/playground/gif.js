// Pictures to an animated GIF, without a library.

// RGBA pictures -> the bytes of a GIF that repeats forever, each pixel `scale` × `scale`.
export function toGif(pictures, width, height, fps, scale = 1) {
  const palette = paletteOf(pictures);
  const bytes = [...ascii('GIF89a'), ...short(width * scale), ...short(height * scale), 0xf7, 0, 0];
  for (let i = 0; i < 256; i++) bytes.push(...(palette.colors[i] ?? [0, 0, 0]));
  bytes.push(0x21, 0xff, 11, ...ascii('NETSCAPE2.0'), 3, 1, 0, 0, 0);
  for (const picture of pictures) {
    bytes.push(0x21, 0xf9, 4, 0, ...short(Math.round(100 / fps)), 0, 0);
    bytes.push(0x2c, 0, 0, 0, 0, ...short(width * scale), ...short(height * scale), 0, 8);
    const packed = compress(enlarge(palette.numbersOf(picture), width, height, scale));
    for (let at = 0; at < packed.length; at += 255) {
      const block = packed.slice(at, at + 255);
      bytes.push(block.length, ...block);
    }
    bytes.push(0);
  }
  bytes.push(0x3b);
  return new Uint8Array(bytes);
}

const ascii = (text) => [...text].map((c) => c.charCodeAt(0));
const short = (number) => [number & 255, number >> 8];

// The 256 colors that are there most often, to 5 bits per channel, and the nearest of them to each
// pixel.
function paletteOf(pictures) {
  const keyOf = (p, i) => ((p[i] >> 3) << 10) | ((p[i + 1] >> 3) << 5) | (p[i + 2] >> 3);
  const counts = new Map();
  for (const p of pictures) {
    for (let i = 0; i < p.length; i += 4) counts.set(keyOf(p, i), (counts.get(keyOf(p, i)) ?? 0) + 1);
  }
  const colorOf = (key) => [key >> 10, (key >> 5) & 31, key & 31].map((v) => Math.round((v * 255) / 31));
  const common = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 256).map(([key]) => key);
  const colors = common.map(colorOf);
  const nearest = new Map(common.map((key, i) => [key, i]));
  const find = (key) => {
    const [r, g, b] = colorOf(key);
    const far = colors.map((c) => (c[0] - r) ** 2 + (c[1] - g) ** 2 + (c[2] - b) ** 2);
    return far.indexOf(Math.min(...far));
  };
  const numbersOf = (p) => Uint8Array.from({ length: p.length / 4 }, (_, i) => {
    const key = keyOf(p, 4 * i);
    if (!nearest.has(key)) nearest.set(key, find(key));
    return nearest.get(key);
  });
  return { colors, numbersOf };
}

function enlarge(numbers, width, height, scale) {
  const wide = width * scale;
  return Uint8Array.from({ length: wide * height * scale }, (_, i) => {
    const row = Math.floor(Math.floor(i / wide) / scale);
    return numbers[row * width + Math.floor((i % wide) / scale)];
  });
}

// GIF's LZW, for numbers of 8 bits.
function compress(numbers) {
  const CLEAR = 256;
  const packed = [];
  let held = 0;
  let bits = 0;
  let size = 9;
  let codes = new Map();
  let next = 258;
  const write = (code) => {
    held |= code << bits;
    bits += size;
    while (bits >= 8) {
      packed.push(held & 255);
      held >>>= 8;
      bits -= 8;
    }
  };
  write(CLEAR);
  let run = numbers[0];
  for (const number of numbers.subarray(1)) {
    const longer = (run << 8) | number;
    if (codes.has(longer)) {
      run = codes.get(longer);
    } else {
      write(run);
      if (next === 4096) {
        write(CLEAR);
        size = 9;
        next = 258;
        codes = new Map();
      } else {
        if (next === 1 << size) size += 1;
        codes.set(longer, next);
        next += 1;
      }
      run = number;
    }
  }
  write(run);
  write(CLEAR + 1); // the end
  packed.push(held & 255);
  return packed;
}
