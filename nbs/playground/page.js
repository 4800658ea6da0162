// The page: what is typed and chosen goes to the worker, what it makes is shown.

import { toGif } from './gif.js';
import { indexedNoise } from './noise.js';
import { Vocabulary } from './vocabulary.js';

const $ = (id) => document.getElementById(id);
const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
const GUESSES = 12; // that are decoded and shown on the way

let about; // what the export wrote beside the model
let vocabulary;
let worker;
let id = 0; // of the clip that is being made, or was made last
let busy = false;
let asked = null; // { caption, settings } of that clip
let guesses = []; // [{ label, pictures }] of this clip, the clip itself last
let shown = null; // the guess on the large screen
let frame = 0;
let playing = !calm;
let replaying = false;

// --- words ---------------------------------------------------------------------------------

const TITLES = ['Color', 'Object', 'Motion'];
// as the training clips paint them: `COLORS` in minisora/clips.py
const PAINTS = {
  red: [235, 60, 50], green: [60, 200, 80], blue: [60, 110, 250],
  yellow: [250, 220, 60], purple: [185, 80, 230], white: [240, 240, 240],
};
const PHRASES = { left: 'moves left', right: 'moves right', up: 'moves up', down: 'moves down' };

// One row of buttons per place in a caption, with the words that can stand there.
function drawWords() {
  vocabulary.idsBySlot.forEach((ids, slot) => {
    const row = document.createElement('div');
    row.setAttribute('role', 'group');
    row.setAttribute('aria-label', TITLES[slot]);
    for (const word of ids.filter(Boolean).map((i) => vocabulary.words[i - 1])) {
      const button = document.createElement('button');
      button.type = 'button';
      button.dataset.word = word;
      if (PAINTS[word]) {
        const dot = document.createElement('i');
        dot.style.background = `rgb(${PAINTS[word]})`;
        button.append(dot);
      }
      button.append(PHRASES[word] ?? word);
      button.addEventListener('click', () => choose(slot, word));
      row.append(button);
    }
    $('words').append(row);
  });
  markWords();
}

// Put a word into its place in the caption.
function choose(slot, word) {
  const words = wordsOfCaption();
  words[slot] = word;
  const [color, object, motion] = words;
  $('caption').value = `a ${color} ${object} ${PHRASES[motion] ?? motion}`;
  complain('');
  markWords();
}

// The word of the caption for each place, or the first that can stand there.
function wordsOfCaption() {
  const typed = vocabulary.wordsOf($('caption').value);
  return vocabulary.idsBySlot.map((ids) => {
    const fits = ids.filter(Boolean).map((i) => vocabulary.words[i - 1]);
    return typed.find((word) => fits.includes(word)) ?? fits[0];
  });
}

function markWords() {
  const typed = vocabulary.wordsOf($('caption').value);
  for (const button of $('words').querySelectorAll('button')) {
    button.setAttribute('aria-pressed', typed.includes(button.dataset.word));
  }
}

function complain(message) {
  $('problem').textContent = message;
  $('caption').setAttribute('aria-invalid', Boolean(message));
}

// --- settings ------------------------------------------------------------------------------

function usual() {
  $('steps').value = about.sampling.num_inference_steps;
  $('guidance').value = about.sampling.guidance_scale;
  $('seed').value = 0;
  writeSettings();
}

function writeSettings() {
  for (const name of ['steps', 'guidance', 'seed']) $(`${name}-value`).value = $(name).value;
}

function settings() {
  return {
    seed: Number($('seed').value),
    num_inference_steps: Number($('steps').value),
    guidance_scale: Number($('guidance').value),
  };
}

// --- making --------------------------------------------------------------------------------

// `detail` changes often, and is not read out.
function say(text, detail = '') {
  if ($('status').textContent !== text) $('status').textContent = text;
  $('detail').textContent = detail;
}

function make() {
  const caption = $('caption').value;
  try {
    vocabulary.encode(caption);
  } catch (error) {
    complain(error.message);
    $('caption').focus();
    return;
  }
  complain('');
  id += 1;
  guesses = [];
  $('guesses').replaceChildren();
  setBusy(true);
  say(worker ? 'Making the clip.' : 'Loading the model, once.');
  $('detail').parentElement.scrollIntoView({ block: 'nearest', behavior: calm ? 'auto' : 'smooth' });
  if (!worker) {
    worker = new Worker('worker.js', { type: 'module' });
    worker.addEventListener('message', hear);
    worker.addEventListener('error', () => fail('The worker could not be started: this page needs a newer browser.'));
  }
  asked = { caption, settings: settings() };
  const every = Math.max(1, Math.round(asked.settings.num_inference_steps / GUESSES));
  worker.postMessage({ kind: 'make', id, ...asked, show: every });
}

function stop() {
  worker.postMessage({ kind: 'stop' });
  id += 1;
  setBusy(false);
  say('Stopped.');
}

