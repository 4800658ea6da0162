// The exported model and decoder in ONNX Runtime: `Player.load`, then `play`. Needs no page: the
// worker runs it in a browser, the tests in Node.

import { problemOf, sampleSteps } from './sampler.js';
import { Vocabulary } from './vocabulary.js';

export class Player {
  constructor(ort, about, model, decoder) {
    Object.assign(this, { ort, about, model, decoder });
    this.vocabulary = new Vocabulary(about.vocabulary);
  }

  // `read(name)`: the file of that name that `minisora export` wrote, a Promise of a Uint8Array.
  static async load(ort, read) {
    const about = JSON.parse(new TextDecoder().decode(await read('export.json')));
    const problem = problemOf(about);
    if (problem) throw new Error(problem);
    const model = await ort.InferenceSession.create(await read('model.onnx'));
    const decoder = await ort.InferenceSession.create(await read('decoder.onnx'));
    return new Player(ort, about, model, decoder);
  }

  // The model's answer to noisy latents at a time, for words.
  async predict(latents, time, words) {
    const { Tensor } = this.ort;
    const made = await this.model.run({
      latents: new Tensor('float32', latents, [1, ...this.about.latent_shape]),
      time: new Tensor('float32', [time], [1]),
      words: new Tensor('int64', BigInt64Array.from(words, BigInt), [1, words.length]),
    });
    return made.prediction.data;
  }

  // Normalized latents -> pixels in [-1, 1], (3, frames, height, width).
  async decode(latents) {
    const given = new this.ort.Tensor('float32', latents, [1, ...this.about.latent_shape]);
    return (await this.decoder.run({ latents: given })).clip.data;
  }

  // Yields { step, steps, latents, pixels } for each guess, pixels only for every `show`-th, and
  // the clip at the end, { latents, pixels, done: true }. `settings`: seed, and what differs from
  // the model's own sampling. An Error says what is wrong with the caption.
  async* play(caption, settings, show = 1) {
    const ids = this.vocabulary.encode(caption);
    const all = { seed: 0, ...this.about.sampling, ...settings };
    const steps = all.num_inference_steps;
    const predict = (...given) => this.predict(...given);
    for await (const { step, data, done } of sampleSteps(predict, this.about, ids, all)) {
      const pixels = done || step % show === 0 ? await this.decode(data) : null;
      yield { step: done ? steps : step, steps, latents: data, pixels, done: Boolean(done) };
    }
  }
}
