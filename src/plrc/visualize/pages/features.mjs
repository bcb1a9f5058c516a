// Arithmetic of the explorer: numbers in, numbers out. Tested with `node --test` and in the browser.
//
// A feature grid has `dim` numbers per place, row by row. A place is row * columns + column.

/** Base64 -> Int8Array. */
export function bytes(text) {
  const raw = atob(text.trim());
  const out = new Int8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

/** Codes -> features: component d is offset[d] + scale[d] * code. */
export function dequantize(codes, offset, scale) {
  const dim = offset.length;
  const out = new Float32Array(codes.length);
  for (let start = 0; start < codes.length; start += dim) {
    for (let d = 0; d < dim; d++) out[start + d] = offset[d] + scale[d] * codes[start + d];
  }
  return out;
}

/** The feature of one place. */
export function featureAt(features, dim, place) {
  return features.subarray(place * dim, (place + 1) * dim);
}

/** Cosine of `query` with every place; 1 at the place `own`, where `query` comes from. */
export function affinity(features, query, own = -1) {
  const dim = query.length;
  const out = new Float32Array(features.length / dim);
  for (let place = 0, at = 0; place < out.length; place++) {
    let sum = 0;
    for (let d = 0; d < dim; d++) sum += features[at++] * query[d];
    out[place] = sum;
  }
  if (own >= 0) out[own] = 1;
  return out;
}

/** exp(value / temperature), divided by the sum over all values. */
export function softmax(values, temperature) {
  const [, highest] = range(values);
  const out = values.map((value) => Math.exp((value - highest) / temperature));
  const sum = out.reduce((total, value) => total + value, 0);
  return out.map((value) => value / sum);
}

/** [lowest, highest]. */
export function range(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** The highest value and its place; the first one if several are equal. */
export function peak(values) {
  let place = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[place]) place = i;
  return { place, value: values[place] };
}

/** Values -> pixels RGBA by a table of 256 colors RGB; `low` and below get the first, `high` and above the last. */
export function paint(values, low, high, table) {
  const out = new Uint8ClampedArray(4 * values.length);
  const span = high - low;
  for (let i = 0; i < values.length; i++) {
    const share = span > 1e-6 ? Math.min(Math.max((values[i] - low) / span, 0), 1) : 1;
    const entry = 3 * Math.round(255 * share);
    out[4 * i] = table[entry];
    out[4 * i + 1] = table[entry + 1];
    out[4 * i + 2] = table[entry + 2];
    out[4 * i + 3] = 255;
  }
  return out;
}

/** Features -> pixels RGBA; `color` holds three rows of dim weights and a bias, for shades from 0 to 1. */
export function shades(features, dim, color) {
  const out = new Uint8ClampedArray(4 * (features.length / dim));
  for (let place = 0; 4 * place < out.length; place++) {
    for (let channel = 0; channel < 3; channel++) {
      const row = channel * (dim + 1);
      let sum = color[row + dim];
      for (let d = 0; d < dim; d++) sum += color[row + d] * features[place * dim + d];
      out[4 * place + channel] = 255 * sum;
    }
    out[4 * place + 3] = 255;
  }
  return out;
}

/** The nearest neighbor of `query` in each of the grids {image, features}: {image, place, value}, most similar first. */
export function nearest(grids, query) {
  return grids
    .map(({ image, features }) => ({ image, ...peak(affinity(features, query)) }))
    .sort((a, b) => b.value - a.value || a.image - b.image);
}

/** The place at (x, y), given as shares of the image's sides. */
export function placeAt(x, y, columns, rows) {
  const column = Math.min(Math.max(Math.floor(x * columns), 0), columns - 1);
  const row = Math.min(Math.max(Math.floor(y * rows), 0), rows - 1);
  return row * columns + column;
}

/** The center of a place, as shares of the image's sides. */
export function center(place, columns, rows) {
  return [((place % columns) + 0.5) / columns, (Math.floor(place / columns) + 0.5) / rows];
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The place that is `distance` places away in the direction of an arrow key; null for another key. */
export function moved(place, key, columns, rows, distance = 1) {
  if (!(key in MOVES)) return null;
  const column = (place % columns) + distance * MOVES[key][0];
  const row = Math.floor(place / columns) + distance * MOVES[key][1];
  return Math.min(Math.max(row, 0), rows - 1) * columns + Math.min(Math.max(column, 0), columns - 1);
}
