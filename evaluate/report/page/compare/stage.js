// Draws two canvases through one view, and turns pointers, wheel and keys into moves of it.

const TAP_PX = 6; // a pointer that moves less has tapped
const GRAB_PX = 22; // around the divider
const OVERVIEW_PX = 110; // longest side
const STEP = 1.25; // of the zoom, for one key or button
const KEY_PAN_PX = 60;

class Stage {
  // changed: called after every move; actions: key -> what it does
  constructor(element, divider, changed, actions) {
    Object.assign(this, { element, divider, changed, actions });
    this.canvas = element.querySelector("canvas");
    this.view = new View();
    this.sides = [null, null]; // canvases
    this.mode = "slider";
    this.share = 0.5; // of the pane's width at the divider's left
    this.second = true; // whether blinking shows the right picture
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(element);
    this.listen();
  }

  listen() {
    const on = (name, act, options) => this.element.addEventListener(name, act, options);
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.move(event));
    on("pointerup", (event) => this.up(event));
    on("pointercancel", (event) => this.forget(event));
    on("wheel", (event) => this.wheel(event), { passive: false });
    on("keydown", (event) => this.key(event));
  }

  setMode(mode) {
    this.mode = mode;
    for (const name of ["slider", "blink", "beside"]) this.element.classList.toggle(name, name === mode);
    this.resize();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.element;
    if (!width) return;
    this.view.resize(this.mode === "beside" ? width / 2 : width, height);
    this.update();
  }

  update() {
    this.element.setAttribute("aria-busy", "true");
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
      this.changed();
    });
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.element;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext("2d");
    const [left, right] = this.sides;
    const paint = (picture, from, to, centre) => this.paint(context, ratio, picture, from, to, centre);
    if (this.mode === "slider") {
      paint(right, this.share * width, width, width / 2);
      paint(left, 0, this.share * width, width / 2);
    } else if (this.mode === "blink") {
      paint(this.second ? right : left, 0, width, width / 2);
    } else {
      paint(left, 0, width / 2 - 1, width / 4);
      paint(right, width / 2 + 1, width, (3 * width) / 4);
    }
    if (!this.view.isFitted) this.overview(context, ratio, this.mode === "blink" && this.second ? right : left);
    this.divider.style.left = `${100 * this.share}%`;
    this.divider.setAttribute("aria-valuenow", Math.round(100 * this.share));
    this.element.classList.toggle("fitted", this.view.isFitted);
  }

  // the picture between two places of the stage's width, the view's centre lying at a third
  paint(context, ratio, picture, from, to, centre) {
    if (!picture) return;
    const { zoom, x, y, pane } = this.view;
    context.save();
    context.beginPath();
    context.rect(Math.round(from * ratio), 0, Math.round(to * ratio) - Math.round(from * ratio), this.canvas.height);
    context.clip();
    const place = (middle, at) => Math.round((middle - at * zoom) * ratio);
    context.setTransform(zoom * ratio, 0, 0, zoom * ratio, place(centre, x), place(pane.height / 2, y));
    context.imageSmoothingEnabled = zoom * ratio < 1; // enlarged pixels keep their edges
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0);
    context.restore();
  }

  // the whole picture, small, in a corner, and on it what is in view
  overview(context, ratio, picture) {
    if (!picture) return;
    const scale = OVERVIEW_PX / Math.max(picture.width, picture.height);
    const { left, top, right, bottom } = this.view.box;
    const edge = 10;
    context.setTransform(ratio, 0, 0, ratio, edge * ratio, this.canvas.height - (edge + picture.height * scale) * ratio);
    context.fillStyle = "#fff";
    context.fillRect(-1, -1, picture.width * scale + 2, picture.height * scale + 2);
    context.imageSmoothingEnabled = true;
    context.drawImage(picture, 0, 0, picture.width * scale, picture.height * scale);
    context.lineWidth = 2;
    for (const [colour, out] of [["#000", 1], ["#fff", 0]]) {
      context.strokeStyle = colour;
      const size = [(right - left) * scale + 2 * out, (bottom - top) * scale + 2 * out];
      context.strokeRect(left * scale - out, top * scale - out, ...size);
    }
  }

  // where an event lies, CSS pixels: in the stage, and from the centre of the pane that it is in
  place(event) {
    const box = this.element.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const { width, height } = this.view.pane;
    return { x, y, dx: (x % width) - width / 2, dy: y - height / 2 };
  }

  down(event) {
    if (event.button) return;
    this.element.setPointerCapture(event.pointerId);
    const place = this.place(event);
    this.pointers.set(event.pointerId, place);
    if (this.pointers.size > 1) this.tapping = false;
    else Object.assign(this, { tapping: true, start: place, dragsDivider: this.grabs(place) });
    this.element.classList.add("dragging");
  }

  grabs(place) {
    const near = Math.abs(place.x - this.share * this.view.pane.width) < GRAB_PX;
    return this.mode === "slider" && (near || this.view.isFitted);
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.place(event);
    if (this.pointers.size > 1) this.pinch(event.pointerId, before, now);
    else this.drag(before, now);
    this.pointers.set(event.pointerId, now);
  }

  drag(before, now) {
    if (this.tapping && Math.hypot(now.x - this.start.x, now.y - this.start.y) < TAP_PX) return;
    this.tapping = false;
    if (this.dragsDivider) this.setShare(now.x / this.view.pane.width);
    else this.view.pan(now.x - before.x, now.y - before.y);
    this.update();
  }

  pinch(id, before, now) {
    const [other] = [...this.pointers].filter(([key]) => key !== id).map(([, place]) => place);
    const distance = (place) => Math.max(1, Math.hypot(place.x - other.x, place.y - other.y));
    this.view.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    const [dx, dy] = [(now.dx + other.dx) / 2, (now.dy + other.dy) / 2];
    this.view.zoomTo((this.view.zoom * distance(now)) / distance(before), dx, dy);
    this.update();
  }

  up(event) {
    const tapped = this.tapping && this.pointers.has(event.pointerId);
    this.forget(event);
    if (!tapped) return;
    if (this.mode === "blink") this.blink();
    else if (this.mode === "slider") this.setShare(this.place(event).x / this.view.pane.width);
    this.update();
  }

  forget(event) {
    this.pointers.delete(event.pointerId);
    this.tapping = false;
    if (!this.pointers.size) this.element.classList.remove("dragging");
  }

  wheel(event) {
    if (!event.ctrlKey && !event.metaKey && !document.fullscreenElement) return; // the page scrolls
    event.preventDefault();
    const { dx, dy } = this.place(event);
    this.view.zoomTo(this.view.zoom * Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) / 200), dx, dy);
    this.update();
  }

  setShare(share) {
    this.share = Math.min(1, Math.max(0, share));
    this.update();
  }

  blink() {
    this.second = !this.second;
    this.update();
  }

  zoomBy(factor) {
    this.view.zoomTo(this.view.zoom * factor);
    this.update();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = this.keyAction(event);
    if (!act) return;
    event.preventDefault();
    act();
    this.update();
  }

  keyAction(event) {
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (arrow && (event.shiftKey || event.target === this.divider))
      return () => this.setShare(this.share + (arrow[0] - arrow[1]) * 0.02);
    if (arrow) return () => this.view.pan(-KEY_PAN_PX * arrow[0], -KEY_PAN_PX * arrow[1]);
    const own = {
      "+": () => this.zoomBy(STEP),
      "=": () => this.zoomBy(STEP),
      "-": () => this.zoomBy(1 / STEP),
      0: () => this.view.fit(),
      1: () => this.view.zoomTo(1),
      Home: () => this.setShare(0),
      End: () => this.setShare(1),
    };
    return own[event.key] || this.actions[event.key.toLowerCase()];
  }
}
