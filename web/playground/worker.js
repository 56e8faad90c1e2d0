// The browser edition's computing, beside the page, so that the page answers while it runs.
import * as mri from "./numerics.js";

const opened = new Map(); // address -> promise of what it holds

/** The bytes at an address, fetched once; `told` hears how many of how many are there (0: not known). */
function bytes(address, told = () => {}) {
  if (!opened.has(address)) {
    opened.set(address, read(address, told));
    opened.get(address).catch(() => opened.delete(address)); // the next call tries again
  }
  return opened.get(address);
}

async function read(address, told) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: the host answers ${response.status}`);
  const total = response.headers.get("content-encoding") ? 0 : +response.headers.get("content-length");
  const parts = [], reader = response.body.getReader();
  let there = 0;
  for (;;) {
    const {done, value} = await reader.read();
    if (done) break;
    parts.push(value);
    told(there += value.length, total);
  }
  return new Blob(parts).arrayBuffer();
}

/** One slice's k-space, complete. */
async function slice({head, size, number}) {
  const values = new Float32Array(await bytes(`${head}.c8`), number * size * size * 8, 2 * size * size);
  const part = first => {
    const numbers = new Float64Array(size * size);
    for (let k = 0; k < numbers.length; k++) numbers[k] = values[2 * k + first];
    return numbers;
  };
  return {height: size, width: size, re: part(0), im: part(1)};
}

/** A bright or dark spot in an image, in place; soft at its edge, with the image's own phase. */
function addLesion(image, {x, y, radius, contrast}, peak) {
  for (let k = 0; k < image.re.length; k++) {
    const distance = Math.hypot(k % image.width - x, Math.floor(k / image.width) - y);
    const size = Math.hypot(image.re[k], image.im[k]) || 1;
    const amount = contrast * peak / (1 + Math.exp(3 * (distance - radius)));
    const [cos, sin] = [image.re[k] / size, image.im[k] / size], shown = Math.max(-size, amount);
    image.re[k] += shown * cos;
    image.im[k] += shown * sin;
  }
}

const made = new Map(); // name of a network -> promise of its cascades

/** The cascades of a network in ONNX Runtime, as functions; fetched when they are first asked for. */
function network(name, cascades, told) {
  if (!made.has(name)) {
    made.set(name, start(name, cascades, told));
    made.get(name).catch(() => made.delete(name)); // the next call tries again
  }
  return made.get(name);
}

async function start(name, cascades, told) {
  const wasm = await bytes("ort/ort-wasm-simd-threaded.wasm", (a, b) => told("ONNX Runtime", a, b));
  const ort = await import("./ort/ort.wasm.min.mjs");
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = 1; // threads need headers that a host of static files rarely sends
  const runs = [];
  for (let number = 1; number <= cascades; number++) {
    const part = cascades > 1 ? `the network, ${number} of ${cascades}` : "the network";
    const weights = await bytes(`${name}-${number}.onnx`, (a, b) => told(part, a, b));
    const session = await ort.InferenceSession.create(weights);
    runs.push(async (values, size) => {
      const {change} = await session.run({image: new ort.Tensor("float32", values, [1, 2, size, size])});
      return change.data;
    });
  }
  return runs;
}

let scanned = {}; // what does not hang on mask and method, for the last slice, lesion and noise

/** The fully sampled scan: k-space with its noise and without, the true image's magnitude, greys of panels. */
async function scan(settings) {
  const {size, maximum, head, number, noise, lesion} = settings, key = JSON.stringify([head, number, noise, lesion]);
  if (scanned.key === key) return scanned;
  let clean = await slice(settings);
  if (lesion.contrast) {
    const image = mri.ifft2c(clean);
    addLesion(image, lesion, maximum);
    clean = mri.fft2c(image);
  }
  const kspace = noise ? mri.copy(clean) : clean, target = mri.magnitude(mri.ifft2c(clean));
  if (noise) {
    const random = new mri.RandomState(0), deviation = noise / 100 * maximum / Math.SQRT2;
    for (const part of [kspace.re, kspace.im]) part.forEach((_, k) => { part[k] += deviation * random.normal(); });
  }
  const samples = mri.magnitude(kspace), peak = samples.reduce((a, b) => Math.max(a, b));
  const logs = samples.map(x => Math.max(0, 1 + Math.log10(Math.max(x / peak, 1e-4)) / 4));
  scanned = {
    key, clean, kspace, target, ssim: mri.similarity(target, size, maximum),
    greys: {target: grey(target, 1 / maximum), kspace: grey(logs, 1)},
  };
  return scanned;
}

/** Values as bytes: 0 is black, 1 / factor and more are white. */
function grey(values, factor) {
  const bytes = new Uint8ClampedArray(values.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = 255 * factor * values[k];
  return bytes;
}

/** The panels as bytes, row by row, and the figures of the line above them. */
async function compute(settings, told) {
  const {size, method, maximum} = settings;
  const mask = settings.mask ??
    mri.samplingMask(settings.kind, [size, size], settings.acceleration, settings.centerFraction, settings.seed);
  if (!mask.includes(1)) throw new RangeError("nothing is measured: take some lines");
  const runs = settings.cascades ? await network(method, settings.cascades, told) : [];
  const start = performance.now();
  const {clean, kspace, target, ssim, greys} = await scan(settings);
  const measured = mri.masked(kspace, mask), linear = method === "zero_filled";
  const found =
    linear ? mri.zeroFilled(measured)
      : method === "tv" ? mri.totalVariation(measured, mask, 0.002, 60)
      : await mri.throughNetwork(runs, measured, mask);
  const image = mri.magnitude(found), milliseconds = performance.now() - start;
  let share = 0, guessed = new Float64Array(image.length), invented = guessed; // zero filling guesses nothing
  if (!linear) {
    const spectrum = mri.fft2c(found), guess = mri.masked(spectrum, mask, 0), lost = mri.masked(clean, mask, 0);
    share = mri.energy(guess) / Math.max(mri.energy(spectrum), Number.MIN_VALUE);
    guessed = mri.magnitude(mri.ifft2c(guess));
    mri.disentangle(guess, lost);
    invented = mri.magnitude(mri.ifft2c(guess));
  }
  const error = image.map((value, k) => Math.abs(value - target[k]));
  return {
    mask, milliseconds, share,
    greys: {
      ...greys, image: grey(image, 1 / maximum), error: grey(error, 3 / maximum),
      guessed: grey(guessed, 2 / maximum), invented: grey(invented, 3 / maximum),
    },
    acceleration: mri.effectiveAcceleration(mask),
    ssim: ssim(image),
    psnr: mri.psnr(target, image, maximum),
    nmse: mri.nmse(target, image),
  };
}

self.onmessage = async ({data}) => {
  try {
    self.postMessage(await compute(data, (what, there, total) => self.postMessage({loading: {what, there, total}})));
  } catch (error) {
    self.postMessage({fault: error.message});
  }
};
