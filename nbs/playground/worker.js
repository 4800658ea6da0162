// Loads the model once and plays captions, away from the page, which stays free to draw.

import { Player } from './player.js';

let loading; // a Promise of the Player
let latest = 0; // only the caption asked for last is played

async function load() {
  const files = await (await get('files.json')).json();
  const total = Object.values(files).reduce((a, b) => a + b);
  let loaded = 0;
  const read = async (name) => {
    const parts = [];
    const reader = (await get(name)).body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      loaded += part.value.length;
      postMessage({ kind: 'loading', loaded, total });
    }
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  };
  const ort = await import('./ort/ort.wasm.bundle.min.mjs');
  ort.env.wasm.numThreads = 1; // more need headers that few sites send
  ort.env.wasm.wasmBinary = (await read('ort/ort-wasm-simd-threaded.wasm')).buffer;
  return Player.load(ort, (name) => read(`model/${name}`));
}

async function get(name) {
  const answer = await fetch(name);
  if (!answer.ok) {
    throw new Error(`${name} is not here (${answer.status}): this site was built without the model; `
      + 'make docs says what was missing');
  }
  return answer;
}

// Pixels (3, frames, height, width) in [-1, 1] -> one RGBA picture per frame, rounded as the
// library rounds them.
function toPictures(pixels, [, frames, height, width]) {
  const area = height * width;
  return Array.from({ length: frames }, (_, f) => {
    const picture = new Uint8ClampedArray(4 * area).fill(255);
    for (let c = 0; c < 3; c++) {
      const from = (c * frames + f) * area;
      for (let i = 0; i < area; i++) picture[4 * i + c] = (pixels[from + i] + 1) * 127.5;
    }
    return picture;
  });
}

async function make({ id, caption, settings, show }) {
  latest = id;
  try {
    loading ??= load();
    const player = await loading;
    if (latest !== id) return;
    const start = performance.now();
    for await (const guess of player.play(caption, settings, show)) {
      const { pixels } = guess;
      const pictures = pixels && toPictures(pixels, player.about.clip_shape);
      const seconds = (performance.now() - start) / 1000;
      postMessage({ kind: 'guess', id, ...guess, pictures, seconds });
      await new Promise((go) => { setTimeout(go); }); // lets the next message in
      if (latest !== id) return;
    }
  } catch (error) {
    postMessage({ kind: 'error', id, message: error.message });
    if (!(await loading?.catch(() => null))) loading = undefined; // so that one can try again
  }
}

onmessage = ({ data }) => {
  if (data.kind === 'stop') latest = 0;
  else make(data);
};
