// What part of a region a pane shows: its centre in pixels of the region, and CSS pixels for each of those.

const MOST_ZOOM = 48;
const FIT_MARGIN = 0.999; // so that a fitted picture is not one rounded pixel too large

class View {
  constructor() {
    this.picture = { width: 1, height: 1 };
    this.pane = { width: 1, height: 1 };
    this.x = this.y = 0.5;
    this.zoom = 1;
  }

  get fitZoom() {
    return this.zoomFor(this.picture.width, this.picture.height);
  }

  get isFitted() {
    return this.zoom <= this.fitZoom * 1.0001;
  }

  zoomFor(width, height) {
    return Math.min(this.pane.width / width, this.pane.height / height, MOST_ZOOM) * FIT_MARGIN;
  }

  show([y, x, height, width]) {
    this.zoom = this.zoomFor(width, height);
    this.moveTo(x + width / 2, y + height / 2);
  }

  fit() {
    this.show([0, 0, this.picture.height, this.picture.width]);
  }

  // the pane has another size: what was whole stays whole
  resize(width, height) {
    const whole = this.isFitted;
    this.pane = { width, height };
    if (whole) this.fit();
    else this.zoomTo(this.zoom);
  }

  // zooms about a point of the pane, CSS pixels from its centre
  zoomTo(zoom, dx = 0, dy = 0) {
    const next = Math.min(MOST_ZOOM, Math.max(this.fitZoom, zoom));
    const x = this.x + dx / this.zoom - dx / next;
    const y = this.y + dy / this.zoom - dy / next;
    this.zoom = next;
    this.moveTo(x, y);
  }

  pan(dx, dy) {
    this.moveTo(this.x - dx / this.zoom, this.y - dy / this.zoom);
  }

  moveTo(x, y) {
    this.x = held(x, this.pane.width / this.zoom, this.picture.width);
    this.y = held(y, this.pane.height / this.zoom, this.picture.height);
  }

  // the pixels of the region of which any part is seen
  get box() {
    const [width, height] = [this.pane.width / this.zoom / 2, this.pane.height / this.zoom / 2];
    return {
      left: Math.max(0, Math.floor(this.x - width)),
      top: Math.max(0, Math.floor(this.y - height)),
      right: Math.min(this.picture.width, Math.ceil(this.x + width)),
      bottom: Math.min(this.picture.height, Math.ceil(this.y + height)),
    };
  }
}

// a centre such that no more than needed of the pane is empty
function held(centre, seen, length) {
  return seen >= length ? length / 2 : Math.min(length - seen / 2, Math.max(seen / 2, centre));
}
