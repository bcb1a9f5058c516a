// The arithmetic of the explorer, against slow forms of it. Run by test_scripts.py; PAGES names the folder of the modules.
import assert from "node:assert/strict";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const f = await import(pathToFileURL(`${process.env.PAGES}/features.mjs`));

const close = (a, b, error = 1e-6) => {
  assert.equal(a.length, b.length);
  a.forEach((value, i) => assert.ok(Math.abs(value - b[i]) <= error, `${i}: ${value} is not ${b[i]}`));
};

test("bytes are signed", () => {
  const text = Buffer.from(Int8Array.of(-127, -1, 0, 1, 127).buffer).toString("base64");
  assert.deepEqual([...f.bytes(` ${text}\n`)], [-127, -1, 0, 1, 127]);
});

test("a code is a multiple of its component's scale above its offset", () => {
  close([...f.dequantize(Int8Array.of(10, -20, 0, 127), [0.5, 1], [0.1, 0.05])], [1.5, 0, 0.5, 7.35], 1e-6);
});

test("affinity is the product of a place's feature with every other", () => {
  const features = Float32Array.of(1, 0, 0.6, 0.8, -1, 0);
  close([...f.affinity(features, f.featureAt(features, 2, 1))], [0.6, 1, -0.6]);
  const reduced = Float32Array.of(0.9, 0, 0.5, 0.5);
  close([...f.affinity(reduced, f.featureAt(reduced, 2, 0), 0)], [1, 0.45]); // 1 with itself, although components were dropped
});

test("softmax sums to one, keeps the order, and sharpens as the temperature falls", () => {
  const values = Float32Array.of(0.2, 0.9, 0.5);
  const warm = f.softmax(values, 1), cold = f.softmax(values, 0.01);
  const sum = Math.exp(0.2) + Math.exp(0.9) + Math.exp(0.5);
  close([...warm], [Math.exp(0.2) / sum, Math.exp(0.9) / sum, Math.exp(0.5) / sum]);
  assert.ok(cold[1] > 0.999999 && !cold.some(Number.isNaN));
});

test("colors run from the table's first to its last, and clamp", () => {
  const table = Uint8Array.from({ length: 768 }, (_, i) => Math.floor(i / 3));
  const pixels = f.paint(Float32Array.of(-1, 0, 0.5, 1, 2), 0, 1, table);
  assert.deepEqual([...pixels.filter((_, i) => i % 4 === 0)], [0, 0, 128, 255, 255]);
  assert.ok(pixels.every((value, i) => i % 4 !== 3 || value === 255));
  assert.equal(f.paint(Float32Array.of(0.3), 0.3, 0.3, table)[0], 255); // one value everywhere: drawn as the highest
});

test("shades are three affine functions of the feature", () => {
  const pixels = f.shades(Float32Array.of(1, 0, 0, 1), 2, [1, 0, 0, 0, 0, 0.5, 0, 2, -0.5]);
  assert.deepEqual([...pixels], [255, 128, 0, 255, 0, 128, 255, 255]);
});

test("nearest neighbors come most similar first, one for each image", () => {
  const maps = [
    { image: 4, features: Float32Array.of(1, 0, 0, 1) },
    { image: 7, features: Float32Array.of(0.6, 0.8, 0.8, 0.6, 0, 1) },
  ];
  const neighbors = f.nearest(maps, Float32Array.of(0.8, 0.6));
  assert.deepEqual(neighbors.map(({ image, place }) => [image, place]), [[7, 1], [4, 0]]);
  close(neighbors.map(({ value }) => value), [1, 0.8]);
});

test("places and shares of an image's sides are inverse, and the border belongs to the last place", () => {
  for (let place = 0; place < 12; place++) {
    assert.equal(f.placeAt(...f.center(place, 4, 3), 4, 3), place);
  }
  assert.equal(f.placeAt(1, 1, 4, 3), 11);
  assert.equal(f.placeAt(-0.1, 2, 4, 3), 8);
});

test("arrow keys move by places and stop at the border", () => {
  assert.equal(f.moved(5, "ArrowRight", 4, 3), 6);
  assert.equal(f.moved(7, "ArrowRight", 4, 3), 7);
  assert.equal(f.moved(5, "ArrowDown", 4, 3, 4), 9);
  assert.equal(f.moved(5, "ArrowUp", 4, 3), 1);
  assert.equal(f.moved(5, "x", 4, 3), null);
});
