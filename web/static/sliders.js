// Slider cells of the book on a page without a kernel: every setting has its picture, made by tools/frames.py.
// Without scripts the figure stays as it stands in the page: the picture and the text of the notebook's own setting.
"use strict";

const element = (tag, parent, properties = {}) =>
  parent.appendChild(Object.assign(document.createElement(tag), properties));

/** Give one figure its controls. */
function revive(figure, number) {
  const about = JSON.parse(figure.querySelector("script").textContent);
  const text = figure.querySelector(".frames-text");
  const still = figure.querySelector("img");
  const pictures = new Map(); // number of a frame -> its picture, loading or loaded

  const picture = frame => {
    if (!pictures.has(frame)) {
      const image = new Image();
      image.src = about.frames[frame].picture;
      pictures.set(frame, image.decode().then(() => image));
    }
    return pictures.get(frame);
  };

  const controls = document.createElement("div");
  controls.className = "frames-controls";
  controls.dataset.preventSwipe = ""; // on a slide a finger moves them, and does not turn to the next
  controls.addEventListener("keydown", event => { // so do keys
    if (!event.ctrlKey && !event.metaKey && !event.altKey) event.stopPropagation();
  });
  const places = about.controls.map(control => control.start);
  about.controls.forEach((control, axis) => {
    const id = `frames-${number}-${axis}`;
    element("label", controls, {htmlFor: id, textContent: control.label});
    if (control.kind === "menu") {
      const menu = element("select", controls, {id});
      control.values.forEach((value, place) => menu.add(new Option(value, place)));
      menu.value = control.start;
      menu.addEventListener("change", () => move(axis, +menu.value));
      element("span", controls);
    } else {
      const slider = element("input", controls, {id, type: "range", min: 0, max: control.values.length - 1});
      slider.value = control.start;
      const readout = element("output", controls, {htmlFor: id});
      const tell = () => {
        readout.textContent = control.values[slider.value];
        slider.setAttribute("aria-valuetext", readout.textContent); // not the number of the place
      };
      slider.addEventListener("input", () => { tell(); move(axis, +slider.value); });
      tell();
    }
  });

  const panels = document.createElement("div");
  panels.className = "frames-panels";
  const rows = about.panels.length < 5 ? 1 : 2; // as in the notebook
  const first = about.panels.slice(0, Math.ceil(about.panels.length / rows));
  panels.style.setProperty("--columns", first.map(([width, height]) => `${width / height}fr`).join(" ")); // all equally high
  const drawn = about.panels.map(([width, height]) => {
    const panel = element("div", panels);
    const title = element("div", panel);
    const canvas = element("canvas", panel, {width, height});
    canvas.setAttribute("role", "img");
    return {title, canvas};
  });

  async function draw() {
    const frame = places.reduce((sum, place, axis) => sum * about.controls[axis].values.length + place, 0);
    const {titles, text: words, panels: sizes = about.panels} = about.frames[frame];
    figure.dataset.asked = frame;
    const image = titles.length ? await picture(frame) : null; // an impossible setting has a text only
    if (+figure.dataset.asked !== frame) return; // a later setting has overtaken this one
    text.innerHTML = words;
    let left = 0;
    if (image) drawn.forEach(({title, canvas}, place) => {
      const [width, height] = sizes[place]; // scans may differ in their size
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
      title.textContent = titles[place];
      canvas.setAttribute("aria-label", titles[place]);
      canvas.getContext("2d").drawImage(image, left, 0, width, height, 0, 0, width, height);
      left += width;
    });
    figure.dataset.shown = frame;
  }

  const move = (axis, place) => { places[axis] = place; draw(); };

  text.setAttribute("aria-live", "polite");
  figure.prepend(controls);
  draw().then(() => still.replaceWith(panels));
  // the other pictures once the reader comes near: a slider then answers at once
  new IntersectionObserver((entries, observer) => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    observer.disconnect();
    about.frames.forEach((frame, place) => frame.titles.length && picture(place));
  }).observe(figure);
}

document.querySelectorAll("figure.frames").forEach(revive);
