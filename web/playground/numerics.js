// The numerics of the browser edition: Fourier transforms, masks, total variation, metrics, as mri_utils has them.
// An image or a k-space is {height, width, re, im}: row by row, Float64Array; the phase encode runs along a row.
// tests/test_web.py compares all of it with mri_utils.

// --- Fourier transform -------------------------------------------------------------------------------------------

const plans = new Map();

/** What a transform of n values needs: where each value begins, and the stages with their twiddles. */
function planOf(n) {
  if (!plans.has(n)) {
    const factors = [];
    for (let rest = n, p = 4; rest > 1;) {
      if (rest % p === 0) { factors.push(p); rest /= p; } else p = p === 4 ? 2 : p === 2 ? 3 : p + 2;
    }
    const start = new Int32Array(n);
    const place = (first, stride, at, size, level) => {
      if (size === 1) { start[at] = (first + (n >> 1)) % n; return; } // the origin, at n >> 1, comes to 0
      const p = factors[level], m = size / p;
      for (let r = 0; r < p; r++) place(first + r * stride, stride * p, at + r * m, m, level + 1);
    };
    place(0, 1, 0, n, 0);
    let m = 1;
    const stages = factors.reverse().map(p => {
      const turn = (count, of) => Float64Array.from({length: count}, (_, k) => of(2 * Math.PI * k / count));
      const wheel = {p, m, cos: turn(p * m, Math.cos), sin: turn(p * m, angle => -Math.sin(angle))};
      m *= p;
      return wheel;
    });
    plans.set(n, {start, stages});
  }
  return plans.get(n);
}

let workRe = new Float64Array(0), workIm = workRe; // of transforms, kept from one to the next

/** Room for n complex numbers, whatever they are. */
function room(n) {
  if (workRe.length < n) { workRe = new Float64Array(n); workIm = new Float64Array(n); }
  return [workRe, workIm];
}

const [C1, C2, S1, S2] = [Math.cos, Math.sin].flatMap(of => [of(0.4 * Math.PI), of(0.8 * Math.PI)]);

/** One stage for n rows of `wide` values, all columns at once: the twiddles of a row are the same for all of them. */
function butterflies({p, m, cos, sin}, a, b, n, wide) {
  const step = m * wide;
  if (p !== 4 && p !== 5) return anyButterflies(p, m, cos, sin, a, b, n, wide);
  for (let block = 0; block < n; block += p * m) {
    for (let k = 0; k < m; k++) {
      const c1 = cos[k], s1 = sin[k], c2 = cos[2 * k], s2 = sin[2 * k], c3 = cos[3 * k], s3 = sin[3 * k];
      const first = (block + k) * wide;
      if (p === 4) {
        for (let i0 = first; i0 < first + wide; i0++) {
          const i1 = i0 + step, i2 = i1 + step, i3 = i2 + step;
          const xr = a[i1] * c1 - b[i1] * s1, xi = a[i1] * s1 + b[i1] * c1;
          const yr = a[i2] * c2 - b[i2] * s2, yi = a[i2] * s2 + b[i2] * c2;
          const zr = a[i3] * c3 - b[i3] * s3, zi = a[i3] * s3 + b[i3] * c3;
          const sr = a[i0] + yr, si = b[i0] + yi, dr = a[i0] - yr, di = b[i0] - yi;
          const tr = xr + zr, ti = xi + zi, ur = xi - zi, ui = zr - xr;
          a[i0] = sr + tr; b[i0] = si + ti;
          a[i1] = dr + ur; b[i1] = di + ui;
          a[i2] = sr - tr; b[i2] = si - ti;
          a[i3] = dr - ur; b[i3] = di - ui;
        }
        continue;
      }
      const c4 = cos[4 * k], s4 = sin[4 * k];
      for (let i0 = first; i0 < first + wide; i0++) {
        const i1 = i0 + step, i2 = i1 + step, i3 = i2 + step, i4 = i3 + step;
        const wr = a[i1] * c1 - b[i1] * s1, wi = a[i1] * s1 + b[i1] * c1;
        const xr = a[i2] * c2 - b[i2] * s2, xi = a[i2] * s2 + b[i2] * c2;
        const yr = a[i3] * c3 - b[i3] * s3, yi = a[i3] * s3 + b[i3] * c3;
        const zr = a[i4] * c4 - b[i4] * s4, zi = a[i4] * s4 + b[i4] * c4;
        const ar = wr + zr, ai = wi + zi, br = xr + yr, bi = xi + yi;
        const dr = wr - zr, di = wi - zi, er = xr - yr, ei = xi - yi;
        const r0 = a[i0], j0 = b[i0];
        const fr = r0 + C1 * ar + C2 * br, fi = j0 + C1 * ai + C2 * bi, gr = S1 * dr + S2 * er, gi = S1 * di + S2 * ei;
        const hr = r0 + C2 * ar + C1 * br, hi = j0 + C2 * ai + C1 * bi, lr = S2 * dr - S1 * er, li = S2 * di - S1 * ei;
        a[i0] = r0 + ar + br; b[i0] = j0 + ai + bi;
        a[i1] = fr + gi; b[i1] = fi - gr;
        a[i2] = hr + li; b[i2] = hi - lr;
        a[i3] = hr - li; b[i3] = hi + lr;
        a[i4] = fr - gi; b[i4] = fi + gr;
      }
    }
  }
}

