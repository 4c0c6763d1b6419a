// The pictures of one region: decoded where they are asked for, and what is computed from their pixels.

const BT601 = [65.481, 128.553, 24.966]; // ITU-R BT.601, RGB in 0..1 to studio-range luma without its offset

// (r, g, b) of 256 steps through the anchors, hexadecimal colours
function ramp(anchors) {
  const colours = anchors.map((text) => [0, 2, 4].map((start) => parseInt(text.slice(start, start + 2), 16)));
  return Array.from({ length: 256 }, (_, step) => {
    const place = (step / 255) * (colours.length - 1);
    const first = Math.min(Math.floor(place), colours.length - 2);
    return [0, 1, 2].map((i) => Math.round(colours[first][i] + (place - first) * (colours[first + 1][i] - colours[first][i])));
  });
}

class Region {
  // content: see _region in report.py; ramps: {error, map}; reference: the key of HR
  constructor(content, ramps, reference) {
    Object.assign(this, content);
    this.ramps = ramps;
    this.reference = reference;
    this.made = new Map(); // what -> promise of a canvas or of numbers
  }

  layer(key) {
    return this.layers.find((layer) => layer.key === key);
  }

  once(what, make) {
    if (!this.made.has(what)) this.made.set(what, make());
    return this.made.get(what);
  }

  // the canvas of a choice, such as "picture:fusion", "error:fusion" or "map:gates: hat"
  canvas(choice) {
    const [kind, key] = split(choice);
    return this.once(choice, () => {
      if (kind === "error") return this.errorCanvas(key);
      return this.layer(key).kind === "map" ? this.mapCanvas(key) : this.decoded(key);
    });
  }

  decoded(key) {
    return this.once(`decoded:${key}`, async () => {
      const image = new Image();
      image.src = this.layer(key).source;
      await image.decode();
      const canvas = this.newCanvas();
      canvas.getContext("2d", { willReadFrequently: true }).drawImage(image, 0, 0);
      return canvas;
    });
  }

  async pixels(key) {
    const canvas = await this.decoded(key);
    return canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, this.width, this.height).data;
  }

  // luma in levels of 8 bits, in float64 and not rounded
  luma(key) {
    return this.once(`luma:${key}`, async () => {
      const rgba = await this.pixels(key);
      const luma = new Float64Array(this.width * this.height);
      for (let i = 0, j = 0; i < luma.length; i++, j += 4)
        luma[i] = (BT601[0] * rgba[j] + BT601[1] * rgba[j + 1] + BT601[2] * rgba[j + 2]) / 255;
      return luma;
    });
  }

  errors(key) {
    return this.once(`errors:${key}`, async () => {
      const [ours, truth] = await Promise.all([this.luma(key), this.luma(this.reference)]);
      return ours.map((value, i) => value - truth[i]);
    });
  }

  async errorCanvas(key) {
    const errors = await this.errors(key);
    return this.coloured((i) => (Math.abs(errors[i]) / this.brightest) * 255, this.ramps.error);
  }

  async mapCanvas(key) {
    const rgba = await this.pixels(key);
    return this.coloured((i) => rgba[4 * i], this.ramps.map);
  }

  coloured(level, colours) {
    const canvas = this.newCanvas();
    const image = new ImageData(this.width, this.height);
    for (let i = 0; i < this.width * this.height; i++) {
      const [r, g, b] = colours[Math.min(255, Math.max(0, Math.round(level(i))))];
      image.data.set([r, g, b, 255], 4 * i);
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  newCanvas() {
    return Object.assign(document.createElement("canvas"), { width: this.width, height: this.height });
  }

  // PSNR-Y in dB of a picture within a rectangle {left, top, right, bottom}; NaN where nothing in it counts
  async psnr(key, box) {
    const errors = await this.errors(key);
    const { left, top, right, bottom } = this.counted(box);
    let sum = 0;
    for (let y = top; y < bottom; y++)
      for (let i = y * this.width + left; i < y * this.width + right; i++) sum += errors[i] * errors[i];
    const count = Math.max(0, right - left) * Math.max(0, bottom - top);
    return count ? -10 * Math.log10(sum / count / 255 ** 2) : NaN;
  }

  // the part of a rectangle that the scores count
  counted(box) {
    const [top, left, bottom, right] = this.uncounted;
    return {
      left: Math.max(box.left, left),
      top: Math.max(box.top, top),
      right: Math.min(box.right, this.width - right),
      bottom: Math.min(box.bottom, this.height - bottom),
    };
  }
}

// "kind:key" as [kind, key]; a key may contain colons
function split(choice) {
  const colon = choice.indexOf(":");
  return [choice.slice(0, colon), choice.slice(colon + 1)];
}
