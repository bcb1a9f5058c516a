// The explorer: events change the state, and `draw` shows it. Inlined into the page after features.mjs.
import {
  affinity, bytes, dequantize, featureAt, center, moved, nearest, paint, placeAt, range, shades, softmax,
} from "./features.mjs";

const MAX_OTHERS = 12; // other images that are shown
const REST_MS = 150; // the point must rest for this long before they are drawn
const MAX_DECODED = 150; // feature grids in memory

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("explorer-data").textContent);
const table = new Uint8Array(bytes(data.table).buffer);
const state = { image: 0, place: 0, pinned: false, step: data.steps.length - 1 };
const decoded = new Map(); // "image-network" -> features

/** Features of an image by a network; null while the page is still loading. */
function features(image, network) {
  const key = `${image}-${network}`;
  if (!decoded.has(key)) {
    const holder = byId(`features-${key}`);
    if (!holder) return null;
    const { offset, scale } = data.networks[network];
    if (decoded.size >= MAX_DECODED) decoded.delete(decoded.keys().next().value); // the oldest
    decoded.set(key, dequantize(bytes(holder.textContent), offset, scale));
  }
  return decoded.get(key);
}

function pictureOf(image) {
  const holder = byId(`picture-${image}`);
  return holder ? `data:image/jpeg;base64,${holder.textContent.trim()}` : thumbnailOf(image);
}

const thumbnailOf = (image) => `data:image/jpeg;base64,${data.images[image].thumbnail}`;

/** The network of a panel at the slider's step. */
const networkOf = (panel) => (panel.members.length > 1 ? panel.members[state.step] : panel.members[0]);

const number = (value) => (Math.abs(value) < 0.0005 ? "0.000" : value.toFixed(3));

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** An image with a heat map over it and a ring at the point. */
function createTile() {
  const img = element("img", { alt: "", draggable: false });
  const canvas = element("canvas");
  const ring = element("i", { className: "ring" });
  const box = element("div", { className: "picture" }, img, canvas, ring);
  return { box, img, canvas, ring };
}

function showImage(tile, image, source) {
  const { width, height, name } = data.images[image];
  tile.box.style.aspectRatio = `${width} / ${height}`;
  if (tile.img.src !== source) tile.img.src = source;
  tile.img.alt = name;
}

function putPixels(canvas, pixels, columns, rows) {
  if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
  canvas.getContext("2d").putImageData(new ImageData(pixels, columns, rows), 0, 0);
}

function ringAt(ring, place, { columns, rows }) {
  const [x, y] = center(place, columns, rows);
  ring.style.left = `${100 * x}%`;
  ring.style.top = `${100 * y}%`;
}

const panels = data.panels.map((panel) => {
  const tile = createTile();
  const range = element("p", { className: "soft" });
  const caption = element("figcaption");
  byId("panels").append(element("figure", {}, caption, tile.box, range));
  return { ...panel, ...tile, range, caption };
});

const temperature = () => 10 ** Number(byId("temperature").value);
const mode = () => byId("mode").value;

/** The cosines of the lowest and the highest color. */
const colorRange = (cosines) => (byId("common").checked ? [0, 1] : range(cosines));

/** The values of a panel's heat map, and those of the lowest and the highest color. */
function heatValues(map, dim, place) {
  const cosines = affinity(map, featureAt(map, dim, place), place);
  if (mode() === "softmax") {
    const shares = softmax(cosines, temperature());
    return { cosines, values: shares, low: 0, high: range(shares)[1] };
  }
  const [low, high] = colorRange(cosines);
  return { cosines, values: cosines, low, high };
}