function setBusy(now) {
  busy = now;
  $('make').textContent = now ? 'Stop' : 'Make the clip';
  $('replay').disabled = now || guesses.length < 2;
  $('save').disabled = now || !guesses.length;
  $('play').disabled = !guesses.length;
  if (!now) $('progress').value = 0;
}

function fail(message) {
  setBusy(false);
  complain(message);
  say('');
}

// A message of the worker.
function hear({ data }) {
  if (data.kind === 'loading') {
    if (!busy) return;
    $('progress').value = data.loaded / data.total;
    const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
    say('Loading the model, once.', `${megabytes(data.loaded)} of ${megabytes(data.total)} MB`);
    return;
  }
  if (data.id !== id) return;
  if (data.kind === 'error') {
    fail(data.message);
    return;
  }
  $('progress').value = data.step / data.steps;
  if (data.pictures) addGuess(data.done ? 'clip' : `step ${data.step}`, data.pictures);
  if (!data.done) {
    say('Making the clip.', `step ${data.step} of ${data.steps}`);
    return;
  }
  setBusy(false);
  const { caption, settings: { seed } } = asked;
  say(`“${caption}”, seed ${seed}: made in ${data.seconds.toFixed(1)} seconds.`);
  window.lastClip = data; // for the tests, and for the curious
}

// --- showing -------------------------------------------------------------------------------

function addGuess(label, pictures) {
  const guess = { label, pictures };
  guesses.push(guess);
  const button = document.createElement('button');
  button.type = 'button';
  button.setAttribute('aria-label', `Watch ${label} large`);
  guess.canvas = Object.assign(document.createElement('canvas'), sizeOf());
  button.append(guess.canvas, label);
  button.addEventListener('click', () => { replaying = false; show(guess); });
  guess.button = button;
  const item = document.createElement('li');
  item.append(button);
  $('guesses').append(item);
  show(guess);
}

function sizeOf() {
  const [, , height, width] = about.clip_shape;
  return { width, height };
}

function show(guess) {
  shown = guess;
  for (const each of guesses) each.button.setAttribute('aria-pressed', each === guess);
  $('screen').setAttribute('aria-label', guess.label === 'clip'
    ? `The clip: ${asked.caption}` : `The clip as the model sees it at ${guess.label}`);
  $('play').disabled = false;
  draw();
}

function paint(canvas, picture) {
  const { width, height } = sizeOf();
  canvas.getContext('2d').putImageData(new ImageData(picture, width, height), 0, 0);
}

function draw() {
  if (shown) paint($('screen'), shown.pictures[frame % shown.pictures.length]);
  for (const guess of guesses) paint(guess.canvas, guess.pictures[frame % guess.pictures.length]);
}

// Before anything is made: the noise that it begins with.
function drawNoise() {
  const { width, height } = sizeOf();
  const noise = indexedNoise(Number($('seed').value), 0, frame, width * height);
  const picture = new Uint8ClampedArray(4 * noise.length).fill(255);
  noise.forEach((value, i) => picture.fill(90 + 40 * value, 4 * i, 4 * i + 3));
  paint($('screen'), picture);
}

function tick() {
  if (!playing) return;
  frame += 1;
  if (replaying && frame % 4 === 0) {
    const next = guesses.indexOf(shown) + 1;
    if (next < guesses.length) show(guesses[next]);
    else replaying = false;
  }
  if (shown) draw();
  else if (frame < 400) drawNoise();
}

function setPlaying(now) {
  playing = now;
  $('play').textContent = now ? 'Pause' : 'Play';
}

function replay() {
  replaying = true;
  setPlaying(true);
  show(guesses[0]);
}

function save() {
  const { width, height } = sizeOf();
  const bytes = toGif(shown.pictures, width, height, about.fps, 4);
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes], { type: 'image/gif' }));
  link.download = `${asked.caption.trim().replace(/\W+/g, '-')}.gif`;
  link.click();
  URL.revokeObjectURL(link.href);
}

// --- begin ---------------------------------------------------------------------------------

async function begin() {
  const answer = await fetch('model/export.json');
  if (!answer.ok) {
    complain('This site was built without the model: make docs says what was missing.');
    $('make').disabled = true;
    return;
  }
  about = await answer.json();
  vocabulary = new Vocabulary(about.vocabulary);
  drawWords();
  usual();
  setPlaying(playing);
  drawNoise();
  setInterval(tick, 1000 / about.fps);
  $('form').addEventListener('submit', (event) => {
    event.preventDefault();
    if (busy) stop();
    else make();
  });
  $('caption').addEventListener('input', () => { complain(''); markWords(); });
  $('settings').addEventListener('input', writeSettings);
  $('dice').addEventListener('click', () => {
    $('seed').value = Math.floor(Math.random() * 100);
    writeSettings();
    if (!busy) make();
  });
  $('reset').addEventListener('click', usual);
  $('play').addEventListener('click', () => setPlaying(!playing));
  $('replay').addEventListener('click', replay);
  $('save').addEventListener('click', save);
}

begin();