function anyButterflies(p, m, cos, sin, a, b, n, wide) {
  const partRe = new Float64Array(p), partIm = new Float64Array(p);
  for (let block = 0; block < n; block += p * m) {
    for (let k = 0; k < m; k++) {
      for (let at = (block + k) * wide; at < (block + k + 1) * wide; at++) {
        for (let r = 0; r < p; r++) {
          const from = at + r * m * wide, c = cos[r * k], s = sin[r * k];
          partRe[r] = a[from] * c - b[from] * s;
          partIm[r] = a[from] * s + b[from] * c;
        }
        for (let q = 0; q < p; q++) {
          let x = partRe[0], y = partIm[0];
          for (let r = 1; r < p; r++) {
            const turn = q * r % p * m, c = cos[turn], s = sin[turn];
            x += partRe[r] * c - partIm[r] * s;
            y += partRe[r] * s + partIm[r] * c;
          }
          a[at + q * m * wide] = x;
          b[at + q * m * wide] = y;
        }
      }
    }
  }
}

export const copy = x => ({...x, re: x.re.slice(), im: x.im.slice()});

/**
 * The centred orthonormal transform along rows (the phase encode) or columns (the readout), in place; returns its
 * argument. The inverse has re and im swapped. Rows are turned into columns on their way to the working room.
 */
export function along(axis, x, inverse) {
  const {height, width} = x, rows = axis === "rows", n = rows ? width : height, wide = rows ? height : width;
  const {start, stages} = planOf(n), scale = 1 / Math.sqrt(n), [a, b] = room(n * wide);
  const [re, im] = inverse ? [x.im, x.re] : [x.re, x.im];
  const next = rows ? width : 1; // from a value to its neighbour that goes through the same transform
  for (let k = 0, to = 0; k < n; k++) {
    for (let c = 0, from = start[k] * (rows ? 1 : width); c < wide; c++, from += next, to++) {
      a[to] = re[from];
      b[to] = im[from];
    }
  }
  for (const stage of stages) butterflies(stage, a, b, n, wide);
  for (let k = 0; k < n; k++) {
    let from = (k < n >> 1 ? k + n - (n >> 1) : k - (n >> 1)) * wide;
    for (let c = 0, to = k * (rows ? 1 : width); c < wide; c++, from++, to += next) {
      re[to] = a[from] * scale;
      im[to] = b[from] * scale;
    }
  }
  return x;
}

export const fft2c = image => along("columns", along("rows", copy(image), false), false);
export const ifft2c = kspace => along("columns", along("rows", copy(kspace), true), true);

