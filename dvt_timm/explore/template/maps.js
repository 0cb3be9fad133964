"use strict";

// Reads a photo's data and computes with it: no element of the page is touched here.
//
// Letters: N patches of a map, row by row; K components of a patch's direction; M dimensions that all photos share.

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// A map's directions. Their scalar products are the cosines of patches with the map's mean taken off.
class Directions {
  constructor(data) {
    this.count = data.steps.length; // K
    this.components = this.decode(data.codes, data.steps); // [N, K]
    this.link = this.decode(data.link, data.linkSteps); // [M, K]: the components' axes in the shared dimensions
  }

  decode(text, steps) {
    return Float32Array.from(new Int8Array(bytes(text).buffer), (code, i) => code * steps[i % this.count]);
  }

  patch(index) { // [K]
    return this.components.subarray(index * this.count, (index + 1) * this.count);
  }

  // The components of a patch of another map along this map's axes, by way of the shared dimensions: [K].
  translate(other, index) {
    const patch = other.patch(index);
    const translated = new Float32Array(this.count);
    for (let m = 0; m < this.link.length / this.count; m++) {
      let along = 0;
      for (let k = 0; k < other.count; k++) along += other.link[m * other.count + k] * patch[k];
      for (let k = 0; k < this.count; k++) translated[k] += this.link[m * this.count + k] * along;
    }
    return translated;
  }

  // The cosine of every patch of this map with a patch of a map: [N].
  similarity(other, index) {
    const query = other === this ? this.patch(index) : this.translate(other, index);
    const cosines = new Float32Array(this.components.length / this.count);
    for (let n = 0; n < cosines.length; n++) {
      let cosine = 0;
      for (let k = 0; k < this.count; k++) cosine += this.components[n * this.count + k] * query[k];
      cosines[n] = cosine;
    }
    if (other === this && query.some((component) => component)) cosines[index] = 1; // known without components
    return cosines;
  }
}

// A photo, decoded: what it is called, its grid, and the colors and directions of its patches.
class Photo {
  constructor(data, about) {
    this.name = data.name;
    [this.rows, this.columns] = data.grid;
    [this.cellHeight, this.cellWidth] = data.cell;
    this.removed = data.removed;
    this.salient = data.salient; // a patch that is far from the mean of either map
    this.ends = data.ends;
    this.picture = new Image();
    this.picture.src = "data:image/jpeg;base64," + data.picture;
    this.ready = this.picture.decode();
    this.norms = { raw: bytes(data.norm.raw), denoised: bytes(data.norm.denoised), taken: bytes(data.taken.norm) };
    this.maps = { raw: new Directions(data.maps.raw), denoised: new Directions(data.maps.denoised) };

    const rgb = (text) => this.paint(bytes(text));
    const coded = (codes, colors) => this.paint(Uint8Array.from([...codes].flatMap((code) => colors[code])));
    this.layers = { // what lies left and right of the divider
      pca: [rgb(data.pca.raw), rgb(data.pca.denoised)],
      clusters: [coded(bytes(data.clusters.raw), about.palette), coded(bytes(data.clusters.denoised), about.palette)],
      norm: [coded(this.norms.raw, about.colormap), coded(this.norms.denoised, about.colormap)],
      taken: [rgb(data.taken.pca), coded(this.norms.taken, about.colormap)],
    };
  }

  get width() {
    return this.columns * this.cellWidth;
  }

  get height() {
    return this.rows * this.cellHeight;
  }

  // Colors of patches [N * 3] as a picture of one pixel a patch.
  paint(colors) {
    const canvas = document.createElement("canvas");
    canvas.width = this.columns;
    canvas.height = this.rows;
    const image = new ImageData(this.columns, this.rows);
    for (let n = 0; n < this.columns * this.rows; n++) {
      image.data.set([colors[3 * n], colors[3 * n + 1], colors[3 * n + 2], 255], 4 * n);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  // Cosines as a picture: the color map from 0 to 1.
  paintCosines(cosines, colormap) {
    const colors = new Uint8Array(3 * cosines.length);
    cosines.forEach((cosine, n) => colors.set(colormap[Math.round(255 * Math.min(Math.max(cosine, 0), 1))], 3 * n));
    return this.paint(colors);
  }

  // The norm that a step of the color scale stands for.
  normOf(kind, index) {
    const [low, high] = this.ends[kind === "taken" ? "taken" : "norm"];
    return low + (this.norms[kind][index] / 255) * (high - low);
  }
}
