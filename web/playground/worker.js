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

async function compute(settings, told) {
  const {size, method, maximum} = settings;
  let kspace = await slice(settings);
  const mask = settings.mask ??
    mri.samplingMask(settings.kind, [size, size], settings.acceleration, settings.centerFraction, settings.seed);
  if (!mask.includes(1)) throw new RangeError("nothing is measured: take some lines");
  const runs = settings.cascades ? await network(method, settings.cascades, told) : [];
  const start = performance.now();
  if (settings.lesion.contrast) {
    const image = mri.ifft2c(kspace);
    addLesion(image, settings.lesion, maximum);
    kspace = mri.fft2c(image);
  }
  const truth = mri.ifft2c(kspace), target = mri.magnitude(truth);
  if (settings.noise) {
    const random = new mri.RandomState(0), deviation = settings.noise / 100 * maximum / Math.SQRT2;
    for (const part of [kspace.re, kspace.im]) part.forEach((_, k) => { part[k] += deviation * random.normal(); });
  }
  const measured = mri.masked(kspace, mask);
  const found =
    method === "zero_filled" ? mri.zeroFilled(measured)
      : method === "tv" ? mri.totalVariation(measured, mask, 0.002, 60)
      : await mri.throughNetwork(runs, measured, mask);
  const image = mri.magnitude(found), milliseconds = performance.now() - start;
  const guessed = mri.unmeasured(found, mask), {invented} = mri.lostAndInvented(found, truth, mask);
  return {
    mask, target, image, kspace: mri.magnitude(kspace), milliseconds,
    guessed: mri.magnitude(guessed), invented: mri.magnitude(invented),
    share: mri.energy(guessed) / Math.max(mri.energy(found), Number.MIN_VALUE),
    acceleration: mri.effectiveAcceleration(mask),
    ssim: mri.ssim(target, image, size, maximum),
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
