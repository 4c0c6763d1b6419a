// The comparison view: which two pictures, of which window, and what is said about them.

const SAID_AFTER_MS = 700; // a screen reader hears the figures once a move is over
const MINUS = "\u2212";

function startComparison(settings) {
  const element = (id) => document.getElementById(id);
  const contents = document.querySelectorAll("script.region");
  const ramps = { error: ramp(settings.inferno), map: ramp(settings.viridis) };
  const selects = [element("left"), element("right")];
  const chips = [element("left-chip"), element("right-chip")];
  let region = null;
  let number = -1;
  let choice = 0; // counts choices and readings, so that only the last is shown
  let turn = 0;
  let loading = false;

  const stage = new Stage(element("stage"), element("divider"), () => read(), {
    " ": blink,
    x: swap,
    f: fullScreen,
    n: () => step(1),
    p: () => step(-1),
  });

  function open(next) {
    if (next === number) return;
    number = next;
    region = new Region(JSON.parse(contents[next].textContent), ramps, settings.reference);
    stage.view.picture = { width: region.width, height: region.height };
    if (!selects[0].options.length) fillSelects();
  }

  // shows a window: its region, and in it a place [y, x, height, width]
  async function show(button) {
    for (const other of document.querySelectorAll(".thumbnails [aria-current]")) other.removeAttribute("aria-current");
    button.setAttribute("aria-current", "true");
    open(Number(button.dataset.region));
    stage.view.show(button.dataset.place.split(",").map(Number));
    await choose();
  }

  function step(by) {
    const buttons = [...document.querySelectorAll(".thumbnails:not([hidden]) button")];
    const at = buttons.findIndex((button) => button.hasAttribute("aria-current"));
    const next = buttons[(at + by + buttons.length) % buttons.length];
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
    show(next);
  }

  async function choose() {
    const [mine, shown] = [++choice, region];
    loading = true;
    stage.element.setAttribute("aria-busy", "true");
    const canvases = await Promise.all(selects.map((select) => shown.canvas(select.value)));
    if (mine !== choice) return;
    loading = false;
    stage.sides = canvases;
    legends();
    stage.update();
  }

  function fillSelects() {
    const pictures = region.layers.filter((layer) => layer.kind === "picture");
    const groups = [
      ["Pictures", pictures.map((layer) => [`picture:${layer.key}`, layer.title])],
      ["Luma error", pictures.filter((layer) => layer.key !== settings.reference).map((layer) => [`error:${layer.key}`, `error: ${layer.title}`])],
      ["Maps", region.layers.filter((layer) => layer.kind !== "picture").map((layer) => [`map:${layer.key}`, layer.title])],
    ];
    for (const select of selects)
      for (const [title, options] of groups.filter(([, options]) => options.length)) {
        const group = Object.assign(document.createElement("optgroup"), { label: title });
        group.append(...options.map(([value, text]) => new Option(text, value)));
        select.append(group);
      }
    selects[0].value = `picture:${settings.left}`;
    selects[1].value = `picture:${settings.right}`;
  }

  const titles = () => selects.map((select) => select.selectedOptions[0].text);

  // the figures of what is in view
  async function read() {
    if (!region) return;
    const [mine, shown, box] = [++turn, region, stage.view.box];
    const values = await Promise.all(selects.map((select) => valueOf(shown, select.value, box)));
    if (mine !== turn) return;
    const texts = selects.map((select, side) => readingOf(shown, select.value, values[side]));
    chips.forEach((chip, side) => {
      chip.replaceChildren(text("b", titles()[side]), ...(texts[side] ? [text("span", texts[side])] : []));
      chip.hidden = stage.mode === "blink" && side !== Number(stage.second);
    });
    tell(shown, box, values, texts);
    if (!loading && !stage.waiting) stage.element.removeAttribute("aria-busy");
  }

  // PSNR of a picture or of the picture that an error belongs to; null where there is none
  async function valueOf(shown, choice, box) {
    const [kind, key] = split(choice);
    return kind === "map" || key === settings.reference ? null : shown.psnr(key, box);
  }

  function readingOf(shown, choice, value) {
    if (value !== null) return Number.isNaN(value) ? "nothing that is scored" : `${decibels(value)} dB in view`;
    const layer = shown.layer(split(choice)[1]);
    return layer.kind === "map" ? `${layer.low.toFixed(2)} to ${layer.high.toFixed(2)}` : "";
  }

  function tell(shown, box, values, texts) {
    const percent = `${Math.round(100 * stage.view.zoom)} %`;
    const range = (offset, first, end) => `${offset + first} to ${offset + end - 1}`;
    const where = `${shown.title}: rows ${range(shown.y, box.top, box.bottom)}, columns ${range(shown.x, box.left, box.right)}`;
    element("percent").textContent = percent;
    element("where").textContent = where;
    const difference = values[1] - values[0];
    const known = values.every((value) => value !== null) && Number.isFinite(difference);
    const figure = known ? `${difference < 0 ? MINUS : "+"}${Math.abs(difference).toFixed(3)} dB` : "";
    const [left, right] = titles();
    const line = known ? [text("b", figure, difference < 0 ? "bad" : "good"), ` ${right} over ${left} in view`] : [];
    element("difference").replaceChildren(...line);
    stage.element.setAttribute("aria-label", `${left} at the left, ${right} at the right, of ${shown.title}`);
    clearTimeout(tell.timer);
    tell.timer = setTimeout(() => {
      const seen = stage.mode === "blink" ? [`shown: ${titles()[Number(stage.second)]}`] : [];
      const sides = [left, right].map((title, side) => `${title} ${texts[side]}`.trim());
      element("live").textContent = [...seen, ...sides, figure && `difference ${figure}`, where, `zoom ${percent}`].filter(Boolean).join("; ");
    }, SAID_AFTER_MS);
  }

  function legends() {
    const shown = new Map(selects.map((select) => [legendKey(select.value), select.value]));
    element("legends").replaceChildren(...[...shown.values()].map(legendOf).filter(Boolean));
  }

  const legendKey = (choice) => (choice.startsWith("error:") ? "error" : choice);

  function legendOf(choice) {
    const [kind, key] = split(choice);
    if (kind === "picture") return null;
    const layer = region.layer(key);
    const line = document.createElement("span");
    if (kind === "error") line.append("Luma error without sign: 0", rampOf(settings.inferno), `${region.brightest.toFixed(0)} of 255`);
    else if (layer.kind === "map") line.append(`${layer.title}: ${layer.low.toFixed(2)}`, rampOf(settings.viridis), layer.high.toFixed(2));
    else {
      line.append("Nearest expert:");
      for (const [name, colour] of settings.experts) line.append(swatch(colour), name);
    }
    return line;
  }

  function rampOf(anchors) {
    const bar = text("i", "", "ramp");
    bar.style.background = `linear-gradient(to right, ${anchors.map((colour) => `#${colour}`).join(", ")})`;
    return bar;
  }

  function swatch(colour) {
    const square = text("i", "", "swatch");
    square.style.background = colour;
    return square;
  }

  function swap() {
    [selects[0].value, selects[1].value] = [selects[1].value, selects[0].value];
    choose();
  }

  function setMode(mode) {
    document.querySelector(`input[name=mode][value=${mode}]`).checked = true;
    stage.setMode(mode);
  }

  function blink() {
    if (stage.mode !== "blink") setMode("blink");
    stage.blink();
  }

  function fullScreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else element("compare").requestFullscreen?.();
  }

  function setList(name) {
    for (const list of document.querySelectorAll(".thumbnails")) list.hidden = list.id !== `list-${name}`;
  }

  const click = (id, act) => element(id).addEventListener("click", act);
  click("swap", swap);
  click("in", () => stage.zoomBy(STEP ** 2));
  click("out", () => stage.zoomBy(1 / STEP ** 2));
  click("full", fullScreen);
  click("fit", () => {
    stage.view.fit();
    stage.update();
  });
  element("full").hidden = !document.fullscreenEnabled;
  document.addEventListener("fullscreenchange", () => {
    element("full").textContent = document.fullscreenElement ? "Leave full screen" : "Full screen";
  });
  for (const select of selects) select.addEventListener("change", choose);
  for (const input of document.querySelectorAll("input[name=mode]")) input.addEventListener("change", () => setMode(input.value));
  for (const input of document.querySelectorAll("input[name=list]")) input.addEventListener("change", () => setList(input.value));
  for (const button of document.querySelectorAll(".thumbnails button")) button.addEventListener("click", () => show(button));
  setMode("slider");
  const list = document.querySelector("input[name=list]:checked").value;
  setList(list);
  return show(document.querySelector(`#list-${list} button`));
}

function decibels(value) {
  return value === Infinity ? "∞" : value.toFixed(3);
}

function text(tag, content, className = "") {
  return Object.assign(document.createElement(tag), { textContent: content, className });
}

const comparisonSettings = document.getElementById("comparison");
if (comparisonSettings) startComparison(JSON.parse(comparisonSettings.textContent));
