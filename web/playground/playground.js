// The page of the browser edition: controls, panels, lines that are dragged. worker.js computes.
const $ = id => document.getElementById(id);
const worker = new Worker("worker.js", {type: "module"});
const heads = await (await fetch("heads.json")).json();
const size = heads.size;
const form = document.forms[0], controls = form.elements;
const lesion = {x: 0.62 * size, y: 0.4 * size, radius: 3};

let mask = null; // one that was changed by hand; null: the mask of the controls
let shown = null; // the last result
let running = false, waiting = false;

const networks = await (await fetch("networks.json")).json(); // name -> cascades; none on a site without them
for (const [contrast, {name}] of Object.entries(heads.heads)) {
  controls.head.add(new Option(`${contrast}: ${name}`, contrast));
}
for (const option of controls.method.querySelectorAll(".network")) if (!networks[option.value]) option.remove();

function settings() {
  const head = heads.heads[controls.head.value];
  return {
    head: controls.head.value, seed: `${head.name}.h5`, size, maximum: head.maximum, number: +controls.slice.value,
    kind: controls.kind.value, acceleration: +controls.acceleration.value, centerFraction: +controls.center.value / 100,
    noise: +controls.noise.value, method: controls.method.value, mask,
    cascades: networks[controls.method.value],
    lesion: {...lesion, contrast: +controls.lesion.value / 100},
  };
}

/** Compute what the controls say now; while that runs, only the newest change waits. */
function update() {
  for (const slider of form.querySelectorAll("input[type=range]")) {
    const text = slider.name === "slice" ? heads.heads[controls.head.value].slices[slider.value] : slider.value;
    const words = text + (slider.dataset.unit ?? ""), output = slider.nextElementSibling;
    if (output.textContent === words) continue; // nothing to lay out anew
    output.textContent = words;
    slider.setAttribute("aria-valuetext", words);
  }
  if (running) { waiting = true; return; }
  running = true;
  waiting = false;
  worker.postMessage(settings());
}

const pens = new Map(); // id of a canvas -> what draws on it, and its pixels

/** Fill a canvas: `at` gives the colour of each pixel, by its number. */
function paint(id, at) {
  if (!pens.has(id)) {
    const pen = $(id).getContext("2d"), picture = pen.createImageData(size, size);
    pens.set(id, {pen, picture, pixels: new Uint32Array(picture.data.buffer)});
  }
  const {pen, picture, pixels} = pens.get(id);
  for (let k = 0; k < pixels.length; k++) pixels[k] = at(k);
  pen.putImageData(picture, 0, 0);
}

/** A colour as paint takes it; bytes stand in memory as red, green, blue, opacity. */
const colour = (...rgb) => new Uint32Array(Uint8ClampedArray.of(...rgb, 255).buffer)[0];
const table = of => Uint32Array.from({length: 256}, (_, level) => colour(...of(level)));
const GREYS = table(level => [level, level, level]);
const TAKEN = table(level => Array(3).fill(0.15 * 255 + 0.85 * level));
const LEFT_OUT = table(level => [0.1 * level, 0.14 * level, 0.35 * level]);
const CURSOR = colour(255, 153, 0);
let cursor = size >> 1; // the line that keys move

function paintKspace() {
  const levels = shown.greys.kspace, all = mask ?? shown.mask, lines = all.length === size;
  const marked = document.activeElement === $("kspace") ? cursor : -1;
  paint("kspace", k => {
    const line = k % size;
    if (line === marked) return CURSOR;
    return (all[lines ? line : k] ? TAKEN : LEFT_OUT)[levels[k]];
  });
}

function show(result) {
  shown = result;
  for (const id of ["image", "target", "error", "guessed", "invented"]) {
    const levels = result.greys[id];
    paint(id, k => GREYS[levels[k]]);
  }
  paintKspace();
  const taken = result.mask.reduce((a, b) => a + b), all = result.mask.length, noun = all > size ? "samples" : "lines";
  $("figures").textContent =
    `effective acceleration ${result.acceleration.toFixed(2)}x (${taken} of ${all} ${noun}); ` +
    `SSIM ${result.ssim.toFixed(3)}, PSNR ${result.psnr.toFixed(1)} dB, NMSE ${result.nmse.toFixed(4)}; ` +
    `guessed ${(100 * result.share).toFixed(1)}%`;
  $("time").textContent = `${Math.round(result.milliseconds)} ms`;
  $("image-title").textContent = controls.method.selectedOptions[0].textContent;
  document.body.dataset.results = +(document.body.dataset.results ?? 0) + 1;
}

worker.onmessage = ({data}) => {
  const bar = $("loading");
  if (data.loading) {
    const {what, there, total} = data.loading;
    bar.hidden = false;
    if (total) { bar.max = total; bar.value = there; } else bar.removeAttribute("value");
    $("figures").textContent = `fetching ${what}: ${(there / 1e6).toFixed(1)} MB`;
    return;
  }
  bar.hidden = true;
  running = false;
  if (data.fault) $("figures").textContent = data.fault; // the last picture stays
  else show(data);
  if (waiting) update();
};

form.addEventListener("input", event => {
  if (["kind", "acceleration", "center"].includes(event.target.name)) mask = null;
  update();
});
form.addEventListener("submit", event => event.preventDefault());

// Lines by mouse, finger and key
const kspace = $("kspace");
let value = 0, last = 0;
const column = event => {
  const box = kspace.getBoundingClientRect();
  return Math.min(size - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * size)));
};
/** Whether all of a line is measured. */
const whole = line => (mask ?? shown.mask).every((taken, k) => taken || k % size !== line);
/** Take all of some lines, or drop it. */
function set(from, to) {
  mask ??= Uint8Array.from(shown.mask);
  const [first, end] = [Math.min(from, to), Math.max(from, to) + 1];
  for (let row = 0; row < mask.length; row += size) mask.fill(value, row + first, row + end);
  update();
}
kspace.addEventListener("pointerdown", event => {
  if (!shown) return;
  kspace.setPointerCapture(event.pointerId);
  cursor = last = column(event);
  value = whole(last) ? 0 : 1;
  set(last, last);
});
kspace.addEventListener("pointermove", event => {
  if (!kspace.hasPointerCapture(event.pointerId)) return;
  const now = column(event);
  if (now !== last) set(last, now);
  last = now;
});
kspace.addEventListener("keydown", event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (step) cursor = (cursor + step + size) % size;
  else if (event.key === " ") { value = whole(cursor) ? 0 : 1; set(cursor, cursor); }
  else return;
  event.preventDefault();
  kspace.setAttribute("aria-valuenow", cursor);
  const state = whole(cursor) ? "measured" : "not measured";
  kspace.setAttribute("aria-valuetext", `line ${cursor}, ${state}`);
  paintKspace();
});
for (const kind of ["focus", "blur"]) kspace.addEventListener(kind, () => shown && paintKspace());

// A lesion where the reference is touched
$("target").addEventListener("pointerdown", event => {
  const box = $("target").getBoundingClientRect();
  lesion.x = (event.clientX - box.left) / box.width * size;
  lesion.y = (event.clientY - box.top) / box.height * size;
  if (+controls.lesion.value === 0) controls.lesion.value = 40;
  update();
});

update();