// --- Random numbers: numpy's RandomState, so that a seed gives the same lines --------------------------------------

export class RandomState {
  /** @param {number|string} seed a whole number, or a file name as in fastMRI */
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.at = 624;
    if (typeof seed === "number") return this.begin(seed);
    const key = Array.from(seed, letter => letter.codePointAt(0)), s = this.state;
    this.begin(19650218);
    let i = 1, j = 0;
    const next = (factor, more) => {
      s[i] = (s[i] ^ Math.imul(s[i - 1] ^ (s[i - 1] >>> 30), factor)) + more;
      if (++i >= 624) { s[0] = s[623]; i = 1; }
    };
    for (let k = Math.max(624, key.length); k; k--) { next(1664525, key[j] + j); j = (j + 1) % key.length; }
    for (let k = 623; k; k--) next(1566083941, -i);
    s[0] = 0x80000000;
  }

  begin(seed) {
    this.state[0] = seed;
    for (let k = 1; k < 624; k++) {
      const before = this.state[k - 1];
      this.state[k] = Math.imul(1812433253, before ^ (before >>> 30)) + k;
    }
  }

  bits() { // Matsumoto and Nishimura 1998
    const s = this.state;
    if (this.at === 624) {
      for (let k = 0; k < 624; k++) {
        const y = (s[k] & 0x80000000) | (s[(k + 1) % 624] & 0x7fffffff);
        s[k] = s[(k + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.at = 0;
    }
    let y = s[this.at++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  uniform() { return ((this.bits() >>> 5) * 67108864 + (this.bits() >>> 6)) / 9007199254740992; }
  exponential() { return -Math.log(1 - this.uniform()); }

  /** A whole number from 0 to n - 1. */
  randint(n) {
    if (n === 1) return 0;
    const all = 2 ** (32 - Math.clz32(n - 1)) - 1;
    for (;;) {
      const value = (this.bits() & all) >>> 0;
      if (value < n) return value;
    }
  }

  /** Numbers in a random order, in place; returns its argument. */
  shuffle(values) {
    for (let i = values.length - 1; i > 0; i--) {
      const j = this.randint(i + 1), kept = values[i];
      values[i] = values[j];
      values[j] = kept;
    }
    return values;
  }

  normal() { // not numpy's order: noise only has to look the same
    return Math.sqrt(2 * this.exponential()) * Math.cos(2 * Math.PI * this.uniform());
  }
}

// --- Masks: lines (width numbers), or single samples (height * width of them) ------------------------------------

/** A half goes to the even neighbour, as in Python. */
export const round = x => Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
const count = mask => mask.reduce((sum, kept) => sum + kept, 0);

/** The fully kept centre of lines, sizes [width], or of samples, sizes [height, width]. */
function centre(sizes, fraction, acceleration = 1) {
  const share = fraction ** (1 / sizes.length), low = sizes.map(n => round(n * share));
  const first = sizes.map((n, axis) => (n - low[axis] + 1) >> 1), width = sizes.at(-1);
  const mask = new Uint8Array(sizes.reduce((a, b) => a * b)), kept = low.reduce((a, b) => a * b);
  const noun = sizes.length === 1 ? "lines" : "samples";
  if (kept === 0) throw new RangeError(`a centre of ${fraction} keeps none of ${mask.length} ${noun}`);
  if (kept * acceleration > mask.length * (1 + 1e-9)) {
    throw new RangeError(
      `${acceleration}x is impossible with a centre of ${fraction}: that alone is ${kept} of ${mask.length} ${noun}`);
  }
  const rows = sizes.length === 1 ? [0] : Array.from({length: low[0]}, (_, k) => first[0] + k);
  for (const row of rows) mask.fill(1, row * width + first.at(-1), row * width + first.at(-1) + low.at(-1));
  return mask;
}

/** Distance of every sample from DC: 0 there, just below 1 at the middle of an edge. */
function distance([height, width]) {
  const along = (k, n) => (k - (n >> 1)) / ((n >> 1) + 1);
  return Float64Array.from({length: height * width}, (_, k) =>
    Math.sqrt(along(Math.floor(k / width), height) ** 2 + along(k % width, width) ** 2));
}

/** So many samples, each with a chance in proportion to its density, beside those that are kept; in place. */
function draw(mask, density, wanted, random) {
  const arrival = density.map((value, k) => {
    const time = random.exponential();
    return mask[k] ? 0 : time / value;
  });
  const order = Uint32Array.from(mask.keys()).sort((a, b) => arrival[a] - arrival[b] || a - b);
  order.subarray(0, wanted).forEach(k => { mask[k] = 1; });
  return mask;
}

/** The mask between settings low (too few samples) and high (too many) that has about `wanted` samples. */
function bisect(drawn, low, high, wanted) {
  let best = drawn(high);
  for (let step = 0; step < 16 && Math.abs(count(best) - wanted) > 0.005 * wanted; step++) {
    const middle = (low + high) / 2, mask = drawn(middle), kept = count(mask);
    if (Math.abs(kept - wanted) < Math.abs(count(best) - wanted)) best = mask;
    if (kept < wanted) low = middle; else high = middle;
  }
  return best;
}

/** The samples nearest to points (dy, dx) from DC, in place; points outside are left out. */
function mark(mask, [height, width], dy, dx) {
  const y = (height >> 1) + round(dy), x = (width >> 1) + round(dx);
  if (y >= 0 && y < height && x >= 0 && x < width) mask[y * width + x] = 1;
}

function halfGrids(mask, step, random) {
  const offset = random.randint(step), even = offset % 2 === 0;
  const right = even ? offset + 1 : offset + 2, left = even ? offset + 3 : offset, dc = mask.length >> 1;
  mask.forEach((_, k) => {
    const beyond = k >= dc ? k - dc - right : dc - k - left;
    if (beyond >= 0 && beyond % step === 0) mask[k] = 1;
  });
  return mask;
}

const every = (mask, step, first) => {
  for (let k = first; k < mask.length; k += step) mask[k] = 1;
  return mask;
};

const LINES = {
  random(n, acceleration, fraction, random) {
    const mask = centre([n], fraction, acceleration), low = count(mask);
    if (low === n) return mask;
    const chance = (n / acceleration - low) / (n - low);
    for (let k = 0; k < n; k++) if (random.uniform() < chance) mask[k] = 1;
    return mask;
  },
  equispaced: (n, acceleration, fraction, random) => {
    const first = random.randint(acceleration);
    return every(centre([n], fraction), acceleration, first);
  },
  equispaced_fraction(n, acceleration, fraction, random) {
    const mask = centre([n], fraction, acceleration), low = count(mask);
    if (acceleration === 1) return mask.fill(1);
    if (low === n || low * acceleration >= n) return mask;
    const step = acceleration * (low - n) / (low * acceleration - n), first = random.randint(round(step));
    const lines = Math.ceil((n - 1 - first) / step), hop = first + step - first; // as numpy rounds its ranges
    for (let k = 0; k < lines; k++) mask[round(first + k * hop)] = 1;
    return mask;
  },
  magic(n, acceleration, fraction, random) {
    const mask = halfGrids(centre([n], fraction), acceleration, random);
    return acceleration === 1 ? mask.fill(1) : mask;
  },
  magic_fraction(n, acceleration, fraction, random) {
    const mask = centre([n], Math.max(fraction, 1 / n), acceleration), outside = round(n / acceleration) - count(mask);
    if (outside === 0) return mask;
    halfGrids(mask, round(n / outside), random);
    return acceleration === 1 ? mask.fill(1) : mask;
  },
  grappa: (n, acceleration, fraction) => every(centre([n], fraction), acceleration, 0),
  variable_density(n, acceleration, fraction, random) {
    const dc = n >> 1, density = Float64Array.from({length: n}, (_, k) => (1 - Math.abs(k - dc) / (dc + 1)) ** 2);
    return draw(centre([n], fraction, acceleration), density, round(n / acceleration), random);
  },
};

const SAMPLES = {
  gaussian_2d(sizes, acceleration, fraction, random) {
    const density = distance(sizes).map(far => Math.exp(-0.5 * (far / 0.4) ** 2));
    return draw(centre(sizes, fraction, acceleration), density, round(density.length / acceleration), random);
  },
  poisson_disc(sizes, acceleration, fraction, random) {
    const [height, width] = sizes, middle = centre(sizes, fraction, acceleration);
    const wanted = round(middle.length / acceleration);
    if (wanted === count(middle)) return middle;
    const radius = distance(sizes).map(far => 1 + 3 * far);
    const darts = random.shuffle(Uint32Array.from(middle.keys()).filter(k => !middle[k]));
    const thrown = scale => { // at a radius of radius / scale: a small scale leaves few
      const mask = Uint8Array.from(middle), blocked = new Uint8Array(mask.length);
      for (const dart of darts) {
        if (blocked[dart]) continue;
        mask[dart] = 1;
        const level = Math.ceil((radius[dart] / scale) ** 2), row = Math.floor(dart / width), column = dart % width;
        const reach = Math.floor(Math.sqrt(level)) + 1;
        for (let y = Math.max(0, row - reach); y <= Math.min(height - 1, row + reach); y++) {
          for (let x = Math.max(0, column - reach); x <= Math.min(width - 1, column + reach); x++) {
            if ((y - row) ** 2 + (x - column) ** 2 < level) blocked[y * width + x] = 1;
          }
        }
      }
      return mask;
    };
    let low = 1;
    while (count(thrown(low)) > wanted) low /= 2;
    return bisect(thrown, low, low < 1 ? 2 * low : radius.reduce((a, b) => Math.max(a, b)), wanted);
  },
  radial(sizes, acceleration, fraction, random) {
    const wanted = sizes[0] * sizes[1] / acceleration, far = Math.max(...sizes);
    let angle = Math.PI * random.uniform(), mask = new Uint8Array(sizes[0] * sizes[1]), previous = mask;
    while (count(mask) < wanted) {
      previous = mask;
      mask = Uint8Array.from(mask);
      const dy = Math.sin(angle), dx = Math.cos(angle), stretch = Math.max(Math.abs(dy), Math.abs(dx));
      for (let step = -far; step <= far; step++) mark(mask, sizes, step * dy / stretch, step * dx / stretch);
      angle += 111.246 * (Math.PI / 180);
    }
    return count(previous) && wanted - count(previous) < count(mask) - wanted ? previous : mask;
  },
  spiral(sizes, acceleration, fraction, random) {
    const [height, width] = sizes, [tall, wide] = [height / Math.SQRT2, width / Math.SQRT2];
    const first = 2 * Math.PI * random.uniform();
    const wound = turns => {
      const mask = new Uint8Array(height * width);
      const points = Math.ceil(2 * (Math.hypot(height, width) / 2 * (1 + 2 * Math.PI * turns / 6)));
      for (let k = 0; k < points; k++) {
        const time = (k / (points - 1)) ** (1 / 6), radius = time ** 5;
        for (let arm = 0; arm < 4; arm++) {
          const angle = first + arm * Math.PI / 2 + 2 * Math.PI * turns * time;
          mark(mask, sizes, tall * radius * Math.sin(angle), wide * radius * Math.cos(angle));
        }
      }
      return mask;
    };
    const wanted = round(height * width / acceleration);
    let turns = 1;
    while (count(wound(turns)) < wanted) turns *= 2;
    return bisect(wound, 0, turns, wanted);
  },
  low_pass: (sizes, acceleration) => centre(sizes, Math.max(1 / acceleration, 1 / Math.min(...sizes) ** 2)),
};
const OWN_CENTRE = ["radial", "spiral", "low_pass"]; // their geometry is dense there: they come near the acceleration

/** The kinds of mask: those of lines, and those of single samples. */
export const MASKS = {lines: Object.keys(LINES), samples: Object.keys(SAMPLES)};

/**
 * What is measured, one number (0 or 1) for each line or, row by row, for each sample: the same as mri.sampling_mask
 * measures for this seed. Throws a RangeError where the numbers contradict each other.
 */
export function samplingMask(kind, [height, width], acceleration, centerFraction, seed) {
  const random = new RandomState(seed);
  if (kind in LINES) return LINES[kind](width, acceleration, centerFraction, random);
  const mask = SAMPLES[kind]([height, width], acceleration, centerFraction, random);
  const reached = effectiveAcceleration(mask), near = reached / acceleration;
  if (OWN_CENTRE.includes(kind) && !(near > 0.75 && near < 1.33)) {
    throw new RangeError(`${acceleration}x is impossible for ${kind}: the nearest is ${reached.toFixed(2)}`);
  }
  return mask;
}

export const effectiveAcceleration = mask => mask.length / count(mask);

// --- Reconstructions -----------------------------------------------------------------------------------------------

/** A mask of lines as one of samples. */
function ofSamples(mask, {height, width}) {
  if (mask.length !== width) return mask;
  const samples = new Uint8Array(height * width);
  for (let row = 0; row < samples.length; row += width) samples.set(mask, row);
  return samples;
}

/** The k-space with nothing where the mask keeps nothing, or (kept: 0) where it has measured something. */
export function masked(kspace, mask, kept = 1) {
  const result = copy(kspace), {re, im} = result, all = ofSamples(mask, kspace);
  for (let k = 0; k < re.length; k++) if (all[k] !== kept) re[k] = im[k] = 0;
  return result;
}

export const zeroFilled = ifft2c;

export function magnitude({re, im}) {
  const result = new Float64Array(re.length);
  for (let k = 0; k < re.length; k++) result[k] = Math.sqrt(re[k] * re[k] + im[k] * im[k]); // Math.hypot is slow
  return result;
}

/** The part of an image that no sample supports, as mri.unmeasured. */
export const unmeasured = (image, mask) => ifft2c(masked(fft2c(image), mask, 0));

/**
 * Of the unmeasured k-space of an image and of the truth, what is invented and what is lost, in place: column by
 * column, what of the image is the truth's is taken from both.
 */
export function disentangle(guess, lost) {
  const {height, width} = guess, shares = new Float64Array(width), powers = new Float64Array(width);
  for (let y = 0, k = 0; y < height; y++) {
    for (let x = 0; x < width; x++, k++) {
      shares[x] += lost.re[k] * guess.re[k] + lost.im[k] * guess.im[k];
      powers[x] += lost.re[k] * lost.re[k] + lost.im[k] * lost.im[k];
    }
  }
  for (let x = 0; x < width; x++) shares[x] /= Math.max(powers[x], Number.MIN_VALUE);
  for (const part of ["re", "im"]) {
    const mine = guess[part], own = lost[part];
    for (let y = 0, k = 0; y < height; y++) {
      for (let x = 0; x < width; x++, k++) {
        const found = shares[x] * own[k];
        mine[k] -= found;
        own[k] -= found;
      }
    }
  }
}

/** The unmeasured part of an image's error, column by column: what is lost of the truth, and what is invented. */
export function lostAndInvented(image, truth, mask) {
  const guess = masked(fft2c(image), mask, 0), lost = masked(fft2c(truth), mask, 0);
  disentangle(guess, lost);
  return {lost: ifft2c(lost), invented: ifft2c(guess)};
}

/** The sum of all squared magnitudes. */
export function energy({re, im}) {
  let sum = 0;
  for (let k = 0; k < re.length; k++) sum += re[k] * re[k] + im[k] * im[k];
  return sum;
}

/** Data consistency: the measured samples put back into the k-space of an image. */
export function keepMeasured(image, kspace, mask) {
  const spectrum = fft2c(image), {re, im} = spectrum, all = ofSamples(mask, image);
  for (let k = 0; k < re.length; k++) if (all[k]) { re[k] = kspace.re[k]; im[k] = kspace.im[k]; }
  return ifft2c(spectrum);
}

/**
 * Total variation, as mri.total_variation: primal-dual steps of Chambolle and Pock. Where the mask takes whole lines,
 * the data are kept along the phase encode alone, row by row, which takes half the time.
 */
export function totalVariation(kspace, mask, weight, iterations) {
  const {height, width} = kspace, n = height * width, axes = mask.length === width ? ["rows"] : ["rows", "columns"];
  const transformed = (x, inverse) => axes.reduce((y, axis) => along(axis, y, inverse), x);
  const seen = ofSamples(mask, kspace);
  const measured = axes.length === 1 ? along("columns", copy(kspace), true) : copy(kspace);
  const first = magnitude(transformed(copy(measured), true));
  const scale = first.reduce((a, b) => Math.max(a, b), Number.MIN_VALUE);
  for (let k = 0; k < n; k++) { measured.re[k] /= scale; measured.im[k] /= scale; }
  const primal = 30 / Math.sqrt(8), dual = 1 / 30 / Math.sqrt(8), bound = Math.max(weight, 1e-12);
  const image = transformed(copy(measured), true), ahead = copy(image), next = copy(image);
  const parts = ["re", "im"], zeros = () => ({re: new Float64Array(n), im: new Float64Array(n)});
  const down = zeros(), right = zeros();
  for (let iteration = 0; iteration < iterations; iteration++) {
    for (const part of parts) {
      const x = ahead[part], d = down[part], r = right[part];
      for (let k = 0; k < n - width; k++) d[k] += dual * (x[k + width] - x[k]);
      for (let row = 0; row < n; row += width) {
        for (let k = row; k < row + width - 1; k++) r[k] += dual * (x[k + 1] - x[k]);
      }
    }
    for (let k = 0; k < n; k++) {
      const a = down.re[k], b = down.im[k], c = right.re[k], d = right.im[k], squares = a * a + b * b + c * c + d * d;
      if (squares <= bound * bound) continue;
      const shrunk = bound / Math.sqrt(squares);
      down.re[k] = a * shrunk;
      down.im[k] = b * shrunk;
      right.re[k] = c * shrunk;
      right.im[k] = d * shrunk;
    }
    for (const part of parts) { // next = image - primal * the adjoint of the gradient
      const d = down[part], r = right[part], x = image[part], y = next[part];
      for (let k = 0; k < n; k++) y[k] = x[k] + primal * (d[k] + r[k]);
      for (let k = width; k < n; k++) y[k] -= primal * d[k - width];
      for (let row = 0; row < n; row += width) {
        for (let k = row + 1; k < row + width; k++) y[k] -= primal * r[k - 1];
      }
    }
    transformed(next, false);
    for (const part of parts) {
      const y = next[part], given = measured[part];
      for (let k = 0; k < n; k++) if (seen[k]) y[k] = (y[k] + primal * given[k]) / (1 + primal);
    }
    transformed(next, true);
    for (const part of parts) {
      const x = image[part], y = next[part], further = ahead[part];
      for (let k = 0; k < n; k++) {
        further[k] = 2 * y[k] - x[k];
        x[k] = y[k];
      }
    }
  }
  for (const part of parts) for (let k = 0; k < n; k++) image[part][k] *= scale;
  return image;
}

/** The slowly varying phase of the image, from the centre of k-space: numbers of magnitude 1. */
export function smoothPhase(kspace) {
  const low = copy(kspace), {height, width} = kspace;
  for (let k = 0; k < height * width; k++) {
    const y = (Math.floor(k / width) - (height >> 1)) / height, x = (k % width - (width >> 1)) / width;
    const window = Math.exp(-0.5 * (y * y + x * x) / 0.02 ** 2);
    low.re[k] *= window;
    low.im[k] *= window;
  }
  const phase = ifft2c(low);
  for (let k = 0; k < height * width; k++) {
    const angle = Math.atan2(phase.im[k], phase.re[k]);
    phase.re[k] = Math.cos(angle);
    phase.im[k] = Math.sin(angle);
  }
  return phase;
}

/**
 * A network of mri.Unrolled: what a cascade changes is added, then the measured samples are put back.
 * @param runs its cascades: each takes Float32Array, real parts then imaginary ones, and the size; asynchronous
 */
export async function throughNetwork(runs, kspace, mask) {
  let image = ifft2c(kspace);
  const phase = smoothPhase(kspace), n = image.re.length;
  const peak = magnitude(image).reduce((a, b) => Math.max(a, b), Number.MIN_VALUE);
  for (const run of runs) {
    const seen = new Float32Array(2 * n);
    for (let k = 0; k < n; k++) {
      seen[k] = (image.re[k] * phase.re[k] + image.im[k] * phase.im[k]) / peak;
      seen[n + k] = (image.im[k] * phase.re[k] - image.re[k] * phase.im[k]) / peak;
    }
    const change = await run(seen, kspace.width);
    for (let k = 0; k < n; k++) {
      image.re[k] += peak * (change[k] * phase.re[k] - change[n + k] * phase.im[k]);
      image.im[k] += peak * (change[k] * phase.im[k] + change[n + k] * phase.re[k]);
    }
    image = keepMeasured(image, kspace, mask);
  }
  return image;
}

// --- Metrics: of one slice, in fastMRI's conventions -----------------------------------------------------------------

/** The sum of all squared differences. */
function squaredError(target, image) {
  let sum = 0;
  for (let k = 0; k < target.length; k++) sum += (target[k] - image[k]) * (target[k] - image[k]);
  return sum;
}

export const nmse = (target, image) => squaredError(target, image) / squaredError(target, new Float64Array(target.length));

export const psnr = (target, image, range) =>
  10 * Math.log10(range ** 2 * target.length / squaredError(target, image));

/** Sums over all windows of side x side values, from left to right and down: (height - side + 1, width - side + 1). */
function windows(values, width, side) {
  const height = values.length / width, wide = width - side + 1, high = height - side + 1;
  const rows = new Float64Array(height * wide), all = new Float64Array(high * wide);
  for (let y = 0; y < height; y++) {
    const first = y * width, to = y * wide;
    let sum = 0;
    for (let k = 0; k < side - 1; k++) sum += values[first + k];
    for (let x = 0; x < wide; x++) {
      sum += values[first + x + side - 1];
      rows[to + x] = sum;
      sum -= values[first + x];
    }
  }
  for (let k = 0; k < side; k++) for (let x = 0; x < wide; x++) all[x] += rows[k * wide + x];
  for (let at = wide; at < all.length; at++) all[at] = all[at - wide] + rows[at + (side - 1) * wide] - rows[at - wide];
  return all;
}

/**
 * Mean structural similarity to a target, a function of the image: uniform window of 7x7, sample covariance,
 * K = 0.01 and 0.03. What the target gives is computed once.
 */
export function similarity(target, width, range, side = 7) {
  const n = side * side, c1 = (0.01 * n * range) ** 2, c2 = 0.03 ** 2 * n * (n - 1) * range ** 2;
  const x = windows(target, width, side), squares = new Float64Array(target.length), products = squares.slice();
  return image => {
    for (let k = 0; k < target.length; k++) {
      squares[k] = target[k] * target[k] + image[k] * image[k];
      products[k] = target[k] * image[k];
    }
    const y = windows(image, width, side), xxyy = windows(squares, width, side), xy = windows(products, width, side);
    let sum = 0;
    for (let k = 0; k < x.length; k++) {
      const both = x[k] * y[k], power = x[k] * x[k] + y[k] * y[k];
      sum += (2 * both + c1) * (2 * (n * xy[k] - both) + c2) / ((power + c1) * (n * xxyy[k] - power + c2));
    }
    return sum / x.length;
  };
}

export const ssim = (target, image, width, range, side = 7) => similarity(target, width, range, side)(image);
