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
    slider.nextElementSibling.textContent = text + (slider.dataset.unit ?? "");
    slider.setAttribute("aria-valuetext", slider.nextElementSibling.textContent);
  }
  if (running) { waiting = true; return; }
  running = true;
  waiting = false;
  worker.postMessage(settings());
}

function paint(canvas, grey) {
  const pen = canvas.getContext("2d"), picture = pen.createImageData(size, size);
  for (let k = 0; k < size * size; k++) {
    const [r, g, b] = grey(k);
    picture.data.set([255 * r, 255 * g, 255 * b, 255], 4 * k);
  }
  pen.putImageData(picture, 0, 0);
}

const same = value => [value, value, value];
let cursor = size >> 1; // the line that keys move

function paintKspace() {
  const peak = shown.kspace.reduce((a, b) => Math.max(a, b)), focused = document.activeElement === $("kspace");
  paint($("kspace"), k => {
    const value = Math.max(0, 1 + Math.log10(Math.max(shown.kspace[k] / peak, 1e-4)) / 4);
    const line = k % size, all = mask ?? shown.mask, taken = all[all.length === size ? line : k];
    if (focused && line === cursor) return [1, 0.6, 0];
    return taken ? same(0.15 + 0.85 * value) : [0.1 * value, 0.14 * value, 0.35 * value];
  });
}

function show(result) {
  const peak = heads.heads[controls.head.value].maximum;
  shown = result;
  paint($("image"), k => same(result.image[k] / peak));
  paint($("target"), k => same(result.target[k] / peak));
  paint($("error"), k => same(3 * Math.abs(result.image[k] - result.target[k]) / peak));
  paint($("guessed"), k => same(2 * result.guessed[k] / peak));
  paint($("invented"), k => same(3 * result.invented[k] / peak));
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
