// The way from noise to a clip, step by step: `sample(…, solver='ddim')` and `renoise_average` of
// minisora/sampling.py, for one clip and a model that predicts data on the linear path
// x = t · data + (1 − t) · noise.

import { indexedNoise } from './noise.js';

const RENOISE = 10 ** 6; // the library numbers the noise of its last passes from here

// steps + 1 times from noise to data; shift above 1 puts more of them near the noise.
export function timeGrid(steps, shift, [low, high]) {
  return Array.from({ length: steps + 1 }, (_, i) => {
    const even = i / steps;
    return low + ((high - low) * even) / (even + shift * (1 - even));
  });
}

// a · x + b · y, number by number.
function mix(a, x, b, y) {
  return x.map((value, i) => a * value + b * y[i]);
}

// Yields { step, data } with what the model takes the clip to be at each step, and at the end
// { data, done: true }, the normalized latents of the clip.
//
// `predict(x, t, ids)`: the model's answer to x at time t for these words, a Promise of a
// Float32Array. `about`: what the export wrote beside the model. `settings`: seed, and the
// sampling options by the library's names.
export async function* sampleSteps(predict, about, ids, settings) {
  const { seed, num_inference_steps: steps, guidance_scale: guidance, eta } = settings;
  const count = about.latent_shape.reduce((a, b) => a * b);
  const noiseOf = (step) => indexedNoise(seed, step, 0, count);
  const nothing = ids.map(() => about.null_id);
  const [from, to] = settings.guidance_interval;

  // with guidance, away from what the model would make without a caption
  const guided = async (x, t) => {
    const asked = await predict(x, t, ids);
    if (guidance === 1 || t < from || t > to) return asked;
    const free = await predict(x, t, nothing);
    return mix(guidance, asked, 1 - guidance, free);
  };

  const times = timeGrid(steps, settings.shift, about.time_range).map(Math.fround);
  let x = noiseOf(0);
  for (let step = 1; step <= steps; step++) {
    const t = times[step - 1];
    const next = times[step];
    const data = await guided(x, t);
    yield { step, data };
    const seen = mix(1 / (1 - t), x, -t / (1 - t), data); // the noise that the model sees in x
    const kept = ((1 - next) * t) / ((1 - t) * next);
    const share = eta ** 2 * (1 - kept ** 2); // of the noise's variance, drawn again
    const noise = share ? mix((1 - share) ** 0.5, seen, share ** 0.5, noiseOf(step)) : seen;
    x = mix(next, data, 1 - next, noise);
  }

  // the last passes: add noise again, ask again, and take the mean of the answers
  const passes = settings.renoise_times;
  let mean = passes ? new Float32Array(count) : x;
  for (let k = 0; k < passes; k++) {
    const data = await predict(mix(0.5, x, 0.5, noiseOf(RENOISE + k)), 0.5, ids);
    mean = mix(1, mean, 1 / passes, data);
  }
  yield { data: mean, done: true };
}

// Why this page cannot play an exported model, or ''.
export function problemOf(about) {
  const { objective, sampling } = about;
  const fits = objective.objective === 'interpolant' && objective.path === 'linear'
    && objective.prediction === 'data' && sampling.solver === 'ddim' && about.vocabulary;
  return fits ? '' : 'this page plays models of captions that predict data on the linear path, '
    + `sampled with ddim; this one has ${JSON.stringify({ ...objective, ...sampling })}`;
}