function draw() {
  const image = data.images[state.image];
  const { columns, rows } = image;
  const [x, y] = center(state.place, columns, rows);
  byId("name").textContent = `${state.image + 1} of ${data.images.length}: ${image.name}`;
  byId("state").textContent = `${state.pinned ? "pinned" : "pointed"} at ${Math.round(100 * x)} % across, `
    + `${Math.round(100 * y)} % down`;
  byId("step-now").textContent = data.steps.length ? String(data.steps[state.step]) : "";
  byId("temperature-now").textContent = temperature().toPrecision(2);
  byId("temperature").disabled = mode() !== "softmax";
  byId("common").disabled = mode() !== "cosine";
  document.documentElement.style.setProperty("--heat", byId("opacity").value);
  for (const panel of panels) {
    const network = networkOf(panel);
    const { dim, color } = data.networks[network];
    const map = features(state.image, network);
    showImage(panel, state.image, pictureOf(state.image));
    ringAt(panel.ring, state.place, image);
    panel.ring.classList.toggle("pinned", state.pinned);
    panel.caption.textContent = panel.members.length > 1 ? `${panel.label}, step ${data.steps[state.step]}` : panel.label;
    if (!map) continue;
    if (mode() === "colors") {
      putPixels(panel.canvas, shades(map, dim, color), columns, rows);
      panel.range.textContent = "first three principal components";
    } else {
      const heat = heatValues(map, dim, state.place);
      putPixels(panel.canvas, paint(heat.values, heat.low, heat.high, table), columns, rows);
      const [low, high] = range(heat.cosines);
      panel.range.textContent = mode() === "softmax"
        ? `the point itself has ${(100 * heat.values[state.place]).toPrecision(2)} % of the attention`
        : `cosine ${number(low)} to ${number(high)}`;
    }
  }
  for (const [i, button] of [...byId("strip").children].entries()) {
    if (i === state.image) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

/** Heat maps of the same point on other images, most similar first. */
function drawOthers() {
  const list = byId("others");
  const network = networkOf(panels[Number(byId("judge").value)]);
  const { dim } = data.networks[network];
  const own = features(state.image, network);
  if (!own || data.images.length < 2) return;
  const query = featureAt(own, dim, state.place);
  const [low, high] = colorRange(affinity(own, query, state.place));
  const maps = [];
  for (let image = 0; image < data.images.length; image++) {
    const map = image === state.image ? null : features(image, network);
    if (map) maps.push({ image, features: map });
  }
  const neighbors = nearest(maps, query).slice(0, MAX_OTHERS);
  list.replaceChildren(...neighbors.map(({ image, place, value }) => {
    const { columns, rows, name } = data.images[image];
    const other = createTile();
    showImage(other, image, thumbnailOf(image));
    const map = features(image, network);
    if (mode() === "colors") putPixels(other.canvas, shades(map, dim, data.networks[network].color), columns, rows);
    else putPixels(other.canvas, paint(affinity(map, query), low, high, table), columns, rows);
    ringAt(other.ring, place, data.images[image]);
    const caption = element("span", { textContent: `${number(value)} ${name}` });
    const button = element("button", { type: "button", className: "other" }, other.box, caption);
    button.addEventListener("click", () => {
      goTo(image, place);
      state.pinned = true;
      change();
    });
    return button;
  }));
  byId("others-note").textContent = `${neighbors.length} of ${data.images.length - 1} other images, most similar first; `
    + "the ring marks the nearest neighbor of the point, with its cosine. Click an image to go there.";
}

let waiting = 0, resting = 0;

/** Draw once at the next frame, even if the state changes several times before. */
function change() {
  if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; draw(); });
  clearTimeout(resting);
  resting = setTimeout(drawOthers, REST_MS);
}

/** Go to an image; without a place, the point stays at the same share of both sides. */
function goTo(image, place) {
  const before = data.images[state.image];
  const [x, y] = center(state.place, before.columns, before.rows);
  state.image = (image + data.images.length) % data.images.length;
  const { columns, rows } = data.images[state.image];
  state.place = place ?? placeAt(x, y, columns, rows);
  change();
}

function placeOf(event, box) {
  const { left, top, width, height } = box.getBoundingClientRect();
  const { columns, rows } = data.images[state.image];
  return placeAt((event.clientX - left) / width, (event.clientY - top) / height, columns, rows);
}

function pin(place) {
  state.pinned = !(state.pinned && state.place === place);
  state.place = place;
  change();
}

for (const panel of panels) {
  panel.box.addEventListener("pointermove", (event) => {
    if (state.pinned && event.pointerType === "mouse") return;
    state.place = placeOf(event, panel.box);
    change();
  });
  panel.box.addEventListener("click", (event) => pin(placeOf(event, panel.box)));
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const { columns, rows } = data.images[state.image];
  const place = moved(state.place, event.key, columns, rows, event.shiftKey ? 4 : 1);
  const inside = event.target === document.body || byId("explorer").contains(event.target);
  if (place !== null && inside) state.place = place;
  else if (event.key === "Enter" && !event.target.closest("button, a, summary")) state.pinned = !state.pinned;
  else if (event.key === "Escape") state.pinned = false;
  else if (event.key === "n") return goTo(state.image + 1);
  else if (event.key === "p") return goTo(state.image - 1);
  else return;
  event.preventDefault();
  change();
});

for (const id of ["mode", "temperature", "opacity", "common", "judge"]) byId(id).addEventListener("input", change);
byId("smooth").addEventListener("input", (event) => {
  document.documentElement.classList.toggle("blocks", !event.target.checked);
});
byId("step").addEventListener("input", (event) => {
  state.step = Number(event.target.value);
  change();
});
byId("previous").addEventListener("click", () => goTo(state.image - 1));
byId("next").addEventListener("click", () => goTo(state.image + 1));
byId("step").max = String(Math.max(data.steps.length - 1, 0));
byId("step").value = String(state.step);
byId("judge").append(...panels.map((panel, i) => element("option", { value: String(i), textContent: panel.label })));
byId("strip").append(...data.images.map(({ name }, i) => {
  const button = element("button", { type: "button", title: name },
    element("img", { src: thumbnailOf(i), alt: name, loading: "lazy" }));
  button.addEventListener("click", () => goTo(i));
  return button;
}));
{
  const { columns, rows } = data.images[0];
  state.place = placeAt(0.5, 0.5, columns, rows);
}
draw();
panels[0].img.decode().then(() => performance.mark("first-picture"));
document.addEventListener("DOMContentLoaded", change); // the other images have arrived
